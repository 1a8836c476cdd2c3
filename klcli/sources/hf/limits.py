"""How many ids a model can read at once."""

from typing import Any

_NAMES = ("max_position_embeddings", "max_target_positions", "max_seq_len")
"""What configs call it, the first of them that is a number."""


def longest_of(model: Any) -> int | None:
    """The most ids that a model reads at once, None without a limit."""
    config = model.config.get_text_config()
    given = (getattr(config, name, None) for name in _NAMES)
    longest = next((n for n in given if type(n) is int and n > 0), None)
    if longest is None:
        return None
    return _stretched(longest, config) - _lost_to_padding(model)


def _stretched(longest: int, config: Any) -> int:
    """The limit of rotary embeddings that are scaled beyond the length of the training.

    Linear and dynamic scaling multiply it. Of YaRN some configs state the length before and some
    the one after: the factor is that of the original length. llama3 and longrope state the one
    after.
    """
    rope = getattr(config, "rope_parameters", None)
    found = longest
    for one in _settings(rope if isinstance(rope, dict) else {}):
        kind, factor = one.get("rope_type"), one.get("factor") or 1.0
        if kind in ("linear", "dynamic"):
            found = max(found, int(longest * factor))
        elif kind == "yarn":
            before = one.get("original_max_position_embeddings") or longest
            found = max(found, int(before * factor))
    return found


def _settings(rope: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of each kind of layer, where kinds of layers have their own."""
    inner = [one for one in rope.values() if isinstance(one, dict)]
    return inner or [rope]


def _lost_to_padding(model: Any) -> int:
    """Positions that RoBERTa and its kin never use: they count from ``padding_idx + 1`` on."""
    lost = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return max(lost, default=0)
