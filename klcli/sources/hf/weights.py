"""Whether a model runs with exactly the weights of its checkpoint: none missing, none left over."""

import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import safetensors

from klcli.choices import Task
from klcli.errors import Notice, SourceError
from klcli.sources.hf.intact import read_object

_HARMLESS = re.compile(
    r"inv_freq$|position_ids$"  # buffers that the model works out by itself
    r"|(attn|attention)\.(bias|masked_bias|causal_mask)$"  # causal masks of GPT-2 and its kin
    r"|(^|\.)pooler\.|^cls\.seq_relationship\.|^sop_classifier\."  # other heads of masked models
    r"|(^|\.)(vision\w*|visual|audio\w*|embed_vision|embed_audio|\w*mm_projector"
    r"|multi_modal_projector|image_newline)(\.|$)"  # what reads pictures and sounds
)
"""Names of weights that no prediction of text depends on, whichever family they belong to.

transformers knows what each family may leave over; those it does not report."""

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
MOST_LABELS = 1_000_000
LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "num_decoder_layers")
"""What configs call the number of their layers."""

_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")


def check_weights(
    spec: str, model: Any, task: Task, loaded: dict[str, Collection[Any]], *, allow_unused: bool
) -> list[Notice]:
    """Hold what was loaded against what the model has.

    Args:
        spec: what the user calls the model.
        model: the model of transformers, and what it is loaded for.
        loaded: the ``loading_info`` of ``from_pretrained``.
        allow_unused: go on where the checkpoint has weights that the model does not take.

    Raises:
        SourceError: weights are missing, or left over and not allowed to be.
    """
    kind = type(model).__name__
    if missing := sorted(loaded["missing_keys"]):
        raise SourceError(
            f"{spec} lacks {len(missing)} weights of a {kind}, first {missing[0]}: give a complete "
            f"{task} language model"
        )
    unused = sorted(key for key in loaded["unexpected_keys"] if not _HARMLESS.search(key))
    if not unused:
        return []
    names = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
    what = f"{spec} has {len(unused)} weights that a {kind} does not take ({names})"
    guess = _looks_like(unused, model.config.get_text_config())
    if not allow_unused:
        raise SourceError(f"{what}{guess}; --allow-unused-weights runs it without them")
    return [Notice(code="unused_weights", message=f"{what} and runs without them{guess}")]


def check_shapes(spec: str, loaded: dict[str, Collection[Any]]) -> None:
    """Find weights that have another shape than the model has by its config.

    Raises:
        SourceError: there are some.
    """
    found = sorted(loaded["mismatched_keys"])
    if not found:
        return
    shown = [
        f"{name} is {_shape(there)} and should be {_shape(wanted)}"
        for name, there, wanted in found[:3]
    ]
    raise SourceError(
        f"{spec} has {len(found)} weights of other shapes than its config asks for: "
        f"{'; '.join(shown)}{'; ...' if len(found) > 3 else ''}. Correct the config, or download "
        "the model again"
    )


def _shape(sizes: Collection[int]) -> str:
    return " x ".join(map(str, sizes)) or "a number"


def check_counts(spec: str, folder: Path, files: Collection[Path]) -> None:
    """Hold the counts of a config against its weights, before a model is made for minutes.

    Raises:
        SourceError: it has more layers than the files have weights, or more labels than any model.
    """
    settings = read_object(folder / "config.json")
    named = [settings, *(part for part in settings.values() if isinstance(part, dict))]
    labels = max((n for part in named if isinstance(n := part.get("num_labels"), int)), default=0)
    if labels > MOST_LABELS:
        raise SourceError(f"config.json of {spec} has {labels:,} labels (num_labels): correct it")
    if not files or any(path.suffix != ".safetensors" for path in files):
        return
    weights = sum(_count(path) for path in files)
    for part in named:
        for name in LAYERS:
            if isinstance(layers := part.get(name), int) and layers > weights:
                raise SourceError(
                    f"config.json of {spec} has {layers:,} layers ({name}), and its files have "
                    f"{weights:,} weights: correct it, or download the model again"
                )


def _count(path: Path) -> int:
    with safetensors.safe_open(path, framework="pt") as file:
        return len(file.keys())


def check_number_formats(spec: str, config: Any, files: Collection[Path]) -> None:
    """Find weights that are codes of a quantised model whose config no longer says so.

    Raises:
        SourceError: a weight is of whole numbers.
    """
    if getattr(config, "quantization_config", None) is not None:
        return
    for path in files:
        if path.suffix == ".safetensors" and (name := _whole_numbers(path)) is not None:
            raise SourceError(
                f"{spec} has a weight of whole numbers ({name} in {path.name}), as quantised "
                "models have, and its config.json has no quantization_config: restore that"
            )


def _whole_numbers(path: Path) -> str | None:
    with safetensors.safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is not a mapping
            if name.endswith(".weight") and file.get_slice(name).get_dtype() in _INTEGERS:
                return str(name)
    return None


def _looks_like(names: Collection[str], config: Any) -> str:
    """What weights that are left over look like, as an end of a sentence."""
    for is_one, what in _SIGNS:
        if any(map(is_one, names)):
            return f": they look like {what}"
    layers = getattr(config, "num_hidden_layers", None)
    highest = max(_layers_of(names), default=None)
    if layers is not None and highest is not None and highest >= layers:
        return f": they reach to layer {highest}, and the config has {layers} layers from 0"
    if all(name.endswith(".bias") for name in names):
        return ": they are biases, which its config says it does not have"
    return ""


def _layers_of(names: Collection[str]) -> Iterator[int]:
    return (int(found[1]) for name in names if (found := _LAYER.search(name)))


def _sign(pattern: str) -> Callable[[str], bool]:
    return lambda name: re.search(pattern, name) is not None


_SIGNS = (
    (_sign(r"lora_|adapter"), "an adapter that was saved with the model: merge it"),
    (
        _sign(r"\.(qweight|qzeros|g_idx)$"),
        "weights of GPTQ or AWQ whose quantization_config was lost: restore it",
    ),
    (
        _sign(r"_scale(_inv)?$|\.scales?$|_scale_2$|SCB$|absmax$|quant_|_packed$|zero_point$"),
        "quantised weights whose quantization_config was lost: restore it",
    ),
    (_sign(r"^(score|classifier|v_head|value_head|qa_outputs)\."), "the head of another task"),
)
