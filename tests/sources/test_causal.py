"""Causal models of every family: the same logits as the model's own, or one clear error."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from klcli.errors import SourceError, UsageError
from klcli.sources.files.arrays import ArraySource
from klcli.sources.hf.causal import CausalSource
from klcli.sources.hf.limits import longest_of
from klcli.sources.hf.loading import load_model
from klcli.sources.hf.model import ModelSource
from klcli.sources.hf.tokenizer import load_tokenizer
from klcli.sources.opening import open_source
from klcli.sources.options import LoadOptions
from klcli.sources.rows import HeadRows, TensorRows
from klcli.text.vocabulary import Vocabulary
from klcli.text.windows import Window

TOKENS, PADDED, LONGEST = 40, 48, 64
STEEP = 60.0
"""What the output embeddings are multiplied by, so that logits are as large as real ones."""

SHARED = {"vocab_size": TOKENS, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": None}
LLAMA = SHARED | {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": LONGEST,
}
GPT = SHARED | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": LONGEST}
BERT = {
    "vocab_size": TOKENS,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": LONGEST,
}

CONFIGS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "gpt2": ("GPT2Config", GPT),
    "llama": ("LlamaConfig", LLAMA),
    "llama-tied": ("LlamaConfig", LLAMA | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", LLAMA),
    "gemma2": ("Gemma2Config", LLAMA | {"head_dim": 8, "final_logit_softcapping": 5.0}),
    "cohere": ("CohereConfig", LLAMA | {"logit_scale": 0.25}),
    "granite": ("GraniteConfig", LLAMA | {"logits_scaling": 8.0}),
    "phi": ("PhiConfig", LLAMA),
    "gptj": ("GPTJConfig", GPT | {"rotary_dim": 4}),
    "mamba": ("MambaConfig", SHARED | {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}),
    "padded": ("LlamaConfig", LLAMA | {"vocab_size": PADDED}),
}


def tokenizer() -> Any:
    """A word is a token: <unk> = 0, <s> = 1, w2 = 2, w3 = 3 and so on."""
    words = ["<unk>", "<s>", *(f"w{number}" for number in range(2, TOKENS))]
    vocab = {word: number for number, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="<s>"
    )


def steepened(model: Any) -> Any:
    """The model with logits far from uniform, and a bias of the head where it has one."""
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(STEEP)
        if getattr(head, "bias", None) is not None:
            head.bias.copy_(torch.linspace(-2, 2, len(head.bias)))
    return model.eval()


def save(folder: Path, config: Any, kind: Any = transformers.AutoModelForCausalLM) -> Any:
    """Save a random model and the tokenizer of words; the model."""
    torch.manual_seed(0)
    make = getattr(kind, "from_config", None) or kind._from_config
    model = make(config)
    if hasattr(model, "get_output_embeddings") and model.get_output_embeddings() is not None:
        model = steepened(model)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of a family, made when it is first asked for."""

    @cache
    def folder(family: str) -> Path:
        path = tmp_path_factory.mktemp("models") / family
        name, values = CONFIGS[family]
        save(path, getattr(transformers, name)(**values))
        return path

    return folder


@pytest.fixture(scope="module")
def source_of(folder_of: Callable[[str], Path]) -> Callable[[str], ModelSource]:
    """The source of a family, loaded once."""
    return cache(lambda family: loaded(folder_of(family)))


