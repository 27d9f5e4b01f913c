"""What the aggregator does with a device that is no member any more: it is told so, once it asks, and nothing else of it counts."""

import json

from fleetgrad.broker import events as ev
from fleetgrad.broker.attempt import RoundSettings
from fleetgrad.wire import frames
from fleetgrad.wire.messages import REVOKED, Policy, Receipt
from tests.broker.conftest import FEDERATION, KEYS, World


def dropped(effects: list[ev.Effect]) -> list[str]:
    return [str(e.fields["reason"]) for e in effects if isinstance(e, ev.Log) and e.event == "message_dropped"]


def test_a_revoked_devices_question_is_answered_and_nothing_else_of_it_is_taken() -> None:
    world = World()
    payload = world.payload()
    world.birth("dev-1")
    world.revoked.add("dev-1")
    assert dropped(world.send("dev-1", world.update("dev-1", payload))) == ["device 'dev-1' was revoked"] * 2
    assert dropped(world.birth("dev-1", state="training", round=1, attempt=1)) == ["device 'dev-1' was revoked"]
    (receipt,) = world.query("dev-1", payload)
    assert isinstance(receipt, Receipt)
    assert (receipt.verdict, receipt.reason) == ("refused", REVOKED)
    assert receipt.payload == world.header("dev-1", world.sealed("dev-1", payload)).payload_sha256.hex()
    assert world.counted() == set()
    assert world.files.names("spool") == []


def test_a_question_that_the_revoked_key_has_not_signed_is_not_answered() -> None:
    world = World(revoked={"dev-1"})
    header = world.header("dev-1", world.sealed("dev-1", world.payload()), frames.QUERY)
    frame = frames.frame(header, 0, frames.sign_body(KEYS["dev-2"], header))
    effects = world.send("dev-1", [frame])
    assert dropped(effects) == ["query whose signature doesn't hold"]
    assert world.commands(effects, "dev-1") == []


def test_a_revoked_device_that_asks_without_end_is_not_answered_without_end() -> None:
    world = World(revoked={"dev-1"})
    answers = sum(len(world.query("dev-1", world.payload())) for _ in range(400))
    assert 0 < answers < 400


def test_a_revoked_device_is_asked_for_nothing_more_and_another_is_asked_in_its_place() -> None:
    settings = RoundSettings(FEDERATION, Policy(), rounds=2, goal=1, minimum=1.0, over_selection=1.0, deadline=60.0)
    world = World(settings=settings)
    assert len(world.selects(world.birth("dev-1"), "dev-1")) == 1
    assert world.selects(world.birth("dev-2"), "dev-2") == []
    world.revoked.add("dev-1")
    effects = world.advance(10.0)
    assert world.selects(effects, "dev-1") == []
    assert len(world.selects(effects, "dev-2")) == 1
    status = [
        json.loads(e.payload) for e in effects if isinstance(e, ev.Publish) and e.topic == world.topics.aggregator
    ]
    assert status[-1]["members"] == 1


def test_an_update_that_was_counted_before_stays_counted() -> None:
    world = World()
    payload = world.payload()
    for frame in world.update("dev-1", payload):
        world.send("dev-1", [frame])
    assert world.counted() == {"dev-1"}
    world.revoked.add("dev-1")
    world.query("dev-1", payload)
    assert world.counted() == {"dev-1"}
