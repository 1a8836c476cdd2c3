"""Documents that are in a corpus more than once: they count twice, and intervals are too narrow."""

import hashlib
from collections.abc import Sequence

from klcli.errors import Notice
from klcli.text.examples import Answer, Dataset
from klcli.text.overlap import texts_of

SHORTEST = 8
"""Words of a document from which on a second one like it is no chance."""


def find_duplicates(datasets: Sequence[Dataset]) -> list[Notice]:
    """That documents have the same words as an earlier one."""
    first: dict[bytes, str] = {}
    copies: list[tuple[str, str]] = []
    examples = [example for one in datasets for example in one.examples]
    for example in examples if len(examples) > 1 else ():
        words = "\n".join(texts_of(example)).split()
        if len(words) < SHORTEST:
            continue
        asked = example.prompt_ids.tobytes() if isinstance(example, Answer) else b""
        digest = hashlib.blake2b(asked + " ".join(words).encode(), digest_size=16).digest()
        if digest in first:
            copies.append((first[digest], example.name))
        else:
            first[digest] = example.name
    if not copies:
        return []
    one, other = copies[0]
    are = "1 document is a copy" if len(copies) == 1 else f"{len(copies):,} documents are copies"
    return [
        Notice(
            code="duplicate_documents",
            message=f"{are} of another, of {len(examples):,} (first {other}, of {one}): what is "
            "said of them counts twice, and intervals are too narrow",
        )
    ]
