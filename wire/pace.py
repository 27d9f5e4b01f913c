"""How much work is done for whom, and how: what one peer may cost in a while (a token bucket), and what runs side by side."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Parallel(Protocol):
    """What maps a function that waits or computes outside the interpreter: `map` itself, or a thread pool's."""

    def __call__(self, function: Callable[[A], B], items: Iterable[A], /) -> Iterable[B]: ...


ROUNDING = 1e-6  # tokens: at the time that ready_at gives, there are enough


@dataclass(slots=True)
class Pace:
    """`rate` tokens a second, at most `burst` saved up; full at first."""

    rate: float
    burst: float
    tokens: float = -1.0
    at: float = 0.0

    def take(self, cost: float, now: float) -> bool:
        """Whether there are tokens for an act of this cost, which then are gone; `now` is monotonic, in seconds."""
        saved = self.burst if self.tokens < 0 else min(self.burst, self.tokens + self.rate * max(0.0, now - self.at))
        self.at = now
        enough = saved >= cost - ROUNDING
        self.tokens = max(0.0, saved - cost) if enough else saved
        return enough

    def ready_at(self, cost: float) -> float:
        """When there will be tokens for an act of this cost."""
        return self.at + max(0.0, cost - self.tokens) / self.rate
