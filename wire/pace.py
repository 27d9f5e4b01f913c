"""How much work is done for whom, and how: what one peer may cost in a while (a token bucket), and what runs side by side."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Parallel(Protocol):
    """What maps a function that waits or computes outside the interpreter: `map` itself, or a thread pool's."""

    def __call__(self, function: Callable[[A], B], items: Iterable[A], /) -> Iterable[B]: ...


ROUNDING = 1e-9  # of a cost: sums of tokens are rounded, so that this much of it may lack


@dataclass(slots=True)
class Pace:
    """`rate` tokens a second, at most `burst` saved up; full at first."""

    rate: float
    burst: float
    tokens: float = math.inf
    at: float = 0.0

    def take(self, cost: float, now: float) -> bool:
        """Whether there are tokens for an act of this cost, which then are gone; `now` is monotonic, in seconds."""
        saved, enough = self._saved(now), self._enough(cost, now)
        self.at = now
        self.tokens = max(0.0, saved - cost) if enough else saved
        return enough

    def ready_at(self, cost: float) -> float:
        """A time at which there are tokens for an act of this cost, however coarse floats are by now."""
        when = self.at + max(0.0, cost - self.tokens) / self.rate
        return when if self._enough(cost, when) else math.nextafter(when, math.inf)

    def _saved(self, now: float) -> float:
        return min(self.burst, self.tokens + self.rate * max(0.0, now - self.at))

    def _enough(self, cost: float, now: float) -> bool:
        return self._saved(now) >= cost * (1 - ROUNDING)
