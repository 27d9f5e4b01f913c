"""An aggregator in memory with two devices, and the frames they send."""

import hashlib
import random
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleetgrad.broker import events as ev
from fleetgrad.broker.attempt import RoundSettings
from fleetgrad.broker.journal import Attempt, Contribution, Journal, Memory, Row
from fleetgrad.broker.releasing import Releasing
from fleetgrad.broker.rounds import Rounds
from fleetgrad.wire import frames, seeds
from fleetgrad.wire.codecs import encode_payload
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.files import Files
from fleetgrad.wire.membership import Member, Revoked
from fleetgrad.wire.messages import BIRTH, COMMAND, Birth, Command, ObjectRef, Policy, Receipt, Select
from fleetgrad.wire.seal import SealKey, seal
from fleetgrad.wire.signing import PrivateKey, PublicKey, sign_message, verify_message
from fleetgrad.wire.topics import Topics, name_hash
from tests.memory_files import MemoryFiles

COUNT = 70_000  # floats: two chunks as blk8
FEDERATION = "test"
LAYOUT = VectorLayout.stacked(
    [("conv.weight", (16, 1000)), ("conv.bias", (32,)), ("dense.weight", (COUNT - 16_032, 1))]
)
BLK8 = CodecSpec(name="blk8")
KEYS = {
    name: PrivateKey.from_seed(hashlib.sha256(name.encode()).digest()) for name in ("agg", "dev-1", "dev-2", "dev-3")
}


SEAL = SealKey.from_bytes(bytes(range(32)))


@dataclass
class MemoryJournal:
    rows: list[Row] = field(default_factory=list)

    def load(self, *, recent: bool = False) -> Memory:
        memory = Memory()
        for row in self.rows:
            memory.apply(row)
        if recent:
            memory.keep()
        return memory

    def attempt(self, round_: int, attempt: int) -> Attempt | None:
        return self.load().attempts.get((round_, attempt))

    def counted(self, round_: int, attempt: int, device: str) -> Contribution | None:
        return self.load().contributions.get((round_, attempt, device))

    def commit(self, rows: list[Row]) -> None:
        self.rows += rows


