"""One device for the tests of its rules: a participant on a disk in memory, and what is said to it."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from fleetgrad.edge import events as ev
from fleetgrad.edge.link.delivery import LIMITS, Limits
from fleetgrad.edge.link.outbox import UPDATE
from fleetgrad.edge.link.store import Held, Key, Put, Row
from fleetgrad.edge.participant import Participant
from fleetgrad.edge.reporting import Identity
from fleetgrad.wire import frames
from fleetgrad.wire.files import DiskError
from fleetgrad.wire.messages import (
    BIRTH,
    COMMAND,
    HEAD,
    Birth,
    Bitmap,
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
from tests.memory_files import MemoryFiles

KEY, AGGREGATOR = (PrivateKey.from_seed(bytes([i]) * 32) for i in (1, 2))
TOPICS = Topics("test")
POLICY = Policy()
EXPIRES = 3600.0
PLAN, PARAMS = b"plan " * 30_000, b"params" * 1000  # the plan has three chunks


def ref(raw: bytes) -> ObjectRef:
    return ObjectRef(sha256=hashlib.sha256(raw).hexdigest(), size=len(raw))


class Rows:
    """A store in a dictionary, which is full when its disk is; `damaged` rows can't be read at the next start."""

    def __init__(self, disk: MemoryFiles) -> None:
        self.disk = disk
        self.held: dict[Key, bytes] = {}
        self.damaged: dict[Key, str] = {}

    def load(self) -> Held:
        return Held(dict(self.held), dict(self.damaged))

    def commit(self, rows: list[Row]) -> None:
        if self.disk.full:
            raise DiskError("can't write edge.sqlite: database or disk is full")
        for row in rows:
            self.damaged.pop((row.kind, row.key), None)
            if isinstance(row, Put):
                self.held[row.kind, row.key] = row.body
            else:
                self.held.pop((row.kind, row.key), None)

    def damage(self, kind: str, how: str) -> None:
        """Spoils the rows of a kind: `junk` is found by their CRC, `cut` by whoever reads them."""
        for key in [k for k in self.held if k[0] == kind]:
            if how == "junk":
                del self.held[key]
                self.damaged[key] = "CRC32C doesn't match"
            else:
                self.held[key] = self.held[key][: len(self.held[key]) // 2]


@dataclass
class Device:
    """A participant and what it asks for; the newest effects last."""

    disk: MemoryFiles = field(default_factory=MemoryFiles)
    now: float = 100.0
    effects: list[ev.Effect] = field(default_factory=list)
    limits: Limits = LIMITS
    no_room: Callable[[], str] = str
    sequence: int = 0  # of the last head

    def __post_init__(self) -> None:
        self.store = Rows(self.disk)
        self.start()

    def start(self) -> None:
        identity = Identity("test", "dev-1", KEY, AGGREGATOR.public, 50)
        self.participant = Participant(identity, self.disk, self.store, random.Random(3), self.limits, self.no_room)

    def handle(self, event: ev.Event) -> list[ev.Effect]:
        self.effects = self.participant.handle(event, self.now)
        return self.effects

    def head(
        self, version: int = 0, params: bytes = PARAMS, key: PrivateKey = AGGREGATOR, **fields: Any
    ) -> list[ev.Effect]:
        self.sequence += 1
        head = Head(
            federation="test",
            version=version,
            plan=ref(PLAN),
            params=ref(params),
            parent="0" * 64,
            policy=POLICY,
            boot=1,
            sequence=self.sequence,
            expires=EXPIRES,
            seal="5e" * 32,
        )
        head = msgspec.structs.replace(head, **fields)
        return self.handle(ev.Message(TOPICS.head, sign_message(key, HEAD, head)))

    def bitmap(self, round_: int, payload: str, received: str, chunk_bytes: int = frames.DATA_BYTES) -> None:
        """What has arrived of the round's first attempt."""
        self.command(
            Bitmap(
                federation="test", device="dev-1", round=round_, attempt=1, payload=payload, chunk_bytes=chunk_bytes,
                received=received,
            )
        )  # fmt: skip

    def objects(self, *raws: bytes, chunk_bytes: int = frames.DATA_BYTES) -> None:
        """Delivers chunks as they are subscribed, as a broker that retains them does."""
        chunks = {}
        for raw in raws:
            header = frames.object_header(len(raw), hashlib.sha256(raw).digest(), chunk_bytes)
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

    def spooled(self) -> list[str]:
        """The updates whose records are stored, as round-attempt."""
        return sorted(key for kind, key in self.store.held if kind == UPDATE)

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

    def queries(self) -> list[tuple[int, int]]:
        """(round, attempt) of the updates that were just asked about."""
        return [(h.round, h.attempt) for h in self.frames() if h.type == frames.QUERY]

    def logs(self) -> list[str]:
        return [e.event for e in self.effects if isinstance(e, ev.Log)]


def select(round_: int = 1, attempt: int = 1, **fields: Any) -> Select:
    made = Select(
        federation="test", device="dev-1", round=round_, attempt=attempt, version=0, params=ref(PARAMS).sha256,
        config=POLICY.sha256(), window=2, deadline=60.0,
    )  # fmt: skip
    return msgspec.structs.replace(made, **fields)
