"""Each invariant catches the lie that it is for, told by a journal and by reports as a run would leave them."""

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import msgspec
import pytest

from fleetgrad.broker.announcing import GENESIS, version_record
from fleetgrad.broker.journal import Attempt, Contribution, Memory, Withdrawn
from fleetgrad.wire import release
from fleetgrad.wire.messages import ObjectRef
from tests import invariants
from tests.crash.points import SCENARIOS
from tests.invariants import Violation
from tests.simulation.training import Made
from tests.simulation.world import World

DEVICES = ("dev-0", "dev-1")


@pytest.fixture(scope="module")
def world() -> World:
    """Two rounds of two devices, on a fine day."""
    made = World(SCENARIOS["aggregator"])
    made.run()
    return made


@pytest.fixture
def memory(world: World) -> Memory:
    """What the journal holds after them; the test may lie in it."""
    return world.aggregator.journal.load()


def accepted(memory: Memory) -> set[tuple[int, int, str, str]]:
    return {(*key, row.payload) for key, row in memory.contributions.items()}


def check(memory: Memory, told: set[tuple[int, int, str, str]]) -> None:
    """All that can be asked of a journal."""
    invariants.check_chain(memory.versions, memory.withdrawn)
    invariants.check_attempts(memory.attempts)
    invariants.check_counted_once(memory.contributions)
    made = invariants.by_round([*memory.versions, *memory.withdrawn])
    for (round_, attempt), row in memory.attempts.items():
        if row.state == "published":
            invariants.check_members(made[round_], invariants.members(memory.contributions, round_, attempt))
    invariants.check_acknowledged(told, memory.attempts, memory.contributions)


def test_what_a_run_leaves_holds(memory: Memory) -> None:
    check(memory, accepted(memory))


def counted_again(memory: Memory) -> None:
    row = memory.contributions[1, 1, "dev-0"]
    memory.apply(replace(row, round=2, device="dev-0"))


def counted_for_another(memory: Memory) -> None:
    memory.contributions[1, 1, "dev-1"] = memory.contributions[1, 1, "dev-0"]


def counted_unseen(memory: Memory) -> None:
    memory.apply(Contribution(1, 1, "dev-9", "ab" * 32, 10, 5, 1, 0.5, 8.0))


def forgotten(memory: Memory) -> None:
    del memory.contributions[2, 1, "dev-1"]


def heavier(memory: Memory) -> None:
    row = memory.contributions[2, 1, "dev-1"]
    memory.apply(replace(row, weight=row.weight + 1))


def lost_end(memory: Memory) -> None:
    memory.apply(replace(memory.attempts[2, 1], state="collecting"))


def version_left_out(memory: Memory) -> None:
    del memory.versions[1]


def rewritten(memory: Memory) -> None:
    old = memory.versions[1]
    record = json.loads(old.record) | {"params": "00" * 32}
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    memory.versions[1] = replace(old, params="00" * 32, record=text, sha256=sha256(text.encode()).hexdigest())


def forked(memory: Memory) -> None:
    last = memory.versions[-1]
    ref = ObjectRef(sha256=last.params, size=last.size)
    memory.versions[-1] = version_record(last.number, ref, GENESIS, memory.attempts[2, 1].config, [], 2)


def number_used_again(memory: Memory) -> None:
    memory.withdrawn.append(memory.versions[1])


def withdrawn_in_the_middle(memory: Memory) -> None:
    memory.apply(Withdrawn(1))


def two_attempts(memory: Memory) -> None:
    memory.apply(Attempt(3, 1, "open", 2, ""))
    memory.apply(Attempt(3, 2, "open", 2, ""))


def round_left_out(memory: Memory) -> None:
    memory.apply(Attempt(4, 1, "published", 2, ""))


LIES: list[tuple[Callable[[Memory], None], str]] = [
    (counted_again, "I1"),
    (counted_for_another, "I1"),
    (counted_unseen, "I1"),
    (heavier, "I1"),
    (forgotten, "I1|I2"),
    (lost_end, "I2"),
    (version_left_out, "I4"),
    (rewritten, "I4"),
    (forked, "I4"),
    (number_used_again, "I4"),
    (withdrawn_in_the_middle, "I4"),
    (two_attempts, "I7"),
    (round_left_out, "I7"),
]


@pytest.mark.parametrize(("lie", "invariant"), LIES, ids=[lie.__name__ for lie, _ in LIES])
def test_a_lie_in_the_journal_is_found(lie: Callable[[Memory], None], invariant: str, memory: Memory) -> None:
    told = accepted(memory)
    lie(memory)
    with pytest.raises(Violation, match=rf"^({invariant}):"):
        check(memory, told)


