"""Every scored token as an Arrow table, and in a Parquet file. It needs ``klcli[parquet]``."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from klcli.judge.report import Report
from klcli.measure.columns import Column
from klcli.measure.scores import blocks
from klcli.render.summary import scored_tokens
from klcli.render.token_columns import TokenColumn, token_columns
from klcli.render.view import DEFAULT_VIEW, View

if TYPE_CHECKING:
    import pyarrow as pa


def arrow_table(report: Report) -> "pa.Table":
    r"""Every scored token as a row: a column for each score, with the texts of the tokens.

    Names are those of CSV. Whole numbers that are not known are null; NaN and infinity stay what
    they are. Texts, and names of documents, are dictionaries; a lone surrogate in them, which UTF-8
    has no place for, is an escape such as ``\udce9``.

    Raises:
        KlcliError: the report was read from a file, which holds no single tokens.
    """
    import pyarrow as pa

    rows = _Rows(report)
    return pa.Table.from_batches(rows.batches(), schema=rows.schema)


def render_parquet(report: Report, stream: BinaryIO, _view: View = DEFAULT_VIEW) -> None:
    """Write the Arrow table as Parquet, some rows at a time, so that memory stays flat.

    Raises:
        KlcliError: the report was read from a file, which holds no single tokens.
    """
    import pyarrow.parquet as pq

    rows = _Rows(report)
    with pq.ParquetWriter(stream, rows.schema, compression="zstd") as writer:
        for batch in rows.batches():
            writer.write_batch(batch)


class _Rows:
    """The tokens of a report, some at a time, and what columns they have."""

    def __init__(self, report: Report) -> None:
        import pyarrow as pa

        tokens = scored_tokens(report)
        self._scores = tokens.scores
        self._columns = list(token_columns(tokens, report.lower_bounds))
        self._texts = _Texts(tokens.texts)
        self._documents = _Texts(dict(enumerate(tokens.documents)))
        self.schema = pa.schema([(one.name, self._array(one, 0, 0).type) for one in self._columns])

    def batches(self) -> "Iterator[pa.RecordBatch]":
        import pyarrow as pa

        for start, stop in blocks(len(self._scores)):
            arrays = [self._array(column, start, stop) for column in self._columns]
            yield pa.record_batch(arrays, schema=self.schema)

    def _array(self, column: TokenColumn, start: int, stop: int) -> "pa.Array":
        import pyarrow as pa

        values = self._scores.part(column.score, start, stop)
        if column.is_text:
            return self._texts.read(values)
        if column.score == "document":
            return self._documents.read(values)
        return pa.array(values, mask=values < 0 if values.dtype.kind == "i" else None)


class _Texts:
    """Texts by number, each kept once: several tokens may read alike."""

    def __init__(self, texts: Mapping[int, str]) -> None:
        import pyarrow as pa

        written = [text.encode(errors="backslashreplace").decode() for text in texts.values()]
        places = {text: place for place, text in enumerate(dict.fromkeys(written))}
        self._texts = pa.array(list(places), pa.string())
        self._numbers = np.array(list(texts), dtype=np.int64)
        self._places = np.array([places[text] for text in written], dtype=np.int32)
        self._order = np.argsort(self._numbers)

    def read(self, numbers: Column) -> "pa.DictionaryArray":
        import pyarrow as pa

        found = np.searchsorted(self._numbers, numbers, sorter=self._order)
        places = self._places[self._order[found]]
        return pa.DictionaryArray.from_arrays(places, self._texts)
