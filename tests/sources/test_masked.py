"""Masked models of every family: the distributions of a slow float64 oracle, or one clear error."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from klcli.align import align
from klcli.errors import SourceError, UsageError
from klcli.measure.evaluate import evaluate
from klcli.measure.scores import TokenScores
from klcli.sources.hf.loading import load_model
from klcli.sources.hf.masked import MaskedSource
from klcli.sources.hf.model import ModelSource
from klcli.sources.hf.tokenizer import vocabulary_of
from klcli.sources.options import LoadOptions
from klcli.sources.rows import LARGEST_BLOCK, SMALLEST_BLOCK, HeadRows, TensorRows
from klcli.text.corpus import Document
from klcli.text.examples import Dataset
from klcli.text.masking import masked_rows
from klcli.text.scope import Scope
from klcli.text.vocabulary import Vocabulary
from klcli.text.windows import Window, WindowTable, plan_batches
from tests.sources.masked_models import FAMILIES, LONGEST, TEXT, randomise, tiny_masked
from tests.sources.masked_oracle import (
    Float64s,
    doubled,
    masked_log_probabilities,
    pseudo_perplexity,
    target_log_probabilities,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "minicons.json"
LINES = TEXT.splitlines()
LONG = f"{LINES[2]} {LINES[4]}"
"""A text that is longer than the models read at once."""
TEXTS = (
    "Two unforgettable painters predicted different things.",
    "Keep talking, keeper!",
    "Rethinking it is as it was.",
)
CONTEXT, STRIDE = 18, 6
"""So much is read at once that the first of the texts is too long and the others fit."""

VARIANTS: dict[str, dict[str, Any]] = {
    "original": {},
    "word": {"pll": "word"},
    "every 3rd": {"mask_every": 3},
    "every 8th": {"mask_every": 8},
}

Made = Callable[..., MaskedSource]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """The folder of a tiny model of a family and a seed, saved in float64."""

    @cache
    def folder(family: str, seed: int) -> Path:
        path = tmp_path_factory.mktemp("models") / f"{family}-{seed}"
        model, tokenizer = tiny_masked(family, seed=seed)
        model.double().save_pretrained(path)
        tokenizer.save_pretrained(path)
        return path

    return folder


@pytest.fixture(scope="module")
def source_of(folder_of: Callable[[str, int], Path]) -> Made:
    """The source of a family, a seed and a dtype, loaded once."""

    @cache
    def source(family: str, seed: int = 0, dtype: str = "auto") -> MaskedSource:
        return loaded(folder_of(family, seed), dtype=dtype)

    return source


@cache
def oracle_model(family: str, seed: int = 0) -> tuple[Any, Any]:
    """The model in float64 as it was before it was saved, and its tokenizer."""
    model, tokenizer = tiny_masked(family, seed=seed)
    return doubled(model), tokenizer


def loaded(folder: Path, **options: Any) -> MaskedSource:
    source = load_model(str(folder), LoadOptions(device="cpu", **options))
    assert isinstance(source, MaskedSource)
    return source


def table_of(
    source: ModelSource, texts: Sequence[str], context: int | None = CONTEXT, **scope: Any
) -> WindowTable:
    documents = tuple(
        Document(name=f"text {i}", content=text.encode()) for i, text in enumerate(texts)
    )
    corpus = Dataset(name="texts", sha256="0" * 64, examples=documents)
    scope = {"stride": STRIDE} | scope if context == CONTEXT else scope
    return align([source], [corpus], Scope(context=context, **scope)).table


def rows_of(source: ModelSource, windows: Sequence[Window], budget: int = 2048) -> Tensor:
    """The logits of every scored token, in reading order."""
    plan = plan_batches(windows, budget)
    parts: dict[int, Tensor] = {}
    batches = [[windows[number] for number in batch] for batch in plan]
    for batch, rows in zip(plan, source.rows(batches), strict=True):
        blocks = [
            rows.block(start, min(start + rows.size, len(rows))).clone()
            for start in range(0, len(rows), rows.size)
        ]
        sizes = [len(windows[number].targets) for number in batch]
        parts |= dict(zip(batch, torch.split(torch.cat(blocks), sizes), strict=True))
    return torch.cat([parts[number] for number in range(len(windows))])


def log_p_of(source: ModelSource, windows: Sequence[Window], budget: int = 2048) -> Float64s:
    logits = rows_of(source, windows, budget).double()
    log_p: Float64s = torch.log_softmax(logits, dim=-1).numpy()
    return log_p


def word_ends_of(tokenizer: Any, text: str) -> list[int]:
    """Where the word of each token ends, by the numbers that the tokenizer gives to words."""
    words = tokenizer(text, add_special_tokens=False).word_ids()
    last = {word: place for place, word in enumerate(words)}
    return [last[word] + 1 for word in words]


def by_oracle(
    family: str,
    table: WindowTable,
    texts: Sequence[str],
    *,
    seed: int = 0,
    pll: str = "original",
    mask_every: int | None = None,
) -> Float64s:
    """Log-probabilities (tokens, vocabulary) of the scored tokens of a table, one by one."""
    model, tokenizer = oracle_model(family, seed)
    parts = []
    for window in table.windows:
        places = range(window.score_from, window.score_from + len(window.targets))
        ends = None
        if pll == "word":
            shift = window.score_from - window.position
            text_end = len(window.inputs) - 1  # all of these families put one token behind a text
            of_document = word_ends_of(tokenizer, texts[window.document])
            ends = [min(of_document[place - shift] + shift, text_end) for place in places]
        parts.append(
            masked_log_probabilities(
                model,
                window.inputs.tolist(),
                places,
                mask_id=tokenizer.mask_token_id,
                ends=ends,
                every=mask_every,
            )
        )
    return np.concatenate(parts)


def scores(*sources: ModelSource, table: WindowTable, budget: int = 2048) -> TokenScores:
    width = min(source.width for source in sources)
    return evaluate(table, sources, batch_tokens=budget, vocabulary_size=width).scores


def target_log_probabilities_of(rows: Float64s, targets: npt.NDArray[Any]) -> Float64s:
    return target_log_probabilities(rows, targets.tolist(), range(len(targets)))


# Against the oracle


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_those_of_the_oracle(
    family: str, variant: dict[str, Any], source_of: Made
) -> None:
    source = source_of(family)
    assert source.provenance["dtype"] == "float64"
    table = table_of(source, TEXTS, **variant)
    assert len(table.windows) > len(TEXTS), "one text must be longer than a window"
    expected = by_oracle(family, table, TEXTS, **variant)
    assert expected.std() > 0.5, "near-uniform distributions would prove nothing"
    np.testing.assert_allclose(log_p_of(source, table.windows), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_near_the_oracle(family: str, source_of: Made) -> None:
    source = source_of(family, dtype="float32")
    assert source.provenance["dtype"] == "float32"
    table = table_of(source, TEXTS)
    expected = by_oracle(family, table, TEXTS)
    np.testing.assert_allclose(log_p_of(source, table.windows), expected, atol=1e-4, rtol=0)


def test_every_number_of_passes_is_that_of_the_oracle(source_of: Made) -> None:
    """The last numbers are as many as there are tokens, and more."""
    source = source_of("bert")
    tokens = table_of(source, TEXTS[1:2]).tokens
    for every in range(1, tokens + 2):
        table = table_of(source, TEXTS[1:2], mask_every=every)
        expected = by_oracle("bert", table, TEXTS[1:2], mask_every=every)
        np.testing.assert_allclose(log_p_of(source, table.windows), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_variants_differ_from_one_another(family: str, source_of: Made) -> None:
    """Otherwise the comparisons above would prove less than they seem to."""
    source = source_of(family)
    found = [
        log_p_of(source, table_of(source, TEXTS, **options).windows)
        for options in VARIANTS.values()
    ]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert np.abs(one - other).max() > 0.1


@pytest.mark.parametrize(
    ("family", "variant"), [("bert", "original"), *((family, "word") for family in FAMILIES)]
)
def test_kl_and_nll_of_two_models_are_those_of_the_oracle(
    family: str, variant: str, source_of: Made
) -> None:
    options, texts = VARIANTS[variant], TEXTS[1:]
    sides = [source_of(family, seed) for seed in (0, 1)]
    table = table_of(sides[0], texts, **options)
    found = scores(*sides, table=table)
    p, q = (by_oracle(family, table, texts, seed=seed, **options) for seed in (0, 1))
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    assert kl.min() > 0.1
    np.testing.assert_allclose(found["kl"], kl, atol=1e-9, rtol=1e-9)
    targets = np.concatenate([window.targets for window in table.windows])
    for side, log_p in (("reference", p), ("candidate", q)):
        nll = -target_log_probabilities_of(log_p, targets)
        np.testing.assert_allclose(found[f"nll_{side}"], nll, atol=1e-9, rtol=0)
        np.testing.assert_array_equal(found[f"top1_{side}"], log_p.argmax(axis=1))


def test_a_model_does_not_differ_from_itself(source_of: Made) -> None:
    source = source_of("roberta")
    found = scores(source, source, table=table_of(source, TEXTS))
    assert not found["kl"].any()


# What is read


@contextmanager
def watched(model: Any) -> Iterator[dict[str, list[int]]]:
    """Ids that each forward pass reads, its sequences, and positions at the output embeddings."""
    seen: dict[str, list[int]] = {"ids": [], "sequences": [], "rows": []}

    def read(_module: Any, _args: Any, options: dict[str, Any]) -> None:
        seen["ids"].append(options["input_ids"].numel())
        seen["sequences"].append(len(options["input_ids"]))

    def embed(_module: Any, _args: Any, output: Tensor) -> None:
        seen["rows"].append(output.shape[:-1].numel())

    with ExitStack() as hooks:
        hooks.enter_context(model.register_forward_pre_hook(read, with_kwargs=True))
        hooks.enter_context(model.get_output_embeddings().register_forward_hook(embed))
        yield seen


def made(family: str, **options: Any) -> tuple[MaskedSource, Any]:
    """A source and the very model that it runs."""
    model, tokenizer = tiny_masked(family)
    source = MaskedSource(family, model, vocabulary_of(tokenizer, family), **options)
    return source, model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_run_apart_and_on_masked_positions_alone(family: str) -> None:
    source, model = made(family)
    assert source.proof.head is not None
    table = table_of(source, TEXTS)
    batches = [
        sum(len(table.windows[number].targets) for number in batch)
        for batch in plan_batches(table.windows, 2048)
    ]
    with watched(model) as seen:
        rows_of(source, table.windows)
    assert sum(seen["sequences"]) == sum(w.forward_rows for w in table.windows) == table.tokens
    assert sum(seen["ids"]) > 4 * table.tokens
    # Each pass shows the head one position, so that the model's own product costs nothing.
    blocks = [rows for rows in seen["rows"] if rows > 1]
    assert seen["rows"].count(1) == len(seen["ids"])
    assert sum(blocks) == sum(map(padded, batches))


def padded(rows: int) -> int:
    """Whole blocks, or a single small one of the next power of two."""
    if rows >= LARGEST_BLOCK:
        return -(-rows // LARGEST_BLOCK) * LARGEST_BLOCK
    return max(SMALLEST_BLOCK, 1 << (rows - 1).bit_length())


def test_what_stands_between_body_and_head_runs_on_masked_positions_alone() -> None:
    source, model = made("bert")
    table = table_of(source, TEXTS[1:2])
    rows: list[int] = []
    layer = model.cls.predictions.transform.dense
    with layer.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[:-1].numel())):
        rows_of(source, table.windows)
    assert sum(rows) == table.tokens


@pytest.mark.parametrize("budget", [1, CONTEXT, 50, 200, 100_000])
@pytest.mark.parametrize("options", [{}, {"mask_every": 5}], ids=["original", "every 5th"])
def test_no_pass_reads_more_than_the_budget_unless_a_sequence_is_longer(
    budget: int, options: dict[str, Any]
) -> None:
    source, model = made("bert", batch_tokens=budget)
    table = table_of(source, TEXTS, **options)
    with watched(model) as seen:
        rows_of(source, table.windows, budget)
    for ids, sequences in zip(seen["ids"], seen["sequences"], strict=True):
        assert ids <= budget or sequences == 1
    copies = sum(window.forward_rows for window in table.windows)
    assert sum(seen["sequences"]) == copies
    lengths = {len(window.inputs) for window in table.windows}
    if budget == 100_000:
        assert len(seen["ids"]) == len(lengths), "all copies of a length are read at once"
    if budget == 1:
        assert len(seen["ids"]) == copies


@pytest.mark.parametrize("budget", [1, 100])
def test_the_budget_changes_no_number(budget: int, source_of: Made) -> None:
    whole = source_of("deberta-v2")
    small = MaskedSource("small", whole._model, whole.vocabulary, batch_tokens=budget)
    for options in ({"pll": "word"}, {"mask_every": 3}):
        windows = table_of(whole, TEXTS, **options).windows
        expected = log_p_of(whole, windows)
        found = log_p_of(small, windows, budget)
        np.testing.assert_allclose(found, expected, atol=1e-9, rtol=0)


def test_two_models_read_the_same_copies_which_are_made_once(source_of: Made) -> None:
    masked_rows.cache_clear()
    sides = [source_of("bert", seed) for seed in (0, 1)]
    table = table_of(sides[0], TEXTS)
    scores(*sides, table=table, budget=100)
    batches = len(plan_batches(table.windows, 100))
    assert batches > 2
    assert masked_rows.cache_info()[:2] == (batches, batches)


# How much a model reads


@pytest.mark.parametrize("family", FAMILIES)
def test_longest_is_what_the_model_can_read(family: str, source_of: Made) -> None:
    """RoBERTa has two positions more, which it loses to padding."""
    source = source_of(family)
    assert source.longest == LONGEST
    table = table_of(source, [LONG], context=None)
    assert {len(window.inputs) for window in table.windows} == {LONGEST}
    last = table.windows[-1]
    table = replace(table, windows=(last,))
    expected = by_oracle(family, table, [LONG])
    np.testing.assert_allclose(log_p_of(source, [last]), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_one_more_is_a_usage_error_and_the_model_could_not_read_it(
    family: str, source_of: Made
) -> None:
    source = source_of(family)
    with pytest.raises(UsageError, match="--context 49 is more than the 48 tokens the model can"):
        table_of(source, TEXTS, context=LONGEST + 1)
    [window] = table_of(source, ["talk"]).windows
    longer = Window(
        document=0,
        inputs=np.full(LONGEST + 1, 20, dtype=np.int32),
        score_from=1,
        targets=window.targets,
        position=0,
        masking=window.masking,
    )
    with pytest.raises(SourceError, match=rf"fails on a batch of {len(window.targets)} x 49 "):
        list(source.rows([[longer]]))


def test_where_padding_has_another_number_more_positions_are_lost(tmp_path: Path) -> None:
    model, tokenizer = tiny_masked("roberta", pad_token_id=5, max_position_embeddings=30)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    source = loaded(tmp_path)
    assert source.longest == 24
    windows = table_of(source, TEXTS, context=None).windows
    assert max(len(window.inputs) for window in windows) == 24
    assert np.isfinite(log_p_of(source, windows)).all()


def test_a_context_shorter_than_the_model_reads_is_taken(source_of: Made) -> None:
    source = source_of("electra")
    table = table_of(source, TEXTS, context=12, stride=1)
    assert {len(window.inputs) for window in table.windows if window.document == 0} == {12}
    expected = by_oracle("electra", table, TEXTS)
    np.testing.assert_allclose(log_p_of(source, table.windows), expected, atol=1e-9, rtol=0)


# Frames


def word_tokenizer(frame: str) -> Any:
    """A word is a token; a text stands in a frame of special tokens."""
    specials = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]"]
    tokens = [*specials, *sorted({word for text in TEXTS for word in text.split()})]
    numbers = {token: number for number, token in enumerate(tokens)}
    inner = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[(token, numbers[token]) for token in specials]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        pad_token="[PAD]",
    )


@pytest.mark.parametrize("pll", ["original", "word"])
@pytest.mark.parametrize(
    ("frame", "before", "after"),
    [
        ("$A", [], []),
        ("[CLS] $A", [1], []),
        ("$A [SEP]", [], [2]),
        ("[CLS] $A [SEP]", [1], [2]),
        ("[CLS] [CLS] $A [SEP] [PAD]", [1, 1], [2, 4]),
    ],
)
def test_any_frame_is_put_around_a_text(
    frame: str, before: list[int], after: list[int], pll: str
) -> None:
    tokenizer = word_tokenizer(frame)
    model, _ = tiny_masked("bert", vocab_size=len(tokenizer), max_position_embeddings=12)
    model = doubled(model)
    source = MaskedSource("words", model, vocabulary_of(tokenizer, "words"))
    texts = [*TEXTS, "talk of things nobody heard of"]
    table = table_of(source, texts, context=None, pll=pll)
    assert source.vocabulary.frame == (before, after)
    parts = []
    for window in table.windows:
        assert window.inputs[: len(before)].tolist() == before
        assert window.inputs[len(window.inputs) - len(after) :].tolist() == after
        assert len(window.inputs) <= 12
        places = range(window.score_from, window.score_from + len(window.targets))
        parts.append(masked_log_probabilities(model, window.inputs.tolist(), places, mask_id=3))
    np.testing.assert_allclose(
        log_p_of(source, table.windows), np.concatenate(parts), atol=1e-9, rtol=0
    )


def test_unknown_words_are_scored_and_special_ones_are_not() -> None:
    tokenizer = word_tokenizer("[CLS] $A [SEP]")
    model, _ = tiny_masked("bert", vocab_size=len(tokenizer))
    source = MaskedSource("words", model, vocabulary_of(tokenizer, "words"))
    table = table_of(source, ["Keep [SEP] nobody [MASK] talking,"], special_tokens="parse")
    scored = np.concatenate([window.targets for window in table.windows]).tolist()
    assert [source.vocabulary.string(i) for i in scored] == ["Keep", "[UNK]", "talking,"]
    assert {tuple(window.inputs.tolist()) for window in table.windows} == {
        (1, scored[0], 2, 0, 3, scored[2], 2)
    }


# Which task


def test_a_masked_model_is_found_by_its_config(folder_of: Callable[[str, int], Path]) -> None:
    for family in FAMILIES:
        source = loaded(folder_of(family, 0))
        assert (source.task, source.provenance["kind"]) == ("masked", "masked")
        assert source.provenance["architecture"].endswith("ForMaskedLM")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_task_by_hand_goes_before_the_config(tmp_path: Path) -> None:
    model, tokenizer = tiny_masked("bert")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["BertLMHeadModel"])
    with pytest.raises(SourceError, match="is not a causal model"):
        load_model(str(tmp_path), LoadOptions())
    assert loaded(tmp_path, task="masked").task == "masked"
    edit_config(tmp_path, architectures=["BertForMaskedLM"])
    assert loaded(tmp_path).task == "masked"
    with pytest.raises(SourceError, match="is not a causal model"):
        load_model(str(tmp_path), LoadOptions(task="causal"))


def test_a_causal_model_cannot_be_taken_for_a_masked_one(reference: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot load .*reference: ValueError"):
        load_model(str(reference), LoadOptions(task="masked"))


def test_a_discriminator_lacks_the_weights_of_a_masked_model(tmp_path: Path) -> None:
    model, tokenizer = tiny_masked("electra")
    transformers.ElectraForPreTraining(model.config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SourceError) as error:
        load_model(str(tmp_path), LoadOptions())
    message = str(error.value)
    assert "weights of a ElectraForMaskedLM, first generator_" in message
    assert message.endswith("give a complete masked language model")


def test_a_body_without_a_head_lacks_weights(tmp_path: Path) -> None:
    model, tokenizer = tiny_masked("roberta")
    model.roberta.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SourceError, match="is a RobertaModel, which does not predict tokens"):
        load_model(str(tmp_path), LoadOptions())
    with pytest.raises(SourceError, match=r"lacks .* weights of a RobertaForMaskedLM, first lm_"):
        load_model(str(tmp_path), LoadOptions(allow_other_architecture=True))


def test_a_tokenizer_without_a_mask_token_is_a_usage_error(tmp_path: Path) -> None:
    model, tokenizer = tiny_masked("bert")
    model.save_pretrained(tmp_path)
    bare = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, unk_token="[UNK]"
    )
    bare.save_pretrained(tmp_path)
    source = loaded(tmp_path)
    assert source.vocabulary.mask_id is None
    with pytest.raises(UsageError, match="this tokenizer has no mask token"):
        table_of(source, TEXTS)


# Models that cannot be run on masked positions alone


class Scaled(transformers.BertForMaskedLM):  # type: ignore[misc]
    """Multiplies its logits by a factor that no config tells of."""

    def forward(self, *args: Any, **options: Any) -> Any:
        output = super().forward(*args, **options)
        output.logits = output.logits * 1.5
        return output


class Neighbours(transformers.BertForMaskedLM):  # type: ignore[misc]
    """Behind its body a position looks at the one before it."""

    def forward(self, *args: Any, **options: Any) -> Any:
        output = super().forward(*args, **options)
        output.logits = output.logits + output.logits.roll(1, dims=1)
        return output


class Headless(transformers.BertForMaskedLM):  # type: ignore[misc]
    """Does not say which its output embeddings are."""

    def get_output_embeddings(self) -> None:
        return None


class Bodiless(transformers.BertForMaskedLM):  # type: ignore[misc]
    """Does not say which of its modules is the body."""

    base_model_prefix = "nothing"


class Tuples(transformers.BertForMaskedLM):  # type: ignore[misc]
    """Has a body that returns a tuple."""

    def forward(self, input_ids: Tensor, **_options: Any) -> Any:
        hidden = self.bert(input_ids=input_ids, return_dict=False)[0]
        return transformers.modeling_outputs.MaskedLMOutput(logits=self.cls(hidden))


ODD = [Scaled, Neighbours, Headless, Bodiless, Tuples]


def odd(kind: Any) -> tuple[Any, Vocabulary]:
    plain, tokenizer = tiny_masked("bert")
    model = kind(plain.config).eval()
    randomise(model, 0)
    return model, vocabulary_of(tokenizer, "odd")


@pytest.mark.parametrize("kind", ODD, ids=lambda kind: kind.__name__)
@torch.inference_mode()
def test_where_the_head_does_not_give_the_logits_the_model_runs_whole(kind: Any) -> None:
    model, vocabulary = odd(kind)
    source = MaskedSource("odd", model.double(), vocabulary)
    assert source.proof.head is None
    windows = table_of(source, TEXTS).windows
    [rows] = source.rows([[windows[0]]])
    assert isinstance(rows, TensorRows)
    for window in windows[:3]:
        ids, hidden = masked_rows((window,))
        own = model(input_ids=torch.from_numpy(ids).long()).logits
        expected = own.flatten(0, 1)[torch.from_numpy(hidden)]
        torch.testing.assert_close(rows_of(source, [window]), expected, atol=1e-9, rtol=0)


def test_a_head_that_stands_alone_gives_rows_of_hidden_states(source_of: Made) -> None:
    source = source_of("bert")
    [rows] = source.rows([table_of(source, TEXTS[1:2]).windows])
    assert isinstance(rows, HeadRows)


# Against minicons


@pytest.fixture(scope="module")
def minicons() -> dict[str, Any]:
    """What minicons says of the models of three families."""
    return dict(json.loads(GOLDEN.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def scored_by_klcli(minicons: dict[str, Any]) -> Callable[[str, str], npt.NDArray[np.float64]]:
    """Log-probabilities of all tokens of minicons' sentences, in float32 as there."""

    @cache
    def log_p(family: str, pll: str) -> npt.NDArray[np.float64]:
        source, _ = made(family)
        table = table_of(source, minicons["sentences"], context=None, pll=pll)
        assert len(table.windows) == len(minicons["sentences"])
        found: npt.NDArray[np.float64] = -np.asarray(scores(source, table=table)["nll"])
        return found

    return log_p


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2"])
def test_tokens_and_words_are_those_of_minicons(family: str, minicons: dict[str, Any]) -> None:
    known = minicons["models"][family]
    _, tokenizer = tiny_masked(family)
    found = vocabulary_of(tokenizer, family)
    for text, tokens, words in zip(
        minicons["sentences"], known["tokens"], known["words"], strict=True
    ):
        encoding = found.encode(text, find_words=True)
        assert [found.string(i) for i in encoding.ids.tolist()] == tokens
        last = {word: place for place, word in enumerate(words)}
        assert encoding.word_ends is not None
        assert encoding.word_ends.tolist() == [last[word] + 1 for word in words]


