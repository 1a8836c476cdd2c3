"""llama.cpp's base files: the same bytes as that program writes, and the same numbers out of them.

The oracle is llama.cpp's arithmetic spelled out, one float32 operation after the other.
"""

import json
import math
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from torch import Tensor

from klcli.choices import Bos
from klcli.errors import MismatchError, OutputError, SourceError, UsageError
from klcli.sources.files.llamacpp import BaseFileSource, as_read_by, open_base_file
from klcli.sources.files.llamacpp_format import encode
from klcli.sources.files.llamacpp_writer import write_base_file
from klcli.sources.hf.loading import load_model
from klcli.sources.hf.model import ModelSource
from klcli.sources.kinds import is_base_file
from klcli.sources.options import LoadOptions
from klcli.sources.rows import Rows, TensorRows
from klcli.storage.files import remove_left_over, whole_file
from klcli.text.corpus import Document
from klcli.text.cutting import encode_document, plan_windows
from klcli.text.protocols import ProtocolName, choose_protocol
from klcli.text.vocabulary import Vocabulary
from klcli.text.windows import TokenizedDocument, Window, WindowTable

F = np.float32
CONTEXT, WIDTH, CHUNKS = 6, 7, 3
SCORED = 2
"""Of the rows 0 … 5 of a chunk rows 3 and 4: the targets are its ids 4 and 5."""
RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(0, WIDTH, CONTEXT * CHUNKS)
LOGITS = torch.from_numpy((6 * RANDOM.normal(size=(CHUNKS * SCORED, WIDTH))).astype(F))


# The oracle


def nearest_int(x: npt.NDArray[Any] | np.float32) -> int:
    """The integer in the last 23 bits of x + 3·2^22, where float32 has no bits for a fraction."""
    bits = np.array(F(x) + F(12582912.0)).view(np.int32)
    return int(bits & 0x007FFFFF) - 0x00400000


def record_of(logits: Sequence[float]) -> bytes:
    """A record, by llama.cpp's arithmetic."""
    row = np.array(logits, dtype=F)
    highest = row.max()
    lowest = max(row.min(), F(highest - F(16)))
    with np.errstate(over="ignore"):
        powers = [F(math.exp(float(F(x - highest)))) for x in row]
        min_log_prob = F(F(lowest - highest) - F(math.log(math.fsum(map(float, powers)))))
        scale = F(F(highest - lowest) / F(65535))
        inverse = F(F(1) / scale) if scale else F(0)
        codes = [nearest_int(F(inverse * F(x - lowest))) if x > lowest else 0 for x in row]
    codes = [code % 65536 for code in codes] + [0] * (len(row) % 2)
    return struct.pack(f"<ff{len(codes)}H", scale, min_log_prob, *codes)


