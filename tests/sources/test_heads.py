"""Output heads stand alone whatever a family does to its logits, and by whatever name."""

import copy
from typing import Any

import pytest
import torch
import transformers

from klcli.choices import Task
from klcli.sources.hf.classes import class_of
from klcli.sources.hf.model import ModelSource
from klcli.sources.hf.tasks import SOURCES
from klcli.text.vocabulary import Vocabulary
from tests.sources.families import tiny_config, tiny_model
from tests.sources.masked_models import tiny_masked


def source_of(family: str, task: Task, **settings: Any) -> ModelSource:
    """A tiny model with logits that spread enough to tell what is done to them."""
    config = copy.deepcopy(tiny_config(family))
    for part in (config, config.get_text_config()):
        for name, value in settings.items():
            if hasattr(part, name):
                setattr(part, name, value)
    model = tiny_model(class_of(task, config), config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40)
    vocabulary = Vocabulary(tiny_masked("bert")[1].backend_tokenizer, bos_id=None, eos_id=None)
    return SOURCES[task](family, model, vocabulary)


FACTORS = [
    ("cohere", {"logit_scale": 0.0625}, (0.0625, None, None)),
    ("aya_vision", {"logit_scale": 0.25}, (None, None, None)),
    ("cohere2_vision", {"logit_scale": 0.25}, (None, None, None)),
    ("granite", {"logits_scaling": 4.0}, (None, 4.0, None)),
    ("hyperclovax", {"logits_scaling": 4.0}, (4.0, None, None)),
    ("minicpm3", {"dim_model_base": 16}, (None, None, None)),
    ("gemma2", {"final_logit_softcapping": 3.0}, (None, None, 3.0)),
    ("xlstm", {"output_logit_soft_cap": 3.0}, (None, None, 3.0)),
]


@pytest.mark.filterwarnings("ignore")  # of families, which are not ours to mend
@pytest.mark.parametrize(("family", "settings", "expected"), FACTORS)
def test_the_probe_finds_which_number_of_a_config_is_applied_to_the_logits(
    family: str, settings: dict[str, float], expected: tuple[float | None, ...]
) -> None:
    head = source_of(family, "causal", **settings).proof.head
    assert head is not None
    assert (head.multiplier, head.divisor, head.softcap) == expected


@pytest.mark.parametrize("family", ["esm", "mobilebert", "bert", "xlm"])
def test_heads_of_masked_families_stand_alone(family: str) -> None:
    source = source_of(family, "masked")
    assert source.proof.head is not None
    assert source.proof.self_kl <= 1e-7
    stored = source.proof.head.with_matrix(source.stored_matrix())
    assert source.self_kl(stored) <= 1e-7


def test_a_number_that_no_config_names_leaves_the_head_with_its_model() -> None:
    model = tiny_model(transformers.AutoModelForCausalLM, tiny_config("llama"))

    def scale(_module: Any, _args: Any, out: Any) -> Any:
        out.logits = out.logits * 1.5
        return out

    model.register_forward_hook(scale)
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    vocabulary = Vocabulary(tiny_masked("bert")[1].backend_tokenizer, bos_id=None, eos_id=None)
    proof = SOURCES["causal"]("scaled", model, vocabulary).proof
    assert proof.head is None
    assert proof.reason is not None
    assert "differs by" in proof.reason
