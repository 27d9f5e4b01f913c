"""Every crash point of two rounds, on both sides, in each of three losses; and crashes in the middle of recoveries.

A failure prints the point; `python -m tests.crash.points VICTIM POINT LOSS` repeats it with all that happened.
"""

import random
from collections import Counter

import pytest

from fleetgrad.broker.journal import Journal
from fleetgrad.edge.link.store import Store
from fleetgrad.wire.files import Files
from tests.crash.points import LOSSES, SCENARIOS, Loss, count, crashed
from tests.invariants import Violation
from tests.simulation.disk import Disk

OPERATIONS = ("write", "write_at", "fsync", "rename", "fsync_directory", "unlink")
READING = ("read", "read_at", "names")
RECOVERIES = 60  # pairs of crashes a victim


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("victim", SCENARIOS)
def test_a_crash_at_any_point_changes_nothing_in_the_end(victim: str, loss: Loss) -> None:
    """I1-I10, and the last model is the undisturbed run's, byte for byte."""
    acts, calm = count(victim)
    for point, act in enumerate(acts):
        print(f"{victim}, point {point} ({act}), {loss}")
        died, outcome = crashed(victim, (point,), loss)
        assert died == [act], "the run up to the crash isn't the one that was counted"
        assert outcome.final == calm.final


@pytest.mark.parametrize("victim", SCENARIOS)
def test_a_crash_while_it_recovers_from_a_crash_changes_nothing_either(victim: str, seed: int) -> None:
    rng = random.Random(f"{seed} {victim}")
    acts, calm = count(victim)
    twice = 0
    for _ in range(RECOVERIES):
        first = rng.randrange(len(acts))
        points, loss = (first, first + rng.randint(1, 12)), rng.choice(LOSSES)
        print(f"{victim}, points {points}, {loss}")
        died, outcome = crashed(victim, points, loss)
        twice += len(died) == len(points)
        assert outcome.final == calm.final
    assert twice > RECOVERIES // 2


def test_the_points_are_before_and_after_each_operation_of_both_sides() -> None:
    """What the run does is counted, and the run does every kind of operation that the disk has."""
    asked = {name for name in vars(Files) if not name.startswith("_")}
    assert asked == {*OPERATIONS, *READING}, "the disk has operations that these tests don't know"
    for seam, reading in ((Journal, {"load", "attempt", "counted"}), (Store, {"load"})):
        assert {n for n in vars(seam) if not n.startswith("_")} == {*reading, "commit"}
    for victim in SCENARIOS:
        kinds = Counter(" ".join(act.split()[:2]) for act in count(victim)[0])
        for operation in [*OPERATIONS, "commit"]:
            if (victim, operation) == ("dev-0", "write_at"):
                continue  # only uploads are put together from parts
            assert kinds[f"before {operation}"] == kinds[f"after {operation}"] > 0, operation
        assert kinds["inside write"] == kinds["before write"]
        assert kinds["before effect"] > 0


@pytest.mark.parametrize("operation", ["fsync", "fsync_directory"])
def test_an_aggregator_that_leaves_out_a_sync_is_found(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness notices: a cut takes what was acknowledged, or what the journal names."""
    whole = getattr(Disk, operation)

    def left_out(self: Disk, name: str) -> None:
        if not name.startswith("spool"):
            whole(self, name)

    acts, _ = count("aggregator")
    monkeypatch.setattr(Disk, operation, left_out)
    with pytest.raises(Violation, match=r"I2|I6"):
        for point in range(len(acts)):
            crashed("aggregator", (point,), "cut")