def base_file(
    path: Path,
    *,
    context: int = CONTEXT,
    width: int = WIDTH,
    chunks: int = CHUNKS,
    tokens: Sequence[int] | npt.NDArray[Any] = TOKENS,
    logits: Tensor = LOGITS,
) -> Path:
    """A base file made by hand."""
    header = struct.pack("<8sIii", b"_logits_", context, width, chunks)
    ids = np.array(tokens, dtype="<i4").tobytes()
    path.write_bytes(header + ids + b"".join(record_of(row) for row in logits.tolist()))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small, sound base file."""
    return base_file(tmp_path / "base.kld")


def opened(path: Path, **options: Any) -> BaseFileSource:
    return open_base_file(str(path), LoadOptions(**options))


def all_rows(source: Any, table: WindowTable | None = None) -> Tensor:
    """Every scored row of a table, window after window."""
    table = table or source.windows
    [rows] = source.rows([table.windows])
    starts = range(0, len(rows), rows.size)
    return torch.cat([block_of(rows, at, min(at + rows.size, len(rows))) for at in starts])


def block_of(rows: Rows, start: int, stop: int) -> Tensor:
    block = rows.block(start, stop)
    assert isinstance(block, Tensor)
    return block.clone()  # the next one may be written over it


# What is a base file


@pytest.mark.parametrize("name", ["base.kld", "base.dat", "base", "base.npz", "model.gguf"])
def test_a_base_file_is_known_by_its_content_whatever_its_name(tmp_path: Path, name: str) -> None:
    assert is_base_file(base_file(tmp_path / name))


@pytest.mark.parametrize("content", [b"", b"_logits", b"_logitz_" + bytes(100), b"\x93NUMPY"])
def test_nothing_else_is_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "base.kld").write_bytes(content)
    assert not is_base_file(tmp_path / "base.kld")
    assert not is_base_file(tmp_path)
    assert not is_base_file(tmp_path / "nowhere")


# Reading


def test_each_chunk_is_a_window_scored_from_the_middle_on(file: Path) -> None:
    table = opened(file).windows
    assert [window.number for window in table.windows] == [0, 1, 2]
    second = table.windows[1]
    assert second.inputs.tolist() == TOKENS[6:12].tolist()
    assert second.score_from == 3
    assert second.targets.tolist() == TOKENS[10:12].tolist()
    assert second.position == 10
    [document] = table.documents
    assert document.ids.tolist() == TOKENS.tolist()
    assert document.ids[second.position] == second.targets[0]
    assert table.protocol == {
        "name": "llama.cpp",
        "context": 6,
        "stride": 6,
        "score_from": 3,
        "bos": None,
        "special_tokens": "text",
        "documents": "file",
        "limit": None,
    }


def test_the_rows_are_llama_cpps_own_float32_numbers(file: Path) -> None:
    rows = all_rows(opened(file))
    assert rows.dtype == torch.float32
    assert rows.shape == (CHUNKS * SCORED, WIDTH)
    for row, logits in zip(rows.numpy(), LOGITS.tolist(), strict=True):
        scale, least, *codes = struct.unpack(f"<ff{WIDTH + 1}H", record_of(logits))
        assert row.tolist() == [float(F(F(F(scale) * F(c)) + F(least))) for c in codes[:WIDTH]]


def test_a_source_says_what_it_is(file: Path) -> None:
    source = opened(file)
    assert (source.width, source.longest, source.vocabulary) == (WIDTH, None, None)
    assert source.name == str(file)
    assert source.windows.has_tokens
    assert json.loads(json.dumps(source.provenance)) == source.provenance
    assert source.provenance["kind"] == "llama.cpp base file"
    assert source.provenance["values"] == "truncated, 16-bit"
    [rows] = source.rows([source.windows.windows])
    assert (rows.kind, len(rows)) == ("truncated", CHUNKS * SCORED)
    assert rows.size & (rows.size - 1) == 0


def test_a_base_file_takes_the_tokenizer_of_a_model(file: Path, reference: Path) -> None:
    source = opened(file, tokenizer=str(reference))
    assert source.vocabulary is not None
    assert source.provenance["tokenizer"] == source.vocabulary.fingerprint


def test_windows_come_in_any_order_and_number(file: Path) -> None:
    source = opened(file)
    whole = all_rows(source).reshape(CHUNKS, SCORED, WIDTH)
    windows = source.windows.windows
    rows = source.rows([[windows[2], windows[0]], windows[1:2]])
    found = [block_of(one, 0, len(one)) for one in rows]
    assert torch.equal(found[0], torch.cat([whole[2], whole[0]]))
    assert torch.equal(found[1], whole[1])


def test_a_batch_of_more_rows_than_a_block_is_handed_out_block_by_block(tmp_path: Path) -> None:
    logits = torch.randn(3 * 299, 4, generator=torch.Generator().manual_seed(0))
    path = base_file(tmp_path / "long", context=600, width=4, tokens=[0] * 1800, logits=logits)
    source = opened(path)
    [rows] = source.rows([source.windows.windows])
    assert len(rows) == 897 > rows.size
    expected = torch.log_softmax(logits.double(), dim=-1)
    torch.testing.assert_close(all_rows(source).double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("context", "scored"), [(3, 1), (4, 1), (5, 2), (8, 3)])
@pytest.mark.parametrize("width", [1, 4, 5])
def test_odd_contexts_and_vocabularies_are_laid_out_as_llama_cpp_does(
    tmp_path: Path, context: int, scored: int, width: int
) -> None:
    logits = torch.arange(2 * scored * width).reshape(-1, width).float() / 7
    path = base_file(
        tmp_path / "odd", context=context, width=width, chunks=2, tokens=[0] * 2 * context,
        logits=logits,
    )  # fmt: skip
    source = opened(path)
    assert source.windows.tokens == 2 * scored
    expected = torch.log_softmax(logits.double(), dim=-1)
    torch.testing.assert_close(all_rows(source).double(), expected, atol=1e-4, rtol=0)


def test_a_row_that_the_model_could_not_compute_is_nan_and_its_neighbours_are_sound(
    tmp_path: Path,
) -> None:
    path = base_file(tmp_path / "nan")
    content = bytearray(path.read_bytes())
    at = len(content) - 2 * (8 + 2 * (WIDTH + 1)) + 4  # min_log_prob of the last row but one
    content[at : at + 4] = struct.pack("<f", math.nan)
    path.write_bytes(content)
    bad = all_rows(opened(path)).isnan()
    assert bad.all(dim=-1).tolist() == bad.any(dim=-1).tolist() == [*[False] * 4, True, False]


def test_a_window_that_asks_for_rows_of_the_next_chunk_is_refused(file: Path) -> None:
    source = opened(file)
    window = source.windows.windows[0]
    for wrong in (
        replace(window, targets=np.zeros(SCORED + 1, dtype=np.int64)),
        replace(window, score_from=0),
        replace(window, number=CHUNKS),
    ):
        with pytest.raises(MismatchError, match="has 3 windows of 2 rows from row 3 on"):
            list(source.rows([[wrong]]))


def test_what_was_read_does_not_stay_in_memory(tmp_path: Path) -> None:
    """68 MB of records that say p = 1 of every id: a file of holes, which takes no space."""
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells how much of a file is in memory")
    width, rows = 2**15, 4 * 255
    with (tmp_path / "large.kld").open("wb") as file:
        file.write(header(512, width, 4) + bytes(4 * 512 * 4))
        file.truncate(file.tell() + rows * 2 * (4 + width))
    source = opened(tmp_path / "large.kld")
    before = resident_file_bytes()
    assert len(all_rows(source)) == rows
    assert resident_file_bytes() - before < 10e6


def resident_file_bytes() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(1024 * float(line.split()[1]) for line in status.splitlines() if "RssFile" in line)


# Files that are no sound base files


@pytest.mark.parametrize("least", [3.5, -40.0, math.inf])
def test_a_damaged_row_is_found_when_it_is_read_and_not_before(file: Path, least: float) -> None:
    content = bytearray(file.read_bytes())
    at = len(content) - (8 + 2 * (WIDTH + 1)) + 4
    content[at : at + 4] = struct.pack("<f", least)
    file.write_bytes(content)
    source = opened(file)
    assert len(list(source.rows([source.windows.windows]))) == 1
    [rows] = source.rows([source.windows.windows])
    assert block_of(rows, 0, 5).shape == (5, WIDTH)
    with pytest.raises(SourceError, match=r"base\.kld is damaged: row 1 of chunk 2 has"):
        block_of(rows, 5, 6)


def header(context: int = CONTEXT, width: int = WIDTH, chunks: int = CHUNKS) -> bytes:
    return struct.pack("<8sIii", b"_logits_", context, width, chunks)


SIZE = 20 + 4 * CONTEXT * CHUNKS + CHUNKS * SCORED * 2 * (4 + WIDTH + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda b: b[:-1], f"has {SIZE - 1} bytes and should have {SIZE}", id="short"),
        pytest.param(lambda b: b + b"0", f"has {SIZE + 1} bytes and should have {SIZE}", id="long"),
        pytest.param(lambda b: b[:20], f"has 20 bytes and should have {SIZE}", id="only a header"),
        pytest.param(lambda b: b[:19], "has 19 bytes, less than the 20 of a header", id="less"),
        pytest.param(lambda b: b"", "does not begin with _logits_", id="empty"),
        pytest.param(lambda b: b"GGUF" + b[4:], "not a base file of llama.cpp", id="foreign"),
        pytest.param(
            lambda b: header(chunks=0) + b[20:], "header says 0 chunks of 6", id="no chunks"
        ),
        pytest.param(
            lambda b: header(chunks=-1) + b[20:], "header says -1 chunks", id="negative chunks"
        ),
        pytest.param(
            lambda b: header(context=2) + b[20:],
            "header says 3 chunks of 2 tokens",
            id="no targets",
        ),
        pytest.param(
            lambda b: header(context=0) + b[20:],
            "header says 3 chunks of 0 tokens",
            id="no context",
        ),
        pytest.param(
            lambda b: header(width=0) + b[20:], "header says .* vocabulary of 0", id="no vocabulary"
        ),
        pytest.param(
            lambda b: header(width=-7) + b[20:],
            "header says .* vocabulary of -7",
            id="negative width",
        ),
        pytest.param(
            lambda b: header(2**32 - 1, 2**31 - 1, 2**31 - 1) + b[20:],
            f"has {SIZE} bytes and should have",
            id="absurd",
        ),
        pytest.param(
            lambda b: b[:20] + struct.pack("<i", WIDTH) + b[24:],
            f"token ids from 0 to {WIDTH} and a vocabulary of {WIDTH}",
            id="token beyond the vocabulary",
        ),
        pytest.param(
            lambda b: b[:20] + struct.pack("<i", -1) + b[24:], "ids from -1 to", id="negative token"
        ),
    ],
)
def test_a_file_that_contradicts_itself_is_an_error_with_both_figures(
    file: Path, change: Any, message: str
) -> None:
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(SourceError, match=message):
        opened(file)


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot read .*nowhere\.kld: No such file"):
        opened(tmp_path / "nowhere.kld")
    with pytest.raises(SourceError, match="cannot read"):
        opened(tmp_path)


# Encoding

finite = st.floats(-60, 60, width=32)


@settings(deadline=None)
@given(st.lists(finite, min_size=1, max_size=9))
def test_records_are_llama_cpps_bit_for_bit(logits: list[float]) -> None:
    assert encode(torch.tensor([logits])).tobytes() == record_of(logits)


@pytest.mark.parametrize("spread", [1e-30, 1e-6, 0.01, 1.0, 4.0, 30.0])
def test_so_are_those_of_a_whole_vocabulary(spread: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = spread * torch.randn(3, 5001, generator=generator)
    expected = b"".join(record_of(row) for row in logits.tolist())
    assert encode(logits).tobytes() == expected


@pytest.mark.parametrize("row", [[0.0, 1e-44], [1e-38, 0.0, 5e-39], [3e38, -3e38], [-5.0] * 3])
def test_so_are_the_extremes(row: list[float]) -> None:
    assert encode(torch.tensor([row])).tobytes() == record_of(row)


def test_so_is_a_row_for_which_exp_in_float32_is_a_bit_off() -> None:
    row = [-1.8017611503601074, -1.3115812540054321]
    assert encode(torch.tensor([row])).tobytes() == record_of(row)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_16_bits_are_taken_as_they_are(dtype: torch.dtype) -> None:
    logits = (5 * torch.randn(4, 33, generator=torch.Generator().manual_seed(2))).to(dtype)
    expected = b"".join(record_of(row) for row in logits.tolist())
    assert encode(logits).tobytes() == expected


@settings(deadline=None)
@given(st.lists(finite, min_size=1, max_size=9))
def test_a_code_is_off_by_half_a_step_and_the_tail_stands_16_below_the_top(
    logits: list[float],
) -> None:
    record = encode(torch.tensor([logits]))
    scale, least = record[0, :4].view(np.float32).astype(float)
    codes = record[0, 4 : 4 + len(logits)].astype(float)
    exact = torch.log_softmax(torch.tensor(logits).double(), dim=-1).numpy()
    floor = exact.max() - 16
    off = np.abs(scale * codes + least - np.maximum(exact, floor))
    assert off.max() <= scale / 2 + 2e-5  # of float32 numbers up to 60
    assert (codes[exact < floor - 1e-4] == 0).all()
    if scale > 1e-38:  # else its reciprocal may overflow
        assert codes.max() == 65535


def test_constant_logits_have_no_scale_and_say_one_over_the_vocabulary() -> None:
    record = encode(torch.full((1, 8), 3.25))
    scale, least = record[0, :4].view(np.float32)
    assert scale == 0
    assert least == F(-math.log(8))
    assert not record[0, 4:].any()


def test_what_the_model_excludes_stands_at_the_floor() -> None:
    record = encode(torch.tensor([[0.0, -math.inf, -3.4e38, -1.0]]))
    scale, least = record[0, :4].view(np.float32)
    assert scale == F(16 / 65535)
    assert least == pytest.approx(-16 - math.log(1 + math.exp(-1)))
    assert record[0, 4:].tolist() == [65535, 0, 0, nearest_int(F(15) / F(scale))]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_no_distribution_is_read_as_none(tmp_path: Path, bad: float) -> None:
    logits = LOGITS.clone()
    logits[2, 3] = bad
    write(tmp_path / "bad.kld", Fake(logits))
    rows = all_rows(opened(tmp_path / "bad.kld"))
    assert rows.isnan().all(dim=-1).tolist() == [False, False, True, False, False, False]


# Writing


class Fake:
    """Predicts given rows, ``block`` at a time; fails after ``fail_after`` batches."""

    name = "fake"

    def __init__(
        self,
        logits: Tensor,
        *,
        block: int = 4,
        fail_after: int | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.width = logits.shape[1]
        self.vocabulary = vocabulary
        self._logits = logits
        self._block = block
        self._fail_after = fail_after

    def rows(self, batches: Sequence[Sequence[Window]]) -> Iterator[Rows]:
        for number, batch in enumerate(batches):
            if number == self._fail_after:
                raise SourceError("out of memory")
            counts = [len(window.targets) for window in batch]
            starts = [window.number * count for window, count in zip(batch, counts, strict=True)]
            rows = TensorRows(
                torch.cat([self._logits[s : s + n] for s, n in zip(starts, counts, strict=True)])
            )
            rows.size = self._block
            yield rows


def table_of(
    ids: Sequence[int] | npt.NDArray[Any] = TOKENS,
    context: int = CONTEXT,
    protocol: ProtocolName = "llama.cpp",
    bos: Bos = "none",
    vocabulary: Vocabulary | None = None,
    score_from: int | None = None,
) -> WindowTable:
    """The windows of one text of these ids."""
    document = TokenizedDocument(
        corpus=0, name="text", ids=np.array(ids, dtype=np.int64), encoding=None
    )
    vocabulary = vocabulary or with_bos(adds=False)
    chosen = choose_protocol(
        protocol,
        vocabulary=vocabulary,
        longest=None,
        context=context,
        bos=bos,
        score_from=score_from,
    )
    return plan_windows([document], chosen, vocabulary.prefix_id)


def write(path: Path, source: Any, table: WindowTable | None = None, **options: Any) -> None:
    write_base_file(path, source, table or table_of(), **{"batch_tokens": 12, **options})


@pytest.mark.parametrize("batch_tokens", [1, 12, 1000])
@pytest.mark.parametrize("block", [1, 2, 512])
def test_the_file_is_what_is_made_by_hand(
    file: Path, tmp_path: Path, batch_tokens: int, block: int
) -> None:
    write(tmp_path / "written.kld", Fake(LOGITS, block=block), batch_tokens=batch_tokens)
    assert (tmp_path / "written.kld").read_bytes() == file.read_bytes()


def test_rows_longer_than_what_is_encoded_at_once_are_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "one.kld", Fake(LOGITS))
    monkeypatch.setattr("klcli.sources.files.llamacpp_writer.ENCODED_AT_ONCE", WIDTH - 1)
    write(tmp_path / "two.kld", Fake(LOGITS))
    assert (tmp_path / "one.kld").read_bytes() == (tmp_path / "two.kld").read_bytes()


def test_the_remainder_of_a_text_is_not_in_the_file(file: Path, tmp_path: Path) -> None:
    table = table_of([*TOKENS, 1, 2, 3])
    write(tmp_path / "written.kld", Fake(LOGITS), table)
    assert (tmp_path / "written.kld").read_bytes() == file.read_bytes()


def test_only_the_first_chunks_can_be_written(tmp_path: Path) -> None:
    write(tmp_path / "two.kld", Fake(LOGITS), table_of().limited(2))
    source = opened(tmp_path / "two.kld")
    assert len(source.windows.windows) == 2
    assert source.windows.documents[0].ids.tolist() == TOKENS[:12].tolist()


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write(tmp_path / "x.kld", Fake(LOGITS), progress=lambda *done: told.append(done))
    assert told == [(0, 6), (4, 6), (6, 6)]


def test_a_live_model_and_its_file_say_the_same(
    reference: Path, corpus: Path, tmp_path: Path
) -> None:
    model = load_model(str(reference), LoadOptions(device="cpu"))
    table = planned(model.vocabulary, corpus, context=32)
    write(tmp_path / "model.kld", model, table, batch_tokens=256)
    source = opened(tmp_path / "model.kld")
    check_same_windows(source.windows, table)
    assert source.width == model.width == 112
    live = torch.log_softmax(all_rows(model, table).double(), dim=-1)
    written = all_rows(source).double()
    clamped = torch.maximum(live, live.amax(dim=-1, keepdim=True) - 16)
    assert (written - clamped).abs().max() < 0.5 * 16 / 65535 + 1e-5


def test_a_model_is_written_at_its_full_padded_width(tmp_path: Path) -> None:
    wide = torch.cat([LOGITS, torch.full((len(LOGITS), 4), -3.0)], dim=-1)
    vocabulary = with_bos(adds=False)
    assert vocabulary.size < wide.shape[1]
    write(tmp_path / "wide.kld", Fake(wide, vocabulary=vocabulary))
    assert opened(tmp_path / "wide.kld").width == WIDTH + 4


# BOS


def with_bos(*, adds: bool, model: Path | None = None) -> Vocabulary:
    """A tokenizer whose BOS is id 1, added to every text or not."""
    if model is not None:
        backend = Tokenizer.from_file(str(model / "tokenizer.json"))
    else:
        words = {word: number for number, word in enumerate(["?", "<s>", "a", "b", "c", "d"])}
        backend = Tokenizer.from_str(
            json.dumps(
                {
                    "version": "1.0",
                    "added_tokens": [],
                    "pre_tokenizer": {"type": "WhitespaceSplit"},
                    "model": {"type": "WordLevel", "vocab": words, "unk_token": "?"},
                }
            )
        )
    name = backend.id_to_token(1)
    if adds:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{name} $A", special_tokens=[(name, 1)]
        )
    vocabulary = Vocabulary(backend, bos_id=1, eos_id=None)
    assert vocabulary.adds_bos is adds
    return vocabulary


def planned(vocabulary: Vocabulary, corpus: Path, context: int) -> WindowTable:
    """A text's windows by the protocol llama.cpp."""
    protocol = choose_protocol("llama.cpp", vocabulary=vocabulary, longest=None, context=context)
    text = encode_document(
        Document(name="a", content=corpus.read_text().encode()), vocabulary, protocol
    )
    document = TokenizedDocument(corpus=0, name="text", ids=text.ids, encoding=text)
    return plan_windows([document], protocol, vocabulary.prefix_id)