@pytest.fixture
def llama(folder_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """A Llama's folder to spoil."""
    return Path(shutil.copytree(folder_of("llama"), tmp_path / "llama"))


def loaded(folder: Path, **options: Any) -> ModelSource:
    return load_model(str(folder), LoadOptions(**options))


def random_ids(windows: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, TOKENS, (windows, length), generator=generator)


def window(ids: Tensor, first: int = 0, count: int | None = None) -> Window:
    """A window that scores ``count`` rows from ``first`` on."""
    inputs = ids.numpy()
    targets = np.zeros(len(inputs) - first if count is None else count, dtype=np.int64)
    return Window(document=0, inputs=inputs, score_from=first, targets=targets, position=first + 1)


def rows_of(source: ModelSource, *windows: Window) -> Tensor:
    """The scored rows of one batch."""
    [rows] = source.rows([windows])
    parts = [
        rows.block(start, min(start + rows.size, len(rows))).clone()
        for start in range(0, len(rows), rows.size)
    ]
    return torch.cat(parts)


@torch.inference_mode()
def own_logits(folder: Path, ids: Tensor, dtype: Any = "auto") -> Tensor:
    """What the model itself says, loaded and run without klcli."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    logits: Tensor = model(input_ids=ids).logits
    return logits


# The head, applied apart


@pytest.mark.parametrize("family", CONFIGS)
def test_the_head_is_separated(family: str, source_of: Callable[[str], ModelSource]) -> None:
    assert source_of(family).proof.head is not None
    [rows] = source_of(family).rows([[window(random_ids(1, 8)[0])]])
    assert isinstance(rows, HeadRows)


@pytest.mark.parametrize("family", CONFIGS)
def test_rows_are_the_models_own_logits(
    family: str, folder_of: Callable[[str], Path], source_of: Callable[[str], ModelSource]
) -> None:
    ids = random_ids(3, 32, seed=7)
    own = own_logits(folder_of(family), ids)
    assert own.std() > 0.2, "near-uniform logits would prove nothing"
    rows = rows_of(source_of(family), *(window(one) for one in ids))
    assert rows.dtype == own.dtype == torch.float32
    torch.testing.assert_close(rows, own.flatten(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "name", "other"),
    [
        ("gemma2", "final_logit_softcapping", None),
        ("cohere", "logit_scale", 1.0),
        ("granite", "logits_scaling", 1.0),
    ],
)
def test_what_a_family_does_behind_its_head_shows_in_these_logits(
    family: str, name: str, other: float | None, tmp_path: Path, folder_of: Callable[[str], Path]
) -> None:
    """The test above would fail if the rows lacked it."""
    changed = Path(shutil.copytree(folder_of(family), tmp_path / family))
    edit_config(changed, **{name: other})
    ids = random_ids(1, 16)
    difference = own_logits(folder_of(family), ids) - own_logits(changed, ids)
    assert difference.abs().max() > 0.1


@pytest.mark.parametrize("family", ["phi", "gptj"])
def test_these_heads_have_a_bias(family: str, folder_of: Callable[[str], Path]) -> None:
    weights = load_file(folder_of(family) / "model.safetensors")
    assert weights["lm_head.bias"].abs().max() == 2


def test_a_padded_vocabulary_keeps_its_full_width(
    source_of: Callable[[str], ModelSource],
) -> None:
    source = source_of("padded")
    assert (source.width, source.vocabulary.size) == (PADDED, TOKENS)
    assert rows_of(source, window(random_ids(1, 4)[0])).shape == (4, PADDED)


def test_the_dtype_of_the_checkpoint_is_kept_unless_another_is_wanted(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    half = transformers.AutoModelForCausalLM.from_pretrained(
        folder_of("llama"), dtype=torch.bfloat16
    )
    half.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    dtypes = {
        name: rows_of(loaded(tmp_path, dtype=name), window(random_ids(1, 4)[0])).dtype
        for name in ("auto", "float32", "float16")
    }
    assert dtypes == {
        "auto": torch.bfloat16,
        "float32": torch.float32,
        "float16": torch.float16,
    }


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
def test_a_model_in_bfloat16_gives_its_own_bfloat16_logits(
    family: str, folder_of: Callable[[str], Path]
) -> None:
    source = loaded(folder_of(family), dtype="bfloat16")
    assert source.proof.head is not None
    assert source.provenance["dtype"] == "bfloat16"
    ids = random_ids(2, 32, seed=3)
    rows = rows_of(source, *(window(one) for one in ids))
    own = own_logits(folder_of(family), ids, dtype=torch.bfloat16).flatten(0, 1)
    assert rows.dtype == own.dtype == torch.bfloat16
    difference = (rows.float() - own.float()).abs()
    assert (difference <= own.float().abs() * 2**-6 + 2**-6).all(), "one or two last bits at most"


# Batches


def test_rows_come_in_the_order_of_windows_and_only_those_scored(
    folder_of: Callable[[str], Path], source_of: Callable[[str], ModelSource]
) -> None:
    ids = random_ids(4, 20)
    own = own_logits(folder_of("llama"), ids)
    scored = [(2, 0, 20), (0, 5, 15), (3, 19, 1), (1, 4, 3)]
    rows = rows_of(source_of("llama"), *(window(ids[n], first, k) for n, first, k in scored))
    expected = torch.cat([own[n, first : first + k] for n, first, k in scored])
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "mamba"])
def test_each_batch_has_its_own_rows_and_length(
    family: str, folder_of: Callable[[str], Path], source_of: Callable[[str], ModelSource]
) -> None:
    long, short = random_ids(2, 24), random_ids(1, 3, seed=5)
    batches = [[window(long[1], 20), window(long[0], 10)], [window(short[0])]]
    found = [rows.block(0, len(rows)).clone() for rows in source_of(family).rows(batches)]
    own_long = own_logits(folder_of(family), long)
    expected = [
        torch.cat([own_long[1, 20:], own_long[0, 10:]]),
        own_logits(folder_of(family), short)[0],
    ]
    for rows, own in zip(found, expected, strict=True):
        torch.testing.assert_close(rows, own, atol=1e-5, rtol=0)


def test_a_batch_of_more_rows_than_a_block_is_handed_out_block_by_block(
    folder_of: Callable[[str], Path], source_of: Callable[[str], ModelSource]
) -> None:
    ids = random_ids(20, LONGEST)
    [rows] = source_of("llama").rows([[window(one) for one in ids]])
    assert len(rows) == 20 * LONGEST > 2 * rows.size
    whole = rows_of(source_of("llama"), *(window(one) for one in ids))
    torch.testing.assert_close(
        whole, own_logits(folder_of("llama"), ids).flatten(0, 1), atol=1e-5, rtol=0
    )


def test_a_window_longer_than_the_model_reads_is_an_error_with_its_size(
    source_of: Callable[[str], ModelSource],
) -> None:
    with pytest.raises(SourceError, match=r"gpt2 fails on a batch of 2 x 65 tokens: .*--context"):
        list(source_of("gpt2").rows([[window(one) for one in random_ids(2, LONGEST + 1)]]))


# Models whose head cannot be taken apart


class Scaled(transformers.LlamaForCausalLM):  # type: ignore[misc]
    """Multiplies its logits by a factor that no config tells of."""

    def forward(self, *args: Any, **options: Any) -> Any:
        output = super().forward(*args, **options)
        output.logits = output.logits * 1.5
        return output


class Biased(transformers.LlamaForCausalLM):  # type: ignore[misc]
    """Adds something to every id."""

    def forward(self, *args: Any, **options: Any) -> Any:
        output = super().forward(*args, **options)
        output.logits = output.logits + torch.linspace(0, 1, output.logits.shape[-1])
        return output


class Cut(transformers.LlamaForCausalLM):  # type: ignore[misc]
    """Drops the padding of its vocabulary behind the head."""

    def forward(self, *args: Any, **options: Any) -> Any:
        output = super().forward(*args, **options)
        output.logits = output.logits[..., :36]
        return output


class Flat(transformers.LlamaForCausalLM):  # type: ignore[misc]
    """Hands its head all positions of all windows in one row."""

    def forward(self, input_ids: Tensor, **_options: Any) -> Any:
        hidden = self.model(input_ids=input_ids).last_hidden_state
        logits = self.lm_head(hidden.reshape(-1, hidden.shape[-1]))
        logits = logits.reshape(*hidden.shape[:2], -1)
        return transformers.modeling_outputs.CausalLMOutput(logits=logits)


class PastItsHead(transformers.LlamaForCausalLM):  # type: ignore[misc]
    """Multiplies with the weight of its head, without calling it."""

    def forward(self, input_ids: Tensor, **_options: Any) -> Any:
        hidden = self.model(input_ids=input_ids).last_hidden_state
        logits = torch.nn.functional.linear(hidden, self.lm_head.weight)
        return transformers.modeling_outputs.CausalLMOutput(logits=logits)


class Named(transformers.LlamaForCausalLM):  # type: ignore[misc]
    """Calls its head with a keyword, which the hook does not see."""

    def forward(self, input_ids: Tensor, **_options: Any) -> Any:
        hidden = self.model(input_ids=input_ids).last_hidden_state
        logits = self.lm_head(input=hidden)
        return transformers.modeling_outputs.CausalLMOutput(logits=logits)


class Headless(transformers.LlamaForCausalLM):  # type: ignore[misc]
    """Does not say which its output embeddings are."""

    def get_output_embeddings(self) -> None:
        return None


@pytest.mark.parametrize(
    "kind", [Scaled, Biased, Cut, Flat, PastItsHead, Named, Headless], ids=lambda k: k.__name__
)
@torch.inference_mode()
def test_where_the_head_does_not_give_the_logits_the_model_runs_whole(
    kind: Any, source_of: Callable[[str], ModelSource]
) -> None:
    torch.manual_seed(0)
    model = kind(transformers.LlamaConfig(**LLAMA)).eval()
    model.lm_head.weight.mul_(STEEP)
    source = CausalSource("odd", model, source_of("llama").vocabulary)
    assert source.proof.head is None
    ids = random_ids(2, 16, seed=4)
    [rows] = source.rows([[window(ids[1], 3), window(ids[0])]])
    assert isinstance(rows, TensorRows)
    own = model(input_ids=ids).logits
    assert source.width == own.shape[-1]
    expected = torch.cat([own[1, 3:], own[0]])
    torch.testing.assert_close(rows.block(0, len(rows)), expected, atol=1e-5, rtol=0)


# What a source says of itself


@pytest.mark.parametrize(("family", "longest"), [("gpt2", 64), ("llama", 64), ("mamba", None)])
def test_longest_is_what_the_config_says(
    family: str, longest: int | None, source_of: Callable[[str], ModelSource]
) -> None:
    assert source_of(family).longest == longest


SCALINGS: dict[str, tuple[dict[str, Any], int]] = {
    "linear": ({"rope_type": "linear", "factor": 4.0}, 256),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, 128),
    "yarn of the length before": ({"rope_type": "yarn", "factor": 4.0}, 256),
    "yarn of the length after": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 64
    ),
    "llama3": (
        {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32,
         "low_freq_factor": 1.0, "high_freq_factor": 4.0}, 64
    ),
}  # fmt: skip


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scaled_rotary_embeddings_read_further_than_the_training(
    tmp_path: Path, scaling: str
) -> None:
    settings, longest = SCALINGS[scaling]
    rope = {"rope_theta": 10000.0, **settings}
    save(tmp_path, transformers.LlamaConfig(**LLAMA | {"rope_parameters": rope}))
    assert loaded(tmp_path).longest == longest


@pytest.mark.parametrize("family", ["Roberta", "Camembert", "Data2VecText", "XLMRoberta"])
def test_a_causal_model_that_counts_positions_from_its_padding_reads_fewer(family: str) -> None:
    config = getattr(transformers, f"{family}Config")(**BERT, is_decoder=True, pad_token_id=1)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    longest = longest_of(model)
    assert longest == LONGEST - 2
    ids = torch.full((1, longest + 1), 5)
    model(input_ids=ids[:, :-1], use_cache=False)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=ids, use_cache=False)


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (transformers.MptConfig(d_model=16, n_heads=2, n_layers=1, max_seq_len=24), 24),
        (transformers.WhisperConfig(d_model=16, decoder_layers=1, decoder_attention_heads=2,
                                    decoder_ffn_dim=16, vocab_size=40, max_target_positions=20,
                                    pad_token_id=0), 20),
    ],
)  # fmt: skip
def test_other_names_of_the_limit_are_known(config: Any, longest: int) -> None:
    assert longest_of(transformers.AutoModelForCausalLM.from_config(config)) == longest


def test_a_model_that_reads_only_a_few_tokens_can_be_loaded(tmp_path: Path) -> None:
    """The probe of the head must not be longer than the model reads."""
    save(tmp_path, transformers.GPT2Config(**GPT | {"n_positions": 8}))
    source = loaded(tmp_path)
    assert source.longest == 8
    assert source.proof.head is not None


def test_provenance_is_plain_data_that_names_the_model(
    folder_of: Callable[[str], Path], source_of: Callable[[str], ModelSource]
) -> None:
    provenance = source_of("gpt2").provenance
    assert json.loads(json.dumps(provenance)) == provenance
    assert provenance["source"] == str(folder_of("gpt2"))
    assert provenance["architecture"] == "GPT2LMHeadModel"
    assert provenance["dtype"] == "float32"
    assert provenance["device"] == "cpu"
    assert provenance["vocabulary_width"] == TOKENS


def test_a_model_brings_no_windows(source_of: Callable[[str], ModelSource]) -> None:
    assert source_of("llama").windows is None


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_the_tokenizer_is_that_of_the_folder(
    family: str, source_of: Callable[[str], ModelSource]
) -> None:
    vocabulary = source_of(family).vocabulary
    assert vocabulary.encode("w3 w2  w39 oops").ids.tolist() == [3, 2, 39, 0]
    assert (vocabulary.size, vocabulary.bos_id, vocabulary.eos_id) == (TOKENS, 1, 1)


def test_a_tokenizer_can_be_loaded_alone(folder_of: Callable[[str], Path]) -> None:
    vocabulary = load_tokenizer(str(folder_of("llama")), LoadOptions())
    assert isinstance(vocabulary, Vocabulary)
    assert vocabulary.encode("w5").ids.tolist() == [5]


def test_a_logit_file_takes_the_tokenizer_of_a_model(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    np.savez(tmp_path / "file.npz", logits=np.zeros((2, TOKENS)), tokens=np.array([3, 2]))
    options = LoadOptions(tokenizer=str(folder_of("llama")))
    source = open_source(str(tmp_path / "file.npz"), options)
    assert isinstance(source, ArraySource)
    assert source.vocabulary is not None
    assert source.vocabulary.string(3) == "w3"


def test_open_source_takes_a_folder_for_a_model(folder_of: Callable[[str], Path]) -> None:
    assert isinstance(open_source(str(folder_of("llama")), LoadOptions()), ModelSource)


def test_loading_writes_nothing(
    folder_of: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of("llama")
    capfd.readouterr()
    loaded(folder)
    assert capfd.readouterr() == ("", "")


# Errors


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param(
            "no-such-model", "'no-such-model': it is not a file or folder here", id="a name"
        ),
        pytest.param("nobody/no-such-model", "no model of that name could be had", id="a Hub id"),
        pytest.param("./no/such/path", "no model at './no/such/path'", id="a relative path"),
        pytest.param("/no/such/path", "no such file or folder", id="an absolute path"),
        pytest.param("no such model", "no such file or folder", id="no name at all"),
        pytest.param("", "no model at ''", id="nothing"),
        pytest.param("nowhere.gguf", "no model at 'nowhere.gguf'", id="a GGUF file"),
    ],
)
def test_a_model_that_is_nowhere_is_an_error_that_says_so(
    spec: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=message):
        load_model(spec, LoadOptions())


def test_a_file_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text("no model")
    with pytest.raises(
        SourceError, match=r"model\.txt is not a model, a recording or a logit file"
    ):
        loaded(tmp_path / "model.txt")


def test_a_gguf_file_of_garbage_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF, or so it says")
    with pytest.raises(SourceError, match=r"cannot load .*model\.gguf"):
        loaded(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({}, id="empty"),
        pytest.param({"README.md": "a model"}, id="only other files"),
        pytest.param({"tokenizer.json": "{}"}, id="only a tokenizer"),
    ],
)
def test_a_folder_without_a_config_is_an_error_that_says_so(
    tmp_path: Path, files: dict[str, str]
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=r"config\.json"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        pytest.param("{oops", r"llama.config\.json is not JSON", id="no JSON"),
        pytest.param("{}", r"llama.config\.json does not say which model", id="no model type"),
        pytest.param(
            '{"model_type": "made-up"}', "is of a 'made-up' model", id="an unknown model type"
        ),
        pytest.param('{"model_type": "vit"}', "cannot load .*llama", id="a model of images"),
    ],
)
def test_a_config_that_is_of_no_causal_model_is_an_error(
    llama: Path, config: str, says: str
) -> None:
    (llama / "config.json").write_text(config)
    with pytest.raises(SourceError, match=says):
        loaded(llama)


@pytest.mark.parametrize("weight", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_missing_weight_is_an_error_that_names_it(llama: Path, weight: str) -> None:
    """The loader would fill it with random numbers."""
    weights = load_file(llama / "model.safetensors")
    del weights[weight]
    save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SourceError, match=f"lacks 1 weights of a LlamaForCausalLM, first {weight}"):
        loaded(llama)


def test_a_weight_of_another_shape_is_an_error(llama: Path) -> None:
    edit_config(llama, intermediate_size=24)
    with pytest.raises(SourceError, match=r"llama has 6 weights of other shapes .*16 x 32 and"):
        loaded(llama)


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_truncated_weights_are_an_error(llama: Path, keep: float) -> None:
    path = llama / "model.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(SourceError, match=f"{path} is cut short or damaged"):
        loaded(llama)


def test_a_folder_without_weights_is_an_error(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"cannot load .*model\.safetensors"):
        loaded(llama)


def test_a_folder_without_a_tokenizer_is_an_error(llama: Path) -> None:
    for path in llama.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(SourceError, match="tokenizer"):
        loaded(llama)


def test_a_device_that_does_not_exist_is_an_error(llama: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot load .*llama"):
        loaded(llama, device="cuda:77")


def test_what_is_no_device_is_a_usage_error(llama: Path) -> None:
    with pytest.raises(UsageError, match="'warp-drive' is not a device"):
        loaded(llama, device="warp-drive")


def test_a_model_that_cannot_run_is_an_error_when_it_is_loaded(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a kernel is missing, or memory: before any text has been read."""

    def fail(*_args: Any, **_options: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", fail)
    with pytest.raises(SourceError, match=r"llama.*no such kernel"):
        loaded(llama)


def test_a_model_of_nan_can_be_loaded_for_its_rows_are_excluded_one_by_one(llama: Path) -> None:
    weights = load_file(llama / "model.safetensors")
    weights["lm_head.weight"][5] = torch.nan
    save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})
    rows = rows_of(loaded(llama), window(random_ids(1, 4)[0]))
    assert torch.isnan(rows[:, 5]).all()


