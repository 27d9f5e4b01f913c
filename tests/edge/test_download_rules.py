"""The participant's downloads: deltas, wants, parts that survive a restart, and the two models that a device keeps."""

import hashlib
import itertools
from typing import Any

import numpy as np
import pytest

from fleetgrad.edge import events as ev
from fleetgrad.edge.link.inbox import MOST_RETRY_SECONDS, WINDOW
from fleetgrad.wire import deltas, frames
from fleetgrad.wire.messages import WANT, Delta, Link, Want
from fleetgrad.wire.signing import verify_message
from tests.edge.one_device import KEY, PARAMS, PLAN, TOPICS, Device, ref

LINK = Link(chunk_bytes=1024)
OLD = (0.1 * np.random.default_rng(1).standard_normal(5000)).astype("<f4").tobytes()  # 20 chunks of 1,024 bytes
NEW = (np.frombuffer(OLD, "<f4") * np.float32(1.001)).astype("<f4").tobytes()


def delta_of(base: bytes, new: bytes) -> bytes:
    made = deltas.make(base, new)
    assert made is not None
    return made


def named(base: bytes, raw: bytes) -> Delta:
    return Delta(base=ref(base).sha256, object=ref(raw))


def chunks(raw: bytes) -> list[bytes]:
    header = frames.object_header(len(raw), hashlib.sha256(raw).digest(), LINK.chunk_bytes)
    return list(frames.frames(header, raw))


class Fetcher(Device):
    """A device with a model of version 0 and chunks of 1,024 bytes."""

    def begun(self, **link: Any) -> "Fetcher":
        self.handle(ev.Connected())
        self.head(params=OLD, link=Link(chunk_bytes=1024, **link))
        return self

    def holding(self) -> "Fetcher":
        self.begun()
        self.objects(PLAN, OLD, chunk_bytes=1024)
        assert self.participant.state == "idle"
        return self

    def offered(self, raw: bytes = NEW, version: int = 1, **fields: Any) -> "Fetcher":
        self.head(version=version, params=raw, link=LINK, **fields)
        return self

    def restarted(self) -> "Fetcher":
        self.start()
        self.handle(ev.Connected())
        return self

    def retried(self) -> "Fetcher":
        wake = self.participant.wake_at()
        assert wake is not None
        self.now = wake
        self.handle(ev.Tick())
        return self

    def wants(self) -> list[Want]:
        topic = TOPICS.want("dev-1")
        raw = [e.payload for e in self.effects if isinstance(e, ev.Publish) and e.topic == topic]
        return [verify_message(KEY.public, WANT, r, Want) for r in raw]

    def served(self, frame: bytes) -> list[ev.Effect]:
        return self.handle(ev.Message(TOPICS.served("dev-1"), frame))

    def stored(self) -> set[str]:
        return set(self.disk.names("objects"))

    def asked(self) -> set[str]:
        return {t for e in self.effects if isinstance(e, ev.Subscribe) for t in e.filters}


def names(*raws: bytes) -> set[str]:
    return {ref(raw).sha256 for raw in raws}


# --- deltas ----------------------------------------------------------------------------------------------------------
def test_a_delta_from_what_is_held_is_fetched_in_place_of_the_snapshot() -> None:
    device, delta = Fetcher().holding(), delta_of(OLD, NEW)
    before = device.participant._model.inbox.bytes_down
    device.offered(deltas=(named(b"other", b"x" * 100), named(OLD, delta)))
    device.objects(delta, chunk_bytes=1024)
    assert "delta_applied" in device.logs()
    assert device.disk.held[f"objects/{ref(NEW).sha256}"] == NEW
    assert device.births()[-1].params == ref(NEW).sha256
    assert device.participant._model.inbox.bytes_down - before == frames.wire_bytes(len(delta), 1024) < len(NEW)


@pytest.mark.parametrize("delta", [delta_of(OLD, OLD), b"junk" * 900])
def test_a_delta_that_leads_nowhere_is_dropped_and_the_snapshot_fetched(delta: bytes) -> None:
    device = Fetcher().holding().offered(deltas=(named(OLD, delta),))
    device.objects(delta, chunk_bytes=1024)
    assert "object_dropped" in device.logs()
    assert device.participant._model.inbox.wanted == [ref(NEW)]
    device.retried().objects(NEW, chunk_bytes=1024)
    assert device.participant.state == "idle"
    assert device.disk.held[f"objects/{ref(NEW).sha256}"] == NEW


def test_a_delta_larger_than_the_snapshot_or_from_params_that_are_not_held_is_not_used() -> None:
    large, other = b"x" * (len(NEW) + 1), b"x" * 10
    device = Fetcher().holding().offered(deltas=(named(OLD, large), named(PARAMS, other)))
    assert device.asked() == {TOPICS.object(ref(NEW).sha256, i) for i in range(WINDOW)}


