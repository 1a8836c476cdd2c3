"""The order in which people expect names."""

import re


def natural(name: str) -> list[tuple[int, str]]:
    """What orders names as people do: ``checkpoint-500`` before ``checkpoint-1000``."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]
