"""One identity, one board: repetitions, restarts and late births are told from a clone, which is reported."""

import io
import itertools
from typing import Any

import msgspec
import pytest
from rich.console import Console

from fleetgrad.broker import events as ev
from fleetgrad.broker import sightings, watching
from fleetgrad.broker.sightings import Sightings
from fleetgrad.wire.messages import AggregatorStatus
from tests.broker.conftest import World


def seen(*births: tuple[int, int], seconds: float = 1.0) -> tuple[list[sightings.Sighting], str]:
    """What births with these (boot, seq) are told to be, and the suspicion at the end."""
    one = Sightings()
    told = [one.see(boot, seq, b"%d.%d" % (boot, seq), at * seconds) for at, (boot, seq) in enumerate(births)]
    return told, one.clone


def test_a_board_that_restarts_is_no_clone() -> None:
    births = [(boot, seq) for boot in (3, 4, 7, 8) for seq in (1, 2, 5)]
    assert seen(*births) == (["new"] * len(births), "")


def test_a_repeated_birth_is_turned_away_and_no_clone() -> None:
    assert seen((1, 1), (1, 2), (1, 1), (1, 2), (2, 1), (1, 2)) == (
        ["new", "new", *["repeated"] * 2, "new", "repeated"],
        "",
    )


def test_one_late_birth_of_an_earlier_start_is_no_clone() -> None:
    assert seen((1, 1), (2, 1), (1, 2)) == (["new", "new", "earlier"], "")


def test_two_boards_that_take_turns_are_a_clone() -> None:
    turns = itertools.chain.from_iterable(((5, seq), (9, seq)) for seq in range(1, 4))
    told, clone = seen(*turns)
    assert told == ["new", "new", "earlier", "new", "earlier", "new"]
    assert "take turns" in clone


def test_two_boards_that_count_alike_are_a_clone() -> None:
    one = Sightings()
    assert one.see(5, 1, b"idle", 0.0) == "new"
    assert one.see(5, 1, b"idle", 1.0) == "repeated"
    assert one.clone == ""
    assert one.see(5, 1, b"training", 2.0) == "repeated"
    assert one.clone == "two births have the number 5.1"


def test_a_board_whose_count_of_starts_was_lost_is_heard_again_when_the_later_starts_are_silent() -> None:
    one = Sightings()
    one.see(50, 1, b"", 0.0)
    assert one.see(1, 1, b"a", sightings.SILENT_SECONDS - 1) == "earlier"
    assert one.see(1, 2, b"b", sightings.SILENT_SECONDS) == "new"
    assert one.see(1, 3, b"c", sightings.SILENT_SECONDS + 1) == "new"


def test_what_is_remembered_of_a_device_is_bounded() -> None:
    one = Sightings()
    for boot in range(100):
        for seq in range(100):
            one.see(boot, seq, b"", 0.0)
    assert len(one._boots) == sightings.BOOTS
    assert all(len(births) == sightings.SEQUENCES for births in one._boots.values())


def statuses(world: World) -> list[AggregatorStatus]:
    raw = [e.payload for e in world.effects if isinstance(e, ev.Publish) and e.topic == world.topics.aggregator]
    return [msgspec.json.decode(r, type=AggregatorStatus) for r in raw]


def test_a_clone_is_logged_once_and_shown_in_the_status() -> None:
    world = World()
    for seq in range(1, 6):
        for boot in (5, 9):
            world.birth("dev-1", boot=boot, seq=seq)
    logs = [e for e in world.effects if isinstance(e, ev.Log) and e.event == "clone_suspected"]
    assert [log.fields["device"] for log in logs] == ["dev-1"]
    status = statuses(world)[-1]
    assert status.clones == ("dev-1",)
    told = io.StringIO()
    Console(file=told, width=300).print(watching.headline(watching.View(aggregator=status)))
    assert "two boards seem to use the identity of dev-1" in told.getvalue()


@pytest.mark.parametrize("kind", ["late", "stale", "duplicate", "refused", "dropped"])
def test_what_is_turned_away_is_counted_by_kind_and_shown(kind: str) -> None:
    world = World()
    payload = world.payload(1)
    acts: dict[str, Any] = {
        "duplicate": lambda: world.query("dev-1", world.payload(9)),
        "refused": lambda: world.query("dev-2", payload, round=9),
        "stale": lambda: world.query("dev-2", payload, model=bytes(32)),
        "dropped": lambda: world.message(world.topics.birth("dev-1"), b"rubbish"),
        "late": lambda: world.query("dev-1", world.payload(9), round=1, attempt=1),
    }
    world.send("dev-1", world.update("dev-1", payload))
    if kind == "late":
        world.birth("dev-2")
        world.advance(61)
        acts["late"] = lambda: world.query("dev-2", payload)
    before = len(statuses(world))
    for _ in range(40):
        acts[kind]()
    assert statuses(world)[-1].turned_away[kind] >= 20
    assert len(statuses(world)) - before < 6, "a flood of them is no flood of statuses"
    assert f"{kind}" in watching.headline(watching.View(aggregator=statuses(world)[-1]))


def test_another_aggregator_is_noticed_and_a_former_life_of_this_one_is_not() -> None:
    world = World()
    mine = statuses(world)[-1]

    def said(**fields: Any) -> list[str]:
        raw = msgspec.json.encode(msgspec.structs.replace(mine, **fields))
        effects = world.message(world.topics.aggregator, raw)
        return [e.event for e in effects if isinstance(e, ev.Log)]

    assert said() == []
    assert said(boot=mine.boot - 1, instance=1, state="offline") == []
    assert said(instance=2) == ["another_aggregator"]
    assert said(instance=2) == [], "once"
    assert said(boot=mine.boot + 3, instance=3, state="offline") == ["another_aggregator"]
    assert [e.event for e in world.message(world.topics.aggregator, b"{") if isinstance(e, ev.Log)] == [
        "message_dropped"
    ]
    assert world.message(world.topics.aggregator, b"") == []
