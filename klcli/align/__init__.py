"""What both sources are asked about: the tokens, windows and ids that they share.

Two live models: the windows come from the corpus and the reference's tokenizer, once the two
vocabularies are found equal. With a recording or a logit file they come from the file, and a live
model follows.
"""

from collections.abc import Sequence
from dataclasses import replace

from klcli.align.alignment import Alignment
from klcli.align.checks import (
    check_ids,
    check_splits,
    check_tasks,
    check_vocabularies,
    check_widths,
)
from klcli.align.corpora import from_corpora
from klcli.align.documents import about_drawing, scope_of, write_out
from klcli.align.files import from_files
from klcli.sources import Source
from klcli.text.examples import Dataset
from klcli.text.scope import Scope

__all__ = ["Alignment", "align"]


def align(sources: Sequence[Source], datasets: Sequence[Dataset], scope: Scope) -> Alignment:
    """Settle which tokens one source, or two, are scored on.

    Raises:
        UsageError: a corpus is missing, or an option does not apply.
        CorpusError: a corpus is too short.
        MismatchError: the sources do not share a vocabulary, their tokens or their windows.
    """
    from klcli.align.offset import off_by_one  # which brings torch

    check_tasks(sources, scope)
    settled = scope_of(sources, scope)
    written = write_out(datasets, sources, settled)
    corpora = written.corpora
    notices = [
        *written.notices,
        *check_vocabularies(sources),
        *check_widths(sources),
        *check_splits(sources, corpora),
    ]
    found = from_files(sources, corpora, scope) or from_corpora(sources, corpora, scope)
    table = found.table.limited(scope.limit)
    table = replace(table, protocol=dict(table.protocol) | written.protocol)
    check_ids(table, sources)
    shifted = [notice for source in sources if (notice := off_by_one(source, table)) is not None]
    own = [notice for source in sources for notice in source.notices]
    drawn = about_drawing(datasets, len(found.table.documents), settled)
    return replace(found, table=table, notices=(*own, *notices, *drawn, *found.notices, *shifted))
