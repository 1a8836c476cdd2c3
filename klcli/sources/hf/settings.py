"""What a config says that a model computes with: what may explain why two models differ."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

_IRRELEVANT = re.compile(
    r"architectures|auto_map|transformers_version|model_type|\w*dtype|quantization_config|"
    r"\w*name_or_path|summary_\w+|_commit_hash|_attn_implementation\w*|attn_implementation|"
    r"\w*vocab_size\w*|\w*_token_id|\w*_token_index|id2label|label2id|num_labels|problem_type|"
    r"classifier\w*|task_specific_params|finetuning_task|tokenizer_class|prefix|"
    r"\w*dropout\w*|\w*drop|\w*pdrop|layerdrop|initializer\w*|init_\w+|\w*_init\w*|"
    r"use_cache|cache_\w+|return_\w+|output_(?!multiplier|logit)\w+|is_encoder_decoder|"
    r"gradient_checkpointing|chunk_size_feed_forward|pretraining_tp|torchscript|"
    r"router_aux\w*|\w*aux_loss\w*|\w*loss\w*|label_smoothing|"
    r"do_sample|temperature|top_[kp]|typical_p|num_beams|num_return_sequences|max_length|"
    r"min_length|repetition_penalty|length_penalty|no_repeat_ngram_size|early_stopping|"
    r"(?:vision|audio|image|video)_?\w*"
)
"""Keys that do not change what a model predicts: of training, of generation, of other tasks."""


def settings_of(config: Any) -> dict[str, Any]:
    """What of a config decides about predictions: names, dotted where they are nested, and values.

    What is off or not given is left out: None, False and empty lists.
    """
    text = config.get_text_config()
    found = dict(_flat(text.to_dict()))
    if not getattr(text, "use_sliding_window", True):
        for name in ("sliding_window", "max_window_layers"):
            found.pop(name, None)
    if set(found.get("layer_types", ())) == {"full_attention"}:
        del found["layer_types"]
    return found


def _flat(given: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in given.items():
        name = str(key)
        if _IRRELEVANT.fullmatch(name):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        elif value not in (None, False, [], ()):
            yield f"{before}{name}", _plain(value)


def _plain(value: Any) -> Any:
    """A value as JSON takes it."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
