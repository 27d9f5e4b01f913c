"""Versions taken back: the next head says so and devices' rule lets it, rounds go on from the version before, and no number comes twice."""

import hashlib

import msgspec
import pytest

from fleetgrad.broker import events as ev
from fleetgrad.broker.attempt import RoundSettings
from fleetgrad.broker.closing import KEPT_VERSIONS
from fleetgrad.broker.journal import Row
from fleetgrad.broker.withdrawing import WithdrawalError, withdraw
from fleetgrad.wire import frames
from fleetgrad.wire.files import DiskError
from fleetgrad.wire.messages import HEAD, Head, ObjectRef, Policy
from fleetgrad.wire.release import check_follows
from fleetgrad.wire.signing import Untrusted, verify_message
from tests.broker.conftest import COUNT, FEDERATION, KEYS, MemoryJournal, World
from tests.memory_files import MemoryFiles

SETTINGS = RoundSettings(FEDERATION, Policy(), rounds=99, goal=2, minimum=0.5, deadline=60.0)


def heads(world: World) -> list[Head]:
    raw = [e.payload for e in world.effects if isinstance(e, ev.Publish) and e.topic == world.topics.head]
    return [verify_message(KEYS["agg"].public, HEAD, r, Head) for r in raw]


def closes(world: World, round_: int, attempt: int = 1) -> None:
    for i, device in enumerate(("dev-1", "dev-2")):
        world.send(device, world.update(device, world.payload(round_ + i), round=round_, attempt=attempt))


def published(rounds: int) -> World:
    world = World(settings=SETTINGS)
    for round_ in range(1, rounds + 1):
        closes(world, round_)
    assert world.journal.load().current.number == rounds
    return world


def test_devices_go_back_to_the_version_before_and_rounds_go_on_from_it() -> None:
    world = published(2)
    before, versions = heads(world)[-1], world.journal.load().versions
    done = withdraw(world.journal, world.files)
    assert ([v.number for v in done.versions], done.current.number) == ([2], 1)
    world.start()
    back = heads(world)[-1]
    assert (back.version, back.params.sha256, back.withdrawn) == (1, versions[1].params, 2)
    check_follows(back, before)
    with pytest.raises(Untrusted, match="head has version 1, version 2 is held"):
        check_follows(msgspec.structs.replace(back, withdrawn=None), before)
    (select,) = world.selects(world.birth("dev-1", version=1), "dev-1")
    assert (select.round, select.attempt, select.params) == (3, 2, versions[1].params)
    closes(world, 3, attempt=2)
    after = heads(world)[-1]
    assert (after.version, after.withdrawn, after.parent) == (3, None, versions[1].sha256)
    check_follows(after, back)
    check_follows(after, before)


def test_a_round_under_way_is_abandoned_and_what_was_sent_for_it_is_reported_so() -> None:
    world = published(1)
    world.birth("dev-1")
    world.send("dev-1", world.update("dev-1", world.payload(7), round=2))
    assert world.counted() == {"dev-1", "dev-2"}
    done = withdraw(world.journal, world.files)
    assert done.abandoned is not None
    assert (done.abandoned.round, done.abandoned.state) == (2, "abandoned")
    world.start()
    assert [(c.round, c.attempt, c.outcome) for c in heads(world)[-1].closed][-1] == (2, 1, "abandoned")
    assert world.files.names("spool") == []
    closes(world, 2, attempt=2)
    assert heads(world)[-1].version == 2


def test_an_older_version_takes_all_that_came_from_it_with_it_and_numbers_stay_used() -> None:
    world = published(4)
    assert [v.number for v in withdraw(world.journal, world.files, 2).versions] == [2, 3, 4]
    assert withdraw(world.journal, world.files).current.number == 0
    world.start()
    assert (heads(world)[-1].version, heads(world)[-1].withdrawn) == (0, 4)
    closes(world, 5, attempt=2)
    assert heads(world)[-1].version == 5
    with pytest.raises(
        WithdrawalError, match="can't withdraw version 3: it was withdrawn before; the current one is 5"
    ):
        withdraw(world.journal, world.files, 3)
    assert withdraw(world.journal, world.files, 5).current.number == 0


def test_what_was_withdrawn_leaves_the_broker_and_the_disk() -> None:
    world = published(2)
    (delta,) = heads(world)[-1].deltas
    gone = [ObjectRef(sha256=world.params, size=4 * COUNT), delta.object]
    withdraw(world.journal, world.files)
    world.effects.clear()
    world.start()
    cleared = [e.topic for e in world.effects if isinstance(e, ev.Publish) and not e.payload]
    chunks = [world.topics.object(ref.sha256, i) for ref in gone for i in range(frames.chunks_of(ref.size))]
    assert sorted(cleared) == sorted(chunks)
    assert not {ref.sha256 for ref in gone} & set(world.files.names("objects"))


@pytest.mark.parametrize(
    ("number", "message"),
    [(0, "it is the first"), (3, "there is none; the current one is 2"), (None, "object .* is missing")],
)
def test_what_cant_be_withdrawn_changes_nothing(number: int | None, message: str) -> None:
    world = published(2)
    assert isinstance(world.journal, MemoryJournal)
    rows = len(world.journal.rows)
    if number is None:
        world.files.unlink(f"objects/{world.journal.load().versions[1].params}")
    with pytest.raises(WithdrawalError, match=message):
        withdraw(world.journal, world.files, number)
    assert len(world.journal.rows) == rows


def test_a_version_whose_bytes_have_changed_isnt_gone_back_to() -> None:
    world = published(1)
    world.files.write(f"objects/{world.initial.sha256}", b"other")
    with pytest.raises(WithdrawalError, match=r"version 0, which it came from, can't be used any more: .* has changed"):
        withdraw(world.journal, world.files)


def test_before_the_first_version_there_is_nothing_to_withdraw() -> None:
    with pytest.raises(WithdrawalError, match="no version was published yet"):
        withdraw(MemoryJournal(), MemoryFiles())


def test_the_oldest_version_that_is_kept_can_be_gone_back_to_though_the_one_before_is_gone() -> None:
    world = published(KEPT_VERSIONS + 2)
    oldest = world.journal.load().versions[-KEPT_VERSIONS]
    withdraw(world.journal, world.files, oldest.number + 1)
    world.start()
    assert (heads(world)[-1].version, heads(world)[-1].params.sha256) == (oldest.number, oldest.params)
    closes(world, KEPT_VERSIONS + 3, attempt=2)
    assert heads(world)[-1].version == KEPT_VERSIONS + 3


def test_a_disk_that_refuses_leaves_everything_as_it_was() -> None:
    class Full(MemoryJournal):
        def commit(self, rows: list[Row]) -> None:
            raise DiskError("can't write the journal: No space left on device")

    world = published(2)
    assert isinstance(world.journal, MemoryJournal)
    with pytest.raises(DiskError):
        withdraw(Full(world.journal.rows), world.files)
    world.start()
    assert (heads(world)[-1].version, heads(world)[-1].withdrawn) == (2, None)
    assert hashlib.sha256(world.files.read(f"objects/{world.params}")).hexdigest() == world.params
