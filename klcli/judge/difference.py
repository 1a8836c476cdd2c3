"""Whether two models differ at all: what can be said of a comparison without any gate."""

import math
from typing import Literal

from klcli.judge.report import Report

Difference = Literal["same", "noise", "differs", "unknown"]


def difference_of(report: Report) -> Difference:
    """``same`` where no token has any KL, ``noise`` where it is below a measured noise floor."""
    kl = report.metrics["kl"]["mean"]
    if kl is None or math.isnan(kl):
        return "unknown"
    if kl == 0:
        return "same"
    floor = times_the_noise(report)
    return "noise" if floor is not None and floor <= 1 else "differs"


def times_the_noise(report: Report) -> float | None:
    """The KL in multiples of the noise floor; None where none was measured."""
    kl, floor = report.metrics["kl"]["mean"], report.noise_floor
    if kl is None or floor is None or floor["kl"] is None or math.isnan(floor["kl"]):
        return None
    if floor["kl"] == 0:
        return math.inf if kl > 0 else 0.0
    return 0.0 if math.isinf(floor["kl"]) else float(kl / floor["kl"])
