"""Logit files of every format: the same rows, aligned with their tokens, or one clear error."""

import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from klcli.errors import SourceError
from klcli.sources.files.arrays import ArraySource, open_arrays
from klcli.sources.opening import open_source
from klcli.sources.options import LoadOptions
from klcli.storage.tensors import FileArray
from klcli.text.windows import NO_TARGET, Window

Array = npt.NDArray[Any]

WINDOWS, ROWS, WIDTH = 3, 4, 7
RANDOM = np.random.default_rng(0)
LOGITS: Array = (3 * RANDOM.normal(size=(WINDOWS, ROWS, WIDTH))).astype(np.float32)
TOKENS: Array = RANDOM.integers(0, WIDTH, (WINDOWS, ROWS + 1))
TOKENS[:, -1] = [1, 2, 3]
TOKENS[:, 0] = [4, 5, 6]  # no window goes on where another ended
PROBS: Array = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=-1, keepdims=True)
LOG_PROBS: Array = np.log(PROBS)


def write_npy(path: Path, arrays: dict[str, Array]) -> None:
    [values] = [arrays[name] for name in arrays if name not in ("tokens", "score_from")]
    np.save(path, values)
    if "tokens" in arrays:
        np.save(path.with_suffix(".tokens.npy"), arrays["tokens"])


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    np.savez(path, **arrays)


def write_npz_compressed(path: Path, arrays: dict[str, Any]) -> None:
    np.savez_compressed(path, **arrays)


def write_pt(path: Path, arrays: dict[str, Array]) -> None:
    torch.save({name: torch.tensor(array) for name, array in arrays.items()}, path)


def write_safetensors(path: Path, arrays: dict[str, Array]) -> None:
    save_file({name: torch.tensor(array) for name, array in arrays.items()}, path)


WRITERS: dict[str, tuple[str, Callable[[Path, dict[str, Array]], None]]] = {
    "npy": (".npy", write_npy),
    "npz": (".npz", write_npz),
    "npz-compressed": (".npz", write_npz_compressed),
    "safetensors": (".safetensors", write_safetensors),
    "pt": (".pt", write_pt),
}
WITH_NAMES = [name for name in WRITERS if name != "npy"]


def save(folder: Path, kind: str, **arrays: Array) -> str:
    suffix, write = WRITERS[kind]
    path = folder / f"file{suffix}"
    write(path, arrays)
    return str(path)


def opened(spec: str, **options: Any) -> ArraySource:
    return open_arrays(spec, LoadOptions(**options))


def rows_of(source: ArraySource, *numbers: int) -> Tensor:
    """The scored rows of some windows (all for none), read as one batch."""
    windows = source.windows.windows
    batch = [windows[n] for n in numbers] if numbers else list(windows)
    [rows] = source.rows([batch])
    return rows.block(0, len(rows))


def targets_of(source: ArraySource) -> list[list[int]]:
    return [window.targets.tolist() for window in source.windows.windows]


# Formats


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_format_holds_the_same_rows_and_tokens(
    tmp_path: Path, kind: str, dtype: type[np.floating[Any]]
) -> None:
    values = LOGITS.astype(dtype)
    source = opened(save(tmp_path, kind, logits=values, tokens=TOKENS))
    assert torch.equal(rows_of(source), torch.tensor(values).flatten(0, 1))
    assert targets_of(source) == TOKENS[:, 1:].tolist()
    assert (source.width, source.windows.has_tokens, source.longest) == (WIDTH, True, None)
    assert source.provenance["shape"] == [WINDOWS, ROWS, WIDTH]
    assert source.provenance["values"] == "logits"


@pytest.mark.parametrize("kind", WRITERS)
def test_two_dimensions_are_one_window(tmp_path: Path, kind: str) -> None:
    source = opened(save(tmp_path, kind, logits=LOGITS[0], tokens=TOKENS[0]))
    assert torch.equal(rows_of(source), torch.tensor(LOGITS[0]))
    assert targets_of(source) == [TOKENS[0, 1:].tolist()]


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_bfloat16_stays_bfloat16(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"file{WRITERS[kind][0]}"
    tensors = {"logits": torch.tensor(LOGITS).bfloat16(), "tokens": torch.tensor(TOKENS)}
    save_file(tensors, path) if kind == "safetensors" else torch.save(tensors, path)
    rows = rows_of(opened(str(path)))
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows, tensors["logits"].flatten(0, 1))


