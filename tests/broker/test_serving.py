"""What a device lacks: deltas, chunks that it wants, the head again; with a broker that retains everything, nothing, or has lost it."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleetgrad.broker import events as ev
from fleetgrad.broker import serving
from fleetgrad.broker.attempt import RoundSettings
from fleetgrad.broker.journal import SqliteJournal
from fleetgrad.broker.monitor import unreported
from fleetgrad.broker.offering import MAX_DELTAS
from fleetgrad.broker.server import misfit
from fleetgrad.wire import deltas, frames
from fleetgrad.wire.chunks import Assembly
from fleetgrad.wire.messages import HEAD, WANT, WINDOW, Head, Link, ObjectRef, Policy, Want
from fleetgrad.wire.signing import sign_message, verify_message
from tests.broker.conftest import COUNT, FEDERATION, KEYS, MemoryJournal, World

CHUNK = 4096
SNAPSHOT = 4 * COUNT


def world_of(*, retained: bool, rounds: int = 3) -> World:
    link = Link(chunk_bytes=CHUNK, retained=retained)
    return World(settings=RoundSettings(FEDERATION, Policy(), rounds=rounds, goal=2, deadline=60.0, link=link))


def heads(world: World, effects: list[ev.Effect]) -> list[ev.Publish]:
    return [e for e in effects if isinstance(e, ev.Publish) and e.topic == world.topics.head]


def head_of(world: World) -> Head:
    return verify_message(KEYS["agg"].public, HEAD, heads(world, world.effects)[-1].payload, Head)


def want(world: World, device: str, ref: ObjectRef, received: bytes = b"", /, **fields: Any) -> list[ev.Effect]:
    world.seq += 1
    message = Want(
        federation=FEDERATION, device=device, boot=1, seq=world.seq, object=ref, chunk_bytes=CHUNK, received=received.hex()
    )  # fmt: skip
    message = msgspec.structs.replace(message, **fields)
    return world.message(world.topics.want(device), sign_message(KEYS[device], WANT, message))


def served(world: World, device: str, effects: list[ev.Effect]) -> list[tuple[frames.Header, memoryview]]:
    mine = [e for e in effects if isinstance(e, ev.Publish) and e.topic == world.topics.served(device)]
    assert not any(e.retained for e in mine)
    return [frames.parse(e.payload, most=SNAPSHOT) for e in mine]


def download(world: World, device: str, ref: ObjectRef) -> bytes:
    """Asks until everything is here, as a device does."""
    assembly = Assembly(frames.object_header(ref.size, bytes.fromhex(ref.sha256), CHUNK))
    while not assembly.complete:
        effects = want(world, device, ref, bytes(assembly.received))
        effects += world.advance(1.0)
        chunks = served(world, device, effects)
        assert 0 < len(chunks) <= WINDOW
        for header, chunk in chunks:
            assert assembly.add(header, chunk)
    assert hashlib.sha256(assembly.body).hexdigest() == ref.sha256
    return bytes(assembly.body)


def a_round(world: World, number: int) -> None:
    for device in ("dev-1", "dev-2"):
        world.birth(device)
    for device in ("dev-1", "dev-2"):
        world.send(device, world.update(device, world.payload(number), round=number))


@pytest.mark.parametrize("retained", [True, False])
def test_every_object_of_the_head_can_be_had_by_asking(retained: bool) -> None:
    world = world_of(retained=retained)
    a_round(world, 1)
    head = head_of(world)
    assert download(world, "dev-1", head.plan) == b"a plan"
    params = download(world, "dev-1", head.params)
    (delta,) = head.deltas
    base = bytes(SNAPSHOT)
    assert delta.base == hashlib.sha256(base).hexdigest()
    assert deltas.apply(base, download(world, "dev-2", delta.object)) == params


def test_a_broker_that_retains_nothing_is_given_nothing_to_retain_but_statuses() -> None:
    world = world_of(retained=False)
    a_round(world, 1)
    publishes = [e for e in world.effects if isinstance(e, ev.Publish)]
    assert not [p for p in publishes if "/m/" in p.topic]
    assert {p.topic for p in publishes if p.retained} == {world.topics.aggregator}
    assert head_of(world).link.retained is False


def test_a_broker_that_says_that_it_retains_nothing_is_believed_until_another_connection_says_else() -> None:
    world = world_of(retained=True)
    for retained in (False, True):
        world.handle(ev.Disconnected("gone"))
        effects = world.handle(ev.Connected(retained=retained))
        chunks = [e for e in effects if isinstance(e, ev.Publish) and "/m/" in e.topic and e.payload]
        assert bool(chunks) is retained
        assert heads(world, effects)[-1].retained is retained
        assert head_of(world).link.retained is retained
    world = world_of(retained=False)  # but the settings' word that it doesn't stands
    world.handle(ev.Connected(retained=True))
    assert not head_of(world).link.retained


def test_a_device_without_the_newest_head_makes_it_be_said_again_but_not_in_a_flood() -> None:
    world = world_of(retained=False)
    world.now += 10
    assert len(heads(world, world.birth("dev-1", version=None, params=None, state="fetching"))) == 1
    assert [len(heads(world, world.birth("dev-2", version=None, params=None))) for _ in range(5)] == [0] * 5
    wake = world.rounds.wake_at()
    assert wake == pytest.approx(world.now + serving.HEAD_SECONDS)
    assert len(heads(world, world.advance(serving.HEAD_SECONDS))) == 1
    assert heads(world, world.birth("dev-1")) == []


def test_a_head_that_the_broker_should_have_is_said_again_once_a_minute_at_most() -> None:
    world = world_of(retained=True)
    for _ in range(6):
        world.birth("dev-1", version=None, params=None, state="fetching")
        world.advance(serving.RETAINED_HEAD_SECONDS / 3)
    assert len(heads(world, world.effects)) == 1 + 2


def test_deltas_start_from_what_most_devices_hold_and_take_less_than_the_snapshot() -> None:
    world = world_of(retained=True)
    a_round(world, 1)
    first = world.params
    world.birth("dev-1", version=0, params=hashlib.sha256(bytes(SNAPSHOT)).hexdigest(), state="training")
    world.birth("dev-2")
    for device in ("dev-1", "dev-2"):
        world.send(device, world.update(device, world.payload(2), round=2))
    head = head_of(world)
    assert {d.base for d in head.deltas} == {first, hashlib.sha256(bytes(SNAPSHOT)).hexdigest()}
    assert all(d.object.size <= 0.9 * SNAPSHOT for d in head.deltas)
    world.start()
    assert [d.base for d in head_of(world).deltas] == [first], "after a start, from the version before"


def test_there_is_a_delta_from_the_version_before_however_few_hold_it() -> None:
    world = world_of(retained=True, rounds=9)
    for number in range(1, 6):
        a_round(world, number)
    *older, before, current = (v.params for v in world.journal.load().versions)
    offer = world.rounds._offer
    offer.renew([params for params in older for _ in range(2)] + [before, current])
    assert len(offer.deltas) == MAX_DELTAS
    assert offer.deltas[0].base == before


def test_bytes_down_are_those_of_the_step_that_members_are_offered(tmp_path: Path) -> None:
    world = world_of(retained=True)
    a_round(world, 1)
    (delta,) = head_of(world).deltas
    said = [e for e in world.effects if isinstance(e, ev.Published)]
    assert [p.bytes_down for p in said] == [2 * frames.wire_bytes(delta.object.size, CHUNK)]
    chunks = [e for e in world.effects if isinstance(e, ev.Publish) and e.topic == world.topics.object(world.params, 0)]
    assert world.effects.index(said[0]) < world.effects.index(chunks[0])

    world.start()
    assert isinstance(world.journal, MemoryJournal)
    journal = SqliteJournal(tmp_path / "j")
    journal.commit(world.journal.rows)
    assert journal.line() == [0, 1]
    caught_up = list(unreported([journal.origin(1)], 1, world.rounds.step_bytes, CHUNK))
    assert caught_up == [dataclasses.replace(said[0], seconds=None)], "the same after a crash, but for the time"

    world.files.unlink(f"objects/{delta.base}")  # no delta can be made any more
    world.start()
    assert head_of(world).deltas == ()
    assert world.rounds.step_bytes == SNAPSHOT


def test_former_deltas_leave_the_broker_and_the_disk() -> None:
    world = world_of(retained=True, rounds=5)
    for number in (1, 2, 3, 4):
        a_round(world, number)
    retained: dict[str, bytes] = {}
    for effect in world.effects:
        if isinstance(effect, ev.Publish) and effect.retained:
            retained[effect.topic] = effect.payload
    kept = {t.split("/")[3] for t, p in retained.items() if "/m/" in t and p}
    head = head_of(world)
    refs = [head.plan, head.params, *(d.object for d in head.deltas)]
    parent = world.journal.load().versions[-2].params
    assert kept == {r.sha256[:16] for r in refs} | {parent[:16]}
    versions = {v.params for v in world.journal.load().versions}
    assert set(world.files.names("objects")) == versions | {r.sha256 for r in refs}
    world.files.write(f"objects/{'e' * 64}", b"left by a crash")
    world.start()
    assert "e" * 64 not in world.files.names("objects")
    (cleared,) = [e for e in world.effects if isinstance(e, ev.Publish) and e.topic == world.topics.object("e" * 64, 0)]
    assert cleared.payload == b""


BAD_WANTS: dict[str, tuple[dict[str, Any], str]] = {
    "repeated": ({"seq": 1}, "came already"),
    "of another device": ({"device": "dev-2"}, "want of dev-2 of test on dev-1's topic"),
    "of another federation": ({"federation": "other"}, "want of dev-1 of other"),
    "of an object that isn't offered": ({"object": ObjectRef(sha256="0" * 64, size=5)}, "isn't offered"),
    "of an object of another size": ({}, "isn't offered"),
    "of another cut of it": ({"chunk_bytes": 2 * CHUNK}, "of another length than is offered"),
}


@pytest.mark.parametrize("name", BAD_WANTS)
def test_a_want_that_breaks_a_rule_is_dropped_for_it(name: str) -> None:
    world = world_of(retained=False)
    ref = head_of(world).plan
    want(world, "dev-1", ref)
    fields, reason = BAD_WANTS[name]
    bad = ObjectRef(sha256=ref.sha256, size=ref.size + 1) if "size" in name else ref
    effects = want(world, "dev-1", bad, **fields)
    (note,) = [e for e in effects if isinstance(e, ev.Log)]
    assert reason in str(note.fields["reason"])
    assert served(world, "dev-1", effects) == []


def test_all_devices_together_are_served_no_faster_than_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_of(retained=False)
    ref = head_of(world).params
    world.now += 1000
    sent = 0
    for _ in range(100):  # 100 wants at one moment from each of two devices
        for device in ("dev-1", "dev-2"):
            effects = want(world, device, ref)
            sent += len(served(world, "dev-1", effects)) + len(served(world, "dev-2", effects))
    assert sent == serving.FLEET_BURST
    assert world.rounds.drops["want of a device over its allowance"] == 2 * (100 - serving.DEVICE_BURST // WINDOW)
    monkeypatch.setattr(serving, "DEVICE_BURST", 1e9)
    fresh = world_of(retained=False)
    fresh.now += 1000
    for _ in range(100):
        want(fresh, "dev-1", ref)
        want(fresh, "dev-2", ref)
    wake = fresh.rounds.wake_at()
    assert wake is not None
    effects = fresh.advance(wake - fresh.now)
    assert len(served(fresh, "dev-1", effects)) == WINDOW, "the one that has waited longest"


def test_a_stranger_is_served_nothing() -> None:
    world = world_of(retained=False)
    effects = want(world, "dev-3", head_of(world).plan)
    assert served(world, "dev-3", effects) == []


def test_a_broker_with_smaller_packets_shortens_the_chunks_of_the_next_head_and_of_what_is_retained() -> None:
    world = world_of(retained=True)
    world.effects.clear()
    world.handle(ev.Disconnected("gone"))
    world.handle(ev.Connected(chunk_bytes=CHUNK // 2))
    assert head_of(world).link.chunk_bytes == CHUNK // 2
    chunks = [e for e in world.effects if isinstance(e, ev.Publish) and "/m/" in e.topic and e.payload]
    assert {frames.parse(c.payload, most=4 * COUNT)[0].chunk_bytes for c in chunks} == {CHUNK // 2}
    world.handle(ev.Disconnected("gone"))
    world.handle(ev.Connected())
    assert head_of(world).link.chunk_bytes == CHUNK


@pytest.mark.parametrize(
    ("chunk_bytes", "largest", "reason"),
    [
        (1024, 1024 * 65535, ""),
        (1024, 1024 * 65535 + 1, "chunk-bytes must be at least 1,025; raise the broker's limit on packets"),
        (0, 1, "no packet has room for 1024 bytes of a chunk and 512 around it; raise the broker's limit on packets"),
    ],
)
def test_a_broker_that_can_move_no_chunk_or_not_all_of_a_model_is_told_so(
    chunk_bytes: int, largest: int, reason: str
) -> None:
    said = misfit(chunk_bytes, largest)
    assert said.endswith(reason)
    assert bool(said) == bool(reason)


def test_what_shorter_chunks_have_left_after_the_last_longer_one_is_cleared() -> None:
    world = world_of(retained=True)
    ref = world.initial
    header = frames.object_header(ref.size, bytes.fromhex(ref.sha256), CHUNK // 4)
    shorter = list(frames.frames(header, world.files.read(f"objects/{ref.sha256}")))
    end = frames.chunks_of(ref.size, CHUNK)
    topic = world.topics.object(ref.sha256, end)
    assert [topic in e.filters for e in world.effects if isinstance(e, ev.Subscribe)].count(True) == 1
    cleared = world.message(topic, shorter[end])
    assert cleared == [
        ev.Publish(world.topics.object(ref.sha256, i), b"", retained=True) for i in range(end, len(shorter))
    ]
    assert world.message(topic, b"") == []
    assert world.message(topic, b"junk") == cleared[:1]
    assert world.message(world.topics.object(ref.sha256, 0), shorter[0]) == []
