"""A fleet's return after its broker was away: sessions that know nothing but the real back-off, and the broker's connects a second.

python -m tests.simulation.herd [--devices 10000] [--away 5]
"""

import argparse
import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from fleetgrad.wire.mqtt.backoff import retry_delay

Delay = Callable[..., float]


@dataclass(frozen=True, slots=True)
class Return:
    """Connects in each second since the broker is back, until the last device is; tries that found no broker."""

    connects: list[int]
    refused: int

    def percentile(self, share: float) -> int:
        """The connects a second that are exceeded in (1 - share) of the seconds."""
        ordered = sorted(self.connects)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def come_back(
    devices: int,
    away: float,
    window: float,
    seed: int,
    delay: Delay = retry_delay,
    first: float = 1.0,
    most: float = 300.0,
) -> Return:
    """All sessions end at 0, the broker is back after `away` seconds and takes whoever comes."""
    random = Random(seed)

    def draw(tries: int) -> float:
        return delay(tries, window=window, first=first, most=most, random=random)

    due = [(draw(1), device, 1) for device in range(devices)]
    heapq.heapify(due)
    seconds: Counter[int] = Counter()
    refused = 0
    while due:
        now, device, tries = heapq.heappop(due)
        if now < away:
            refused += 1
            heapq.heappush(due, (now + draw(tries + 1), device, tries + 1))
        else:
            seconds[int(now - away)] += 1
    return Return([seconds[second] for second in range(max(seconds) + 1)], refused)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--limit", type=float, default=50.0, help="connects a second")
    parser.add_argument("--away", type=float, nargs="+", default=[0.5, 5.0, 60.0, 600.0, 3600.0])
    options = parser.parse_args()
    print("away, s   p50   p99   most   seconds until all are back   tries that found nobody")
    for away in options.away:
        back = come_back(options.devices, away, options.devices / options.limit, 1)
        print(
            f"{away:7g} {back.percentile(0.5):5d} {back.percentile(0.99):5d} {max(back.connects):6d} {len(back.connects):28d} {back.refused:25d}"
        )


if __name__ == "__main__":
    main()
