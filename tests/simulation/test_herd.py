"""Ten thousand devices come back after their broker was away: at the rate that the federation allows, not all at once."""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from fleetgrad.wire.mqtt.backoff import retry_delay
from tests.simulation.herd import come_back

DEVICES, LIMIT = 10_000, 50.0  # connects a second
WINDOW = DEVICES / LIMIT


@pytest.mark.parametrize("away", [0.5, 5.0, 150.0, 600.0])
def test_a_herd_comes_back_at_the_limit(away: float, seed: int) -> None:
    print(f"seed {seed}")
    back = come_back(DEVICES, away, WINDOW, seed)
    assert sum(back.connects) == DEVICES
    assert back.percentile(0.99) <= 2 * LIMIT
    assert len(back.connects) <= 2 * WINDOW + 1


def without_window(tries: int, **rest: Any) -> float:
    return retry_delay(tries, **{**rest, "window": 0.0})


def only_first(tries: int, **rest: Any) -> float:
    """Full jitter alone after a try that found nobody."""
    return retry_delay(tries, **{**rest, "window": rest["window"] if tries == 1 else 0.0})


@pytest.mark.parametrize(("delay", "away"), [(without_window, 5.0), (only_first, 150.0)])
def test_a_herd_without_its_turns_is_found(delay: Callable[..., float], away: float, seed: int) -> None:
    assert come_back(DEVICES, away, WINDOW, seed, delay).percentile(0.99) > 2 * LIMIT


def test_delays_are_full_jitter_up_to_the_longest_and_the_window() -> None:
    def largest(tries: int, window: float) -> float:
        random = Random(1)
        drawn = [retry_delay(tries, window=window, first=1.0, most=300.0, random=random) for _ in range(2000)]
        assert min(drawn) < max(drawn) / 100
        return max(drawn)

    for tries, window, longest in [
        (1, 0, 1),
        (3, 0, 4),
        (20, 0, 300),
        (10**6, 0, 300),
        (1, 200, 200),
        (2, 200, 400),
        (9, 100, 256),
    ]:
        assert 0.98 * longest < largest(tries, window) <= longest
