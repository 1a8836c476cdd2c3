"""Every family of transformers, tiny: what klcli must give of it; what does not work, and why."""

import copy
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers.models.auto import modeling_auto as auto

import klcli
from klcli.choices import Task
from klcli.sources.hf.classes import class_of
from klcli.sources.hf.quiet import quiet_transformers
from tests.sources.families import tiny_config, tiny_model

TEXT = "Look, the small children sing. No, a dog sleeps near the house."
LARGEST = 40_000_000
"""Weights of a model that is not tiny."""
SPREAD = 8.0
"""What the output embeddings are multiplied by, so that no distribution is flat."""
ABSOLUTE, RELATIVE = 3e-7, 1e-5
"""What klcli's float32 may differ by from the float64 sum over the same logits, in nats."""

SAME = 1e-13
"""A KL of 0, or of a head that is not a plain matrix and is rounded once more when it is kept."""

KINDS: Mapping[str, tuple[Task, Mapping[str, Any]]] = {
    "causal": ("causal", auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "masked": ("masked", auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    "image-text": ("causal", auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
}
"""The registries of transformers by what they are for."""


class Family(NamedTuple):
    """A family by its kind and its name in the registry."""

    kind: str
    name: str


def families() -> Iterator[Family]:
    """All families; an image-text one that is in the causal registry too is one of those."""
    for kind, (_, registry) in KINDS.items():
        for name in registry:
            if kind != "image-text" or name not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
                yield Family(kind, name)


class Trouble(NamedTuple):
    """Why a family does not work, for a reader, and what the error says."""

    why: str
    error: str


PICTURES = Trouble("it wants a picture beside the text", r"pixel_values|flattened_p|Bbox")
TIMM = Trouble("not tried: its encoder of pictures needs timm", r"requires the (PIL|timm)")
TWO_PARTS = Trouble("it is an encoder-decoder model", "is an encoder-decoder model")
BOTH_WAYS = "it reads in both directions, unless it is told in every call how to mask"
NOT_CAUSAL = "is not a causal model"
DRAFTS = Trouble("it drafts for another model, whose states it reads", "shared_kv_states")
SOUNDS = Trouble("it predicts codes of sounds, not text", "has no attribute 'dropout'")
TROUBLE: Mapping[Family, Trouble] = {
    Family("causal", "cpmant"): Trouble(BOTH_WAYS, NOT_CAUSAL),
    Family("causal", "gemma3n"): TIMM,
    Family("causal", "gemma4_assistant"): DRAFTS,
    Family("causal", "gemma4_unified_assistant"): DRAFTS,
    Family("causal", "musicgen"): SOUNDS,
    Family("causal", "musicgen_melody"): SOUNDS,
    Family("causal", "xlnet"): Trouble(BOTH_WAYS, NOT_CAUSAL),
    **{Family("masked", name): TWO_PARTS for name in ("bart", "mbart", "mvp")},
    Family("image-text", "blip"): PICTURES,
    Family("image-text", "blip-2"): PICTURES,
    Family("image-text", "diffusion_gemma"): Trouble(
        "it fills in a text that it begins at random, so that it differs from itself; klcli warns",
        "Not equal to tolerance",
    ),
    Family("image-text", "evolla"): Trouble(
        "no automatic class of transformers makes it", "Unrecognized configuration class"
    ),
    Family("image-text", "fast_vlm"): TIMM,
    Family("image-text", "florence2"): Trouble(TWO_PARTS.why, r"max\(\): Expected reduction dim"),
    Family("image-text", "idefics"): PICTURES,
    Family("image-text", "instructblip"): PICTURES,
    Family("image-text", "instructblipvideo"): PICTURES,
    Family("image-text", "kosmos-2"): PICTURES,
    Family("image-text", "paligemma"): Trouble(
        "text alone is its prefix, which it reads in both directions", NOT_CAUSAL
    ),
    Family("image-text", "perception_lm"): TIMM,
    Family("image-text", "pi0"): Trouble("it predicts movements of a robot", "vocab_size"),
    Family("image-text", "pix2struct"): PICTURES,
    Family("image-text", "pp_formulanet"): PICTURES,
    Family("image-text", "shieldgemma2"): Trouble(
        "it classifies pictures and has no head over the vocabulary", "lacks .* weights"
    ),
    Family("image-text", "t5gemma2"): Trouble(TWO_PARTS.why, "exactly one of input_ids"),
    Family("image-text", "udop"): PICTURES,
    Family("image-text", "vision-encoder-decoder"): PICTURES,
}
"""What does not work. An error of klcli's, of transformers, or a number that is wrong shows it."""


def check_family(family: Family, folder: Path, tokenizer: Path) -> None:
    """Compare a tiny model with a copy that differs, record and replay it, and check the numbers.

    Raises:
        Exception: it cannot be made or run, or a number is wrong.
    """
    model = _model_of(family)
    other = _perturbed(model)
    one, two = (_saved(m, folder / name, tokenizer) for m, name in ((model, "a"), (other, "b")))
    text = folder / "text.txt"
    text.write_text(TEXT)
    task = KINDS[family.kind][0]
    report = klcli.compare(one, two, text, task=task)
    kl = _scored(report)
    direct = _direct(model, other, one, task)
    np.testing.assert_allclose(kl, direct[-len(kl) :], rtol=RELATIVE, atol=ABSOLUTE)
    assert len(direct) - len(kl) in (0, 1), "tokens are missing"
    klcli.record(one, text, folder / "recording", task=task)
    assert _scored(klcli.compare(folder / "recording", one)).max() < SAME, "replay differs"


def _model_of(family: Family) -> Any:
    config = tiny_config(family.name)
    task = KINDS[family.kind][0]
    for name in ("is_decoder", "causal"):
        if family.kind == "causal" and hasattr(config, name):
            setattr(config, name, True)
    config = type(config).from_dict(config.to_dict())  # as it is read from a checkpoint
    kind = class_of(task, config)
    make = kind.from_config if hasattr(kind, "from_config") else kind._from_config
    with torch.device("meta"):
        count = sum(weight.numel() for weight in make(copy.deepcopy(config)).parameters())
    assert count < LARGEST, f"it is not tiny: {count:,} weights"
    model = tiny_model(kind, config)
    embeddings = model.get_output_embeddings()
    if embeddings is not None:
        with torch.no_grad():
            embeddings.weight.mul_(SPREAD)
    return model


def _perturbed(model: Any) -> Any:
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(noise * (0.1 * weight.std() if weight.numel() > 1 else 0.0))
    return other


def _saved(model: Any, folder: Path, tokenizer: Path) -> Path:
    with quiet_transformers():
        model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder)
    return folder


def _scored(report: klcli.Report) -> Any:
    assert report.tokens is not None
    return report.tokens.scores["kl"]


@torch.inference_mode()
def _direct(model: Any, other: Any, folder: Path, task: Task) -> Any:
    """The KL of every token of the text, by the float64 sum over the models' own logits."""
    encode = transformers.AutoTokenizer.from_pretrained(folder)
    if task == "masked":
        ids = torch.tensor([encode(TEXT)["input_ids"]])
        count = ids.shape[1] - 2
        rows = ids.repeat(count, 1)
        place = torch.arange(count)
        rows[place, place + 1] = encode.mask_token_id
        p, q = (m(input_ids=rows).logits[place, place + 1] for m in (model, other))
    else:
        ids = torch.tensor([encode(TEXT, add_special_tokens=False)["input_ids"]])
        p, q = (m(input_ids=ids[:, :-1], use_cache=False).logits[0] for m in (model, other))
    return _kl(p, q).numpy()


def _kl(p: Tensor, q: Tensor) -> Tensor:
    log_p, log_q = (torch.log_softmax(logits.double(), dim=-1) for logits in (p, q))
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def page() -> str:
    """docs/families.md: how many families work, and what does not and why."""
    rows = [
        "# Model families",
        "",
        f"transformers {transformers.__version__.rsplit('.', 1)[0]} registers these families of "
        "language models. A test makes a tiny random model of each,",
        "compares it with a copy that differs, records and replays it, and holds every KL against "
        "the float64",
        "sum over the model's own logits (`pytest -m slow tests/sources/test_every_family.py`). It "
        "also checks",
        "that what is listed below still does not work.",
        "",
        "| kind | families | exact |",
        "|:--|--:|--:|",
    ]
    for kind in KINDS:
        own = [family for family in families() if family.kind == kind]
        rows.append(f"| {kind} | {len(own)} | {sum(f not in TROUBLE for f in own)} |")
    rows += [
        "",
        "Image-text models read text alone; those that the causal registry has too are counted "
        "there.",
        "",
        "## What does not work",
        "",
        "| family | kind | why |",
        "|:--|:--|:--|",
    ]
    rows += [f"| `{f.name}` | {f.kind} | {TROUBLE[f].why} |" for f in families() if f in TROUBLE]
    return "\n".join(rows) + "\n"
