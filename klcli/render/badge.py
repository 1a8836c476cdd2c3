"""A report as a badge: the JSON that shields.io reads from an address (its endpoint schema)."""

import json
import math
from collections.abc import Mapping
from typing import TextIO

from klcli.judge.gate import Verdict
from klcli.judge.report import Report
from klcli.render import summary
from klcli.render.view import DEFAULT_VIEW, View

_COLOURS: Mapping[Verdict | None, str] = {
    "pass": "brightgreen",
    "fail": "red",
    "inconclusive": "yellow",
    None: "blue",
}


def render_badge(report: Report, stream: TextIO, _view: View = DEFAULT_VIEW) -> None:
    """Write the badge: the KL or the perplexity, coloured by the verdict, which it also names."""
    label, value = _shown(report)
    message = value if report.verdict is None else f"{value}, {report.verdict}"
    badge = {
        "schemaVersion": 1,
        "label": label,
        "message": message,
        "color": _COLOURS[report.verdict],
    }
    json.dump(badge, stream, indent=2)
    stream.write("\n")


def _shown(report: Report) -> tuple[str, str]:
    """What the badge is about, and how much of it there is."""
    if report.command == "compare":
        kl = _short(report.metrics["kl"]["mean"])
        return "KL", f"{summary.at_least(report, 'kl')}{kl} nats"
    return summary.title(report).lower(), _short(report.metrics["perplexity"]["value"])


def _short(x: float | None) -> str:
    return "unknown" if x is None or math.isnan(x) else f"{x:.3g}"
