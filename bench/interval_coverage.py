"""How often the 95 % intervals hold the truth: a simulation.

``python -m bench.interval_coverage`` prints a table, in a few minutes; ``--write`` puts it
into ``interval_coverage.md``.

A text is a row of pieces of 80 tokens each. A token is x = exp(τ·u_g + σ·z): z is standard normal
noise of the token, u_g an effect that all tokens of piece g share, standard normal and AR(1) from
piece to piece. τ = 0.5, and σ = 1 or 1.5, where the largest hundredth of the tokens carries 11 or
23 % of the sum. The coefficient φ of the AR(1) is such that the *means* of neighbouring pieces,
token noise included, correlate as the table says, and so the effects correlate more, and for
longer.

``windows``: the pieces are windows of one long document, and klcli joins them to clusters.
``documents``: each piece is a document, and a cluster.

The truths are those of the log-normal distribution of x: its mean, median and 99th percentile, and
the share of 4 % above a limit. An upper end that klcli does not give holds everything. Beside the
mean stands the interval that takes tokens as independent. ``warned`` is how often klcli warns that
neighbours correlate.

Tested of the mean (``test_coverage.py``): 93 to 98 from 50 pieces on, for σ = 1, where windows
correlate by 0.3 at most, or documents are independent. It is lower where the other rows say so:
where documents correlate, where tokens are heavier-tailed and windows few and correlated, and at
0.6 unless there are many windows. That clusters take in the covariance of their neighbours, at
half of the degrees of freedom, was chosen by simulations of this kind. Fewer than 30 clusters also
take the interval by equal-weighted cosines, if that is wider.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from klcli.judge.clusters import Clusters, cluster_windows, follow
from klcli.judge.intervals import mean_with_error, proportion, quantile_interval

Floats = npt.NDArray[np.float64]

TOKENS = 80
EFFECT = 0.5
SHARE = 0.04
REPLICATES = 4000
PIECES = (20, 50, 200)
CORRELATIONS = (0.0, 0.3, 0.6)
SIGMAS = (1.0, 1.5)
COLUMNS = ("mean", "mean by single tokens", "median", "p99", "share", "warned")
TABLE = Path(__file__).with_name("interval_coverage.md")

Layout = Literal["windows", "documents"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """One row of the table: how the texts are made."""

    layout: Layout
    pieces: int
    correlation: float
    sigma: float

    @property
    def clusters(self) -> Clusters:
        """Those that klcli forms."""
        one = np.zeros(self.pieces, dtype=np.int64)
        cluster = cluster_windows(one if self.layout == "windows" else np.arange(self.pieces))
        return Clusters(np.bincount(cluster) * TOKENS, follow(cluster, one))

    @property
    def required(self) -> bool:
        """Whether the interval of the mean must hold the truth in 93 to 98 % of all texts."""
        most = 0.3 if self.layout == "windows" else 0.0
        return self.pieces >= 50 and self.sigma == 1 and self.correlation <= most

    @property
    def autoregression(self) -> float:
        """The AR(1) coefficient of the effects with which the means of pieces correlate so."""
        between = math.expm1(EFFECT**2)
        within = (1 + between) * math.expm1(self.sigma**2) / TOKENS
        return math.log1p(self.correlation * (between + within)) / EFFECT**2

    def texts(self, count: int, rng: np.random.Generator) -> Iterator[Floats]:
        """So many texts, each a number a token."""
        keep = self.autoregression
        for _ in range(count):
            effects = rng.normal(size=self.pieces)
            for g in range(1, self.pieces):
                effects[g] = keep * effects[g - 1] + math.sqrt(1 - keep**2) * effects[g]
            noise = rng.normal(size=self.pieces * TOKENS)
            yield np.exp(EFFECT * np.repeat(effects, TOKENS) + self.sigma * noise)


def coverage(design: Design, replicates: int, seed: int) -> list[float]:
    """The share of texts whose interval holds the truth, for each of ``COLUMNS``."""
    spread = math.hypot(EFFECT, design.sigma)
    normal, clusters = NormalDist(), design.clusters
    mean, median, p99 = math.exp(spread**2 / 2), 1.0, math.exp(spread * normal.inv_cdf(0.99))
    limit = math.exp(spread * normal.inv_cdf(1 - SHARE))
    held = np.zeros(len(COLUMNS))
    for x in design.texts(replicates, np.random.default_rng(seed)):
        ordered, found = np.sort(x), mean_with_error(x, clusters)
        share = proportion(x > limit, clusters)
        half = 1.96 * x.std(ddof=1) / math.sqrt(len(x))
        held += (
            holds(mean, found["ci_low"], found["ci_high"]),
            abs(x.mean() - mean) <= half,
            holds(median, *quantile_interval(x, ordered, 0.5, clusters)),
            holds(p99, *quantile_interval(x, ordered, 0.99, clusters)),
            holds(SHARE, share["ci_low"], share["ci_high"]),
            (found["lag1_correlation"] or 0.0) > 2 / math.sqrt(len(clusters)),
        )
    return list(held / replicates)


def holds(truth: float, low: float | None, high: float | None) -> bool:
    """Whether an interval holds the truth; an end that is not known excludes nothing."""
    return (low is None or low <= truth) and (high is None or truth <= high)


def designs() -> Iterator[Design]:
    """Every row of the table."""
    for layout in ("windows", "documents"):
        for sigma in SIGMAS:
            for pieces in PIECES:
                for correlation in CORRELATIONS:
                    yield Design(
                        layout=layout,
                        pieces=pieces,
                        correlation=correlation,
                        sigma=sigma,
                    )


def table(replicates: int) -> Iterator[str]:
    """The lines of the table in Markdown."""
    heads = ("pieces", "number", "clusters", "σ", "correlation", "φ", *COLUMNS)
    yield "| " + " | ".join(heads) + " |"
    yield "| :-- |" + " --: |" * (len(heads) - 1)
    for number, design in enumerate(designs()):
        about = (design.layout, design.pieces, len(design.clusters), design.sigma)
        effects = (design.correlation, f"{design.autoregression:.2f}")
        shares = [f"{100 * share:.1f}" for share in coverage(design, replicates, number)]
        yield "| " + " | ".join(map(str, [*about, *effects, *shares])) + " |"


def main() -> None:
    """Print the table, and with ``--write`` put it into its file."""
    parser = argparse.ArgumentParser(description="Coverage of klcli's 95 % intervals.")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    parser.add_argument("--replicates", type=int, default=REPLICATES, help="texts a row")
    arguments = parser.parse_args()
    lines = []
    for line in table(arguments.replicates):
        print(line, flush=True)
        lines.append(line)
    if arguments.write:
        about = (__doc__ or "").split("\n\n", 2)[2].strip().replace("``", "`")
        error = 100 * math.sqrt(0.95 * 0.05 / arguments.replicates)
        head = (
            "# Coverage of the 95 % intervals, in %\n\nMade by `python -m "
            f"bench.interval_coverage --write`: {arguments.replicates:,} texts a row, so that a "
            f"number near 95 has a standard error of {error:.2f}."
        )
        TABLE.write_text("\n\n".join([head, about, "\n".join(lines)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
