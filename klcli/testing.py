"""For test suites: assert that two models predict the same. pytest is not needed."""

from collections.abc import Sequence
from typing import Unpack

from klcli.api import compare
from klcli.errors import UsageError
from klcli.judge.report import Report
from klcli.keywords import CompareOptions, Corpora, Model
from klcli.render.plain import failure

GATE = "kl.mean<=0.01"


def assert_same_predictions(
    reference: Model,
    candidate: Model,
    corpus: Corpora = (),
    gate: str | Sequence[str] = GATE,
    **options: Unpack[CompareOptions],
) -> Report:
    """Compare two models on a text, and fail unless every gate passes.

    Args:
        reference, candidate, corpus: as for ``klcli.compare``.
        gate: one gate or several, such as ``["kl.mean<=0.01", "top1_agreement>=0.98"]``.
        options: those of ``klcli.compare``.

    Returns:
        The report.

    Raises:
        AssertionError: a gate failed or is inconclusive. The message says which, and shows the
            tokens that moved most.
        KlcliError: an input cannot be read or does not fit the other, or there is no gate.
    """
    __tracebackhide__ = True  # pytest shows the line of the test instead
    gates = [gate] if isinstance(gate, str) else [*gate]
    if not gates or "gates" in options:
        raise UsageError(f"give one gate or several as gate=, such as gate={GATE!r}")
    options["gates"] = gates
    report = compare(reference, candidate, corpus, **options)
    if report.verdict != "pass":
        raise AssertionError(failure(report))
    return report
