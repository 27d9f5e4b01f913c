"""An update on its way out: on disk until a receipt or a head ends it, at most `window` chunks unconfirmed.

stored -> (slot) -> chunks, window by window -> receipt
                         |  nothing heard for a while: QUERY, then what the bitmap lacks is sent again
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256

import msgspec

from fleetgrad.edge.events import Effect, Publish
from fleetgrad.edge.link import residual
from fleetgrad.edge.link.residual import Residual, residual_name
from fleetgrad.edge.link.store import Drop, Held, Put, Row
from fleetgrad.wire import frames
from fleetgrad.wire.chunks import has
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.files import Files, discard
from fleetgrad.wire.messages import Attempt, Bitmap, Count, Round, Sha256, Version
from fleetgrad.wire.seeds import Keys
from fleetgrad.wire.signing import PrivateKey
from fleetgrad.wire.strict import Strict
from fleetgrad.wire.topics import name_hash

UPDATE = "update"
FOLDER = "updates"
QUERY_SECONDS = 2.0
MOST_QUERY_SECONDS = 60.0


class Record(Strict, frozen=True, kw_only=True):
    """What is known of a stored update; its payload lies, sealed, in the file `payload`.

    Under a codec with error feedback `residual` is the hash of what the update left out and `plain` that of the payload before it was
    sealed, which only the device itself can read again; such a record stays after the receipt, as `accepted`, until the round's fate
    says what is to be carried (residual.py).
    """

    round: Round
    attempt: Attempt
    version: Version
    params: Sha256
    config: Sha256
    payload: str
    size: Count
    sha256: Sha256
    weight: Count
    steps: Count
    loss: float
    rate: float
    plan: Sha256
    codec: CodecSpec
    keys: Keys
    residual: str = ""
    plain: str = ""
    accepted: bool = False

    @property
    def key(self) -> str:
        return f"{self.round}-{self.attempt}"

    @property
    def files(self) -> set[str]:
        """What lies on the disk for it."""
        at = self.round, self.attempt
        return {self.payload, *((residual_name(*at), plain_name(*at)) if self.residual else ())}

    def left_out(self, undelivered: bool) -> Residual:
        """What this update leaves to be carried."""
        return Residual(
            plan=self.plan, round=self.round, attempt=self.attempt, name=residual_name(self.round, self.attempt),
            sha256=self.residual, payload_name=plain_name(self.round, self.attempt), payload=self.plain, codec=self.codec,
            keys=self.keys, undelivered=undelivered,
        )  # fmt: skip


def payload_name(round_: int, attempt: int) -> str:
    """File name of an attempt's payload, as it is sent."""
    return f"{FOLDER}/{round_}-{attempt}.sealed"


def plain_name(round_: int, attempt: int) -> str:
    """File name of an attempt's payload before it was sealed."""
    return f"{FOLDER}/{round_}-{attempt}.payload"


def row(record: Record) -> Row:
    """Makes the update exist: its payload is durable already, its record becomes so with this row."""
    return Put(UPDATE, record.key, msgspec.json.encode(record))


def gone(record: Record) -> Row:
    """Ends the update; its files are swept after."""
    return Drop(UPDATE, record.key)


def load(held: Held, files: Files) -> tuple[list[Record], dict[str, str]]:
    """The stored updates that are whole, oldest first, and for those that aren't a reason by key."""
    whole: list[Record] = []
    found = held.all(UPDATE, Record)
    bad = held.lost(UPDATE)
    for key, record in found.items():
        try:
            payload = files.read(record.payload)
        except FileNotFoundError:
            bad[key] = f"{record.payload} is missing"
            continue
        if len(payload) == record.size and sha256(payload).hexdigest() == record.sha256:
            whole.append(record)
        else:
            bad[key] = f"{record.payload} isn't what its record says"
    return sorted(whole, key=lambda r: (r.round, r.attempt)), bad


def bytes_of(files: Files, round_: int, attempt: int) -> int:
    """What a trainer has written for an attempt."""
    names = payload_name(round_, attempt), plain_name(round_, attempt), residual_name(round_, attempt)
    held = {f"{folder}/{name}" for folder in (FOLDER, residual.FOLDER) for name in files.names(folder)}
    return sum(len(files.read(name)) for name in names if name in held)


def remove(files: Files, record: Record, before: Residual | None, carried: Residual | None) -> None:
    """Removes the files of an update that has ended, and of what was carried `before`, but for those that are carried now."""
    kept = _names(carried) if carried else set()
    for name in sorted((record.files | (_names(before) if before else set())) - kept - {""}):
        discard(files, name)


def _names(carried: Residual) -> set[str]:
    return {carried.name, carried.payload_name if carried.undelivered else ""}


def sweep(files: Files, records: Iterable[Record], carried: Residual | None) -> None:
    """Removes the payloads and residuals that no one names; no trainer may be at work."""
    kept = {name for r in records for name in r.files}
    if carried:
        kept |= _names(carried)
    for folder in (FOLDER, residual.FOLDER):
        for name in files.names(folder):
            if f"{folder}/{name}" not in kept:
                discard(files, f"{folder}/{name}")


class PayloadLost(ValueError):
    """An update whose payload the disk has lost or damaged."""


