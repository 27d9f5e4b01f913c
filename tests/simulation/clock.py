"""Simulated time: an event heap. Nothing sleeps; the clock jumps to the next event.

Events of equal time run in the order in which they were asked for, so that a run is a function of its seed alone.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Timer:
    """An event that may be called off."""

    at: float
    act: Callable[[], None] | None

    def cancel(self) -> None:
        self.act = None


@dataclass
class Clock:
    """`now` in seconds from the start of the run."""

    now: float = 0.0
    steps: int = 0
    _heap: list[tuple[float, int, Timer]] = field(default_factory=list)
    _asked: int = 0

    def at(self, when: float, act: Callable[[], None]) -> Timer:
        """Runs `act` at a time, or at once if that has passed."""
        timer = Timer(max(when, self.now), act)
        self._asked += 1
        heapq.heappush(self._heap, (timer.at, self._asked, timer))
        return timer

    def after(self, seconds: float, act: Callable[[], None]) -> Timer:
        """Runs `act` after some seconds."""
        return self.at(self.now + seconds, act)

    def step(self) -> bool:
        """Runs the next event; whether there was one."""
        while self._heap:
            self.now, _, timer = heapq.heappop(self._heap)
            if timer.act is not None:
                act, timer.act = timer.act, None
                self.steps += 1
                act()
                return True
        return False
