"""A recording of a masked model stands for it, and for no other way of hiding tokens."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from klcli import api
from klcli.align import align
from klcli.errors import MismatchError, OutputError, UsageError
from klcli.sources.hf.loading import load_model
from klcli.sources.hf.masked import MaskedSource
from klcli.sources.hf.model import ModelSource
from klcli.sources.hf.tokenizer import vocabulary_of
from klcli.sources.options import LoadOptions
from klcli.sources.recording import writer
from klcli.text.corpus import Document
from klcli.text.examples import Dataset
from klcli.text.scope import Scope
from klcli.text.vocabulary import Vocabulary
from klcli.text.windows import WindowTable
from tests.sources.masked_models import FAMILIES, LONGEST, tiny_masked
from tests.sources.test_recording import (
    Disk,
    Killed,
    assert_same,
    files_of,
    make,
    manifest_of,
    opened,
    scores,
)

TEXTS = (
    "Two unforgettable painters predicted different things.",
    "Keep talking, keeper!",
    "Rethinking it is as it was.",
)
CORPUS = Dataset(
    name="texts",
    sha256="0" * 64,
    examples=tuple(
        Document(name=f"text {i}", content=text.encode()) for i, text in enumerate(TEXTS)
    ),
)
ROW = 32 * 4
"""Bytes of a hidden state of a tiny BERT in float32."""

VARIANTS: dict[str, dict[str, Any]] = {
    "original": {},
    "word": {"pll": "word"},
    "every 3rd": {"mask_every": 3},
}

Live = Callable[..., MaskedSource]


@pytest.fixture(scope="module")
def live() -> Live:
    """A tiny model of a family and a seed, made once."""

    @cache
    def source(family: str = "bert", seed: int = 0, dtype: Any = torch.float32) -> MaskedSource:
        model, tokenizer = tiny_masked(family, seed=seed)
        vocabulary = vocabulary_of(tokenizer, family)
        return MaskedSource(f"{family} {seed}", model.to(dtype), vocabulary)

    return source


def table_of(source: ModelSource, **scope: Any) -> WindowTable:
    """Windows of 18 tokens, of which some do not hold their document."""
    return align([source], [CORPUS], Scope(**{"context": 18, "stride": 5} | scope)).table


def ends_of(table: WindowTable) -> list[list[int]]:
    maskings = [window.masking for window in table.windows]
    return [masking.ends.tolist() for masking in maskings if masking is not None]


# The same numbers


@pytest.mark.parametrize("kind", ["hidden", "logits"])
@pytest.mark.parametrize(
    ("family", "variant"),
    [*(("bert", name) for name in VARIANTS), ("roberta", "original"), ("deberta-v2", "word")],
)
def test_a_recording_stands_for_its_model_on_either_side_and_alone(
    family: str, variant: str, kind: str, live: Live, tmp_path: Path
) -> None:
    models = [live(family, seed) for seed in (0, 1)]
    table = table_of(models[0], **VARIANTS[variant])
    recorded = []
    for seed, model in enumerate(models):
        done = make(model, table, tmp_path / str(seed), kind=kind, batch_tokens=200)
        assert (done.kind, done.rows, done.rows_before) == (kind, table.tokens, 0)
        recorded.append(opened(tmp_path / str(seed)))
    direct = scores(*models, table=table, batch_tokens=200)
    assert direct["kl"].min() > 0.1
    assert_same(scores(recorded[0], models[1], batch_tokens=200), direct)
    assert_same(scores(models[0], recorded[1], batch_tokens=200), direct)
    assert_same(scores(*recorded, batch_tokens=200), direct)
    alone = scores(models[0], table=table, batch_tokens=200)
    assert_same(scores(recorded[0], batch_tokens=200), alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_recorded_as_hidden_states_unless_asked(
    family: str, live: Live, tmp_path: Path
) -> None:
    table = table_of(live(family))
    assert make(live(family), table, tmp_path / "rec", kind="auto").kind == "hidden"
    assert_same(scores(opened(tmp_path / "rec")), scores(live(family), table=table))


def test_bfloat16_is_recorded_as_it_is(live: Live, tmp_path: Path) -> None:
    models = [live("bert", seed, torch.bfloat16) for seed in (0, 1)]
    table = table_of(models[0])
    make(models[0], table, tmp_path / "rec")
    assert manifest_of(tmp_path / "rec")["dtype"] == "bfloat16"
    assert_same(scores(opened(tmp_path / "rec"), models[1]), scores(*models, table=table))


def test_a_list_of_top_tokens_gives_a_lower_bound(live: Live, tmp_path: Path) -> None:
    models = [live("bert", seed) for seed in (0, 1)]
    table = table_of(models[0])
    direct = scores(*models, table=table)["kl"]
    for k in (8, models[0].width):
        make(models[0], table, tmp_path / str(k), kind="topk", top_k=k)
        found = scores(opened(tmp_path / str(k)), models[1])["kl"]
        assert (found <= direct + 1e-5).all()
        assert (found > 0).all()
    np.testing.assert_allclose(found, direct, atol=1e-5)


def test_where_shards_end_changes_nothing(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of(live())
    make(live(), table, tmp_path / "one")
    monkeypatch.setattr(writer, "SHARD_BYTES", 7 * ROW)
    make(live(), table, tmp_path / "many")
    assert len(list((tmp_path / "one").glob("shard-*"))) == 1
    assert len(list((tmp_path / "many").glob("shard-*"))) == -(-table.tokens // 7)
    one, many = (scores(opened(tmp_path / name), live("bert", 1)) for name in ("one", "many"))
    assert_same(many, one)


def test_a_limit_takes_the_first_windows(live: Live, tmp_path: Path) -> None:
    table = table_of(live())
    make(live(), table, tmp_path / "rec")
    source = opened(tmp_path / "rec")
    limited = align([source, live("bert", 1)], [], Scope(limit=2)).table
    assert len(limited.windows) == 2
    direct = scores(live(), live("bert", 1), table=table.limited(2))
    assert_same(scores(source, live("bert", 1), table=limited), direct)


def test_the_text_may_be_given_again_and_must_be_the_same(live: Live, tmp_path: Path) -> None:
    make(live(), table_of(live(), pll="word"), tmp_path / "rec")
    source = opened(tmp_path / "rec")
    again = align([source], [CORPUS], Scope()).table
    assert_same(scores(source, table=again), scores(source))
    other = Dataset(name="other", sha256="1" * 64, examples=CORPUS.examples[:2])
    with pytest.raises(MismatchError, match=r"the corpus has 2 documents and .*rec has 3"):
        align([source], [other], Scope())


# What it says


def test_the_manifest_says_how_tokens_were_hidden(live: Live, tmp_path: Path) -> None:
    make(live(), table_of(live()), tmp_path / "one")
    make(live(), table_of(live(), mask_every=3), tmp_path / "three")
    for name, every in (("one", None), ("three", 3)):
        manifest = manifest_of(tmp_path / name)
        assert manifest["format_version"] == 2
        assert manifest["masking"] == {"mask_id": 4, "every": every}
        assert manifest["vocabulary"]["mask_id"] == 4
        assert manifest["model"]["kind"] == "masked"
        assert opened(tmp_path / name).task == "masked"
        assert opened(tmp_path / name).vocabulary.mask_id == 4


def test_a_recording_of_a_causal_model_is_still_of_version_1(
    reference: Path, tmp_path: Path
) -> None:
    causal = load_model(str(reference), LoadOptions(device="cpu"))
    text = Dataset(
        name="text", sha256="0" * 64, examples=(Document(name="a", content=b"The dog."),)
    )
    make(causal, align([causal], [text], Scope()).table, tmp_path / "rec")
    manifest = manifest_of(tmp_path / "rec")
    assert (manifest["format_version"], manifest["masking"]) == (1, None)
    assert opened(tmp_path / "rec").task == "causal"


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_windows_come_back_as_they_were(
    variant: dict[str, Any], live: Live, tmp_path: Path
) -> None:
    table = table_of(live(), **variant)
    make(live(), table, tmp_path / "rec")
    found = opened(tmp_path / "rec").windows
    assert found.protocol == table.protocol
    assert ends_of(found) == ends_of(table)
    for one, other in zip(found.windows, table.windows, strict=True):
        assert one.inputs.tolist() == other.inputs.tolist()
        assert one.targets.tolist() == other.targets.tolist()
        for name in ("number", "document", "score_from", "position", "forward_rows"):
            assert getattr(one, name) == getattr(other, name), name
        assert one.masking is not None
        assert other.masking is not None
        assert (one.masking.mask_id, one.masking.every) == (
            other.masking.mask_id,
            other.masking.every,
        )


# What it does not stand for


@pytest.mark.parametrize(
    ("first", "second"),
    [({}, {"pll": "word"}), ({}, {"mask_every": 3}), ({"mask_every": 4}, {"mask_every": 3})],
    ids=["original and word", "one and every 3rd", "every 4th and every 3rd"],
)
def test_recordings_that_hid_other_tokens_are_not_compared(
    first: dict[str, Any], second: dict[str, Any], live: Live, tmp_path: Path
) -> None:
    make(live(), table_of(live(), **first), tmp_path / "first")
    make(live("bert", 1), table_of(live(), **second), tmp_path / "second")
    sides = [opened(tmp_path / name) for name in ("first", "second")]
    for order in (sides, sides[::-1]):
        with pytest.raises(MismatchError, match="hide other tokens from their models in window 0"):
            align(order, [], Scope())


def test_recordings_of_other_windows_are_not_compared(live: Live, tmp_path: Path) -> None:
    make(live(), table_of(live()), tmp_path / "first")
    make(live("bert", 1), table_of(live(), stride=4), tmp_path / "second")
    with pytest.raises(MismatchError):
        align([opened(tmp_path / "first"), opened(tmp_path / "second")], [], Scope())


def test_a_model_that_hides_tokens_behind_another_id_is_refused(live: Live, tmp_path: Path) -> None:
    make(live(), table_of(live()), tmp_path / "rec")
    model, tokenizer = tiny_masked("bert", seed=1)
    other = Vocabulary(tokenizer.backend_tokenizer, bos_id=None, eos_id=None, mask_id=1)
    source = MaskedSource("other", model, other)
    recorded = opened(tmp_path / "rec")
    message = "hides tokens behind id 4 and other behind id 1"
    with pytest.raises(MismatchError, match=message):
        align([recorded, source], [], Scope())
    with pytest.raises(MismatchError, match=message):
        align([live(), source], [CORPUS], Scope())


@pytest.mark.parametrize("order", [1, -1])
def test_a_causal_model_is_refused(
    order: int, fixtures: Path, reference: Path, tmp_path: Path
) -> None:
    masked = load_model(str(fixtures / "models/masked-reference"), LoadOptions(device="cpu"))
    causal = load_model(str(reference), LoadOptions(device="cpu"))
    for name, model in (("masked", masked), ("causal", causal)):
        make(model, align([model], [CORPUS], Scope()).table, tmp_path / name)
    recorded = {name: opened(tmp_path / name) for name in ("masked", "causal")}
    pairs: Sequence[tuple[Any, Any]] = [
        (recorded["masked"], causal),
        (masked, recorded["causal"]),
        (recorded["masked"], recorded["causal"]),
    ]
    for pair in pairs:
        with pytest.raises(MismatchError, match=r" is (masked|causal) and .* is (causal|masked): "):
            align(pair[::order], [], Scope())


def test_a_model_that_reads_less_is_refused(live: Live, tmp_path: Path) -> None:
    make(live(), table_of(live()), tmp_path / "rec")
    model, tokenizer = tiny_masked("bert", seed=1, max_position_embeddings=17)
    short = MaskedSource("short", model, vocabulary_of(tokenizer, "short"))
    with pytest.raises(MismatchError, match="windows of 18 tokens and short can read 17"):
        align([opened(tmp_path / "rec"), short], [], Scope())


@pytest.mark.parametrize(
    "scope", [{"pll": "word"}, {"pll": "original"}, {"mask_every": 2}, {"context": 18}]
)
def test_its_windows_are_settled(scope: dict[str, Any], live: Live, tmp_path: Path) -> None:
    make(live(), table_of(live()), tmp_path / "rec")
    option = "--" + next(iter(scope)).replace("_", "-")
    with pytest.raises(UsageError, match=rf"the windows come from .*rec: leave out {option}"):
        align([opened(tmp_path / "rec")], [], Scope(**scope))


def test_a_base_file_of_llama_cpp_cannot_hold_it(
    fixtures: Path, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"a \.kld file holds what causal models predict"):
        api.record(str(fixtures / "models/masked-reference"), corpus, str(tmp_path / "base.kld"))
    assert not list(tmp_path.iterdir())


# Going on


@pytest.mark.parametrize("variant", [{"pll": "word"}, {"mask_every": 3}], ids=["word", "every 3rd"])
def test_a_recording_broken_off_anywhere_goes_on_to_the_same_bytes(
    variant: dict[str, Any], live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SHARD_BYTES", 11 * ROW)
    table = table_of(live(), **variant)
    disk = Disk(monkeypatch)
    make(live(), table, tmp_path / "whole", batch_tokens=100)
    whole, steps = files_of(tmp_path / "whole"), disk.steps
    assert len(list((tmp_path / "whole").glob("shard-*"))) > 2
    disk.error = Killed()
    for step in range(0, steps, 4):
        folder = tmp_path / str(step)
        disk.steps, disk.broken_at = 0, step
        with pytest.raises(Killed):
            make(live(), table, folder, batch_tokens=100)
        assert make(live(), table, folder, batch_tokens=100).rows == table.tokens
        assert files_of(folder) == whole, f"broken off at step {step}"


def test_a_complete_recording_made_again_is_left_untouched(live: Live, tmp_path: Path) -> None:
    table = table_of(live(), mask_every=3)
    make(live(), table, tmp_path / "rec")
    before = files_of(tmp_path / "rec")
    done = make(live(), table, tmp_path / "rec")
    assert done.rows_before == done.rows == table.tokens
    assert files_of(tmp_path / "rec") == before


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"pll": "word"}),
        ({}, {"context": LONGEST}),
        ({}, {"stride": 4}),
        ({}, {"mask_every": 3}),
        ({"mask_every": 4}, {"mask_every": 3}),
    ],
    ids=["word", "context", "stride", "every 3rd", "every 3rd and not every 4th"],
)
def test_a_recording_made_in_another_way_is_not_gone_on_with(
    first: dict[str, Any], second: dict[str, Any], live: Live, tmp_path: Path
) -> None:
    make(live(), table_of(live(), **first), tmp_path / "rec")
    with pytest.raises(OutputError, match="holds another recording"):
        make(live(), table_of(live(), **second), tmp_path / "rec")
