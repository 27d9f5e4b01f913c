"""What a soak says of memory: a leak is found where a run was long enough to show one, and where it wasn't, that is said."""

from typing import Any

from tests.chaos.soak import check, judge, unjudged

Samples = dict[str, list[tuple[float, dict[str, Any]]]]


def samples(seconds: float, rise: float) -> Samples:
    """Once a minute: an aggregator that lives on and grows by `rise` bytes an hour, and a device that is killed every 20 minutes."""
    found: Samples = {"aggregator": [], "dev-00": []}
    for t in range(0, int(seconds), 60):
        found["aggregator"].append((t, {"pid": 1, "rss": 1e8 + rise * t / 3600, "handles": 10, "spool": 0}))
        found["dev-00"].append(
            (t, {"pid": 2 + t // 1200, "rss": 6e7 + 9e7 * (t % 1200) / 1200, "handles": 10, "spool": 0})
        )
    return found


def test_a_leak_is_found_in_a_long_life_and_a_start_is_none() -> None:
    seconds = 4 * 3600.0
    (problem,) = check(judge(samples(seconds, 2e6), seconds), seconds)
    assert problem == "I9: bytes of memory an hour of aggregator: 2,000,000, 1,000,000 should do"
    rows = judge(samples(seconds, 0.5e6), seconds)
    assert check(rows, seconds) == []
    assert unjudged(rows, seconds).startswith("the memory of dev-00 wasn't judged")


def test_a_short_run_judges_no_memory_and_says_so() -> None:
    seconds = 0.9 * 3600
    rows = judge(samples(seconds, 9e6), seconds)
    assert check(rows, seconds) == []
    assert unjudged(rows, seconds).startswith("no process's memory was judged")
