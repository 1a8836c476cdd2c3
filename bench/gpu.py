"""On a GPU: the kernels against a copy of the same bytes, and the whole loop against bare passes.

The share of a copy is how many bytes a kernel reads in a second, of those that a plain copy on the
same GPU reads and writes: what is read once and not written can reach 1.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from bench import subjects
from bench.causal import bare, run_loop
from bench.timing import Figure, figure, in_turns, ratio, seconds
from klcli.sources.hf.causal import CausalSource

ROWS, ROUNDS = 8_192, 5
WIDTHS = (49_152, 151_936, 262_144)
DTYPES = (torch.bfloat16, torch.float32)
SHAPES = ("SmolLM2-135M", "Qwen2.5-0.5B")
WINDOWS, CONTEXT = 64, 2_048
SIDES = {1: "one side", 2: "pair"}


def figures(scale: float = 1.0) -> Iterator[Figure | str]:
    """Kernels by themselves, then two models of each shape, each alone and against the other."""
    if not torch.cuda.is_available():
        yield "GPU: there is none here"
        return
    name = torch.cuda.get_device_name()
    for width in WIDTHS:
        for dtype in DTYPES:
            yield from _kernels(f"{name}, V = {width:,}, {_short(dtype)}", width, dtype, scale)
    for shape in SHAPES:
        for dtype in DTYPES:
            yield from _loops(f"{name}, {shape}, {_short(dtype)}", shape, dtype, scale)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _kernels(what: str, width: int, dtype: torch.dtype, scale: float) -> Iterator[Figure]:
    """Nanoseconds a row of logits that spread as a model's do, and the share of a copy."""
    rows = max(1, round(ROWS * scale))
    logits = [3 * torch.randn(rows, width, device="cuda")]
    logits.append(logits[0] + 0.1 * torch.randn_like(logits[0]))
    logits = [side.to(dtype) for side in logits]
    targets = torch.zeros(rows, dtype=torch.long, device="cuda")
    target = torch.empty_like(logits[0])
    jobs: list[Callable[[], object]] = [partial(target.copy_, logits[0])]
    jobs += [partial(_measure, logits[:n], targets, width) for n in SIDES]
    times = in_turns(ROUNDS, *(partial(_on_the_gpu, job) for job in jobs))
    speed = [2 * target.nbytes / copy for copy, *_ in times]
    yield figure(f"copy, {what}", [one / 1e12 for one in speed], None, unit="TB/s")
    for number, (sides, name) in enumerate(SIDES.items(), 1):
        taken = [row[number] for row in times]
        yield figure(f"{name}, {what}", [1e9 * t / rows for t in taken], None, unit="ns a row")
        share = [sides * target.nbytes / t / s for t, s in zip(taken, speed, strict=True)]
        yield figure(f"{name}, {what}, share of a copy", share, None)


def _measure(logits: Sequence[torch.Tensor], targets: torch.Tensor, width: int) -> object:
    from klcli.measure.kernels import gpu  # which takes Triton, and that is not everywhere

    return gpu.measure_rows(logits, targets, width, width)


def _on_the_gpu(job: Callable[[], object]) -> float:
    """How long the longest piece of work on the GPU of a job takes, in seconds.

    It is the copy, or the kernel: what brings its columns to the CPU is short beside it.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        job()
        torch.cuda.synchronize()
    return float(max(event.device_time_total for event in found.key_averages())) / 1e6


def _loops(what: str, shape: str, dtype: torch.dtype, scale: float) -> Iterator[Figure]:
    model = subjects.random_source(shape)
    pair = [subjects.on_device(one, "cuda", dtype) for one in (model, subjects.rounded(model))]
    del model
    table = subjects.windows(pair, max(1, round(WINDOWS * scale)), CONTEXT)
    for command, sources in (("perplexity", pair[:1]), ("compare", pair)):
        loop = partial(_synchronised, run_loop, sources, table)
        name = f"{command}, {what}"
        yield ratio(
            f"{name} ÷ bare forward passes",
            loop,
            partial(_synchronised, bare, sources, table),
            goal=None,
        )
        taken = [seconds(loop) for _ in range(3)]
        yield figure(name, [table.tokens / t / 1e3 for t in taken], None, unit="thousand tokens/s")
        for job, by in ((run_loop, name), (bare, f"bare passes of {name}")):
            yield figure(
                f"peak over the weights, {by}", [_peak(job, sources, table)], None, unit="MB"
            )


def _synchronised(job: Any, sources: Sequence[CausalSource], table: Any) -> None:
    job(sources, table)
    torch.cuda.synchronize()


def _peak(job: Any, sources: Sequence[CausalSource], table: Any) -> float:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _synchronised(job, sources, table)
    return (torch.cuda.max_memory_allocated() - before) / 2**20