def test_a_model_with_another_head_is_an_error(tmp_path: Path) -> None:
    save(tmp_path, transformers.LlamaConfig(**LLAMA), transformers.LlamaForSequenceClassification)
    with pytest.raises(SourceError, match="is a LlamaForSequenceClassification, which does"):
        loaded(tmp_path)


def test_an_encoder_decoder_model_is_an_error(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=TOKENS, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    save(tmp_path, config, transformers.T5ForConditionalGeneration)
    with pytest.raises(SourceError, match="is an encoder-decoder model"):
        loaded(tmp_path)


@pytest.mark.parametrize("architectures", [["BertForMaskedLM"], ["BertLMHeadModel"]])
def test_a_model_that_sees_the_future_is_an_error_where_a_causal_one_is_asked_for(
    tmp_path: Path, architectures: list[str]
) -> None:
    save(tmp_path, transformers.BertConfig(**BERT), transformers.BertForMaskedLM)
    edit_config(tmp_path, architectures=architectures)
    with pytest.raises(SourceError, match=r"not a causal model|lacks"):
        loaded(tmp_path, task="causal")


@pytest.mark.parametrize("architectures", [None, ["BertForPreTraining"]], ids=["none", "other"])
def test_a_bert_is_masked_whatever_its_config_calls_it(
    tmp_path: Path, architectures: list[str] | None
) -> None:
    """Many BERTs say in their config neither that they are masked models nor what they are."""
    save(tmp_path, transformers.BertConfig(**BERT), transformers.BertForMaskedLM)
    edit_config(tmp_path, architectures=architectures)
    assert loaded(tmp_path).task == "masked"


def test_a_bert_that_is_a_decoder_is_a_causal_model(tmp_path: Path) -> None:
    config = transformers.BertConfig(**BERT, is_decoder=True)
    save(tmp_path, config, transformers.BertLMHeadModel)
    assert loaded(tmp_path).width == TOKENS


# Code that came with a model never runs


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_a_pickle_among_the_weights_never_runs(llama: Path, tmp_path: Path, zipped: bool) -> None:
    weights: dict[str, Any] = dict(load_file(llama / "model.safetensors"))
    weights["lm_head.weight"] = Malicious(tmp_path / "ran")
    (llama / "model.safetensors").unlink()
    torch.save(weights, llama / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(SourceError, match=r"cannot load .*llama"):
        loaded(llama)
    assert not (tmp_path / "ran").exists()


CUSTOM = {
    "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    "architectures": ["OwnModel"],
}


def with_own_code(folder: Path, target: Path) -> None:
    code = f"import os\nos.mkdir({str(target)!r})\n"
    (folder / "own.py").write_text(code, encoding="utf-8")


def test_code_in_a_model_folder_does_not_run_unless_trusted(llama: Path, tmp_path: Path) -> None:
    edit_config(llama, model_type="own", **CUSTOM)
    with_own_code(llama, tmp_path / "ran")
    with pytest.raises(SourceError, match="custom code"):
        loaded(llama)
    assert not (tmp_path / "ran").exists()


def test_code_of_a_tokenizer_does_not_run_unless_trusted(llama: Path, tmp_path: Path) -> None:
    path = llama / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    path.write_text(json.dumps(config), encoding="utf-8")
    with_own_code(llama, tmp_path / "ran")
    with contextlib.suppress(SourceError):
        loaded(llama)
    assert not (tmp_path / "ran").exists()


def test_a_known_architecture_is_taken_from_transformers_not_from_the_folder(
    llama: Path, tmp_path: Path
) -> None:
    edit_config(llama, **CUSTOM)
    with_own_code(llama, tmp_path / "ran")
    assert loaded(llama).provenance["architecture"] == "LlamaForCausalLM"
    assert not (tmp_path / "ran").exists()