def check_same_windows(found: WindowTable, expected: WindowTable) -> None:
    assert len(found.windows) == len(expected.windows)
    for one, other in zip(found.windows, expected.windows, strict=True):
        assert one.inputs.tolist() == other.inputs.tolist()
        assert one.targets.tolist() == other.targets.tolist()
        assert (one.number, one.score_from, one.position) == (
            other.number,
            other.score_from,
            other.position,
        )


def test_the_file_has_the_tokens_of_the_text_with_the_one_bos_in_front(tmp_path: Path) -> None:
    vocabulary = with_bos(adds=True)
    text = [int(token) for token in RANDOM.integers(2, 6, CONTEXT * CHUNKS + 1)]
    table = table_of(text, bos="auto", vocabulary=vocabulary)
    assert [int(window.inputs[0]) for window in table.windows] == [1, 1, 1]
    write(tmp_path / "bos.kld", Fake(LOGITS, vocabulary=vocabulary), table)
    source = opened(tmp_path / "bos.kld")
    assert source.windows.documents[0].ids.tolist() == [1, *text][: CONTEXT * CHUNKS]
    assert [int(window.inputs[0]) for window in source.windows.windows] == [1, text[5], text[11]]


def test_as_read_by_gives_the_windows_of_the_text_itself(tmp_path: Path) -> None:
    vocabulary = with_bos(adds=True)
    text = [int(token) for token in RANDOM.integers(2, 6, CONTEXT * CHUNKS)]
    table = table_of(text, bos="auto", vocabulary=vocabulary)
    write(tmp_path / "bos.kld", Fake(LOGITS, vocabulary=vocabulary), table)
    read = as_read_by(opened(tmp_path / "bos.kld").windows, vocabulary)
    check_same_windows(read, table)
    assert read.documents[0].ids.tolist() == text[: CONTEXT * CHUNKS - 1]
    assert read.protocol["bos"] == "window"


