"""Files of records: JSON Lines, CSV and Parquet, each a mapping of fields a line."""

import csv
import importlib.util
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from klcli.errors import CorpusError, UsageError, gist, reason_of
from klcli.text.opening import decode

Record = Mapping[str, Any]
MOST_OF_A_CELL = 2**31 - 1
"""Characters of a CSV cell: as many as every platform can count."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record; ``number`` is its line in the file, or of Parquet its row, from 1 on."""

    number: int
    record: Record


Wanted = Callable[[list[str]], list[str]]
"""Which of the fields of a file are needed."""


def json_rows(raw: bytes, name: str, _: Wanted) -> Iterator[Row]:
    """The objects of JSON Lines.

    Raises:
        CorpusError: a line is not one.
    """
    for number, line in enumerate(decode(raw, name).split("\n"), start=1):
        if line.strip():
            yield Row(number, _object(line, f"{name}, line {number}"))


def _object(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{where}: not JSON ({error})") from None
    if not isinstance(record, dict):
        raise CorpusError(f"{where}: not a JSON object but {type(record).__name__}")
    return record


def csv_rows(raw: bytes, name: str, _: Wanted) -> Iterator[Row]:
    """The rows of a CSV file, whose first row names the fields.

    Raises:
        CorpusError: a row has more or fewer cells than there are fields.
    """
    csv.field_size_limit(MOST_OF_A_CELL)
    lines = csv.reader(io.StringIO(decode(raw, name), newline=""), strict=True)
    try:
        names = next(lines, [])
        if twice := {one for one in names if names.count(one) > 1}:
            raise CorpusError(f"{name} names the field {min(twice)!r} twice")
        for cells in lines:
            if cells:
                yield Row(lines.line_num, _record(names, cells, f"{name}, line {lines.line_num}"))
    except csv.Error as error:
        raise CorpusError(f"{name}, line {lines.line_num}: not CSV ({error})") from None


def _record(names: list[str], cells: list[str], where: str) -> Record:
    if len(cells) != len(names):
        raise CorpusError(f"{where} has {len(cells)} cells, and the first line {len(names)} fields")
    return dict(zip(names, cells, strict=True))


def parquet_rows(raw: bytes, name: str, wanted: Wanted) -> Iterator[Row]:
    """The rows of a Parquet file, of which only the wanted columns are read.

    Raises:
        UsageError: there is no pyarrow.
        CorpusError: it is not Parquet.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UsageError(f"{name}: reading Parquet needs pyarrow: pip install 'klcli[parquet]'")
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(raw))
        columns = wanted(file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            for record in batch.to_pylist():
                number += 1
                yield Row(number, record)
    except (pyarrow.ArrowException, OSError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else gist(error)
        raise CorpusError(f"{name} is not a Parquet file that can be read: {reason}") from error


READERS: Mapping[str, Callable[[bytes, str, Wanted], Iterator[Row]]] = {
    ".jsonl": json_rows,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
}
"""How records are read, by the ending of a file's name."""
