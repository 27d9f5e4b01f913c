"""What the aggregator says: the head, a version's chunks, receipts and bitmaps; and a version's record.

Nothing is sent here, and nothing remembered but how many heads were composed.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256

import msgspec

from fleetgrad.broker import events as ev
from fleetgrad.broker.attempt import RoundSettings
from fleetgrad.broker.journal import CLOSED_SHOWN, Contribution, Memory, Version
from fleetgrad.wire import frames
from fleetgrad.wire.files import Files
from fleetgrad.wire.messages import (
    COMMAND,
    Bitmap,
    Closed,
    Command,
    Delta,
    Head,
    Link,
    ObjectRef,
    Policy,
    Receipt,
    Record,
    Verdict,
)
from fleetgrad.wire.signing import PrivateKey, sign_message
from fleetgrad.wire.topics import Topics

OFFERED = 2  # versions whose chunks are on the broker: the current and the previous one
MOST_RECONNECT_SECONDS = 86400.0
HEADS_A_BOOT = 2**24  # so that a restart needn't know how many there were
GENESIS = "0" * 64  # parent of version 0


def object_name(sha256_hex: str) -> str:
    """File name of an object."""
    return f"objects/{sha256_hex}"


def version_record(
    number: int, ref: ObjectRef, parent: str, config: str, members: list[Contribution], round_: int
) -> Version:
    """A release and its record (wire/SPEC.md section 7); `parent` is the previous record's hash."""
    lines = "".join(f"{c.device} {c.payload} {c.weight}\n" for c in members)
    record = msgspec.json.encode(
        Record(
            config=config, members=sha256(lines.encode()).hexdigest(), params=ref.sha256, parent=parent, round=round_,
            version=number,
        )
    )  # fmt: skip
    return Version(number, ref.sha256, ref.size, parent, sha256(record).hexdigest(), record.decode())


class Announcer:
    """Speaks for one federation."""

    def __init__(
        self, settings: RoundSettings, roster_size: Callable[[], int], key: PrivateKey, seal: bytes, files: Files,
        plan: ObjectRef, roots: Sequence[bytes] = (),
    ) -> None:  # fmt: skip
        self._federation, self._shards, self._link = settings.federation, settings.shards, settings.link
        self._reconnects, self._roster_size = settings.reconnects, roster_size
        self._key, self._seal, self._files, self._plan = key, seal.hex(), files, plan
        self._settled = self._link
        self._topics = Topics(settings.federation)
        self._roots, self._expires = roots, settings.expires
        self._heads = 0

    @property
    def link(self) -> Link:
        """How the broker is to be used, by a fleet of the size that it has now."""
        seconds = min(self._roster_size() / self._reconnects, MOST_RECONNECT_SECONDS)
        return msgspec.structs.replace(self._link, reconnect_seconds=seconds)

    def meet(self, broker: ev.Connected) -> None:
        """Takes the broker's word where the settings expect more of it: that it retains nothing, or takes shorter chunks alone."""
        retained = self._settled.retained and broker.retained
        chunk_bytes = min(self._settled.chunk_bytes, broker.chunk_bytes)
        self._link = msgspec.structs.replace(self._settled, retained=retained, chunk_bytes=chunk_bytes)

    def compose(self, memory: Memory, policy: Policy, deltas: tuple[Delta, ...]) -> Head:
        """The release of the newest version, with the policy of the open attempt; each has a sequence of its own."""
        self._heads += 1
        current = memory.versions[-1]
        closed = sorted((k, a) for k, a in memory.attempts.items() if a.state in ("published", "abandoned"))
        return Head(
            federation=self._federation,
            version=current.number,
            plan=self._plan,
            params=ObjectRef(sha256=current.params, size=current.size),
            parent=current.parent,
            policy=policy,
            seal=self._seal,
            shards=self._shards,
            boot=memory.boot,
            sequence=memory.boot * HEADS_A_BOOT + self._heads,
            expires=self._expires,
            withdrawn=memory.taken_back,
            link=self.link,
            deltas=deltas,
            closed=tuple(
                Closed(round=r, attempt=n, outcome="published" if a.state == "published" else "abandoned")
                for (r, n), a in closed[-CLOSED_SHOWN:]
            ),
        )

    def roots(self) -> list[ev.Effect]:
        """The chain of roots, from version 1."""
        return [
            ev.Publish(self._topics.root(version), raw, retained=self._link.retained)
            for version, raw in enumerate(self._roots, 1)
        ]

    def chunks(self, ref: ObjectRef) -> list[ev.Effect]:
        """An object's retained chunks; none on a broker that retains nothing."""
        if not self._link.retained:
            return []
        header = frames.object_header(ref.size, bytes.fromhex(ref.sha256), self._link.chunk_bytes)
        raw = self._files.read(object_name(ref.sha256))
        return [
            ev.Publish(self._topics.object(ref.sha256, i), frame, retained=True)
            for i, frame in enumerate(frames.frames(header, raw))
        ]

    def clear(self, ref: ObjectRef) -> list[ev.Effect]:
        """Takes an object's chunks off the broker."""
        if not self._link.retained:
            return []
        count = frames.chunks_of(ref.size, self._link.chunk_bytes)
        return [ev.Publish(self._topics.object(ref.sha256, i), b"", retained=True) for i in range(count)]

    def served(self, device: str, frame: bytes) -> ev.Effect:
        """A chunk for the one device that wants it."""
        return ev.Publish(self._topics.served(device), frame)

    def command(self, device: str, command: Command) -> ev.Effect:
        """A signed command."""
        return ev.Publish(self._topics.command(device), sign_message(self._key, COMMAND, command))

    def receipt(self, device: str, header: frames.Header, verdict: Verdict, reason: str = "") -> ev.Effect:
        """The last word on the update that `header` is of."""
        receipt = Receipt(
            federation=self._federation,
            device=device,
            round=header.round,
            attempt=header.attempt,
            payload=header.payload_sha256.hex(),
            verdict=verdict,
            reason=reason[:500],
        )
        return self.command(device, receipt)

    def bitmap(self, device: str, header: frames.Header, received: bytes) -> ev.Effect:
        """Which chunks of the update that `header` is of have arrived."""
        bitmap = Bitmap(
            federation=self._federation,
            device=device,
            round=header.round,
            attempt=header.attempt,
            payload=header.payload_sha256.hex(),
            chunk_bytes=header.chunk_bytes,
            received=received.hex(),
        )
        return self.command(device, bitmap)