def test_a_pt_file_may_be_one_tensor_with_tokens_beside_it(tmp_path: Path) -> None:
    torch.save(torch.tensor(LOGITS), tmp_path / "file.pt")
    assert not opened(str(tmp_path / "file.pt")).windows.has_tokens
    np.save(tmp_path / "file.tokens.npy", TOKENS)
    source = opened(str(tmp_path / "file.pt"))
    assert targets_of(source) == TOKENS[:, 1:].tolist()
    assert torch.equal(rows_of(source), torch.tensor(LOGITS).flatten(0, 1))


def test_a_pt_file_may_hold_a_parameter(tmp_path: Path) -> None:
    torch.save({"logits": torch.nn.Parameter(torch.tensor(LOGITS))}, tmp_path / "file.pt")
    rows = rows_of(opened(str(tmp_path / "file.pt")))
    assert torch.equal(rows, torch.tensor(LOGITS).flatten(0, 1))


def test_a_pt_file_may_have_the_format_of_before_pytorch_1_6(tmp_path: Path) -> None:
    tensors = {"logits": torch.tensor(LOGITS), "tokens": torch.tensor(TOKENS)}
    torch.save(tensors, tmp_path / "file.pt", _use_new_zipfile_serialization=False)
    source = opened(str(tmp_path / "file.pt"))
    assert torch.equal(rows_of(source), tensors["logits"].flatten(0, 1))
    assert targets_of(source) == TOKENS[:, 1:].tolist()


def test_an_array_in_fortran_order_has_the_same_rows(tmp_path: Path) -> None:
    source = opened(save(tmp_path, "npy", logits=np.asfortranarray(LOGITS)))
    assert torch.equal(rows_of(source), torch.tensor(LOGITS).flatten(0, 1))


@pytest.mark.parametrize("kind", WRITERS)
def test_open_source_knows_a_logit_file_by_its_ending(tmp_path: Path, kind: str) -> None:
    spec = save(tmp_path, kind, logits=LOGITS)
    assert isinstance(open_source(spec, LoadOptions()), ArraySource)


def test_arrays_of_other_names_are_left_alone(tmp_path: Path) -> None:
    spec = save(tmp_path, "npz", logits=LOGITS, tokens=TOKENS, hidden=np.zeros((2, 2)))
    assert targets_of(opened(spec)) == TOKENS[:, 1:].tolist()


# Tokens and alignment


@pytest.mark.parametrize("kind", WRITERS)
def test_the_target_of_row_i_is_token_i_plus_1(tmp_path: Path, kind: str) -> None:
    source = opened(save(tmp_path, kind, logits=LOGITS, tokens=TOKENS))
    for number, window in enumerate(source.windows.windows):
        assert window.inputs.tolist() == TOKENS[number, :-1].tolist()
        assert window.targets.tolist() == TOKENS[number, 1:].tolist()
        assert (window.number, window.score_from, window.position) == (number, 0, 1)


@pytest.mark.parametrize("kind", WRITERS)
def test_with_as_many_tokens_as_rows_the_last_target_is_unknown(tmp_path: Path, kind: str) -> None:
    source = opened(save(tmp_path, kind, logits=LOGITS, tokens=TOKENS[:, :-1]))
    assert targets_of(source) == [[*row, NO_TARGET] for row in TOKENS[:, 1:-1].tolist()]
    assert len(rows_of(source)) == WINDOWS * ROWS


@pytest.mark.parametrize("kind", WRITERS)
def test_without_tokens_there_are_rows_and_no_targets(tmp_path: Path, kind: str) -> None:
    source = opened(save(tmp_path, kind, logits=LOGITS))
    assert not source.windows.has_tokens
    assert targets_of(source) == [[NO_TARGET] * ROWS] * WINDOWS
    assert torch.equal(rows_of(source), torch.tensor(LOGITS).flatten(0, 1))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint32, np.int64, ">i4"])
def test_token_ids_may_be_any_integers(tmp_path: Path, dtype: npt.DTypeLike) -> None:
    source = opened(save(tmp_path, "npz", logits=LOGITS, tokens=TOKENS.astype(dtype)))
    assert targets_of(source) == TOKENS[:, 1:].tolist()
    assert source.windows.windows[0].targets.dtype == np.int64


