"""What is true of every compiled kernel, and rows to try it on."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from klcli.measure.kernels import dispatch, exact
from klcli.measure.kernels.results import Measured, Predicted
from klcli.measure.kernels.sides import Whole
from tests.measure import oracle

INF = math.inf
MASK = torch.finfo(torch.float32).min
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
DIVERGENCES = ("kl", "kl_reverse", "jsd", "tv")
RELATIVE = 1e-4
NLL, ENTROPY = 2e-7, 1e-6
PROBABILITY = 1.2e-7
"""One step of float32 below 1: a GPU fuses products and sums that the interpreter rounds apart."""

Measure = Callable[[Sequence[Tensor], Tensor, int, int], Measured]


def compare(
    p: Tensor, q: Tensor, target: int = -1, measure: Measure = dispatch.measure_rows
) -> Measured:
    """One pair of rows of logits."""
    return measure([p[None], q[None]], torch.tensor([target]), p.shape[0], p.shape[0])


def differences(
    p: Tensor, q: Tensor, target: int = -1, measure: Measure = dispatch.measure_rows
) -> dict[str, float]:
    found = compare(p, q, target, measure).differences
    return {name: float(values[0]) for name, values in found.items()}


def rows(count: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(count, size, generator=generator)


def pair(size: int, distance: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Gaussian logits, and the same a ``distance`` away."""
    generator = torch.Generator().manual_seed(size)
    p = 3 * torch.randn(size, generator=generator, dtype=torch.float64)
    q = p + distance * torch.randn(size, generator=generator, dtype=torch.float64)
    return p.to(dtype), q.to(dtype)


def banned(row: Tensor, ids: slice, value: float = -INF) -> Tensor:
    row = row.clone()
    row[ids] = value
    return row


def assert_like_the_oracle(
    p: Tensor, q: Tensor, *, measure: Measure = dispatch.measure_rows
) -> None:
    found = differences(p, q, measure=measure)
    x, y = p.double().numpy(), q.double().numpy()
    expected = {
        "kl": oracle.kl(x, y),
        "kl_reverse": oracle.kl(y, x),
        "jsd": oracle.jsd(x, y),
        "tv": oracle.tv(x, y),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=RELATIVE, abs=1e-300), name


def assert_side_in_float64(found: Predicted, logits: Tensor, targets: Tensor, size: int) -> None:
    """What one model says is what the functions of ``divergence`` say of the same rows."""
    whole = Whole(logits, exact.log_probabilities(logits))
    expected = whole.predictions(targets)
    ids, probabilities = whole.top()
    assert torch.equal(found.usable, whole.usable())
    assert torch.equal(found.rank, expected["rank"])
    assert torch.equal(found.top1, expected["top1"])
    assert torch.equal(found.top_ids, ids)
    padded_mass = exact.mass_above(whole.log_p, size)
    for values, wanted, error in (
        (found.nll, expected["nll"], NLL),
        (found.entropy, expected["entropy"], ENTROPY),
        (found.confidence, expected["confidence"], PROBABILITY),
        (found.top_probabilities, probabilities, PROBABILITY),
        (found.padded_mass, padded_mass, PROBABILITY),
    ):
        torch.testing.assert_close(values, wanted, rtol=0, atol=error, equal_nan=True)
