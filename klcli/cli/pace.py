"""How fast a run goes."""

import time
from typing import NamedTuple

from klcli.render.numbers import duration


class _Mark(NamedTuple):
    """How many tokens were done at which time, in seconds of a clock that never goes back."""

    time: float
    done: int


class Pace:
    """How fast tokens are scored, and how long the rest will take.

    What was done before, where a run goes on, counts for nothing. Neither does the first batch, as
    soon as there is another: kernels are compiled and memory is found in it.
    """

    def __init__(self, noun: str = "tokens") -> None:
        self.noun = noun
        self.done, self.total = 0, 0
        self._begun = self._first = self._last = _Mark(0.0, 0)
        self._tokens, self._seconds = 0, 0.0

    def at(self, done: int, total: int) -> None:
        """Note that so many tokens of so many are done."""
        now = _Mark(time.monotonic(), done)
        if self.total != total or done < self.done or not self.total:  # another pass over the text
            self._tokens, self._seconds = self.tokens, self.seconds
            self._begun = self._first = now
        elif self._first == self._begun:
            self._first = now
        self._last, self.done, self.total = now, done, total

    @property
    def rate(self) -> float | None:
        """Tokens a second in this pass; None while nothing is done."""
        begun = self._first if self._last.done > self._first.done else self._begun
        seconds = self._last.time - begun.time
        tokens = self._last.done - begun.done
        return tokens / seconds if tokens and seconds > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds until the end of this pass; None while nothing is done."""
        if (rate := self.rate) is None:
            return None
        return max(0.0, (self.total - self.done) / rate - (time.monotonic() - self._last.time))

    @property
    def elapsed(self) -> float:
        """Seconds since this pass began."""
        return time.monotonic() - self._begun.time

    @property
    def tokens(self) -> int:
        """Tokens that were scored, in all passes."""
        return self._tokens + self._last.done - self._begun.done

    @property
    def seconds(self) -> float:
        """Seconds that this took."""
        return self._seconds + self._last.time - self._begun.time

    def line(self, *, short: bool = False) -> str:
        """Where this pass stands, in one line."""
        done, total = f"{self.done:,}", f"{self.total:,}"
        parts = [f"{done}/{total}" if short else f"{done} of {total} {self.noun}"]
        rate, left = self.rate, self.left
        if rate is not None and left is not None:
            speed = f"{rate:,.0f}/s" if short else f"{rate:,.0f} {self.noun}/s"
            parts += [f"{duration(left)} left", speed]
        return "  ".join([*parts, duration(self.elapsed)])

    def closing(self) -> str:
        """What was done in all, in one line."""
        rate = self.tokens / self.seconds if self.seconds else 0.0
        return f"{self.tokens:,} {self.noun} in {duration(self.seconds)}, {rate:,.0f} {self.noun}/s"
