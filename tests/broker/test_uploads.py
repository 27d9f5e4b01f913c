"""Uploads under way: they outlive the aggregator, cost no memory, and what a device may cost is bounded."""

import random
import tracemalloc
from pathlib import Path

import pytest

from fleetgrad.broker import admission, uploads
from fleetgrad.broker import events as ev
from fleetgrad.broker.attempt import RoundSettings
from fleetgrad.wire import frames
from fleetgrad.wire.files import DiskError, PosixFiles
from fleetgrad.wire.messages import MAX_WEIGHT_SUM, Bitmap, Policy, RetryAfter
from fleetgrad.wire.pace import Pace
from tests.broker.conftest import FEDERATION, KEYS, World
from tests.memory_files import MemoryFiles

GROUP_SECONDS = 0.05
CHUNK = 4096  # bytes: an update of 70,000 values in blk8 has 19 chunks


def frames_of(world: World, device: str, seed: int = 0) -> tuple[bytes, list[bytes]]:
    payload = world.payload(seed)
    return payload, world.update(device, payload, chunk_bytes=CHUNK)


def received(world: World, device: str, payload: bytes) -> set[int]:
    (bitmap,) = world.query(device, payload, chunk_bytes=CHUNK)
    assert isinstance(bitmap, Bitmap)
    raw = bytes.fromhex(bitmap.received)
    return {i for i in range(8 * len(raw)) if raw[i // 8] >> i % 8 & 1}


def three() -> World:
    settings = RoundSettings(FEDERATION, Policy(), rounds=1, goal=3, deadline=60.0)
    return World(settings=settings, members=("dev-1", "dev-2", "dev-3"))


def test_a_restarted_aggregator_asks_for_the_missing_chunks_alone() -> None:
    calm, world = three(), three()
    payload, sent = frames_of(world, "dev-1", 1)
    world.send("dev-1", sent[3:9] + sent[-1:])
    world.start()
    assert received(world, "dev-1", payload) == {*range(3, 9), len(sent) - 1}
    done = world.send("dev-1", sent[:3] + sent[9:-1])
    assert [r.verdict for r in world.receipts(done, "dev-1")] == ["accepted"]
    for w, devices in ((calm, ("dev-1", "dev-2", "dev-3")), (world, ("dev-2", "dev-3"))):
        for device in devices:
            w.send(device, frames_of(w, device, int(device[-1]))[1])
    assert world.params == calm.params


def rot(world: World, name: str) -> bytes:
    """Flips a bit in a file; its bytes before."""
    assert isinstance(world.files, MemoryFiles)
    whole = world.files.read(name)
    raw = bytearray(whole)
    raw[len(raw) // 2] ^= 1
    world.files.write(name, bytes(raw))
    return whole


def two_of_three() -> World:
    """Two have been counted, and the aggregator was started again."""
    world = three()
    for device in ("dev-1", "dev-2"):
        world.send(device, frames_of(world, device, int(device[-1]))[1])
    world.advance(1.0)
    assert world.counted() == {"dev-1", "dev-2"}
    world.start()
    return world


def reasons(effects: list[ev.Effect], event: str) -> list[str]:
    return [str(e.fields["reason"]) for e in effects if isinstance(e, ev.Log) and e.event == event]


def test_a_counted_update_that_has_rotten_on_disk_is_merged_into_no_model() -> None:
    """The attempt is abandoned: its updates are the devices' to carry on."""
    world = two_of_three()
    rot(world, "spool/1-1-dev-2.update")
    effects = world.send("dev-3", frames_of(world, "dev-3", 3)[1]) + world.advance(1.0)
    (reason,) = reasons(effects, "merge_failed")
    assert "dev-2" in reason
    memory = world.journal.load()
    assert (memory.attempts[1, 1].state, len(memory.versions)) == ("abandoned", 1)


def test_a_round_whose_model_has_rotten_on_disk_waits_for_it_and_keeps_its_updates() -> None:
    """No other attempt could be closed either: devices would train in vain for ever."""
    world = two_of_three()
    whole = rot(world, name := f"objects/{world.params}")
    effects = world.send("dev-3", frames_of(world, "dev-3", 3)[1]) + world.advance(60.0)
    said = reasons(effects, "disk_failed")
    assert said
    assert all("version 0" in reason and name in reason for reason in said)
    memory = world.journal.load()
    assert [(key, ran.state) for key, ran in memory.attempts.items()] == [((1, 1), "committing")]
    assert len(memory.versions) == 1
    world.files.write(name, whole)
    world.advance(60.0)
    assert (world.journal.load().attempts[1, 1].state, world.counted()) == ("published", {"dev-1", "dev-2", "dev-3"})


def test_of_a_torn_file_only_what_is_whole_counts(seed: int) -> None:
    """Any bytes changed, any end cut off: a chunk that is reported lies in the file as it was sent."""
    rng = random.Random(seed)
    print(f"seed {seed}")
    for _ in range(8):
        world = three()
        assert isinstance(world.files, MemoryFiles)
        payload, sent = frames_of(world, "dev-1")
        world.send("dev-1", rng.sample(sent, 12))
        (name,) = [n for n in world.files.held if n.startswith("spool/")]
        raw = bytearray(world.files.held[name][: rng.choice([None, rng.randrange(len(world.files.held[name]))])])
        for _ in range(rng.randrange(4)):
            if raw:
                at = rng.randrange(len(raw))
                raw[at : at + rng.randrange(2000)] = rng.randbytes(rng.randrange(2000))
        world.files.held[name] = bytes(raw)
        world.start()
        body = world.files.held.get(name, b"")[frames.HEADER_BYTES :]
        for seq in received(world, "dev-1", payload):
            chunk = sent[seq][frames.HEADER_BYTES :]
            assert body[seq * CHUNK : seq * CHUNK + len(chunk)] == chunk
        done = world.send("dev-1", sent)
        assert [r.verdict for r in world.receipts(done, "dev-1")] == ["accepted"]


def test_an_upload_that_was_whole_when_the_aggregator_stopped_is_judged_when_its_device_asks() -> None:
    world = three()
    _, others = frames_of(world, "dev-2", 2)
    world.send("dev-2", others[:1])  # so that the group waits
    payload, sent = frames_of(world, "dev-1", 1)
    assert world.receipts(world.send("dev-1", sent), "dev-1") == []
    world.start()
    assert world.counted() == set()
    assert world.query("dev-1", payload, chunk_bytes=CHUNK) == []
    assert [r.verdict for r in world.receipts(world.advance(GROUP_SECONDS), "dev-1")] == ["accepted"]


class Counting(MemoryFiles):
    """Counts syncs of folders; a sync of a file may be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.folders, self.broken = 0, False

    def fsync(self, name: str) -> None:
        if self.broken and name.startswith("spool/"):
            raise DiskError(5, f"can't sync {name}: Input/output error")

    def fsync_directory(self, name: str) -> None:
        self.folders += name == "spool"


def test_a_group_is_committed_at_once_when_no_one_else_uploads_and_after_50_ms_otherwise() -> None:
    world = World(files=(files := Counting()), settings=three().settings, members=("dev-1", "dev-2", "dev-3"))
    world.send("dev-3", frames_of(world, "dev-3", 3)[1][:1])
    commits = len(world.journal.rows)  # type: ignore[attr-defined]
    for device in ("dev-1", "dev-2"):
        world.now += 0.01
        assert world.receipts(world.send(device, frames_of(world, device)[1]), device) == []
    assert world.rounds.wake_at() == pytest.approx(world.now - 0.01 + GROUP_SECONDS)
    effects = world.advance(0.041)
    assert [r.verdict for d in ("dev-1", "dev-2") for r in world.receipts(effects, d)] == ["accepted"] * 2
    assert files.folders == 1
    assert len(world.journal.rows) == commits + 3  # type: ignore[attr-defined]  # two updates and the attempt's state
    (receipt,) = world.receipts(world.send("dev-3", frames_of(world, "dev-3", 3)[1][1:]), "dev-3")
    assert receipt.verdict == "accepted"


def test_updates_that_could_not_be_synced_are_not_believed_and_come_again() -> None:
    calm, world = three(), World(files=(files := Counting()), settings=three().settings, members=three().members)
    files.broken = True
    payload, sent = frames_of(world, "dev-1", 1)
    effects = world.send("dev-1", sent)
    assert [e.event for e in effects if isinstance(e, ev.Log)] == ["disk_failed"]
    assert world.receipts(effects, "dev-1") == []
    files.broken = False
    assert received(world, "dev-1", payload) == set()
    for w in (calm, world):
        for device in ("dev-1", "dev-2", "dev-3"):
            w.send(device, frames_of(w, device, int(device[-1]))[1])
    assert world.rounds.finished
    assert world.params == calm.params


@pytest.mark.parametrize("when", ["before it is whole", "before it is committed"])
def test_a_file_that_someone_removes_costs_its_upload_and_nothing_else(when: str) -> None:
    world = World(files=(files := Counting()), settings=three().settings, members=three().members)
    payload, sent = frames_of(world, "dev-1", 1)
    world.send("dev-2", frames_of(world, "dev-2", 2)[1][:1])  # so that the group waits
    world.send("dev-1", sent[:-1] if when == "before it is whole" else sent)
    files.unlink("spool/1-1-dev-1.update")
    effects = world.send("dev-1", sent[-1:]) + world.advance(GROUP_SECONDS)
    assert world.receipts(effects, "dev-1") == []
    assert received(world, "dev-1", payload) == set()
    world.send("dev-1", sent)
    assert [r.verdict for r in world.receipts(world.advance(GROUP_SECONDS), "dev-1")] == ["accepted"]


def test_uploads_under_way_take_no_memory_on_a_disk(tmp_path: Path) -> None:
    """60 devices half-way with 71 kB each: their bodies would be 4.2 MB."""
    names = tuple(f"dev-{i}" for i in range(60))
    for name in names:
        KEYS.setdefault(name, KEYS["dev-1"])
    world = World(
        files=PosixFiles(tmp_path), members=names, settings=RoundSettings(FEDERATION, Policy(), rounds=1, goal=60)
    )
    halves = {name: frames_of(world, name)[1][:9] for name in names}
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for name in names:
            world.send(name, halves[name])
        world.effects.clear()
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert held < 60 * 5000, f"{held / 60:.0f} bytes a device"
    assert len(list((tmp_path / "spool").iterdir())) == 60


def test_a_device_that_there_is_no_room_for_is_told_to_come_later(monkeypatch: pytest.MonkeyPatch) -> None:
    world = three()
    monkeypatch.setattr(uploads, "MAX_UPLOADS", 1)
    _, first = frames_of(world, "dev-1", 1)
    _, second = frames_of(world, "dev-2", 2)
    world.send("dev-1", first[:5])
    (told,) = world.commands(world.send("dev-2", second[:4]), "dev-2")
    assert isinstance(told, RetryAfter)
    assert world.files.names("spool") == ["1-1-dev-1.update"]
    world.now += uploads.UPLOAD_SECONDS + 1
    world.send("dev-2", second[:1])
    assert world.files.names("spool") == ["1-1-dev-2.update"], "what rests for ten minutes makes room"


def test_a_device_that_repeats_itself_without_end_is_turned_away_and_others_are_not() -> None:
    world = three()
    _, sent = frames_of(world, "dev-1", 1)
    commands = world.commands(world.send("dev-1", sent[:1] * 1000), "dev-1")
    assert [type(c) for c in commands] == [RetryAfter]
    assert world.rounds.drops["device over its allowance"] == 1000 - 1 - int(admission.IDLE_BURST)
    done = world.send("dev-2", frames_of(world, "dev-2", 2)[1])
    world.now += GROUP_SECONDS
    assert [r.verdict for r in world.receipts([*done, *world.advance(0.1)], "dev-2")] == ["accepted"]
    (receipt,) = world.receipts(world.send("dev-1", sent[1:]), "dev-1")
    assert receipt.verdict == "accepted", "what is new is taken from it too"


def test_weights_of_a_group_and_of_those_counted_before_a_restart_add_up_to_the_limit() -> None:
    """The sum of a new life is empty: what the journal has counted goes to it only at the round's end."""
    world = three()
    world.send("dev-1", world.update("dev-1", world.payload(1, weight=MAX_WEIGHT_SUM - 20), chunk_bytes=CHUNK))
    assert world.counted() == {"dev-1"}
    world.start()
    second, third = (world.update(d, world.payload(2, weight=15), chunk_bytes=CHUNK) for d in ("dev-2", "dev-3"))
    world.send("dev-3", third[:1])
    done = [*world.send("dev-2", second), *world.send("dev-3", third[1:]), *world.advance(GROUP_SECONDS)]
    assert [r.verdict for r in world.receipts(done, "dev-2")] == ["accepted"]
    (refused,) = world.receipts(done, "dev-3")
    assert (refused.verdict, "weight 15 takes the round's sum over" in refused.reason) == ("refused", True)
    assert world.counted() == {"dev-1", "dev-2"}


def test_a_pace_saves_up_to_its_burst_and_no_more() -> None:
    pace = Pace(rate=2.0, burst=3.0)
    assert [pace.take(1, 0.0) for _ in range(4)] == [True, True, True, False]
    assert pace.ready_at(1) == 0.5
    assert pace.take(1, 0.5)
    assert [pace.take(1, 1e6) for _ in range(4)] == [True, True, True, False]
    assert not pace.take(1, 0.0), "a clock that steps back gives nothing"


@pytest.mark.parametrize("clock", [-1e6, 0.0, 3.5e8, 9.2e9, 1e15, 1e18, 1e300])
@pytest.mark.parametrize(("rate", "burst"), [(500.0, 64.0), (20.0, 256.0), (1 / 60, 5.0)])
def test_a_pace_is_ready_when_it_says_so_and_gives_no_more_than_its_rate(
    rate: float, burst: float, clock: float, seed: int
) -> None:
    """At 3.5e8 s, eleven years of uptime, 500 tokens a second come by 3e-5 a step of the clock."""
    dice = random.Random(seed)
    pace, now, given = Pace(rate, burst), clock, 0.0
    for _ in range(300):
        cost = dice.uniform(0.1, burst)
        if not pace.take(cost, now):
            assert pace.ready_at(cost) > now
            now = pace.ready_at(cost)
            assert pace.take(cost, now)
        given += cost
        assert given <= (burst + rate * (now - clock)) * (1 + 1e-6)