def test_token_ids_given_by_hand_go_before_those_beside_the_file(tmp_path: Path) -> None:
    spec = save(tmp_path, "npy", logits=LOGITS, tokens=TOKENS)
    other = (TOKENS + 1) % WIDTH
    np.save(tmp_path / "other.npy", other)
    source = opened(spec, token_ids=str(tmp_path / "other.npy"))
    assert targets_of(source) == other[:, 1:].tolist()


def test_token_ids_given_by_hand_go_before_those_in_the_file(tmp_path: Path) -> None:
    spec = save(tmp_path, "npz", logits=LOGITS, tokens=TOKENS)
    other = (TOKENS + 1) % WIDTH
    np.save(tmp_path / "other.npy", other)
    source = opened(spec, token_ids=str(tmp_path / "other.npy"))
    assert targets_of(source) == other[:, 1:].tolist()


SCORE_FROM = {
    "scalar": (np.array(2), [2, 2, 2]),
    "one": (np.array([1]), [1, 1, 1]),
    "one each": (np.array([0, 3, 1]), [0, 3, 1]),
}


@pytest.mark.parametrize("kind", WITH_NAMES)
@pytest.mark.parametrize("first", SCORE_FROM)
def test_rows_before_score_from_are_not_scored(tmp_path: Path, kind: str, first: str) -> None:
    array, firsts = SCORE_FROM[first]
    source = opened(save(tmp_path, kind, logits=LOGITS, tokens=TOKENS, score_from=array))
    assert [window.score_from for window in source.windows.windows] == firsts
    assert [window.position for window in source.windows.windows] == [f + 1 for f in firsts]
    assert targets_of(source) == [
        TOKENS[number, f + 1 :].tolist() for number, f in enumerate(firsts)
    ]
    kept = [torch.tensor(LOGITS[number, f:]) for number, f in enumerate(firsts)]
    assert torch.equal(rows_of(source), torch.cat(kept))


def chain() -> tuple[Array, Array]:
    """One text of 13 tokens, and it cut into three windows of four rows."""
    text = np.array([0, 1, 2, 3, 4, 5, 6, 5, 4, 3, 2, 1, 0])
    return text, np.stack([text[0:5], text[4:9], text[8:13]])


def test_windows_that_go_on_where_the_last_ended_are_one_document(tmp_path: Path) -> None:
    text, tokens = chain()
    spec = save(tmp_path, "npz", logits=LOGITS, tokens=tokens)
    table = opened(spec).windows
    [document] = table.documents
    assert (document.name, document.ids.tolist()) == (spec, text.tolist())
    assert [window.document for window in table.windows] == [0, 0, 0]
    for window in table.windows:
        end = window.position + len(window.targets)
        assert window.targets.tolist() == text[window.position : end].tolist()


def test_positions_in_a_chain_count_from_its_beginning(tmp_path: Path) -> None:
    _, tokens = chain()
    spec = save(tmp_path, "npz", logits=LOGITS, tokens=tokens, score_from=np.array([0, 2, 3]))
    assert [window.position for window in opened(spec).windows.windows] == [1, 7, 12]


def test_windows_that_do_not_chain_are_documents_of_their_own(tmp_path: Path) -> None:
    table = opened(save(tmp_path, "npz", logits=LOGITS, tokens=TOKENS)).windows
    assert [window.document for window in table.windows] == [0, 1, 2]
    assert [document.ids.tolist() for document in table.documents] == TOKENS.tolist()
    assert len({document.name for document in table.documents}) == WINDOWS


# Reading rows

FIRSTS = np.array([1, 0, 2])


@pytest.fixture(scope="module")
def staggered(tmp_path_factory: pytest.TempPathFactory) -> ArraySource:
    """A file whose windows are scored from rows 1, 0 and 2."""
    folder = tmp_path_factory.mktemp("staggered")
    return opened(save(folder, "npz", logits=LOGITS, tokens=TOKENS, score_from=FIRSTS))


