"""Whether a text is in another one: the share of its 13-grams of words that occur there too.

A model that was calibrated, or trained, with the text that it is judged by looks better than it is.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from klcli.errors import Notice
from klcli.text.corpus import Document
from klcli.text.examples import Answer, Dataset, Example

LENGTH = 13
"""Words of an n-gram, as in the checks of GPT-3's training data (Brown et al. 2020)."""
ENOUGH = 0.1
"""The share of its n-grams from which on a document is named."""
_CHARACTERS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
"""Of Japanese, Chinese and Korean."""
_WORD = re.compile(rf"[{_CHARACTERS}]|[^\W{_CHARACTERS}]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that products by it lose nothing modulo 2^64."""

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Overlap:
    """The share of a document's n-grams that occur in the other text."""

    name: str
    share: float


def check_calibration(datasets: Sequence[Dataset], calibration: Dataset) -> Notice:
    """Say which documents are in the calibration text, or that none is."""
    examples = [example for one in datasets for example in one.examples]
    own = [(one.name, hashes_of(one)) for one in examples]
    known = _known(calibration, {min(LENGTH, len(hashes)) for _, hashes in own})
    found = [
        Overlap(name, share_in(known[min(LENGTH, len(hashes))], n_grams(hashes)))
        for name, hashes in own
    ]
    most = max(found, key=lambda one: one.share)
    hit = [one for one in found if one.share >= ENOUGH]
    if not hit:
        return Notice(
            code="calibration_checked",
            message=f"no document shares {ENOUGH:.0%} or more of its {LENGTH}-grams with "
            f"{calibration.name}, {most.name} the most ({most.share:.1%})",
        )
    documents = "document" if len(found) == 1 else "documents"
    share = "shares" if len(hit) == 1 else "share"
    return Notice(
        code="calibration_overlap",
        message=f"{len(hit):,} of {len(found):,} {documents} {share} {ENOUGH:.0%} or more of the "
        f"{LENGTH}-grams with {calibration.name}, {most.name} the most ({most.share:.0%}): a model "
        "that was calibrated with them looks better there than it is; give other text",
    )


def texts_of(example: Example) -> Iterator[str]:
    """What stands in an example, without what a chat template adds."""
    if isinstance(example, Document):
        yield example.text
    elif isinstance(example, Answer):
        yield example.answer
    else:
        yield from (str(message.get("content") or "") for message in example.messages)


def _known(calibration: Dataset, lengths: Iterable[int]) -> dict[int, Hashes]:
    """The n-grams of the calibration text, sorted, of each length that is asked for."""
    own = [hashes_of(one) for one in calibration.examples]
    return {n: np.unique(np.concatenate([n_grams(one, n) for one in own])) for n in lengths}


def n_grams(single: Hashes, length: int = LENGTH) -> Hashes:
    """A hash of each run of so many words; of a text that is shorter than a run, of all of it.

    The hash of a run is Σ h(word i) · factor^i modulo 2^64, so that their order counts.
    """
    length = min(length, len(single))
    total = np.zeros(len(single) - length + 1 if length else 0, dtype=np.uint64)
    for place in range(length):
        total = total * _FACTOR + single[place : place + len(total)]
    return total


def hashes_of(example: Example) -> Hashes:
    """A number for each word of an example. It is Python's own, the same within a process.

    Words are in small letters; of a script without spaces each character is one.
    """
    text = "\n".join(texts_of(example)).lower()
    hashes = np.fromiter((hash(match[0]) for match in _WORD.finditer(text)), dtype=np.int64)
    return hashes.view(np.uint64)


def share_in(known: Hashes, own: Hashes) -> float:
    """The share of n-grams that are among sorted known ones."""
    if not len(own) or not len(known):
        return 0.0
    places = np.minimum(np.searchsorted(known, own), len(known) - 1)
    return float((known[places] == own).mean())
