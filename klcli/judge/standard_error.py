"""The standard error of a mean over clusters, and how long its intervals are."""

import math
from dataclasses import dataclass

from klcli.judge.clusters import Clusters, Floats
from klcli.judge.student import student_t, two_sided_p

_ROUNDING = 1e-12
"""A design effect that is no larger than this is 0, but for rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StandardError:
    """The error of a mean: by clusters, of ``independent`` tokens, and by cosines.

    Few clusters may tie, and say that there is no error at all. It is then that of independent
    tokens, and where tokens are ``counted`` never smaller: counts tie, or nearly do, by chance.
    Where few clusters follow on each other there is one by cosines too, with degrees of freedom of
    its own: an interval is the wider of both, and a p the larger.
    """

    clustered: float
    degrees: int
    independent: float
    cosines: float = 0.0
    cosine_degrees: int = 1
    counted: bool = False

    @property
    def value(self) -> float:
        """The error that is told."""
        floor = self.independent if self.counted or self.is_tied else 0.0
        return max(self.clustered, floor)

    @property
    def share_of_tokens(self) -> float:
        """How many independent tokens tell as much as one of these does."""
        return (self.independent / self.value) ** 2 if self.value > 0 else 1.0

    @property
    def design_effect(self) -> float | None:
        """The clustered variance over that of independent tokens; None where all are alike."""
        return (self.clustered / self.independent) ** 2 if self.independent > 0 else None

    @property
    def is_tied(self) -> bool:
        """Whether all clusters are alike."""
        return (self.design_effect or 0.0) <= _ROUNDING

    def half_width(self, level: float) -> float:
        """Half of the interval of that level, by Student's t."""
        tail = (1 - level) / 2
        by_clusters = -student_t(tail, self.degrees) * self.value
        return max(by_clusters, -student_t(tail, self.cosine_degrees) * self.cosines)

    def quantile(self, level: float) -> float:
        """How many errors half of an interval is long; t where there is no error."""
        if self.value == 0:
            return -student_t((1 - level) / 2, self.degrees)
        return self.half_width(level) / self.value

    def p(self, mean: float) -> float:
        """How probable a mean so far from 0 is by chance; the error is above 0."""
        by_clusters = two_sided_p(mean / self.value, self.degrees)
        if self.cosines == 0:
            return by_clusters
        return max(by_clusters, two_sided_p(mean / self.cosines, self.cosine_degrees))


def standard_error(
    sums: Floats, independent: float, clusters: Clusters, *, counted: bool = False
) -> StandardError:
    """The error of a mean, by the sums of its residuals over each cluster.

    ``independent`` is what it would be if no token told anything of another, ``counted`` whether
    it is a mean of counts.
    """
    variance, degrees = clusters.variance_by_cosines(sums) or (0.0, 1)
    return StandardError(
        clustered=math.sqrt(clusters.variance(sums)) / clusters.tokens,
        degrees=clusters.degrees,
        independent=independent,
        cosines=math.sqrt(variance) / clusters.tokens,
        cosine_degrees=degrees,
        counted=counted,
    )
