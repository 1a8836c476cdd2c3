"""Many candidates against one reference, which is read once: the flow of ``rank``."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from klcli.checks import Inputs
from klcli.errors import KlcliError, in_one_line
from klcli.judge.gate import overall
from klcli.judge.ranking import Candidate, Compared, Ranking, ordered, warnings_of_all
from klcli.judge.report import Report
from klcli.rank_request import RankRequest
from klcli.request import Measurement
from klcli.runs.ranks import Ranks
from klcli.sources.kinds import kind_of
from klcli.workflow import ReadOnce, read_once, run, run_beside

REFERENCE = "reference.recording"
"""What the folder of a ranking holds beside the runs of its candidates."""


def rank(request: RankRequest, inputs: Inputs, wrong: Sequence[KlcliError | None]) -> Ranking:
    """Compare every candidate with the reference, one after the other, and put them in order.

    A candidate that cannot be compared is a row that says why.

    Raises:
        KlcliError: the reference or the text cannot be read.
    """
    if request.run is not None:
        Path(request.run).mkdir(exist_ok=True)
    compared: list[Compared] = []
    last: Report | None = None
    with _reference(request, inputs) as reference:
        for number, (pair, error) in enumerate(zip(request.pairs, wrong, strict=True), start=1):
            name = str(pair.specs[1])
            request.hooks.tell(f"candidate {number} of {len(request.pairs)}: {name}")
            try:
                if error is not None:
                    raise error
                with in_one_line():  # also what the system refuses is this candidate's failure
                    last = _compare(pair, reference, inputs)
                compared.append(Compared.of(name, last, in_order=request.in_order))
            except KlcliError as found:
                compared.append(Compared(Candidate(source=name, error=str(found))))
    candidates = ordered(compared, in_order=request.in_order)
    shared = _shared(last, request.pairs[0])
    results = [result for one in candidates for result in one.gates]
    return Ranking(
        **shared,
        corpora=[corpus.name for corpus in inputs.corpora],
        candidates=candidates,
        in_order=request.in_order,
        verdict=overall(results),
        warnings=warnings_of_all(compared),
    )


def _shared(report: Report | None, pair: Measurement) -> Mapping[str, Any]:
    """What all comparisons have in common; little where every one failed."""
    if report is None:
        return {"reference": {"source": str(pair.specs[0])}, "protocol": {}, "environment": {}}
    return {
        "reference": report.models["reference"],
        "protocol": report.protocol,
        "environment": report.environment,
    }


def _compare(pair: Measurement, reference: ReadOnce | None, inputs: Inputs) -> Report:
    if reference is None:
        return run(pair, inputs, Ranks())
    return run_beside(reference, pair, inputs, Ranks())


@contextlib.contextmanager
def _reference(request: RankRequest, inputs: Inputs) -> Iterator[ReadOnce | None]:
    """The reference, read once for several candidates; None where each comparison opens it.

    That spares a forward pass of the reference for every candidate but the first, and costs the
    disk what a recording takes.
    """
    first = request.pairs[0]
    if len(request.pairs) == 1 or kind_of(first.specs[0]) != "model":
        yield None
        return
    with contextlib.ExitStack() as stack:
        folder = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="klcli-")))
            if request.run is None
            else Path(request.run)
        )
        yield read_once(first, inputs.corpora, folder / REFERENCE)