# --- wants -----------------------------------------------------------------------------------------------------------
def test_where_a_broker_retains_nothing_chunks_are_wanted_eight_at_a_time() -> None:
    device = Fetcher().begun(retained=False)
    frames_ = chunks(PLAN)
    rounds = 0
    while device.participant._model.inbox.wanted[:1] == [ref(PLAN)]:
        (want,) = device.wants()
        assert want.object == ref(PLAN)
        received = bytes.fromhex(want.received)
        missing = [i for i in range(len(frames_)) if not received[i // 8] >> i % 8 & 1]
        assert len(frames_) - len(missing) == 8 * rounds
        for i in missing[:8]:
            device.served(frames_[i])
        rounds += 1
    assert rounds == -(-len(frames_) // 8)
    assert not any(t.startswith("fl1/test/m/") for t in device.asked())


def test_wants_are_counted_with_births() -> None:
    device = Fetcher().begun(retained=False)
    seqs = [w.seq for w in device.wants()]
    device.handle(ev.Connected())
    assert [w.boot for w in device.wants()] == [b.boot for b in device.births()]
    assert seqs[0] < device.births()[0].seq < device.wants()[0].seq


def test_a_retained_chunk_that_does_not_come_is_subscribed_again_and_then_wanted() -> None:
    device = Fetcher().begun()
    plan = chunks(PLAN)
    assert device.wants() == []
    assert device.retried().wants() == [], "the broker may just have been slow"
    assert len(device.asked()) == WINDOW
    (want,) = device.retried().wants()
    assert want.object == ref(PLAN)
    for frame in plan[:8]:
        assert device.wants()[1:] == []
        device.served(frame)
    assert [w.received for w in device.wants()] == [(b"\xff" + bytes(len(bytes.fromhex(want.received)) - 1)).hex()]
    waits = [device.retried().now for _ in range(12)]
    assert max(b - a for a, b in itertools.pairwise(waits)) <= MOST_RETRY_SECONDS


def test_a_chunk_that_is_not_asked_for_or_of_another_object_is_not_taken() -> None:
    device = Fetcher().begun()
    device.served(chunks(NEW)[0])
    assert device.logs() == ["chunk_dropped"]
    device.handle(ev.Message(TOPICS.served("dev-2"), chunks(PLAN)[0]))
    assert device.participant._model.inbox.bytes_down == 0


# --- restarts --------------------------------------------------------------------------------------------------------
def test_a_restart_resumes_a_download_from_its_parts() -> None:
    device = Fetcher().begun()
    plan = chunks(PLAN)
    for i, frame in enumerate(plan[:20]):
        device.handle(ev.Message(TOPICS.object(ref(PLAN).sha256, i), frame))
    device.restarted()
    assert "download_resumed" in device.logs()
    assert device.asked() >= {TOPICS.object(ref(PLAN).sha256, i) for i in range(16, 24)}, "16 were in two parts of 8"
    device.objects(PLAN, OLD, chunk_bytes=1024)
    assert device.participant.state == "idle"
    assert device.disk.names("partial") == []


@pytest.mark.parametrize("damage", ["flip", "cut", "length"])
def test_a_part_that_is_damaged_is_fetched_again(damage: str) -> None:
    device = Fetcher().begun()
    for i, frame in enumerate(chunks(PLAN)[:8]):
        device.handle(ev.Message(TOPICS.object(ref(PLAN).sha256, i), frame))
    (name,) = device.disk.names("partial")
    raw = bytearray(device.disk.held[f"partial/{name}"])
    if damage == "cut":
        del raw[-100:]
    else:
        raw[3 if damage == "length" else 3000] ^= 0xFF
    device.disk.held[f"partial/{name}"] = bytes(raw)
    device.restarted().objects(PLAN, OLD, chunk_bytes=1024)
    assert device.participant.state == "idle"


def test_parts_of_another_chunk_length_or_object_are_not_used() -> None:
    device = Fetcher().begun()
    for i, frame in enumerate(chunks(PLAN)[:8]):
        device.handle(ev.Message(TOPICS.object(ref(PLAN).sha256, i), frame))
    device.head(params=OLD, boot=2, link=Link(chunk_bytes=2048))
    device.objects(PLAN, OLD, chunk_bytes=2048)
    assert device.participant.state == "idle"
    assert device.disk.names("partial") == []


def test_a_disk_without_room_for_parts_does_not_stop_a_download() -> None:
    device = Fetcher().begun()
    device.disk.full = True
    for i, frame in enumerate(chunks(PLAN)[:16]):
        device.handle(ev.Message(TOPICS.object(ref(PLAN).sha256, i), frame))
    assert device.logs() == ["disk_failed"]
    device.disk.full = False
    device.retried().objects(PLAN, OLD, chunk_bytes=1024)
    assert device.participant.state == "idle"


# --- two models ------------------------------------------------------------------------------------------------------
def test_the_model_before_stays_until_the_next_is_verified_and_then_one_more() -> None:
    device = Fetcher().holding().offered()
    for i, frame in enumerate(chunks(NEW)[:-1]):
        device.handle(ev.Message(TOPICS.object(ref(NEW).sha256, i), frame))
        assert device.stored() == names(PLAN, OLD)
    device.restarted()
    assert device.stored() == names(PLAN, OLD)
    device.objects(NEW, chunk_bytes=1024)
    assert device.stored() == names(PLAN, OLD, NEW)
    device.offered(b"third" * 800, version=2).objects(b"third" * 800, chunk_bytes=1024)
    assert device.stored() == names(PLAN, NEW, b"third" * 800)
    device.restarted()
    assert (device.participant.state, device.births()[0].version) == ("idle", 2)


def test_a_release_that_is_installed_is_committed_once() -> None:
    device = Fetcher().holding().offered()
    device.objects(NEW, chunk_bytes=1024)
    device.offered(plan=ref(OLD))
    current = device.participant._model.slots.current
    assert current is not None
    assert (current.version, current.plan, current.params) == (1, ref(OLD), ref(NEW)), "the plan may change alone"
    device.store.commit = None  # type: ignore[method-assign, assignment]
    device.now += 1
    device.handle(ev.Tick())
    assert device.participant._model.slots.current == current


@pytest.mark.parametrize("missing", [False, True])
def test_a_damaged_model_is_fallen_back_from_and_fetched_again(missing: bool) -> None:
    delta = delta_of(OLD, NEW)
    device = Fetcher().holding().offered(deltas=(named(OLD, delta),))
    device.objects(delta, chunk_bytes=1024)
    name = f"objects/{ref(NEW).sha256}"
    if missing:
        del device.disk.held[name]
    else:
        device.disk.held[name] = NEW[:-1] + b"\0"
    device.restarted()
    assert device.participant._model.slots.current is not None
    assert device.participant._model.slots.current.version == 0
    (line,) = [e for e in device.effects if isinstance(e, ev.Log) and e.event == "model_damaged"]
    assert line.fields == {"version": 1, "fell_back_to": 0}
    assert device.births()[0].params is None, "an older model is never offered for training"
    device.objects(delta, chunk_bytes=1024)
    assert device.disk.held[name] == NEW
    assert device.participant._model.slots.current.version == 1


def test_an_object_that_rots_while_it_is_trained_is_fetched_again_and_the_plan_not_refused() -> None:
    device = Fetcher().holding()
    device.select(params=ref(OLD).sha256)
    device.disk.held[f"objects/{ref(PLAN).sha256}"] = PLAN[1:]
    device.handle(ev.TrainingFailed(1, 1, "plan bundle: no manifest", lasting=True))
    assert device.participant._model.inbox.wanted == [ref(PLAN)]
    device.objects(PLAN, chunk_bytes=1024)
    device.select(2, params=ref(OLD).sha256)
    assert len(device.trains()) == 1


def test_a_model_whose_slot_a_full_disk_refuses_is_committed_when_there_is_room() -> None:
    device = Fetcher().holding().offered()
    *most, last = list(enumerate(chunks(NEW)))
    for i, frame in most:
        device.handle(ev.Message(TOPICS.object(ref(NEW).sha256, i), frame))
    commit = device.store.commit

    def refused(rows: Any) -> None:
        device.disk.full = True
        commit(rows)

    device.store.commit = refused  # type: ignore[method-assign]
    device.handle(ev.Message(TOPICS.object(ref(NEW).sha256, last[0]), last[1]))
    assert "disk_failed" in device.logs()
    device.store.commit, device.disk.full = commit, False  # type: ignore[method-assign]
    device.retried()
    assert device.participant._model.slots.current is not None
    assert device.participant._model.slots.current.version == 1
    assert device.births()[-1].version == 1


def test_a_model_that_is_here_still_is_gone_back_to_and_reported_at_once() -> None:
    device = Device().ready()
    device.head(version=1, params=b"other " * 1000)
    device.objects(b"other " * 1000)
    assert [b.version for b in device.births()] == [1]
    device.head(version=0, withdrawn=1)
    assert device.logs() == ["model_installed"]
    assert [(b.version, b.params, b.state) for b in device.births()] == [(0, ref(PARAMS).sha256, "idle")]
