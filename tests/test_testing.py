"""The helper for test suites."""

import math
from pathlib import Path

import numpy as np
import pytest

from klcli.errors import KlcliError, UsageError
from klcli.testing import assert_same_predictions

GATES = ["kl<=0.01", "top1_agreement>=0.5"]


@pytest.fixture
def logits(fixtures: Path) -> tuple[Path, Path]:
    """Two files with logits of a reference and a candidate."""
    return fixtures / "logits" / "reference.npz", fixtures / "logits" / "candidate.npz"


def test_equal_predictions_pass_and_give_the_report(logits: tuple[Path, Path]) -> None:
    report = assert_same_predictions(*logits)
    assert report.verdict == "pass"
    assert [one.gate for one in report.gates] == ["kl.mean<=0.01"]


def test_several_gates_must_all_pass(logits: tuple[Path, Path]) -> None:
    assert len(assert_same_predictions(*logits, gate=GATES).gates) == 2
    with pytest.raises(AssertionError, match=r"FAIL  kl\.max<=1e-09"):
        assert_same_predictions(*logits, gate=[*GATES, "kl.max<=1e-09"])


def test_a_failure_shows_the_headline_the_gates_and_the_worst_tokens(
    logits: tuple[Path, Path],
) -> None:
    with pytest.raises(AssertionError) as failed:
        assert_same_predictions(*logits, gate="kl<=1e-6")
    lines = str(failed.value).splitlines()
    assert lines[0].startswith("FAIL: candidate.npz differs from reference.npz, kl 0.001014 ")
    assert lines[1].startswith("✗ FAIL  kl<=1e-6  0.00101, limit 1e-06, ")
    assert lines[1].endswith(" × over")
    assert "--outliers" not in str(failed.value)  # an option of the command line
    assert sum(line.startswith("  KL 0.0") for line in lines) == 3
    assert any("→  candidate.npz " in line for line in lines)


def test_an_inconclusive_gate_fails(logits: tuple[Path, Path]) -> None:
    with pytest.raises(AssertionError, match=r"INCONCLUSIVE  kl<=0\.001"):
        assert_same_predictions(*logits, gate="kl<=0.001", gate_confidence=0.95)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_no_number_fails_as_a_gate_does(fixtures: Path, number: float) -> None:
    with np.load(fixtures / "logits" / "reference.npz") as saved:
        sound, tokens = saved["logits"], saved["tokens"]
    broken = sound.copy()
    broken[3, 5, 7] = number
    with pytest.raises(AssertionError, match="1 tokens are excluded"):
        assert_same_predictions((sound, tokens), (broken, tokens), gate="kl<=1")
    assert assert_same_predictions((sound, tokens), (broken, tokens), allow_excluded=True)


@pytest.mark.parametrize("gate", ["", [], "nonsense"])
def test_a_missing_or_wrong_gate_is_no_assertion(
    logits: tuple[Path, Path], gate: str | list[str]
) -> None:
    with pytest.raises(UsageError):
        assert_same_predictions(*logits, gate=gate)


def test_gates_have_one_name(logits: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="gate="):
        assert_same_predictions(*logits, gates=["kl<=1"])


def test_what_cannot_be_read_is_no_assertion(logits: tuple[Path, Path]) -> None:
    with pytest.raises(KlcliError, match="no-such-model"):
        assert_same_predictions(logits[0], "no-such-model.npz")


def test_pytest_shows_the_line_of_the_test(logits: tuple[Path, Path]) -> None:
    with pytest.raises(AssertionError) as failed:
        assert_same_predictions(*logits, gate="kl<=1e-6")
    shown = failed.traceback.filter(failed)
    assert [entry.name for entry in shown] == ["test_pytest_shows_the_line_of_the_test"]
