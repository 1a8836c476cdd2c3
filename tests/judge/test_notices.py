"""What a reader is told before trusting the numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.running import Run

WINDOWS, TOKENS, IDS = 40, 30, 4


def files_whose_agreement_drifts(folder: Path) -> list[Path]:
    """Two logit files: ties are broken otherwise in the first half of the windows, at no KL.

    KL comes of one token of each window, at random.
    """
    rng = np.random.default_rng(0)
    p = np.tile(np.array([1.0, 1 - 1e-4, 0, -1]), (WINDOWS, TOKENS, 1))
    q = p.copy()
    q[: WINDOWS // 2, 1:, :2] = p[: WINDOWS // 2, 1:, 1::-1]
    q[:, 0, 2] += rng.normal(size=WINDOWS)
    q[:, 0, 0] += 2
    p[:, 0, 0] += 2
    tokens = rng.integers(0, IDS, (WINDOWS, TOKENS + 1))
    paths = [folder / "p.npz", folder / "q.npz"]
    for path, logits in zip(paths, (p, q), strict=True):
        np.savez(path, logits=logits, tokens=tokens)
    return paths


def test_a_metric_whose_neighbours_correlate_is_named_and_no_other_is(
    klcli: Run, tmp_path: Path
) -> None:
    done = klcli("compare", *files_whose_agreement_drifts(tmp_path), "--format", "json")
    report: dict[str, Any] = json.loads(done.out)
    metrics = report["metrics"]
    assert metrics["top1_agreement"]["lag1_correlation"] > 0.9
    assert metrics["kl"]["lag1_correlation"] < 0.3
    of_clusters = report["clusters"]["lag1_correlation"]
    assert metrics["kl"]["lag1_correlation"] == pytest.approx(of_clusters)
    (said,) = [one["message"] for one in report["warnings"] if one["code"] == "correlated"]
    assert "top1_agreement 0.9" in said
    assert "kl " not in said
