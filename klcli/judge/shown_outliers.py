"""Outlier tokens as a report shows them: in their context, with what the models expected there."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from klcli.align.alignment import Alignment
from klcli.judge import outliers
from klcli.judge.plain import known
from klcli.judge.report import Outlier
from klcli.measure.gathered import Evaluation
from klcli.measure.scores import SIDES
from klcli.text.vocabulary import readable

CONTEXT_TOKENS = 8
"""How many tokens before and after an outlier are shown."""
SHOWN = 5
"""How many of the most probable tokens are shown with it."""


def find_outliers(
    evaluation: Evaluation, alignment: Alignment, count: int
) -> tuple[list[Outlier], outliers.Bools]:
    """The outliers to show, and which of all tokens are flagged."""
    scores = evaluation.scores
    if not scores.paired:
        return [], np.zeros(len(scores), dtype=np.bool_)
    found, flagged = outliers.find(scores, outliers.fit(scores), count)
    return [_outlier(rated, evaluation, alignment) for rated in found], flagged


def _outlier(rated: outliers.Rated, evaluation: Evaluation, alignment: Alignment) -> Outlier:
    index = rated.row
    scores = {
        name: evaluation.scores.part(name, index, index + 1)[0]
        for name in evaluation.scores.columns
    }
    document = alignment.table.documents[scores["document"]]
    position, token_id = int(scores["position"]), int(scores["token_id"])
    tops = {side: _top(evaluation, alignment, side, index) for side in SIDES}
    return Outlier(
        index=index,
        document=document.name,
        position=position,
        token=read(alignment, [token_id]),
        token_id=token_id,
        before=read(alignment, document.ids[max(0, position - CONTEXT_TOKENS) : position]),
        after=read(alignment, document.ids[position + 1 : position + 1 + CONTEXT_TOKENS]),
        kl=float(scores["kl"]),
        score=known(rated.score),
        flagged=rated.flagged,
        nll_reference=known(scores["nll_reference"]),
        nll_candidate=known(scores["nll_candidate"]),
        top_reference=tops["reference"],
        top_candidate=tops["candidate"],
    )


def read(alignment: Alignment, ids: Sequence[int] | npt.NDArray[np.int64]) -> str:
    """What some tokens read like, one after the other."""
    return readable(alignment.names.bytes_of(int(token_id)) for token_id in ids if token_id >= 0)


def _top(
    evaluation: Evaluation, alignment: Alignment, side: str, index: int
) -> list[tuple[str, float]]:
    found = evaluation.alternatives
    row = found.row_of(index)
    if row is None:
        return []
    ids, probabilities = found.ids[side][row, :SHOWN], found.probabilities[side][row, :SHOWN]
    pairs = zip(ids.tolist(), probabilities.tolist(), strict=True)
    return [(read(alignment, [token_id]), p) for token_id, p in pairs if p > 0]
