"""GGUF files of every type of number predict what their dequantised weights say in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from klcli import perplexity
from klcli.sources.hf.tokenizer import load_tokenizer
from klcli.sources.options import LoadOptions

gguf = pytest.importorskip("gguf", reason="reading GGUF needs klcli[gguf]")
from tests.sources.gguf_files import llama, names_of, write  # noqa: E402

WIDTH = 256
"""What rows of K-quants and IQ-quants are multiples of."""
TYPES = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0",
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS",
    "TQ1_0", "TQ2_0", "MXFP4",
)  # fmt: skip
SCALES = {
    "Q2_K": (-4, -2), "Q3_K": (-2,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (-2,),
    **dict.fromkeys(("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), (0,)),
    "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
"""Where in a block its factors lie, as float16, of types that can be read here and not written."""


def packed(kind: Any, weight: np.ndarray[Any, Any], seed: int) -> np.ndarray[Any, Any]:
    """A matrix in a type of GGUF: its own numbers, or random codes with small factors."""
    if kind.name not in SCALES and kind.name != "IQ1_M":
        return np.asarray(gguf.quants.quantize(weight.astype(np.float32), kind))
    size, width = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (weight.size // size, width), dtype=np.uint8)
    if kind.name == "IQ1_M":  # its factor is spread over the high bits of its scales
        blocks[:, -8::2] = 0
        blocks[:, -7::2] = np.array([0x40, 0x00, 0xA0, 0x20], dtype=np.uint8) | (
            blocks[:, -7::2] & 15
        )
    for place in SCALES.get(kind.name, ()):
        factor = np.full((len(blocks), 1), 0.0002, dtype=np.float16).view(np.uint8)
        blocks[:, place % width : place % width + 2] = factor
    return blocks.reshape(len(weight), -1)


@pytest.mark.parametrize("name", TYPES)
def test_nll_is_that_of_a_float64_forward(name: str, tmp_path: Path, corpus: Path) -> None:
    kind = gguf.GGMLQuantizationType[name]
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1}
    model = llama(transformers.LlamaConfig, **sizes, initializer_range=0.05)
    path, weights = tmp_path / "model.gguf", dict(model.state_dict())
    raw = {}
    for i, (key, to) in enumerate(names_of(model, "llama").items()):
        if weights[key].ndim == 2:
            raw[to] = packed(kind, weights[key].numpy(), i)
            weights[key] = _unrotated(gguf.quants.dequantize(raw[to], kind), to, model.config)
    write(path, model, {}, raw={to: (one, kind) for to, one in raw.items()})
    text = tmp_path / "text.txt"
    text.write_text(corpus.read_text()[:60].lower().replace(" ", "_").replace("\n", "_"))
    ids = torch.from_numpy(load_tokenizer(str(path), LoadOptions()).encode(text.read_text()).ids)
    with torch.inference_mode():
        model.double().load_state_dict({key: one.double() for key, one in weights.items()})
        q = model(input_ids=ids.long()[None, :-1]).logits[0].log_softmax(dim=-1)
    nll = float(-q.gather(1, ids.long()[1:, None]).mean())
    found = perplexity(path, text, bos="none")
    assert found.counts["tokens"] == len(ids) - 1 > 20
    assert found.metrics["nll"]["mean"] == pytest.approx(nll, rel=1e-6, abs=1e-5)


def _unrotated(weight: Any, name: str, config: Any) -> torch.Tensor:
    """From llama.cpp's order of the rows of rotated heads to that of transformers."""
    found = torch.from_numpy(np.array(weight, dtype=np.float64))
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    if n := heads.get(name.split(".")[-2]):
        return found.view(n, -1, 2, found.shape[1]).swapaxes(1, 2).reshape(found.shape)
    return found
