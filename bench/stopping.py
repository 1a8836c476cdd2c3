"""How often a run that ends early ends with a wrong verdict: a simulation.

``python -m bench.stopping`` prints a table, in half a minute; ``--write`` puts it
into ``stopping.md``.

A text is W windows of 64 tokens each, drawn in random order, and klcli looks at a gate `metric <=
limit` after every one of them, at α = 0.05. The limit is so many times the true mean of *that*
text: below 1 the gate does not hold, and above 1 it does. Given is in how many % of all texts the
verdict at which the run ended is wrong, and behind it which share of the windows was drawn until
then, in %.

``kl``: a token counts exp(τ·u_w + σ·z), with z standard normal noise of the token and u_w, standard
normal too, an effect that all tokens of a window share; τ = 0.5. No bound is known, and the
sequence is the asymptotic one. With σ = 2.5 a hundredth of the tokens carries more than half of the
sum.

``kl spikes``: a whole window counts exp(σ·z), as if one token carried all of it. From σ = 2 on this
is too much for the asymptotic sequence: what it has not seen it cannot know. Only ``--kl-bound``
helps there.

``agreement``: of the 64 tokens of a window a binomial number counts 1, with a probability of that
window from a beta distribution of the given mean μ and concentration 5. The sequence is the bounded
one, which holds for any text whatever. A limit above 1 is decided at once.

``worst`` is the largest rate of wrong verdicts in the row. Tested (``test_sequential.py``): it is
at most α, give or take what so many texts allow for by chance, except for spikes from σ = 2 on.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from klcli.judge.sequential import BET, LEAST_WINDOWS, UNSEEN

Floats = npt.NDArray[np.float64]

TOKENS = 64
EFFECT = 0.5
CONCENTRATION = 5.0
ALPHA = 0.05
REPLICATES = 4000
AT_ONCE = 250
WINDOWS = (60, 200, 1000)
SIGMAS = (1.0, 1.5, 2.0, 2.5)
MEANS = (0.6, 0.95)
LIMITS = (0.7, 0.9, 0.95, 0.98, 0.995, 1.1, 1.5)
TABLE = Path(__file__).with_name("stopping.md")

Metric = Literal["kl", "kl spikes", "agreement"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """One row of the table: how the texts are made. ``shape`` is σ of a KL, μ of an agreement."""

    metric: Metric
    windows: int
    shape: float

    @property
    def upper(self) -> float:
        """The most that one token counts."""
        return 1.0 if self.metric == "agreement" else math.inf

    @property
    def required(self) -> bool:
        """Whether at most α of the verdicts may be wrong."""
        return self.metric != "kl spikes" or self.shape < 2

    def texts(self, count: int, rng: np.random.Generator) -> Floats:
        """So many texts: the sum over each window, in the order in which they are drawn."""
        shape = (count, self.windows)
        if self.metric == "agreement":
            a, b = CONCENTRATION * self.shape, CONCENTRATION * (1 - self.shape)
            return rng.binomial(TOKENS, rng.beta(a, b, shape)).astype(np.float64)
        if self.metric == "kl spikes":
            return TOKENS * np.exp(self.shape * rng.standard_normal(shape))
        noise = sum(np.exp(self.shape * rng.standard_normal(shape)) for _ in range(TOKENS))
        return np.asarray(noise * np.exp(EFFECT * rng.standard_normal(shape)))

    def bands(self, sums: Floats, alpha: float) -> tuple[Floats, Floats]:
        """Both ends of the sequence of each text after every window: what ``Drawn.band`` gives."""
        windows = self.windows
        t = np.arange(1, windows + 1)
        certain = np.cumsum(sums, axis=1) / (windows * TOKENS)
        if self.metric != "agreement":
            low, high = (end / TOKENS for end in _asymptotic(sums, alpha))
        else:
            low, high = _bounded(sums / TOKENS, alpha)
            high = np.minimum(high, certain + (windows - t) / windows)
        low = np.maximum(low, certain)
        low[:, -1] = high[:, -1] = certain[:, -1]
        return low, high


def _asymptotic(x: Floats, alpha: float) -> tuple[Floats, Floats]:
    """``sequential._asymptotic`` after every window, by sums over those before."""
    windows = x.shape[1]
    t = np.arange(1, windows + 1)
    total, squares, unseen = x.cumsum(1), (x**2).cumsum(1), UNSEEN * np.maximum.accumulate(x, 1)
    low = total / t - _half_width(total, squares, t, windows, alpha)
    more, more_squares = total + unseen, squares + unseen**2
    high = more / (t + 1) + _half_width(more, more_squares, t + 1, windows, alpha)
    early = t < LEAST_WINDOWS
    return np.where(early, -math.inf, low), np.where(early, math.inf, high)


def _half_width(
    total: Floats, squares: Floats, t: npt.NDArray[np.int64], windows: int, alpha: float
) -> Floats:
    best = max(LEAST_WINDOWS, windows / 2)
    rho = (-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / best
    growth = 2 * (t * rho + 1) / (t * t * rho) * np.log(np.sqrt(t * rho + 1) / alpha)
    variance = np.maximum(squares - total**2 / t, 0.0) / np.maximum(t - 1, 1)
    return np.asarray(np.sqrt(growth * variance))


def _bounded(x: Floats, alpha: float) -> tuple[Floats, Floats]:
    """``sequential._bounded`` after every window, by sums over those before."""
    windows = x.shape[1]
    t = np.arange(1, windows + 1)
    left = windows - t + 1
    before = x.cumsum(1) - x
    apart = (x - (0.5 + before) / t) ** 2
    spread = (0.25 + apart.cumsum(1) - apart) / t
    stake = np.minimum(np.sqrt(2 * math.log(2 / alpha) / (spread * t * np.log(t + 1))), BET)
    weight = (stake * (1 + (t - 1) / left)).cumsum(1)
    centre = (stake * (x + before / left)).cumsum(1) / weight
    cost = (apart * (-np.log1p(-stake) - stake)).cumsum(1)
    half = (cost + math.log(2 / alpha)) / weight
    return np.maximum.accumulate(centre - half, 1), np.minimum.accumulate(centre + half, 1)


def endings(design: Design, replicates: int, seed: int) -> list[tuple[float, float]]:
    """For each of ``LIMITS`` the share of wrong verdicts, and the share of windows drawn."""
    rng = np.random.default_rng(seed)
    found = np.zeros((len(LIMITS), 2))
    for start in range(0, replicates, AT_ONCE):
        sums = design.texts(min(AT_ONCE, replicates - start), rng)
        low, high = design.bands(sums, ALPHA)
        means = sums.mean(axis=1, keepdims=True) / TOKENS
        for row, times in enumerate(LIMITS):
            passes, fails = high <= times * means, low > times * means
            end = np.argmax(passes | fails, axis=1)
            wrong = passes if times < 1 else fails
            found[row] += (
                wrong[np.arange(len(end)), end].sum(),
                (end + 1).sum() / design.windows,
            )
    return [(float(wrong), float(used)) for wrong, used in found / replicates]


def designs() -> Iterator[Design]:
    """Every row of the table."""
    shapes_of: dict[Metric, tuple[float, ...]] = {
        "kl": SIGMAS,
        "kl spikes": SIGMAS,
        "agreement": MEANS,
    }
    for metric, shapes in shapes_of.items():
        for windows in WINDOWS:
            for shape in shapes:
                yield Design(metric=metric, windows=windows, shape=shape)


def table(replicates: int) -> Iterator[str]:
    """The lines of the table in Markdown."""
    heads = ("metric", "W", "σ or μ", *(f"{limit:g} × mean" for limit in LIMITS), "worst")
    yield "| " + " | ".join(heads) + " |"
    yield "| :-- |" + " --: |" * (len(heads) - 1)
    for number, design in enumerate(designs()):
        found = endings(design, replicates, number)
        cells = [f"{100 * wrong:.1f} ({100 * used:.0f})" for wrong, used in found]
        worst = f"{100 * max(wrong for wrong, _ in found):.1f}"
        about = [design.metric, str(design.windows), f"{design.shape:g}"]
        yield "| " + " | ".join([*about, *cells, worst]) + " |"


def main() -> None:
    """Print the table, and with ``--write`` put it into its file."""
    parser = argparse.ArgumentParser(description="Wrong verdicts of klcli --until decided.")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    parser.add_argument("--replicates", type=int, default=REPLICATES, help="texts a row")
    arguments = parser.parse_args()
    lines = []
    for line in table(arguments.replicates):
        print(line, flush=True)
        lines.append(line)
    if arguments.write:
        about = (__doc__ or "").split("\n\n", 2)[2].strip().replace("``", "`")
        error = 100 * math.sqrt(ALPHA * (1 - ALPHA) / arguments.replicates)
        head = (
            "# Wrong verdicts of runs that end early, in %\n\nMade by `python -m "
            f"bench.stopping --write`: {arguments.replicates:,} texts a row, so that a "
            f"rate near 5 has a standard error of {error:.2f}."
        )
        TABLE.write_text("\n\n".join([head, about, "\n".join(lines)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
