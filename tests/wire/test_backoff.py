"""When connections are tried: ten thousand devices that lose their broker, or boot, at one moment; two of one name; a broker that hangs up."""

import random
from collections import Counter
from collections.abc import Callable

import pytest

from fleetgrad.wire.mqtt.backoff import QUIET_SECONDS, REFUSED_MOST, STABLE_SECONDS, TAKEN_MOST, Backoff

DEVICES, LIMIT = 10_000, 50.0  # connections a second that the operator allows
WINDOW = DEVICES / LIMIT


def herd(seed: int, first: Callable[[Backoff], float], back_at: float) -> Counter[int]:
    """How many of a fleet come back in each second, on a broker that is there from `back_at` on."""
    came: Counter[int] = Counter()
    for i in range(DEVICES):
        backoff = Backoff(random.Random(f"{seed} {i}"))
        backoff.window = WINDOW
        at = first(backoff)
        while at < back_at:
            at += backoff.after(None)
        came[int(at)] += 1
    return came


def test_a_broker_that_goes_on_refusing_is_asked_ever_more_rarely_until_it_has_been_content_for_an_hour(
    seed: int,
) -> None:
    backoff = Backoff(random.Random(seed))
    waits = [backoff.refused() for _ in range(12)]
    assert all(30 * 2**i <= wait <= 60 * 2**i for i, wait in enumerate(waits[:6]))
    assert all(REFUSED_MOST / 2 <= wait <= REFUSED_MOST for wait in waits[6:])
    backoff.after(REFUSED_MOST / 2)
    assert backoff.refused() >= REFUSED_MOST / 2
    backoff.after(REFUSED_MOST + 1)
    assert backoff.refused() <= 60


@pytest.mark.parametrize("back_at", [0.0, 30.0, WINDOW / 2, 4 * WINDOW])
@pytest.mark.parametrize(
    "first", [lambda b: b.after(1000.0), Backoff.begin], ids=["the broker restarts", "all boot at one moment"]
)
def test_a_fleet_comes_back_at_no_more_than_twice_the_limit(
    seed: int, first: Callable[[Backoff], float], back_at: float
) -> None:
    came = herd(seed, first, back_at)
    seconds = sorted(came[s] for s in range(int(back_at), max(came) + 1))
    assert sum(seconds) == DEVICES
    assert seconds[int(0.99 * len(seconds))] <= 2 * LIMIT
    assert max(came) <= back_at + 1.5 * WINDOW + 1


def test_without_a_window_the_waits_are_full_jitter_that_doubles_up_to_the_most() -> None:
    backoff = Backoff(random.Random(0), first=1.0, most=300.0)
    waits = [backoff.after(None) for _ in range(500)]
    assert all(wait <= min(300.0, 2.0**i) for i, wait in enumerate(waits))
    assert max(waits) > 290
    assert sum(waits[20:]) / len(waits[20:]) == pytest.approx(150, abs=20)  # the mean's deviation is 4
    assert not backoff.rival


def test_two_of_one_name_throw_each_other_out_ever_more_seldom(seed: int) -> None:
    """Each is connected until the other one is."""
    both = [Backoff(random.Random(f"{seed} {i}")) for i in range(2)]
    now, since, holder, thrown = 0.0, 0.0, 0, []
    while now < 5 * 86400:
        lasted = now - since
        wait = both[holder].after(lasted, taken_over=True)
        thrown.append(now)
        since, holder = now, 1 - holder  # who has thrown it out holds the name
        now += wait
    assert both[0].rival
    assert both[1].rival
    last_day = [t for t in thrown if t > 4 * 86400]
    assert len(last_day) <= 86400 / (TAKEN_MOST / 2)


def test_who_has_long_been_alone_counts_anew() -> None:
    backoff = Backoff(random.Random(0))
    for _ in range(10):
        wait = backoff.after(1.0, taken_over=True)
    assert wait >= TAKEN_MOST / 2
    assert backoff.after(QUIET_SECONDS, taken_over=True) <= 30
    backoff.after(QUIET_SECONDS)
    assert not backoff.rival


def test_a_broker_that_hangs_up_at_once_again_and_again_is_taken_for_another_of_the_name() -> None:
    backoff = Backoff(random.Random(0))
    waits = [backoff.after(0.5, hung_up=True) for _ in range(2)]
    assert max(waits) < 2
    assert not backoff.rival
    assert backoff.after(0.5, hung_up=True) >= 15
    assert max(backoff.after(0.5, hung_up=True) for _ in range(20)) <= 300
    assert [backoff.rival] == [True]
    backoff.after(STABLE_SECONDS, hung_up=True)
    assert [backoff.rival] == [False]


def test_a_broker_that_dies_again_and_again_is_not_taken_for_another_of_the_name() -> None:
    backoff = Backoff(random.Random(1))
    for _ in range(10):
        backoff.after(0.5, hung_up=True)
        backoff.after(None)
        assert not backoff.rival
