"""SmolLM2's own answers, followed by its 4-bit self."""

import copy
import json
from pathlib import Path
from typing import Any

import gguf.quants
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType
from torch.nn.functional import log_softmax

from klcli.sources.hf.model import ModelSource
from tests.running import Run

pytestmark = [pytest.mark.real, pytest.mark.slow]

QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "List three prime numbers.",
    "Why is the sky blue?",
    "Translate 'good morning' into Spanish.",
    "Give me a recipe for pancakes.",
    "What does a compiler do?",
)
MOST = 24


@pytest.fixture(scope="module")
def tokenizer(smollm2_file: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(
        str(smollm2_file.parent), gguf_file=smollm2_file.name
    )


@pytest.fixture(scope="module")
def four_bit(
    smollm2: ModelSource, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the model, its matrices rounded to Q4_0 but for the embedding."""
    folder = tmp_path_factory.mktemp("four-bit")
    config = copy.deepcopy(smollm2.model.config)
    del config.quantization_config
    model = type(smollm2.model)(config)
    model.load_state_dict(smollm2.model.state_dict())
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "embed" not in name:
            weight.data = _q4(weight.data)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _q4(tensor: torch.Tensor) -> torch.Tensor:
    codes = gguf.quants.quantize(tensor.float().numpy(), GGMLQuantizationType.Q4_0)
    return torch.from_numpy(gguf.quants.dequantize(codes, GGMLQuantizationType.Q4_0)).contiguous()


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [{"messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def said_by(model: Any, prompt: list[int], tokenizer: Any) -> list[int]:
    """The greedy answer to one prompt, by itself, token by token."""
    said: list[int] = []
    read, past = prompt, None
    while len(said) < MOST and tokenizer.eos_token_id not in said:
        with torch.inference_mode():
            found = model(torch.tensor([read]), past_key_values=past, use_cache=True)
        said.append(int(found.logits[0, -1].argmax()))
        read, past = said[-1:], found.past_key_values
    return said


def parts_at(one: list[int], other: list[int]) -> int | None:
    """The first token in which two answers differ."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), None)


def test_where_answers_part_is_where_both_models_part_when_they_answer_greedily(
    klcli: Run,
    smollm2: ModelSource,
    smollm2_file: Path,
    four_bit: Path,
    prompts: Path,
    tokenizer: Any,
    tmp_path: Path,
) -> None:
    answers, saved = tmp_path / "answers.jsonl", tmp_path / "run.json"
    done = klcli("answer", smollm2_file, prompts, "-o", answers, "--max-new-tokens", str(MOST))
    assert done.code == 0, done.err
    done = klcli("compare", smollm2_file, four_bit, answers, "--output", saved)
    assert done.code == 0, done.err
    report = json.loads(saved.read_text())["answers"]
    candidate = transformers.AutoModelForCausalLM.from_pretrained(four_bit).eval()
    parted = []
    for line in map(json.loads, answers.read_text().splitlines()):
        text = tokenizer.apply_chat_template(
            line["messages"], add_generation_prompt=True, tokenize=False
        )
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert line["prompt_ids"] == prompt
        own = said_by(smollm2.model, prompt, tokenizer)
        assert line["answer_ids"] == own
        parted.append(parts_at(own, said_by(candidate, prompt, tokenizer)))
    assert [one["first"] for one in report["answers"]] == parted
    assert report["agreeing"]["value"] == pytest.approx(parted.count(None) / len(parted))
    for point in report["survival"]:
        so_far = [one is None or one >= point["tokens"] for one in parted]
        assert point["share"] == pytest.approx(np.mean(so_far))


def test_the_nll_of_answers_in_a_chat_is_that_of_a_straight_computation(
    klcli: Run, smollm2: ModelSource, smollm2_file: Path, tokenizer: Any, tmp_path: Path
) -> None:
    messages = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is Paris."},
        {"role": "user", "content": "And of Italy?"},
        {"role": "assistant", "content": "It is Rome, of course."},
    ]
    chat, tokens = tmp_path / "chat.jsonl", tmp_path / "tokens.jsonl"
    chat.write_text(json.dumps({"messages": messages}) + "\n")
    done = klcli("perplexity", smollm2_file, chat, "--output", tokens)
    assert done.code == 0, done.err
    scored = [json.loads(line) for line in tokens.read_text().splitlines()]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        log_probs = log_softmax(smollm2.model(torch.tensor([ids])).logits[0].double(), dim=-1)
    for one in scored:
        place = one["position"]
        assert one["token_id"] == ids[place]
        expected = -float(log_probs[place - 1, ids[place]])
        assert one["nll"] == pytest.approx(expected, abs=2e-5)
    said = tokenizer.decode([one["token_id"] for one in scored])
    assert said == "The capital of France is Paris.<|im_end|>It is Rome, of course.<|im_end|>"
