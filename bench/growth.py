"""How time and memory grow with the text.

Time: loop and report on one, two, four and eight times as many tokens, each as time a token
against the median of all. It is processor time on one thread, which what else the machine does
lengthens less. Memory: a command's peak on ten times the text, less 1.05 times its peak on the
text, by the tokens that were added.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

import klcli
from bench import subjects
from bench.timing import KLCLI, Figure, figure, in_turns, run_process
from klcli.align import align
from klcli.align.alignment import Alignment
from klcli.judge.conclude import Judging, conclude
from klcli.measure.evaluate import evaluate
from klcli.measure.scores import SIDES
from klcli.sources.conditions import Conditions
from klcli.sources.hf.causal import CausalSource
from klcli.sources.hf.loading import load_model
from klcli.sources.options import LoadOptions
from klcli.text.corpus import Document
from klcli.text.examples import Dataset
from klcli.text.scope import Scope

FACTORS = (1, 2, 4, 8)
ROUNDS = 5
DEVIATION = 5.0
TOKENS = 200_000
COPY_TOKENS = 3600
"""About how many tokens the text of the fixtures has."""
PEAK_GROWTH, BYTES = 1.05, 32


def figures(scale: float = 1.0) -> Iterator[Figure]:
    """Time with a real body and with next to none, memory with both commands."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    smollm2 = subjects.random_source("SmolLM2-135M")
    yield _linearity("perplexity, SmolLM2-135M", [smollm2], _at_least_one(2 * scale), 256)
    tiny = [_load(subjects.REFERENCE), _load(subjects.CANDIDATE)]
    yield _linearity("compare, the fixtures' models", tiny, _at_least_one(256 * scale), 64)
    torch.set_num_threads(threads)
    yield from _peaks(scale)


def _at_least_one(number: float) -> int:
    return max(1, round(number))


def _load(path: Path) -> CausalSource:
    source = load_model(str(path), LoadOptions(device="cpu"))
    assert isinstance(source, CausalSource)
    return source


def _linearity(name: str, sources: Sequence[CausalSource], windows: int, context: int) -> Figure:
    text = subjects.text(1 + FACTORS[-1] * windows * context // COPY_TOKENS)
    corpus = Dataset(
        name="text", sha256="", examples=(Document(name="text", content=text.encode()),)
    )
    whole = align(sources, [corpus], Scope(context=context))
    parts = [replace(whole, table=whole.table.limited(windows * factor)) for factor in FACTORS]
    budget = min(sources[0].batch_tokens, windows * context)
    times = in_turns(ROUNDS, *(partial(_score, sources, part, budget) for part in parts))
    per_token = np.array(times) / [part.table.tokens for part in parts]
    deviations = 100 * (per_token / np.median(per_token) - 1)
    medians = np.median(deviations, axis=0)
    shown = ", ".join(
        f"{factor}× {value:+.1f}" for factor, value in zip(FACTORS, medians, strict=True)
    )
    return Figure(
        measure=f"time a token, {name}, from {parts[0].table.tokens} tokens on: largest deviation "
        f"({shown})",
        value=float(np.abs(medians).max()),
        spread=(float(deviations.min()), float(deviations.max())),
        goal=DEVIATION,
        unit="%",
    )


def _score(sources: Sequence[CausalSource], alignment: Alignment, batch_tokens: int) -> float:
    """Seconds of the processor from the windows to the report."""
    begin = time.process_time()
    found = evaluate(
        alignment.table,
        sources,
        batch_tokens=batch_tokens,
        vocabulary_size=alignment.vocabulary_size,
    )
    roles = SIDES if len(sources) == 2 else ("model",)
    conditions = Conditions(
        models={role: source.provenance for role, source in zip(roles, sources, strict=True)},
        environment={"klcli": klcli.__version__},
    )
    conclude(found, alignment, conditions, Judging(), shown_outliers=10)
    return time.process_time() - begin


def _peaks(scale: float) -> Iterator[Figure]:
    copies = _at_least_one(TOKENS * scale / COPY_TOKENS)
    with tempfile.TemporaryDirectory(prefix="klcli-bench-") as folder:
        texts = [Path(folder) / "text.txt", Path(folder) / "ten-times.txt"]
        for path, factor in zip(texts, (1, 10), strict=True):
            path.write_text(subjects.text(copies * factor), encoding="utf-8")
        for command, models in (
            ("perplexity", [subjects.REFERENCE]),
            ("compare", [subjects.REFERENCE, subjects.CANDIDATE]),
        ):
            runs = [
                run_process(*KLCLI, command, *models, path, "--quiet", "--format", "json")
                for path in texts
            ]
            tokens = [json.loads(run.output)["counts"]["tokens"] for run in runs]
            added = (runs[1].peak - PEAK_GROWTH * runs[0].peak) / (tokens[1] - tokens[0])
            yield figure(
                f"peak of klcli {command} on {tokens[1]} tokens less {PEAK_GROWTH} × that on "
                f"{tokens[0]}, by added token",
                [added],
                BYTES,
                unit="bytes",
            )
