"""Which class of transformers runs a checkpoint: what its config says that it is."""

from typing import Any

import transformers
from transformers.models.auto import modeling_auto as auto

from klcli.choices import Task
from klcli.errors import SourceError

_CAUSAL = (
    auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
_LANGUAGE = (
    *_CAUSAL,
    auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
    auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)
"""Registries of classes that have a head over the vocabulary."""


def task_of(spec: str, config: Any) -> Task:
    """What a config says its model does: the class it was saved from, else what its family is for.

    Raises:
        SourceError: it is neither a causal nor a masked language model.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise SourceError(
            f"{spec} is an encoder-decoder model; klcli takes causal and masked language models"
        )
    names = _architectures(config)
    fills_in = names & _classes((auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,))
    if names & _classes(_CAUSAL) and not fills_in:
        return "causal"
    is_encoder = config.model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if any("MaskedLM" in name for name in names) or (is_encoder and not _looks_back(config)):
        return "masked"
    return "causal"


def _looks_back(config: Any) -> bool:
    """Whether a family that can be both, such as XLM, is told to see only what stands before."""
    return any(getattr(config, name, None) is True for name in ("is_decoder", "causal"))


def check_architecture(spec: str, config: Any, *, allow_other: bool) -> None:
    """Find a checkpoint that was saved as something else than a language model.

    With tied embeddings it would have all weights of one: a reward model, or a bare body.

    Raises:
        SourceError: its class has no head over the vocabulary.
    """
    known = {name for name in _architectures(config) if hasattr(transformers, name)}
    if known and not known & _classes(_LANGUAGE) and not allow_other:
        raise SourceError(
            f"{spec} is a {' and '.join(sorted(known))}, which does not predict tokens: give a "
            "language model; --allow-other-architecture runs it as one all the same"
        )


def class_of(task: Task, config: Any) -> Any:
    """The class that loads a model: by its family, or by the name that its config has.

    Image-text models read text alone. What no registry knows is left to transformers, which says
    why it cannot be loaded.
    """
    if task == "masked":
        kinds = [transformers.AutoModelForMaskedLM]
    else:
        kinds = [transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText]
    for kind in kinds:
        if type(config) in kind._model_mapping or kind.__name__ in _remote(config):
            return kind
    wanted = "MaskedLM" if task == "masked" else "CausalLM"
    for name in sorted(_architectures(config)):
        if name.endswith(wanted) and hasattr(transformers, name):
            return getattr(transformers, name)
    return kinds[0]


def _architectures(config: Any) -> set[str]:
    return set(getattr(config, "architectures", None) or [])


def _remote(config: Any) -> dict[str, str]:
    """The classes of code that comes with the model."""
    return getattr(config, "auto_map", None) or {}


def _classes(registries: tuple[Any, ...]) -> set[str]:
    named = [name for registry in registries for name in registry.values()]
    return {one for name in named for one in ((name,) if isinstance(name, str) else name)}