@pytest.mark.parametrize(("pll", "metric"), [("original", "original"), ("word", "within_word_l2r")])
@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2"])
def test_every_token_has_the_log_probability_that_minicons_gives(
    family: str,
    pll: str,
    metric: str,
    minicons: dict[str, Any],
    scored_by_klcli: Callable[[str, str], npt.NDArray[np.float64]],
) -> None:
    known = minicons["models"][family]
    sentences = [np.array(sentence) for sentence in known[metric]]
    found = scored_by_klcli(family, pll)
    np.testing.assert_allclose(found, np.concatenate(sentences), atol=1e-4, rtol=0)
    ends = np.cumsum([len(sentence) for sentence in sentences])[:-1]
    means = [part.mean() for part in np.split(found, ends)]
    np.testing.assert_allclose(means, known[f"{metric} sequence_score"], atol=1e-4, rtol=0)


def test_the_pseudo_perplexity_is_that_of_the_mean_over_tokens(source_of: Made) -> None:
    source = source_of("albert")
    table = table_of(source, TEXTS)
    rows = by_oracle("albert", table, TEXTS)
    targets = np.concatenate([window.targets for window in table.windows])
    log_p = target_log_probabilities_of(rows, targets)
    nll = np.asarray(scores(source, table=table)["nll"])
    assert np.exp(nll.mean()) == pytest.approx(pseudo_perplexity(log_p), rel=1e-9)