@settings(deadline=None)
@given(st.permutations(range(WINDOWS)), st.integers(1, WINDOWS), st.data())
def test_any_block_of_any_batch_is_that_part_of_its_windows(
    staggered: ArraySource, order: list[int], count: int, data: st.DataObject
) -> None:
    chosen = order[:count]
    expected = torch.cat([torch.tensor(LOGITS[n, FIRSTS[n] :]) for n in chosen])
    [rows] = staggered.rows([[staggered.windows.windows[n] for n in chosen]])
    assert len(rows) == len(expected)
    start = data.draw(st.integers(0, len(rows) - 1))
    stop = data.draw(st.integers(start + 1, len(rows)))
    assert torch.equal(rows.block(start, stop), expected[start:stop])


def test_each_batch_has_its_own_rows_in_order(staggered: ArraySource) -> None:
    windows = staggered.windows.windows
    batches = [[windows[2]], [windows[0], windows[1]]]
    assert [len(rows) for rows in staggered.rows(batches)] == [2, 7]


def test_a_window_of_another_table_is_found_by_its_number(staggered: ArraySource) -> None:
    """A run follows the windows of the other file; only number, first row and count matter."""
    ids = np.zeros(ROWS, dtype=np.int64)
    foreign = Window(number=1, document=0, inputs=ids, score_from=2, targets=ids[2:], position=9)
    [rows] = staggered.rows([[foreign]])
    assert torch.equal(rows.block(0, 2), torch.tensor(LOGITS[1, 2:]))


def sparse_npy(path: Path, shape: tuple[int, ...]) -> None:
    """A .npy of zeros that takes no room on the disk."""
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4 * int(np.prod(shape)))


