"""The participant, rule by rule of wire/SPEC.md section 4, on a disk in memory."""

import hashlib
import random
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from fleetgrad.edge import events as ev
from fleetgrad.edge.participant import Identity, Participant
from fleetgrad.wire import frames, seeds
from fleetgrad.wire.files import DiskError
from fleetgrad.wire.messages import (
    BIRTH,
    COMMAND,
    HEAD,
    AggregatorStatus,
    Birth,
    Bitmap,
    Closed,
    Command,
    DeviceStatus,
    Head,
    ObjectRef,
    Policy,
    Receipt,
    Select,
)
from fleetgrad.wire.signing import PrivateKey, sign_message, verify_message
from fleetgrad.wire.topics import Topics

KEY, AGGREGATOR = (PrivateKey.from_seed(bytes([i]) * 32) for i in (1, 2))
TOPICS = Topics("test")
POLICY = Policy()
PLAN, PARAMS = b"plan " * 30_000, b"params" * 1000  # the plan has three chunks


def ref(raw: bytes) -> ObjectRef:
    return ObjectRef(sha256=hashlib.sha256(raw).hexdigest(), size=len(raw))


class Disk:
    """Files in a dictionary; `full` makes every write fail."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.full = False

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        if self.full:
            raise DiskError(28, f"can't write {name}: No space left on device")
        self.held[name] = bytes(data)

    def fsync(self, name: str) -> None:
        assert name in self.held

    def rename(self, old: str, new: str) -> None:
        self.held[new] = self.held.pop(old)

    def fsync_directory(self, name: str) -> None:
        pass

    def unlink(self, name: str) -> None:
        self.held.pop(name, None)

    def read(self, name: str) -> bytes:
        if name not in self.held:
            raise FileNotFoundError(name)
        return self.held[name]

    def names(self, directory: str) -> list[str]:
        return sorted(n.rpartition("/")[2] for n in self.held if n.rpartition("/")[0] == directory)


@dataclass
class Device:
    """A participant and what it asks for; the newest effects last."""

    disk: Disk = field(default_factory=Disk)
    now: float = 100.0
    effects: list[ev.Effect] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        identity = Identity("test", "dev-1", KEY, AGGREGATOR.public, 50)
        self.participant = Participant(identity, self.disk, random.Random(3))

    def handle(self, event: ev.Event) -> list[ev.Effect]:
        self.effects = self.participant.handle(event, self.now)
        return self.effects

    def head(
        self, version: int = 0, params: bytes = PARAMS, key: PrivateKey = AGGREGATOR, **fields: Any
    ) -> list[ev.Effect]:
        head = Head(
            federation="test",
            version=version,
            plan=ref(PLAN),
            params=ref(params),
            parent="0" * 64,
            policy=POLICY,
            boot=1,
        )
        head = msgspec.structs.replace(head, **fields)
        return self.handle(ev.Message(TOPICS.head, sign_message(key, HEAD, head)))

    def objects(self, *raws: bytes) -> None:
        """Delivers chunks as they are subscribed, as a broker that retains them does."""
        chunks = {}
        for raw in raws:
            header = frames.object_header(len(raw), hashlib.sha256(raw).digest())
            for i, frame in enumerate(frames.frames(header, raw)):
                chunks[TOPICS.object(ref(raw).sha256, i)] = frame
        waiting = [t for e in self.effects if isinstance(e, ev.Subscribe) for t in e.filters]
        while waiting:
            topic = waiting.pop(0)
            if topic in chunks:
                for effect in self.handle(ev.Message(topic, chunks[topic])):
                    if isinstance(effect, ev.Subscribe):
                        waiting += effect.filters

    def ready(self) -> "Device":
        self.handle(ev.Connected())
        self.head()
        self.objects(PLAN, PARAMS)
        assert self.participant.state == "idle"
        return self

    def command(self, command: Command, key: PrivateKey = AGGREGATOR, typ: str = COMMAND) -> list[ev.Effect]:
        return self.handle(ev.Message(TOPICS.command("dev-1"), sign_message(key, typ, command)))

    def select(self, round_: int = 1, attempt: int = 1, **fields: Any) -> list[ev.Effect]:
        return self.command(select(round_, attempt, **fields))

    def trained(self, round_: int = 1, attempt: int = 1, size: int = 300_000) -> list[ev.Effect]:
        payload = bytes(range(256)) * (size // 256)
        name = f"updates/{round_}-{attempt}.payload"
        self.disk.held[name] = payload
        return self.handle(
            ev.Trained(round_, attempt, name, len(payload), hashlib.sha256(payload).hexdigest(), 50, 10, 0.25, 8.5)
        )

    def receipt(self, round_: int = 1, attempt: int = 1, verdict: Any = "accepted", **fields: Any) -> list[ev.Effect]:
        payload = hashlib.sha256(bytes(range(256)) * (300_000 // 256)).hexdigest()
        receipt = Receipt(
            federation="test", device="dev-1", round=round_, attempt=attempt, payload=payload, verdict=verdict
        )
        return self.command(msgspec.structs.replace(receipt, **fields))

    def births(self) -> list[Birth]:
        topic = TOPICS.birth("dev-1")
        raw = [e.payload for e in self.effects if isinstance(e, ev.Publish) and e.topic == topic]
        return [verify_message(KEY.public, BIRTH, r, Birth) for r in raw]

    def statuses(self) -> list[DeviceStatus]:
        topic = TOPICS.status("dev-1")
        raw = [e.payload for e in self.effects if isinstance(e, ev.Publish) and e.topic == topic]
        return [msgspec.json.decode(r, type=DeviceStatus) for r in raw]

    def frames(self) -> list[frames.Header]:
        topic = TOPICS.update("dev-1", 1)
        raw = [e.payload for e in self.effects if isinstance(e, ev.Publish) and e.topic == topic]
        return [frames.parse(r, most=1 << 20)[0] for r in raw]

    def trains(self) -> list[ev.Train]:
        return [e for e in self.effects if isinstance(e, ev.Train)]

    def logs(self) -> list[str]:
        return [e.event for e in self.effects if isinstance(e, ev.Log)]


def select(round_: int = 1, attempt: int = 1, **fields: Any) -> Select:
    made = Select(
        federation="test", device="dev-1", round=round_, attempt=attempt, version=0, params=ref(PARAMS).sha256,
        config=POLICY.sha256(), window=2, deadline=60.0,
    )  # fmt: skip
    return msgspec.structs.replace(made, **fields)


def test_it_fetches_what_the_head_names_and_reports_by_a_birth() -> None:
    device = Device()
    device.handle(ev.Connected())
    assert device.births()[0].params is None
    device.head()
    assert device.participant.state == "fetching"
    device.objects(PLAN, PARAMS)
    (birth,) = device.births()
    assert (birth.state, birth.params, birth.samples) == ("idle", ref(PARAMS).sha256, 50)
    assert device.disk.held[f"objects/{ref(PLAN).sha256}"] == PLAN


def test_an_object_with_other_bytes_than_its_hash_is_not_installed() -> None:
    device = Device()
    device.handle(ev.Connected())
    device.head()
    header = frames.object_header(len(PLAN), hashlib.sha256(PLAN).digest())
    wrong = b"x" + PLAN[1:]
    for i, frame in enumerate(frames.frames(header, wrong)):
        device.handle(ev.Message(TOPICS.object(ref(PLAN).sha256, i), frame))
    assert device.logs() == ["object_dropped"]
    assert f"objects/{ref(PLAN).sha256}" not in device.disk.held
    wake = device.participant.wake_at()
    assert wake is not None
    device.now = wake
    device.handle(ev.Tick())
    device.objects(PLAN, PARAMS)
    assert device.participant.state == "idle"


@pytest.mark.parametrize(
    ("fields", "key"), [({"version": 0}, KEY), ({"version": 0, "federation": "other"}, AGGREGATOR)]
)
def test_a_head_that_is_forged_or_of_another_federation_is_dropped(fields: dict[str, Any], key: PrivateKey) -> None:
    device = Device()
    device.handle(ev.Connected())
    device.head(key=key, **fields)
    assert device.logs() == ["message_dropped"]
    assert device.participant.state == "fetching"


def test_an_older_version_is_never_run_even_after_a_restart() -> None:
    device = Device()
    device.handle(ev.Connected())
    device.head(version=5)
    device.objects(PLAN, PARAMS)
    for _ in range(2):
        device.head(version=4, params=b"old")
        assert device.logs() == ["message_dropped"]
        device.start()
        device.handle(ev.Connected())
        assert device.births()[0].version == 5


def test_every_select_is_answered_by_a_birth_and_trains_at_most_once() -> None:
    device = Device().ready()
    device.select()
    (train,) = device.trains()
    assert (train.round, train.attempt) == (1, 1)
    assert train.seed == seeds.derive("fl1-seed", "test", "dev-1", 1, 1)
    assert train.keys == seeds.codec_keys("test", "dev-1", 1, 1)
    assert [b.state for b in device.births()] == ["training"]
    device.select()
    assert device.trains() == []
    assert [(b.state, b.round, b.attempt) for b in device.births()] == [("training", 1, 1)]


@pytest.mark.parametrize("fields", [{"params": "0" * 64}, {"config": "0" * 64}])
def test_a_select_for_another_model_or_policy_is_answered_and_not_taken_up(fields: dict[str, Any]) -> None:
    device = Device().ready()
    device.select(**fields)
    assert device.trains() == []
    assert [b.state for b in device.births()] == ["idle"]


@pytest.mark.parametrize(
    ("command", "key", "typ"),
    [
        (select(), KEY, COMMAND),
        (select(), AGGREGATOR, HEAD),
        (select(device="dev-2"), AGGREGATOR, COMMAND),
        (select(federation="other"), AGGREGATOR, COMMAND),
    ],
)
def test_a_command_that_is_forged_or_for_another_is_dropped(command: Select, key: PrivateKey, typ: str) -> None:
    device = Device().ready()
    device.command(command, key, typ)
    assert device.trains() == []
    assert device.logs() == ["message_dropped"]


def test_a_higher_attempt_drops_the_older_one_and_a_lower_is_ignored() -> None:
    device = Device().ready()
    device.select()
    device.select(1, 2)
    assert any(isinstance(e, ev.CancelTraining) for e in device.effects)
    assert [(t.round, t.attempt) for t in device.trains()] == [(1, 2)]
    device.trained(1, 1)  # the cancelled one's word comes late
    assert "update.json" not in device.disk.held
    device.trained(1, 2)
    assert "update.json" in device.disk.held
    device.select(1, 1)
    assert device.trains() == []
    device.select(2, 1)
    assert "update.json" not in device.disk.held
    assert [(t.round, t.attempt) for t in device.trains()] == [(2, 1)]


def test_an_upload_keeps_to_its_window_and_is_forgotten_on_the_receipt() -> None:
    device = Device().ready()
    device.select()
    device.trained()
    assert "update.json" in device.disk.held
    assert [h.seq for h in device.frames()] == [0, 1]
    count = device.frames()[0].nchunks
    payload = device.frames()[0].payload_sha256.hex()
    sent, received = {0, 1}, 0
    for seq in range(count):
        received |= 1 << seq
        bitmap = Bitmap(
            federation="test", device="dev-1", round=1, attempt=1, payload=payload,
            received=received.to_bytes(-(-count // 8), "little").hex(),
        )  # fmt: skip
        device.command(bitmap)
        sent |= {h.seq for h in device.frames()}
        assert len([s for s in sent if not received >> s & 1]) <= 2
    assert sent == set(range(count))
    device.receipt()
    assert "update.json" not in device.disk.held
    assert device.disk.names("updates") == []
    assert [b.state for b in device.births()] == ["idle"]
    device.select()  # a late repetition
    assert device.trains() == []


@pytest.mark.parametrize("verdict", ["accepted", "duplicate", "late", "stale", "refused"])
def test_every_verdict_is_terminal(verdict: str) -> None:
    device = Device().ready()
    device.select()
    device.trained()
    device.receipt(verdict=verdict)
    assert device.participant.state == "idle"


@pytest.mark.parametrize("fields", [{"payload": "0" * 64}, {"round": 2}, {"attempt": 2}])
def test_a_receipt_for_another_update_changes_nothing(fields: dict[str, Any]) -> None:
    device = Device().ready()
    device.select()
    device.trained()
    device.receipt(**fields)
    assert device.participant.state == "uploading"


def test_a_silent_aggregator_is_asked_less_and_less_often() -> None:
    device = Device().ready()
    device.select()
    device.trained()
    waits = []
    for _ in range(7):
        wake = device.participant.wake_at()
        assert wake is not None
        waits.append(wake - device.now)
        device.now = wake
        device.handle(ev.Tick())
        assert [h.type for h in device.frames()] == [frames.QUERY]
    assert waits[0] <= 2.0
    assert waits[-1] > 5 * waits[1]
    assert max(waits) <= 60.0


def test_after_a_restart_a_stored_update_is_offered_by_a_query_first() -> None:
    device = Device().ready()
    device.select()
    device.trained()
    device.start()
    device.handle(ev.Connected())
    assert [h.type for h in device.frames()] == [frames.QUERY]
    assert [b.state for b in device.births()] == ["uploading"]
    device.receipt()
    assert device.participant.state == "idle"


def test_a_job_lost_in_a_crash_is_taken_up_again_with_the_same_seeds() -> None:
    device = Device().ready()
    device.select()
    (before,) = device.trains()
    device.start()
    device.handle(ev.Connected())
    assert [(b.state, b.round) for b in device.births()] == [("idle", None)]
    device.select()
    assert device.trains() == [before]


@pytest.mark.parametrize("outcome", ["published", "abandoned"])
def test_a_head_that_lists_the_attempt_as_closed_ends_it(outcome: Any) -> None:
    device = Device().ready()
    device.select()
    device.trained()
    device.head(version=1, params=b"next" * 99, closed=(Closed(round=1, attempt=1, outcome=outcome),))
    assert "update.json" not in device.disk.held
    assert "round_closed" in device.logs()


def test_a_deadline_that_passes_while_training_ends_the_attempt() -> None:
    device = Device().ready()
    device.select()
    device.now += 61
    device.handle(ev.Tick())
    assert any(isinstance(e, ev.CancelTraining) for e in device.effects)
    assert {(b.state, b.round) for b in device.births()} == {("idle", 1)}
    assert "60" in device.births()[0].reason


def test_training_that_fails_is_told_with_its_reason() -> None:
    device = Device().ready()
    device.select()
    device.handle(ev.TrainingFailed(1, 1, "loss is nan at step 3"))
    assert [(b.state, b.reason) for b in device.births()] == [("idle", "loss is nan at step 3")]


def test_a_new_boot_of_the_aggregator_is_answered_by_a_birth() -> None:
    device = Device().ready()
    for boot, births in ((1, 0), (1, 0), (2, 1)):
        status = AggregatorStatus(state="open", federation="test", boot=boot)
        device.handle(ev.Message(TOPICS.aggregator, msgspec.json.encode(status)))
        assert len(device.births()) == births


@pytest.mark.parametrize("name", ["state.json", "update.json", "updates/1-1.payload", "head.jws"])
@pytest.mark.parametrize("damage", ["cut", "junk"])
def test_a_damaged_file_is_set_aside_and_the_device_goes_on(name: str, damage: str) -> None:
    device = Device().ready()
    device.select()
    device.trained()
    raw = device.disk.held[name]
    device.disk.held[name] = raw[: len(raw) // 2] if damage == "cut" else b"\xff" * len(raw)
    device.start()
    device.handle(ev.Connected())
    device.head()
    device.objects(PLAN, PARAMS)
    device.select(2, 1)
    assert [(t.round, t.attempt) for t in device.trains()] == [(2, 1)]


def test_a_full_disk_loses_no_update_and_stops_nothing() -> None:
    device = Device().ready()
    device.select()
    device.disk.full = True
    device.trained()
    assert "disk_failed" in device.logs()
    assert device.frames() == []  # nothing leaves before it is stored
    device.disk.full = False
    wake = device.participant.wake_at()
    assert wake is not None
    device.now = wake
    device.handle(ev.Tick())
    assert "update.json" in device.disk.held
    assert [h.seq for h in device.frames()] == [0, 1]


def test_a_failed_attempt_is_told_once_a_full_disk_has_room() -> None:
    device = Device().ready()
    device.select()
    device.disk.full = True
    device.handle(ev.TrainingFailed(1, 1, "loss is nan at step 3"))
    assert device.births() == []
    device.disk.full = False
    wake = device.participant.wake_at()
    assert wake is not None
    device.now = wake
    device.handle(ev.Tick())
    assert {(b.state, b.round, b.reason) for b in device.births()} == {("idle", 1, "loss is nan at step 3")}


def test_a_plan_that_its_data_does_not_fit_is_refused_until_another_plan_comes() -> None:
    device = Device().ready()
    device.select()
    device.handle(ev.TrainingFailed(1, 1, "samples have shape (5,)", lasting=True))
    assert [(b.state, b.round, b.reason) for b in device.births()] == [("refused", 1, "samples have shape (5,)")]
    device.select(2)
    assert device.trains() == []
    assert [b.state for b in device.births()] == ["refused"]
    device.head(version=1, params=b"next" * 99)
    device.objects(b"next" * 99)
    assert [b.state for b in device.births()] == ["refused"]
    device.head(version=2, params=b"next" * 99, plan=ref(b"other plan"))
    device.objects(b"other plan")
    assert [b.state for b in device.births()] == ["idle"]


def test_a_receipt_that_a_full_disk_delays_is_counted_once() -> None:
    device = Device().ready()
    device.select()
    device.trained()
    device.disk.full = True
    device.receipt()
    assert "update.json" in device.disk.held
    device.disk.full = False
    device.receipt()
    assert [(s.state, s.updates) for s in device.statuses()] == [("idle", 1)]


def test_a_status_is_published_on_a_change_and_not_for_every_chunk() -> None:
    device = Device()
    device.handle(ev.Connected())
    device.head()
    shown = []
    for raw in (PLAN, PARAMS):
        header = frames.object_header(len(raw), hashlib.sha256(raw).digest())
        for i, frame in enumerate(frames.frames(header, raw)):
            device.handle(ev.Message(TOPICS.object(ref(raw).sha256, i), frame))
            shown += device.statuses()
    assert [(s.state, s.bytes_down > len(PLAN) + len(PARAMS)) for s in shown] == [("idle", True)]


def test_a_device_whose_memory_is_damaged_is_still_newer_than_its_last_birth() -> None:
    device = Device().ready()
    last = device.participant.will()[1]
    device.disk.held["state.json"] = b"{"
    device.start()
    device.handle(ev.Connected())
    assert device.births()[0].boot > msgspec.json.decode(last, type=DeviceStatus).boot


def test_boot_grows_and_a_birth_is_never_older_than_its_last() -> None:
    device = Device()
    seen = []
    for _ in range(3):
        device.handle(ev.Connected())
        seen += [(b.boot, b.seq) for b in device.births()]
        device.start()
    assert seen == sorted(set(seen))