def test_a_tokenizer_that_adds_none_reads_what_is_in_the_file(file: Path) -> None:
    windows = opened(file).windows
    read = as_read_by(windows, with_bos(adds=False))
    check_same_windows(read, windows)
    assert read.protocol["bos"] == "none"


def test_a_file_without_the_bos_in_front_still_has_one_read(file: Path) -> None:
    """llama.cpp does not ask how the file was made either."""
    windows = opened(file).windows
    read = as_read_by(windows, with_bos(adds=True))
    assert [int(window.inputs[0]) for window in read.windows] == [1, 1, 1]
    assert read.windows[1].inputs[1:].tolist() == TOKENS[7:12].tolist()
    assert read.windows[1].position == windows.windows[1].position
    assert read.documents[0].ids.tolist() == TOKENS.tolist()


def test_a_live_model_that_reads_a_bos_finds_its_own_predictions_again(
    reference: Path, corpus: Path, tmp_path: Path
) -> None:
    model = load_model(str(reference), LoadOptions(device="cpu"))
    assert isinstance(model, ModelSource)
    model.vocabulary = with_bos(adds=True, model=reference)
    table = planned(model.vocabulary, corpus, context=8)
    write(tmp_path / "bos.kld", model, table, batch_tokens=256)
    source = opened(tmp_path / "bos.kld")
    written = all_rows(source).double()
    off = {
        name: (torch.log_softmax(all_rows(model, table).double(), dim=-1) - written).abs()
        for name, table in {
            "right": as_read_by(source.windows, model.vocabulary),
            "wrong": source.windows,
        }.items()
    }
    in_reach = written > written.amax(dim=-1, keepdim=True) - 15.9
    assert off["right"][in_reach].max() < 0.5 * 16 / 65535 + 1e-5
    assert off["wrong"][in_reach].max() > 0.1


