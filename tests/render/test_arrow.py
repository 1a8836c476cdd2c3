"""Tokens as Arrow, pandas and Parquet: the same numbers as in JSONL, whoever reads them."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from klcli.errors import KlcliError
from klcli.judge.report import Report, Tokens
from klcli.measure.scores import BLOCK
from klcli.render.arrow import arrow_table, render_parquet
from klcli.render.data import render_jsonl
from tests.render.reports import compare_report, hostile_report, perplexity_report, tokens

Rows = list[dict[str, Any]]


def odd_tokens() -> Tokens:
    """Tokens with infinite, missing and excluded scores, of which two read alike."""
    odd = tokens(["the", "the", " cat", "", "\n", "é"])
    odd.scores["kl"][:3] = (math.nan, math.inf, -math.inf)
    odd.scores["rank_reference"][:2] = -1
    odd.scores["top1_candidate"][1] = 0
    odd.scores["byte_start"][:] = -1
    odd.scores["excluded"][0] = True
    return odd


REPORTS = {
    "compare": compare_report(),
    "perplexity": perplexity_report(),
    "odd": compare_report(tokens=odd_tokens()),
    "lower-bounds": compare_report(lower_bounds=("kl", "jsd")),
}


def parquet_of(report: Report, folder: Path) -> Path:
    path = folder / "tokens.parquet"
    with path.open("wb") as stream:
        render_parquet(report, stream)
        assert not stream.closed
    return path


def jsonl_of(report: Report) -> Rows:
    stream = io.StringIO()
    render_jsonl(report, stream)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def plain(rows: Rows) -> Rows:
    """Rows as JSONL has them: infinity as a string, NaN and what is missing as None."""

    def cell(value: Any) -> Any:
        if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
            return None
        return str(value) if isinstance(value, float) and math.isinf(value) else value

    return [{name: cell(value) for name, value in row.items()} for row in rows]


def read_by_pandas(path: Path) -> Rows:
    return list(pd.read_parquet(path).to_dict("records"))


def read_by_polars(path: Path) -> Rows:
    rows: Rows = pl.read_parquet(path).to_dicts()
    return rows


def read_by_duckdb(path: Path) -> Rows:
    found = duckdb.sql(f"select * from read_parquet('{path}')")
    return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
@pytest.mark.parametrize(
    "read", [read_by_pandas, read_by_polars, read_by_duckdb], ids=["pandas", "polars", "duckdb"]
)
def test_whoever_reads_parquet_finds_the_numbers_of_jsonl(
    read: Callable[[Path], Rows], report: Report, tmp_path: Path
) -> None:
    assert plain(read(parquet_of(report, tmp_path))) == jsonl_of(report)


def test_the_types_are_those_of_the_scores() -> None:
    schema = arrow_table(compare_report()).schema
    text = pa.dictionary(pa.int32(), pa.string())
    for name, kind in {
        "document": text, "token": text, "top1_reference_token": text, "token_id": pa.int32(),
        "rank_candidate": pa.int32(), "position": pa.int64(), "kl": pa.float64(),
        "excluded": pa.bool_(),
    }.items():  # fmt: skip
        assert schema.field(name).type == kind


def test_nan_and_infinity_stay_and_unknown_ranks_are_null() -> None:
    table = arrow_table(REPORTS["odd"])
    assert table["kl"].null_count == 0
    assert np.isnan(table["kl"][0].as_py())
    assert table["rank_reference"].null_count == 2
    assert table["byte_start"].null_count == len(table)


def test_texts_are_whole_but_for_lone_surrogates() -> None:
    report = hostile_report()
    assert report.tokens is not None
    texts = arrow_table(report)["token"].to_pylist()
    assert texts == [text.replace("\udce9", "\\udce9") for text in report.tokens.texts.values()]


def test_each_text_is_kept_once() -> None:
    column = arrow_table(REPORTS["odd"])["token"].combine_chunks()
    assert column.dictionary.to_pylist() == ["the", " cat", "", "\n", "é"]


def test_parquet_is_written_in_row_groups(tmp_path: Path) -> None:
    many = tokens(["x"] * (BLOCK + 10))
    path = parquet_of(compare_report(tokens=many), tmp_path)
    found = pq.ParquetFile(path)
    assert [found.metadata.row_group(i).num_rows for i in range(found.num_row_groups)] == [
        BLOCK,
        10,
    ]
    assert found.read()["kl"].to_numpy() == pytest.approx(many.scores["kl"], abs=0)


def test_a_report_of_a_file_has_no_tokens_to_write() -> None:
    with pytest.raises(KlcliError, match="holds no single tokens"):
        render_parquet(compare_report(tokens=None), io.BytesIO())