def peak_memory() -> int:
    """The most bytes that this process has held so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@pytest.mark.skipif(sys.platform == "win32", reason="needs sparse files and getrusage")
def test_one_window_of_a_file_of_4_gb_is_read_without_loading_the_file(tmp_path: Path) -> None:
    sparse_npy(tmp_path / "file.npy", (2048, 8, 2**16))
    before = peak_memory()
    source = opened(str(tmp_path / "file.npy"))
    assert rows_of(source, 2000).shape == (8, 2**16)
    assert peak_memory() - before < 2**28


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_the_array_of_a_file_is_neither_loaded_nor_mapped(tmp_path: Path, kind: str) -> None:
    source = opened(save(tmp_path, kind, logits=LOGITS))
    assert isinstance(source._values, FileArray)


@pytest.mark.parametrize("logits", [LOGITS, LOGITS[0]], ids=["windows", "rows"])
def test_an_array_in_the_order_of_fortran_gives_the_same_rows(
    tmp_path: Path, logits: npt.NDArray[np.float32]
) -> None:
    np.save(tmp_path / "c.npy", logits)
    np.save(tmp_path / "f.npy", np.asfortranarray(logits))
    np.savez(tmp_path / "f.npz", logits=np.asfortranarray(logits))
    plain, *others = (rows_of(opened(str(tmp_path / n))) for n in ("c.npy", "f.npy", "f.npz"))
    assert torch.equal(plain, torch.tensor(logits).reshape(plain.shape))
    assert all(torch.equal(one, plain) for one in others)


@pytest.mark.parametrize("kind", ["npz", "npz-compressed"])
def test_an_unpacked_npz_leaves_no_file_behind(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = save(tmp_path, kind, logits=LOGITS)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    source = opened(spec)
    assert list((tmp_path / "temporary").iterdir()) == []
    assert torch.equal(rows_of(source), torch.tensor(LOGITS).flatten(0, 1))


# What the numbers are


@pytest.mark.parametrize("kind", WITH_NAMES)
@pytest.mark.parametrize(
    ("name", "values", "row_kind"),
    [
        ("logits", LOGITS, "logits"),
        ("log_probs", LOG_PROBS, "log_probs"),
        ("probs", PROBS, "log_probs"),
    ],
)
def test_the_name_of_the_array_says_what_the_numbers_are(
    tmp_path: Path, kind: str, name: str, values: Array, row_kind: str
) -> None:
    source = opened(save(tmp_path, kind, **{name: values}))
    [rows] = source.rows([source.windows.windows])
    assert rows.kind == row_kind
    assert source.provenance["values"] == name
    found = rows.block(0, len(rows)).double().log_softmax(dim=-1)
    torch.testing.assert_close(
        found.float(), torch.tensor(LOG_PROBS).flatten(0, 1), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("values", "array"), [("logits", LOGITS), ("log_probs", LOG_PROBS), ("probs", PROBS)]
)
def test_what_the_numbers_of_an_npy_file_are_can_be_said(
    tmp_path: Path, values: Any, array: Array
) -> None:
    source = opened(save(tmp_path, "npy", logits=array), values=values)
    assert source.provenance["values"] == values
    found = rows_of(source).double().log_softmax(dim=-1)
    torch.testing.assert_close(
        found.float(), torch.tensor(LOG_PROBS).flatten(0, 1), atol=1e-5, rtol=0
    )


def test_what_is_said_goes_before_the_name(tmp_path: Path) -> None:
    source = opened(save(tmp_path, "npz", logits=PROBS), values="probs")
    assert torch.allclose(rows_of(source).exp().sum(dim=-1), torch.ones(1, dtype=torch.float64))


def test_a_probability_of_zero_is_minus_infinity(tmp_path: Path) -> None:
    certain = np.zeros((2, WIDTH), dtype=np.float32)
    certain[:, 3] = 1
    rows = rows_of(opened(save(tmp_path, "npz", probs=certain)))
    assert rows[:, 3].tolist() == [0.0, 0.0]
    assert (rows[:, 0] == -torch.inf).all()


def test_probabilities_in_half_precision_sum_to_one_closely_enough(tmp_path: Path) -> None:
    rows = rows_of(opened(save(tmp_path, "npz", probs=PROBS.astype(np.float16))))
    assert torch.isfinite(rows).all()


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda row: row * 1.002, id="sum too large"),
        pytest.param(lambda row: row * 0.998, id="sum too small"),
        pytest.param(lambda row: row * np.nan, id="NaN"),
        pytest.param(lambda row: row + np.array([-2, 2, 0, 0, 0, 0, 0]), id="negative"),
        pytest.param(np.log, id="log-probabilities"),
    ],
)
def test_probabilities_that_are_none_are_an_error_that_names_the_row(
    tmp_path: Path, spoil: Callable[[Array], Array]
) -> None:
    values = PROBS.copy()
    values[1, 2] = spoil(values[1, 2])
    source = opened(save(tmp_path, "npz", probs=values))
    message = r"file\.npz: row 2 of window 1 is not a probability distribution: it sums to "
    with pytest.raises(SourceError, match=message):
        rows_of(source)


@pytest.mark.parametrize(
    ("spoil", "total"),
    [
        pytest.param(lambda row: row + 5, "148.413", id="logits"),
        pytest.param(lambda row: row - 0.01, "0.99005", id="sum too small"),
        pytest.param(lambda row: -row, "", id="-ln p"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_log_probabilities_that_do_not_sum_to_one_are_an_error_that_names_the_row(
    tmp_path: Path, spoil: Callable[[Array], Array], total: str, dtype: Any
) -> None:
    values = LOG_PROBS.copy()
    values[1, 2] = spoil(values[1, 2])
    source = opened(save(tmp_path, "npz", log_probs=values.astype(dtype)))
    message = r"file\.npz: row 2 of window 1 does not hold log-probabilities: e\^x sums to "
    with pytest.raises(SourceError, match=message + total[:4] + ".* --values logits"):
        rows_of(source)


@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("ids", [2, 499, 20_000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["probs", "log_probs"])
def test_distributions_pass_in_every_type(
    tmp_path: Path, kind: str, dtype: torch.dtype, ids: int, spread: float
) -> None:
    generator = torch.Generator().manual_seed(ids)
    logits = spread * torch.randn(3, ids, generator=generator, dtype=torch.float64)
    exact = logits.softmax(dim=-1) if kind == "probs" else logits.log_softmax(dim=-1)
    path = tmp_path / "file.safetensors"
    save_file({kind: exact.to(dtype)}, path)
    assert len(rows_of(opened(str(path)))) == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_error_says_what_the_type_allows(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"probs": (torch.tensor(PROBS[0]) * 0.98).to(dtype)}, path)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(SourceError, match=rf"sums to 0\.9.*, and {name} and 7 ids allow 1 ± 0\.00"):
        rows_of(opened(str(path)))


@pytest.mark.parametrize("name", ["logits", "log_probs"])
def test_negative_log_probabilities_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=rf"look like negative log-probabilities.*not {name}"):
        opened(save(tmp_path, "npz", **{name: -LOG_PROBS}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_probabilities_that_pass_for_logits_are_refused(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"logits": torch.tensor(PROBS).to(dtype)}, path)
    with pytest.raises(SourceError, match="look like probabilities, not logits"):
        opened(str(path))


def test_masked_logits_are_not_taken_for_negative_log_probabilities(tmp_path: Path) -> None:
    masked = LOGITS.copy()
    masked[:, :, 0] = -np.inf
    assert len(rows_of(opened(save(tmp_path, "npz", logits=masked)))) > 0


def test_probabilities_may_be_off_by_less_than_a_thousandth(tmp_path: Path) -> None:
    rows_of(opened(save(tmp_path, "npz", probs=PROBS * 1.0005)))


@pytest.mark.parametrize("kind", WRITERS)
def test_probabilities_that_pass_for_logits_are_refused(tmp_path: Path, kind: str) -> None:
    spec = save(tmp_path, kind, logits=PROBS)
    with pytest.raises(SourceError, match=r"look like probabilities, not logits; .* --values"):
        opened(spec)
    assert opened(spec, values="logits").provenance["values"] == "logits"


# Errors


def spoiled(**changes: Array) -> dict[str, Array]:
    return {"logits": LOGITS, "tokens": TOKENS} | changes


@pytest.mark.parametrize("kind", WITH_NAMES)
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        pytest.param(
            {"hidden": LOGITS, "tokens": TOKENS},
            "no array named logits, log_probs or probs, but hidden, tokens",
            id="no known name",
        ),
        pytest.param(
            {"logits": LOGITS, "probs": PROBS},
            "holds logits and probs: keep one of them",
            id="two value arrays",
        ),
        pytest.param(
            {"logits": LOGITS[0, 0]}, r"array of shape \(7,\); it must be \(tokens, vocab", id="1-D"
        ),
        pytest.param(
            {"logits": LOGITS[None]}, r"array of shape \(1, 3, 4, 7\); it must be", id="4-D"
        ),
        pytest.param({"logits": LOGITS[:, :0]}, r"array of shape \(3, 0, 7\)", id="no row"),
        pytest.param(
            {"logits": (10 * LOGITS).astype(np.int32)}, "int32, not floating-point", id="integers"
        ),
        pytest.param({"logits": LOGITS > 0}, "bool, not floating-point", id="booleans"),
        pytest.param(
            spoiled(tokens=TOKENS[:, :3]),
            r"tokens of shape \(3, 3\) do not fit values of shape \(3, 4, 7\); .* 4 or 5 tokens",
            id="too few tokens",
        ),
        pytest.param(
            spoiled(tokens=TOKENS[:2]), r"tokens of shape \(2, 5\) do not fit", id="too few windows"
        ),
        pytest.param(
            spoiled(tokens=TOKENS[0]), r"tokens of shape \(5,\) do not fit", id="tokens 1-D"
        ),
        pytest.param(
            spoiled(tokens=TOKENS.astype(np.float32)), "tokens are float32, not int", id="floats"
        ),
        pytest.param(spoiled(tokens=TOKENS > 2), "tokens are bool, not integers", id="bool tokens"),
        pytest.param(
            spoiled(tokens=np.where(TOKENS == 4, 7, TOKENS)),
            r"token ids from \d to 7 do not fit a vocabulary of 7",
            id="id out of range",
        ),
        pytest.param(
            spoiled(tokens=np.where(TOKENS == 4, -1, TOKENS)),
            r"token ids from -1 to \d do not fit a vocabulary of 7",
            id="negative id",
        ),
        pytest.param(
            spoiled(score_from=np.array([0, 1])), "score_from .* 3 windows", id="two rows"
        ),
        pytest.param(spoiled(score_from=np.array([4])), r"score_from .* \(0 to 3\)", id="row 4"),
        pytest.param(spoiled(score_from=np.array([-1])), "score_from", id="row -1"),
        pytest.param(spoiled(score_from=np.array([1.5])), "score_from", id="row 1.5"),
        pytest.param(spoiled(score_from=np.array([np.nan])), "score_from", id="row NaN"),
    ],
)
def test_arrays_that_do_not_fit_are_one_clear_error(
    tmp_path: Path, kind: str, arrays: dict[str, Array], message: str
) -> None:
    with pytest.raises(SourceError, match=rf"file\.\w+.*{message}"):
        opened(save(tmp_path, kind, **arrays))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param(LOGITS.astype(">f4"), ">f4", id="big-endian"),
        pytest.param(LOGITS.astype(np.complex64), "complex64", id="complex"),
        pytest.param(LOGITS.astype("S4"), "S4", id="strings"),
        pytest.param(
            np.zeros(2, dtype=[("a", "f4"), ("b", "f4")]).reshape(1, 2), "'a'", id="records"
        ),
    ],
)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_numbers_that_torch_does_not_know_are_an_error(
    tmp_path: Path, kind: str, values: Array, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        opened(save(tmp_path, kind, logits=values))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param([torch.zeros(2, 3)], id="a list"),
        pytest.param({"logits": torch.zeros(2, 3), "note": "x"}, id="a string beside"),
        pytest.param({"logits": {"x": torch.zeros(2, 3)}}, id="a dictionary inside"),
        pytest.param("text", id="a string"),
        pytest.param(None, id="nothing"),
    ],
)
def test_a_pt_file_of_anything_but_tensors_is_an_error(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(SourceError, match="something other than a dictionary of tensors"):
        opened(str(tmp_path / "file.pt"))


def test_a_pt_file_with_numbers_for_names_is_an_error(tmp_path: Path) -> None:
    torch.save({0: torch.zeros(2, 3)}, tmp_path / "file.pt")
    with pytest.raises(SourceError, match=r"file\.pt"):
        opened(str(tmp_path / "file.pt"))


def test_a_pt_file_of_a_whole_module_is_an_error(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "file.pt")
    with pytest.raises(SourceError, match=r"cannot read .*a pickle never runs"):
        opened(str(tmp_path / "file.pt"))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(SourceError, match=rf"no logit file at '.*none\{suffix}': check the path"):
        opened(str(tmp_path / f"none{suffix}"))


def test_a_folder_is_no_logit_file(tmp_path: Path) -> None:
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(SourceError, match="no logit file at"):
        opened(str(tmp_path / "folder.npy"))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda raw: b"", id="empty"),
        pytest.param(lambda raw: b"no such format, but text " * 9, id="garbage"),
        pytest.param(lambda raw: raw[:30], id="cut in the header"),
        pytest.param(lambda raw: raw[: len(raw) * 2 // 3], id="cut in the data"),
        pytest.param(lambda raw: raw[:40] + b"\xff" * 200 + raw[240:], id="overwritten"),
    ],
)
def test_a_damaged_file_is_one_clear_error(
    tmp_path: Path, kind: str, damage: Callable[[bytes], bytes]
) -> None:
    path = Path(save(tmp_path, kind, logits=LOGITS))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SourceError, match=rf"file\{path.suffix}"):
        rows_of(opened(str(path)))


def test_garbage_is_not_called_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "file.npy").write_bytes(b"no such format, but text")
    with pytest.raises(SourceError, match=r"file\.npy") as caught:
        opened(str(tmp_path / "file.npy"))
    assert "holds a pickle" not in str(caught.value)


def test_an_npz_file_called_npy_is_an_error(tmp_path: Path) -> None:
    Path(save(tmp_path, "npz", logits=LOGITS)).rename(tmp_path / "file.npy")
    with pytest.raises(SourceError, match=r"file\.npy"):
        opened(str(tmp_path / "file.npy"))


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(None, id="missing"),
        pytest.param(b"", id="empty"),
        pytest.param(b"1 2 3 4", id="text"),
        pytest.param(b"\x93NUMPY", id="cut off"),
    ],
)
def test_token_ids_that_cannot_be_read_are_an_error_that_names_them(
    tmp_path: Path, raw: bytes | None
) -> None:
    spec = save(tmp_path, "npy", logits=LOGITS)
    if raw is not None:
        (tmp_path / "ids.npy").write_bytes(raw)
    with pytest.raises(SourceError, match=r"cannot read .*ids\.npy"):
        opened(spec, token_ids=str(tmp_path / "ids.npy"))


def test_token_ids_in_an_npz_file_are_an_error_that_names_it(tmp_path: Path) -> None:
    spec = save(tmp_path, "npy", logits=LOGITS)
    np.savez(tmp_path / "ids.npz", tokens=TOKENS)
    with pytest.raises(SourceError, match=r"token ids from .*ids\.npz"):
        opened(spec, token_ids=str(tmp_path / "ids.npz"))


# A pickle never runs


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def pickled_npy(content: Any) -> bytes:
    buffer = io.BytesIO()
    array = np.empty((1, 1), dtype=object)
    array[0, 0] = content
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def zipped(name: str, raw: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, raw)
    return buffer.getvalue()


def torch_file(content: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


BOMBS: dict[str, tuple[str, Callable[[Any], bytes]]] = {
    "npy of objects": ("file.npy", pickled_npy),
    "npy that is a pickle": ("file.npy", pickle.dumps),
    "npz of objects": ("file.npz", lambda bomb: zipped("logits.npy", pickled_npy(bomb))),
    "npz of a pickle": ("file.npz", lambda bomb: zipped("logits.npy", pickle.dumps(bomb))),
    "tokens in npz": ("file.npz", lambda bomb: zipped("tokens.npy", pickled_npy(bomb))),
    "pt": ("file.pt", torch_file),
    "pt beside tensors": (
        "file.pt",
        lambda bomb: torch_file({"logits": torch.zeros(2, 3), "tokens": bomb}),
    ),
    "old pt": ("file.pt", lambda bomb: torch_file(bomb, _use_new_zipfile_serialization=False)),
    "pt that is a pickle": ("file.pt", pickle.dumps),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_pickle_in_a_logit_file_never_runs(tmp_path: Path, bomb: str) -> None:
    name, make = BOMBS[bomb]
    target = tmp_path / "ran"
    (tmp_path / name).write_bytes(make(Malicious(target)))
    with pytest.raises(SourceError, match=r"file\.(npy|npz|pt).*(pickle|object)"):
        opened(str(tmp_path / name))
    assert not target.exists()


@pytest.mark.parametrize("make", [pickled_npy, pickle.dumps], ids=["objects", "pickle"])
@pytest.mark.parametrize("name", ["file.tokens.npy", "ids.npy"], ids=["beside", "by hand"])
def test_a_pickle_in_token_ids_never_runs(
    tmp_path: Path, name: str, make: Callable[[Any], bytes]
) -> None:
    spec = save(tmp_path, "npy", logits=LOGITS)
    target = tmp_path / "ran"
    (tmp_path / name).write_bytes(make(Malicious(target)))
    options = {"token_ids": str(tmp_path / name)} if name == "ids.npy" else {}
    with pytest.raises(SourceError, match="token ids from"):
        opened(spec, **options)
    assert not target.exists()


def test_the_malicious_pickle_of_these_tests_would_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()


SIX_ROWS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
ODD: dict[str, tuple[dict[str, Tensor], str]] = {
    "repeated": ({"logits": SIX_ROWS[:1].expand(10**6, 5)}, r"repeats \d+ bytes until"),
    "sparse": ({"logits": SIX_ROWS.to_sparse()}, r"is sparse: save it with .to_dense\(\)"),
    "meta": ({"logits": SIX_ROWS.to("meta")}, "no numbers"),
    "bfloat16 tokens": (
        {"logits": SIX_ROWS, "tokens": torch.arange(6).bfloat16() % 5},
        "bfloat16 where whole numbers belong",
    ),
    "sparse tokens": (
        {"logits": SIX_ROWS, "tokens": (torch.arange(6) % 5).to_sparse()},
        "is sparse",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_a_tensor_without_its_numbers_is_refused_in_words(tmp_path: Path, case: str) -> None:
    content, reason = ODD[case]
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(SourceError, match=reason):
        open_source(str(tmp_path / "file.pt"), LoadOptions())


def test_tensors_that_require_gradients_are_read(tmp_path: Path) -> None:
    torch.save({"logits": SIX_ROWS.clone().requires_grad_()}, tmp_path / "file.pt")
    source = open_arrays(str(tmp_path / "file.pt"), LoadOptions())
    (rows,) = source.rows([[source.windows.windows[0]]])
    assert torch.equal(rows.block(0, 5), SIX_ROWS[:5])


def test_only_what_is_read_of_an_npz_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    np.savez(path, logits=SIX_ROWS.numpy())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("bomb.npy", b"not an array", zipfile.ZIP_DEFLATED)
    assert open_arrays(str(path), LoadOptions()).width == 5


def test_an_npz_larger_than_the_disk_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "file.npz", logits=np.zeros((1000, 1000), np.float32))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(SourceError, match="set TMPDIR"):
        open_arrays(str(tmp_path / "file.npz"), LoadOptions())