@dataclass(slots=True)
class Upload:
    """Sends one stored update."""

    record: Record
    topic: str
    federation: str
    device: str
    key: PrivateKey
    files: Files
    random: random.Random
    window: int
    start_at: float
    ask_first: bool = False  # after a restart: never assume
    chunk_bytes: int = frames.DATA_BYTES
    bytes_up: int = 0
    query_at: float = 0.0
    resent: int = 0  # chunks that were sent before in this life
    _received: bytes = b""
    _sent: set[int] = field(default_factory=set)
    _patience: float = QUERY_SECONDS
    _asked: bool = False
    _begun: bool = False
    _ever: set[int] = field(default_factory=set)
    _body: bytes | None = None
    _signed_by: str = ""  # the identity's key may be renewed while an update is on its way

    def __post_init__(self) -> None:
        self.query_at = self.start_at if self.ask_first else self.start_at + QUERY_SECONDS
        self._asked = self.ask_first

    def _header(self, type_: int, size: int) -> frames.Header:
        r = self.record
        return frames.update_header(
            type_, name_hash(self.federation), r.round, r.attempt, name_hash(self.device), bytes.fromhex(r.params),
            bytes.fromhex(r.config), size, bytes.fromhex(r.sha256), self.chunk_bytes,
        )  # fmt: skip

    @property
    def begun(self) -> bool:
        """Whether any of its chunks has left in this life, or has arrived."""
        return bool(self._sent) or any(self._received)

    def matches(self, round_: int, attempt: int, payload: str) -> bool:
        return (self.record.round, self.record.attempt, self.record.sha256) == (round_, attempt, payload)

    def connected(self, now: float, first: bool = True) -> list[Effect]:
        """A new connection: what was under way may be lost, so ask."""
        if self._sent or self.ask_first:
            self.query_at, self._asked = max(now, self.start_at), True
        return self.tick(now, first)

    def ask(self, now: float) -> None:
        """Asks at the next tick, unless a question is under way: the round is closed, and no receipt has come."""
        if not self._asked:
            self.query_at, self._asked, self._begun, self.start_at = now, True, True, min(self.start_at, now)

    def bitmap(self, bitmap: Bitmap, now: float, first: bool = True) -> list[Effect]:
        """Moves the window; after a query, what is missing counts as unsent. One of chunks of another length is of no use."""
        if now < self.start_at or bitmap.chunk_bytes != self.chunk_bytes:
            return []
        self._received = bytes.fromhex(bitmap.received)
        if self._asked:
            self._sent.clear()
            self._asked = False
        self._patience = QUERY_SECONDS
        self.query_at = now + self._patience
        return self._pump() if first else []

    def cut(self, chunk_bytes: int, now: float) -> None:
        """The broker takes chunks of another length from now on: all of them count as unsent."""
        if chunk_bytes != self.chunk_bytes:
            self.chunk_bytes, self._received, self._body = chunk_bytes, b"", None
            self._ever.clear()
            if self._sent:
                self._sent.clear()
                self.query_at, self._asked = max(now, self.start_at), True

    def stand_back(self, now: float) -> None:
        """Another update is to be sent: this one is asked about, and its bytes leave the memory."""
        self.ask(now)
        self._body = None

    def pause(self, until: float) -> None:
        """Sends nothing before that time; then asks what has arrived."""
        self.start_at, self.query_at, self._asked = until, until, True

    def tick(self, now: float, first: bool = True) -> list[Effect]:
        """Sends what is due; while another update is `first`, questions alone."""
        if now < self.start_at:
            return []
        self._begun = True
        if now >= self.query_at:
            self._asked = True
            self._patience = min(MOST_QUERY_SECONDS, self._patience * 2)
            self.query_at = now + self._patience * self.random.uniform(0.5, 1.0)
            header = self._header(frames.QUERY, 0)
            body = frames.sign_body(self.key, header)
            return [self._publish(frames.frame(header, 0, body))]
        return self._pump() if first and not self._asked else []

    def wake_at(self) -> float:
        return self.query_at if self._begun else self.start_at

    def _pump(self) -> list[Effect]:
        header = self._header(frames.UPDATE, self.record.size)
        if self._body is None or self._signed_by != self.key.public.kid:
            self._body = self._payload() + frames.sign_body(self.key, header)
            self._signed_by = self.key.public.kid
        effects: list[Effect] = []
        under_way = sum(not has(self._received, i) for i in self._sent)
        for seq in range(header.nchunks):
            if under_way >= self.window:
                break
            if seq not in self._sent and not has(self._received, seq):
                chunk = memoryview(self._body)[header.span(seq)]
                effects.append(self._publish(frames.frame(header, seq, chunk)))
                self._sent.add(seq)
                self.resent += seq in self._ever
                self._ever.add(seq)
                under_way += 1
        return effects

    def _payload(self) -> bytes:
        try:
            raw = self.files.read(self.record.payload)
        except FileNotFoundError:
            raise PayloadLost(f"{self.record.payload} is missing") from None
        if sha256(raw).hexdigest() != self.record.sha256:
            raise PayloadLost(f"{self.record.payload} isn't what its record says")
        return raw

    def _publish(self, frame: bytes) -> Effect:
        self.bytes_up += len(frame)
        return Publish(self.topic, frame)