# What is not written


@pytest.mark.parametrize(
    ("table", "message"),
    [
        pytest.param(table_of(protocol="rolling"), "--protocol llama.cpp", id="rolling"),
        pytest.param(table_of(score_from=2), "scored from the middle on", id="score from"),
        pytest.param(
            table_of(protocol="rolling", score_from=3), "--protocol llama.cpp", id="rolling halves"
        ),
        pytest.param(table_of([1] * 8, context=2, score_from=0), "from the middle on", id="short"),
        pytest.param(
            replace(table_of(), documents=table_of().documents * 2), "one text, not 2", id="two"
        ),
    ],
)
def test_windows_that_llama_cpp_has_not_are_refused(
    tmp_path: Path, table: WindowTable, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        write(tmp_path / "x.kld", Fake(torch.zeros(100, WIDTH)), table)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("adds", "bos"), [(True, "none"), (False, "window")])
@pytest.mark.parametrize("chunks", [1, None])
def test_a_bos_against_the_tokenizer_is_refused(
    tmp_path: Path, adds: bool, bos: Bos, chunks: int | None
) -> None:
    vocabulary = with_bos(adds=adds)
    table = table_of([2, 3, 4, 5] * 6, bos=bos, vocabulary=vocabulary).limited(chunks)
    with pytest.raises(UsageError, match=r"the tokenizer adds .* BOS, and llama\.cpp goes"):
        write(tmp_path / "x.kld", Fake(torch.zeros(100, WIDTH), vocabulary=vocabulary), table)