def delta(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(COUNT).astype(np.float32) * np.float32(0.01)


@dataclass
class World:
    """The aggregator under test; `sent` are its publishes, newest last."""

    settings: RoundSettings = field(
        default_factory=lambda: RoundSettings(FEDERATION, Policy(), rounds=2, goal=2, minimum=0.5, deadline=60.0)
    )
    files: Files = field(default_factory=MemoryFiles)
    journal: Journal = field(default_factory=MemoryJournal)
    now: float = 0.0
    effects: list[ev.Effect] = field(default_factory=list)
    members: tuple[str, ...] = ("dev-1", "dev-2")
    revoked: set[str] = field(default_factory=set)
    releasing: Releasing | None = None

    def __post_init__(self) -> None:
        self.topics = Topics(FEDERATION)
        initial = np.zeros(COUNT, "<f4").tobytes()
        plan = b"a plan"
        for raw in (initial, plan):
            self.files.write(f"objects/{hashlib.sha256(raw).hexdigest()}", raw)
        self.initial, self.plan = (
            ObjectRef(sha256=hashlib.sha256(raw).hexdigest(), size=len(raw)) for raw in (initial, plan)
        )
        self.seq = 0
        self.start()

    def start(self) -> None:
        """Starts, or after a crash starts again."""
        self.rounds = Rounds(
            self.settings, self.journal, self.files, KEYS["agg"], [SEAL], self.key, lambda: len(self.members), self.plan, self.initial,
            LAYOUT, random.Random(1), self.now, releasing=self.releasing,
        )  # fmt: skip
        self.handle(ev.Connected())

    def key(self, name: str) -> PublicKey | None:
        """The roster's answer."""
        if name in self.revoked:
            key = KEYS[name].public.raw.hex()
            raise Revoked(Member(federation=FEDERATION, device=name, key=key, serial=2, not_after=0, revoked=True))
        return KEYS[name].public if name in self.members else None

    def handle(self, event: ev.Event) -> list[ev.Effect]:
        found = self.rounds.handle(event, self.now)
        self.effects += found
        return found

    def advance(self, seconds: float) -> list[ev.Effect]:
        self.now += seconds
        return self.handle(ev.Tick())

    @property
    def params(self) -> str:
        return self.rounds._memory.current.params

    def birth(self, name: str, **fields: Any) -> list[ev.Effect]:
        """The device reports; idle with the current model unless told otherwise."""
        self.seq += 1
        birth = Birth(
            federation=FEDERATION, device=name, boot=1, seq=self.seq, version=0, params=self.params, state="idle",
            samples=50,
        )  # fmt: skip
        birth = msgspec.structs.replace(birth, **fields)
        return self.message(self.topics.birth(name), sign_message(KEYS[name], BIRTH, birth))

    def message(self, topic: str, payload: bytes) -> list[ev.Effect]:
        return self.handle(ev.Message(topic, payload))

    def payload(self, seed: int = 0, weight: int = 50, codec: CodecSpec = BLK8, device: str = "dev-1") -> bytes:
        keys = seeds.codec_keys(FEDERATION, device, 1, 1)
        return encode_payload(codec, LAYOUT, delta(seed), keys=keys, weight=weight, steps=4, loss=0.5)

    def header(
        self,
        device: str,
        payload: bytes,
        type_: int = frames.UPDATE,
        chunk_bytes: int = frames.DATA_BYTES,
        **fields: Any,
    ) -> frames.Header:
        header = frames.update_header(
            type_, name_hash(FEDERATION), 1, 1, name_hash(device), bytes.fromhex(self.params),
            bytes.fromhex(self.settings.policy.sha256()), len(payload) if type_ == frames.UPDATE else 0,
            hashlib.sha256(payload).digest(), chunk_bytes,
        )  # fmt: skip
        return replace(header, **fields)

    def sealed(self, device: str, payload: bytes, to: bytes = SEAL.public, **fields: Any) -> bytes:
        """A payload as it travels; the same for the same payload and device, so that it can be asked about."""
        aad = self.header(device, payload, **fields).sealed_with()
        return seal(to, payload, aad, ephemeral=hashlib.sha256(device.encode() + payload).digest())

    def update(self, device: str, payload: bytes, *, key: PrivateKey | None = None, **fields: Any) -> list[bytes]:
        """An update's frames, sealed to the aggregator and signed by the device unless told otherwise."""
        return self.sent(device, self.sealed(device, payload, **fields), key=key, **fields)

    def sent(self, device: str, sealed: bytes, *, key: PrivateKey | None = None, **fields: Any) -> list[bytes]:
        """The frames of what is sealed already."""
        header = self.header(device, sealed, **fields)
        return list(frames.frames(header, sealed + frames.sign_body(key or KEYS[device], header)))

    def query(self, device: str, payload: bytes, **fields: Any) -> list[Command]:
        header = self.header(device, self.sealed(device, payload), frames.QUERY, **fields)
        frame = frames.frame(header, 0, frames.sign_body(KEYS[device], header))
        return self.commands(self.message(self.topics.update(device, 1), frame), device)

    def send(self, device: str, messages: list[bytes]) -> list[ev.Effect]:
        effects: list[ev.Effect] = []
        for message in messages:
            effects += self.message(self.topics.update(device, 1), message)
        return effects

    def commands(self, effects: list[ev.Effect], device: str) -> list[Command]:
        topic = self.topics.command(device)
        raw = [e.payload for e in effects if isinstance(e, ev.Publish) and e.topic == topic]
        return [verify_message(KEYS["agg"].public, COMMAND, r, Command) for r in raw]

    def receipts(self, effects: list[ev.Effect], device: str) -> list[Receipt]:
        return [c for c in self.commands(effects, device) if isinstance(c, Receipt)]

    def selects(self, effects: list[ev.Effect], device: str) -> list[Select]:
        return [c for c in self.commands(effects, device) if isinstance(c, Select)]

    def counted(self) -> set[str]:
        return {c.device for c in self.journal.load().contributions.values()}


def ready() -> World:
    """A world whose two members are here."""
    world = World()
    world.birth("dev-1")
    world.birth("dev-2")
    return world
