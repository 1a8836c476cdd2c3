"""What a model predicts depends on what it reads, not on what it, or its hash, read before."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BigBirdConfig, BigBirdForCausalLM, LlamaConfig, LlamaForCausalLM

from klcli.errors import SourceError
from klcli.sources.hf import model as model_module
from klcli.sources.hf.causal import CausalSource
from klcli.sources.hf.tokenizer import load_tokenizer
from klcli.sources.options import LoadOptions
from klcli.text.vocabulary import Vocabulary
from klcli.text.windows import Window

SIZES = {"vocab_size": 112, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 64, "bos_token_id": 1, "eos_token_id": 1}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}


def bigbird() -> BigBirdForCausalLM:
    """One that reads 192 tokens sparsely, and texts of up to 56 in full."""
    torch.manual_seed(0)
    config = BigBirdConfig(
        **SIZES, is_decoder=True, block_size=8, num_random_blocks=1, max_position_embeddings=192
    )
    return BigBirdForCausalLM(config).eval()


def dynamic() -> LlamaForCausalLM:
    """A llama whose rotary embeddings follow the longest text that it has read."""
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, max_position_embeddings=32, rope_parameters=DYNAMIC)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def vocabulary(reference: Path) -> Vocabulary:
    return load_tokenizer(str(reference), LoadOptions())


def window(length: int) -> Window:
    ids = torch.arange(length + 1).remainder(100).numpy()
    return Window(document=0, inputs=ids[:-1], targets=ids[1:], position=1, score_from=0)


def rows_of(source: CausalSource, lengths: list[int]) -> list[Tensor]:
    return [
        rows.block(0, len(rows)).clone() for rows in source.rows([[window(n)] for n in lengths])
    ]


@pytest.mark.parametrize("make", [bigbird, dynamic])
@pytest.mark.parametrize("before", [[16], [128], [128, 16]])
def test_a_text_is_read_alike_whatever_came_before(
    vocabulary: Vocabulary, make: type, before: list[int]
) -> None:
    for length in (16, 128):
        with torch.inference_mode():
            ids = torch.from_numpy(window(length).inputs).long()[None]
            alone = make()(input_ids=ids, use_cache=False).logits[0]
        source = CausalSource("model", make(), vocabulary)
        assert torch.allclose(rows_of(source, [*before, length])[-1], alone, atol=1e-5)


def test_a_model_that_is_changed_by_its_hash_is_refused(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clumsy(model: LlamaForCausalLM) -> str:
        model.lm_head.weight.data *= -1
        return "0" * 64

    monkeypatch.setattr(model_module, "weights_digest", clumsy)
    source = CausalSource("model", dynamic(), vocabulary)
    with pytest.raises(SourceError, match="changed while its weights were hashed"):
        source.digest()