def test_a_source_without_logits_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="gives truncated, not logits"):
        write(tmp_path / "x.kld", opened(file))
    assert not (tmp_path / "x.kld").exists()


def test_a_token_beyond_the_width_is_refused(tmp_path: Path) -> None:
    table = table_of([*TOKENS[:-1], WIDTH])
    with pytest.raises(SourceError, match=f"token id {WIDTH} and fake predicts only {WIDTH} ids"):
        write(tmp_path / "x.kld", Fake(LOGITS), table)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.kld"
    path.write_text("what was there before")
    with pytest.raises(SourceError, match="out of memory"):
        write(path, Fake(LOGITS, fail_after=1), batch_tokens=6)
    assert [p.name for p in tmp_path.iterdir()] == ["x.kld"]
    assert path.read_text() == "what was there before"
    write(path, Fake(LOGITS))
    assert [p.name for p in tmp_path.iterdir()] == ["x.kld"]
    assert is_base_file(path)


def test_a_link_still_points_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "link.kld").symlink_to(tmp_path / "real.kld")
    write(tmp_path / "link.kld", Fake(LOGITS))
    assert (tmp_path / "link.kld").is_symlink()
    assert is_base_file(tmp_path / "real.kld")


def test_where_nothing_can_be_written_the_model_does_not_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "x.kld"):
        with pytest.raises(OutputError, match="cannot write"):
            write(path, Fake(LOGITS, fail_after=0))


def test_what_a_killed_writer_left_is_removed_and_a_living_one_is_left_alone(
    tmp_path: Path,
) -> None:
    killed, young = (tmp_path / f".klcli-{digit * 16}.tmp" for digit in "ab")
    with whole_file(tmp_path / "living.kld") as file:
        (living,) = tmp_path.iterdir()
        for path in (killed, young):
            path.write_bytes(b"half")
        for path in (killed, living):
            os.utime(path, (0, 0))
        remove_left_over(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([living, young])
        file.write(b"whole")
    assert (tmp_path / "living.kld").read_bytes() == b"whole"