def test_an_acknowledged_update_that_is_in_no_attempt_is_found(memory: Memory) -> None:
    told = accepted(memory)
    del memory.contributions[1, 1, "dev-0"]
    with pytest.raises(Violation, match=r"^I2: dev-0's acknowledged update of round 1"):
        invariants.check_acknowledged(told, memory.attempts, memory.contributions)
    with pytest.raises(Violation, match=r"^I2"):
        invariants.check_acknowledged({(9, 1, "dev-0", "ab" * 32)}, memory.attempts, memory.contributions)


def test_an_update_that_was_given_up_is_found(memory: Memory) -> None:
    open_ = {**memory.attempts, (3, 1): Attempt(3, 1, "collecting", 2, "")}
    invariants.check_kept("dev-0", (3, 1), {(3, 1)}, set(), open_)
    invariants.check_kept("dev-0", (3, 1), set(), {(3, 1)}, open_)
    invariants.check_kept("dev-0", (2, 1), set(), set(), open_)
    for spool in ({(2, 1)}, set()):
        with pytest.raises(Violation, match=r"^I3: dev-0 gave up"):
            invariants.check_kept("dev-0", (3, 1), spool, set(), open_)


@pytest.mark.parametrize("change", ["one less", "another's weight", "one bit"])
def test_another_sum_is_found(change: str, world: World, memory: Memory) -> None:
    models = world.aggregator.journal.models
    made = [world.made[c.payload] for c in invariants.members(memory.contributions, 1, 1)]
    invariants.check_sum(1, models[0], models[1], made)
    invariants.check_sum(1, models[0], models[1], reversed(made))
    new, updates = models[1], list[Made](made)
    match change:
        case "one less":
            updates = made[:1]
        case "another's weight":
            updates = [*made, made[0]]
        case _:
            new = bytes([new[0] ^ 1]) + new[1:]
    with pytest.raises(Violation, match=r"^I5: version 1"):
        invariants.check_sum(1, models[0], new, updates)


@pytest.mark.parametrize("raw", [None, b"", b"par", b"partx"])
def test_what_is_torn_is_found(raw: bytes | None) -> None:
    whole = b"parts"
    invariants.check_whole("x", whole, sha256(whole).hexdigest(), 5)
    with pytest.raises(Violation, match=r"^I6: x"):
        invariants.check_whole("x", raw, sha256(whole).hexdigest(), 5)


@pytest.mark.parametrize(
    ("act", "invariant"),
    [
        (lambda: invariants.check_forward("dev-0", [0, 2, 1]), "I8: dev-0 went back from version 2 to 1"),
        (lambda: invariants.check_within("bytes", 10.5, 10), "I9"),
        (lambda: invariants.check_progress("round 3", 61, 60), "I10: round 3 took 61 s"),
    ],
)
def test_going_back_growing_and_standing_still_are_found(act: Callable[[], Any], invariant: str) -> None:
    with pytest.raises(Violation, match=rf"^{invariant}"):
        act()


def test_a_version_that_was_withdrawn_is_left_for_good(world: World, memory: Memory) -> None:
    invariants.check_forward("dev-0", [0, 3, 1, 4], {2, 3})
    with pytest.raises(Violation, match=r"^I8: dev-0 took up version 3 again"):
        invariants.check_forward("dev-0", [0, 3, 1, 3], {2, 3})
    with pytest.raises(Violation, match=r"^I8: dev-0 went back"):
        invariants.check_forward("dev-0", [3, 2], {2})
    memory.apply(Withdrawn(2))
    invariants.check_chain(memory.versions, memory.withdrawn)
    head = release.read_head(world.root, world.network.retained[world.topics.head])
    every = [*memory.versions, *memory.withdrawn]
    assert invariants.taken_back(head, every) == set()
    back = msgspec.structs.replace(head, version=1, withdrawn=2)
    assert invariants.taken_back(back, every) == {2}
    # The next one follows from version 1: its head says nothing of version 2, and needn't.
    ref = ObjectRef(sha256="ab" * 32, size=4)
    memory.apply(version_record(3, ref, memory.current.sha256, "cd" * 32, [], 3))
    following = msgspec.structs.replace(head, version=3, withdrawn=None)
    assert invariants.taken_back(following, [*memory.versions, *memory.withdrawn]) == {2}


def test_what_is_in_bounds_passes() -> None:
    invariants.check_forward("dev-0", [0, 0, 3])
    invariants.check_within("bytes", 10, 10)
    invariants.check_progress("round 3", 60, 60)
