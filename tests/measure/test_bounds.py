"""No bound that comes of a list is above the exact value, however the list was cut and rounded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from klcli.measure.kernels import exact
from klcli.measure.kernels.sides import Side, TopK, Whole, divergences, read_side
from klcli.sources.files.toplogprobs import TopLogprobsSource
from klcli.sources.opening import open_source
from klcli.sources.options import LoadOptions
from klcli.sources.recording.reader import _block_of
from klcli.sources.recording.writer import _top_of

Random = np.random.Generator
Floats = npt.NDArray[np.float64]
BOUNDED = ("kl", "kl_reverse", "jsd", "tv")
CASES, ROWS = 200, 10
FLOAT64 = 1e-13
"""What float64 itself may add."""

ROUNDINGS: dict[str, Callable[[float], float]] = {
    "exact": float,
    "2 places": lambda x: round(x, 2),
    "3 places": lambda x: round(x, 3),
    "4 places": lambda x: round(x, 4),
    "3 digits": lambda x: float(f"{x:.3g}"),
    "5 digits": lambda x: float(f"{x:.5g}"),
    "float32": lambda x: float(np.float32(x)),
    "shown as float32": lambda x: float(str(np.float32(x))),
    "bfloat16": lambda x: float(torch.tensor(x).bfloat16()),
    "float16": lambda x: float(np.float16(x)),
    "shown as float16": lambda x: float(str(np.float16(x))),
}


def name_of(token: int) -> str:
    return f"w{token}"


def distributions(random: Random, width: int) -> tuple[Tensor, Tensor]:
    """Two models at some rows: alike or not, peaked or flat, with ties, and zeros now and then."""
    p = random.choice([0.1, 1.0, 4.0, 12.0]) * random.normal(size=(ROWS, width))
    q = p + random.choice([0.0, 1e-4, 0.3, 5.0]) * random.normal(size=(ROWS, width))
    if random.random() < 0.3:
        p, q = p.round(), q.round()
    if random.random() < 0.2:
        q[random.random(size=q.shape) < 0.2] = -np.inf
        q[:, 0] = 0.0
    return exact.log_probabilities(torch.tensor(p)), exact.log_probabilities(torch.tensor(q))


def answer(
    path: Path, log_p: Tensor, targets: list[int], k: int, rounding: str, given: str
) -> TopLogprobsSource:
    """The file of a server: lists of k tokens, and that of the text as the server gives it."""
    written = ROUNDINGS[rounding]
    lines: list[dict[str, Any]] = [{"token": name_of(0)}]
    for row, target in zip(log_p, targets, strict=True):
        ids = [int(i) for i in row.topk(k).indices if row[i].isfinite()]
        if given == "k + 1" and target not in ids:
            ids.append(target)
        top = [{"token": name_of(i), "logprob": written(float(row[i]))} for i in ids]
        line: dict[str, Any] = {"token": name_of(target), "top_logprobs": top}
        if given == "beside":
            line["logprob"] = written(float(row[target]))
        lines.append(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    source = open_source(str(path), LoadOptions())
    assert isinstance(source, TopLogprobsSource)
    source.number({name_of(i).encode(): i for i in range(log_p.shape[-1])})
    return source


def listed(source: TopLogprobsSource) -> Side:
    [rows] = source.rows([source.windows.windows])
    return read_side(rows.block(0, len(rows)), rows.kind)


def recorded(log_p: Tensor, k: int) -> Side:
    return read_side(_block_of(*_top_of(log_p, k).values()), "topk")


def true_values(log_p: Tensor, log_q: Tensor) -> dict[str, Tensor]:
    return exact.divergences(log_p, log_q, torch.full((len(log_p),), -1))


@pytest.mark.parametrize("seed", range(CASES))
def test_no_bound_is_above_the_exact_value(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    width = int(random.integers(3, 60))
    log_p, log_q = distributions(random, width)
    support = [np.flatnonzero(np.isfinite(row)) for row in log_q.numpy()]
    targets = [int(random.choice(ids)) for ids in support]
    rounding = str(random.choice(list(ROUNDINGS)))
    sides: list[list[Side]] = []
    for name, log_probs in (("p", log_p), ("q", log_q)):
        k = int(random.integers(1, width + 1))
        given = str(random.choice(["k + 1", "beside", "never"]))
        file = answer(tmp_path / f"{name}.jsonl", log_probs, targets, k, rounding, given)
        sides.append([Whole(log_probs, log_probs), listed(file), recorded(log_probs, k)])
    true = true_values(log_p, log_q)
    for p in sides[0]:
        for q in sides[1]:
            if isinstance(p, TopK) or isinstance(q, TopK):
                found = divergences(p, q, torch.tensor(targets))
                for metric in BOUNDED:
                    bound = found[metric]
                    assert (bound >= 0).all(), (metric, rounding)
                    assert (bound <= true[metric] + FLOAT64).all(), (metric, rounding)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_one_model_rounded_or_not_differs_nowhere_from_itself(
    rounding: str, tmp_path: Path
) -> None:
    log_p, _ = distributions(np.random.default_rng(3), 40)
    targets = [0] * ROWS
    files = [
        listed(answer(tmp_path / f"{name}.jsonl", log_p, targets, k, name, given))
        for name, k, given in (
            (rounding, 8, "k + 1"), ("exact", 8, "beside"), ("exact", 40, "never")
        )
    ]  # fmt: skip
    known = [*files, recorded(log_p, 8), Whole(log_p, log_p)]
    for other in known:
        for pair in ((files[0], other), (other, files[0])):
            found = divergences(*pair, torch.tensor(targets))
            for metric in BOUNDED:
                assert found[metric].abs().max() < FLOAT64, metric


@pytest.mark.parametrize(
    ("rounding", "lost"), [("exact", 1e-5), ("4 places", 2e-3), ("3 places", 2e-2)]
)
def test_little_is_lost_by_rounding(rounding: str, lost: float, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    p, q = (exact.log_probabilities(torch.tensor(random.normal(size=(ROWS, 30)))) for _ in "pq")
    targets = [0] * ROWS
    files = [
        listed(answer(tmp_path / f"{name}.jsonl", one, targets, 30, rounding, "never"))
        for name, one in (("p", p), ("q", q))
    ]
    found, true = divergences(files[0], files[1], torch.tensor(targets)), true_values(p, q)
    for metric in BOUNDED:
        assert (true[metric] - found[metric]).max() < lost, metric
