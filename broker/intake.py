"""The way in for updates: what isn't the open round's is turned away before anything it says is used.

The order of the checks is wire/SPEC.md 5.3: lengths, magic, counts, CRC, then the fields against the round, then, once a body
is whole, its hash and signature, then that it opens, then what it decodes to. Each drop is counted by reason.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fleetgrad.native import binding, kernels
from fleetgrad.wire import frames, seal, seeds
from fleetgrad.wire.chunks import Assembly
from fleetgrad.wire.codecs import CodecError, decode_payload, payload_bound
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.frames import Header
from fleetgrad.wire.messages import UpdateInfo
from fleetgrad.wire.signing import SIGNATURE_BYTES, PublicKey, Untrusted
from fleetgrad.wire.topics import name_hash

ASSEMBLY_SECONDS = 600.0  # an upload that rests longer is forgotten; the device asks, and sends again
MAX_ASSEMBLIES = 512
MAX_REASONS = 256  # a stranger chooses part of a reason's text: what comes after these is counted as "other"


@dataclass(frozen=True, slots=True)
class Expected:
    """What the open attempt's updates must say of themselves."""

    round: int
    attempt: int
    model: bytes
    config: bytes


@dataclass(frozen=True, slots=True)
class Whole:
    """A body that is complete and proven to be its device's; the payload is sealed."""

    header: Header
    payload: bytes


@dataclass(slots=True)
class Intake:
    """Assemblies of one federation, at most one per device; `codec` is the open round's, `layout` the plan's; `opens` are the
    keys that payloads may be sealed to, the current one first."""

    federation: str
    layout: VectorLayout
    codec: CodecSpec
    opens: Sequence[seal.SealKey]
    drops: Counter[str] = field(default_factory=Counter)
    _under_way: dict[str, tuple[Assembly, float]] = field(default_factory=dict)

    def dropped(self, reason: str) -> None:
        """Counts a message that was turned away."""
        self.drops[reason if reason in self.drops or len(self.drops) < MAX_REASONS else "other"] += 1

    @property
    def most_bytes(self) -> int:
        """Largest body that is accepted."""
        return payload_bound(self.codec, self.layout) + seal.OVERHEAD + SIGNATURE_BYTES

    def parse(self, raw: bytes, device: str) -> tuple[Header, memoryview]:
        """Header and chunk of an update or a query of this federation by the topic's device; raises Untrusted."""
        header, chunk = frames.parse(raw, most=self.most_bytes)
        if header.type == frames.OBJECT or header.federation != name_hash(self.federation):
            raise Untrusted("frame isn't an update of this federation")
        if header.device != name_hash(device):
            raise Untrusted(f"frame of another device than its topic's {device!r}")
        return header, chunk

    def query(self, header: Header, chunk: memoryview, key: PublicKey) -> None:
        """Raises Untrusted unless the query is signed by the device."""
        if header.total_len != SIGNATURE_BYTES or not key.verify(bytes(chunk), header.signed_bytes()):
            raise Untrusted("query whose signature doesn't hold")

    def chunk(self, header: Header, chunk: memoryview, device: str, now: float) -> tuple[Assembly, bool]:
        """Adds a chunk to the device's assembly; (assembly, whether it was new). Raises Untrusted."""
        held = self._under_way.get(device)
        if held is None or held[0].header != header.whole():
            if held is None and len(self._under_way) >= MAX_ASSEMBLIES:
                self._forget_stale(now)
                if len(self._under_way) >= MAX_ASSEMBLIES:
                    raise Untrusted(f"{MAX_ASSEMBLIES} uploads are under way already")
            held = (Assembly(header), now)
        self._under_way[device] = (held[0], now)
        return held[0], held[0].add(header, chunk)

    def finish(self, device: str, key: PublicKey) -> Whole:
        """Takes a complete assembly out; raises Untrusted unless hash and signature hold."""
        assembly, _ = self._under_way.pop(device)
        if not frames.signature_holds(key, assembly.header, assembly.body):
            raise Untrusted("update whose hash or signature doesn't hold")
        return Whole(assembly.header, bytes(assembly.body[:-SIGNATURE_BYTES]))

    def received(self, device: str, payload_sha256: bytes) -> bytes:
        """Bitmap of the device's upload under way, empty if there is none of this payload."""
        held = self._under_way.get(device)
        return bytes(held[0].received) if held and held[0].header.payload_sha256 == payload_sha256 else b""

    def forget(self, device: str) -> None:
        self._under_way.pop(device, None)

    def begin(self, codec: CodecSpec) -> None:
        """Another round begins: what was on its way to the last is forgotten."""
        self.codec = codec
        self._under_way.clear()

    def _forget_stale(self, now: float) -> None:
        for device in [d for d, (_, seen) in self._under_way.items() if now - seen > ASSEMBLY_SECONDS]:
            del self._under_way[device]

    def open(self, whole: Whole) -> bytes:
        """The payload as its device made it; raises SealError with the reason for a refusal."""
        return seal.open_with(self.opens, whole.payload, whole.header.sealed_with())

    def check(self, payload: bytes, keys: seeds.Keys, weight_left: int) -> UpdateInfo:
        """Decodes a payload as it will be merged; raises CodecError with the reason for a refusal."""
        delta = np.empty(self.layout.count, np.float32)
        info = decode_payload(payload, self.codec, self.layout, keys, delta)
        if info.weight > weight_left:
            raise CodecError(f"weight {info.weight} takes the round's sum over {kernels.MAX_WEIGHT}")
        try:
            summed = self.layout.summed(delta)
            kernels.ring_add(np.zeros(self.layout.count, np.int64), summed, info.weight)
        except binding.KernelError as e:
            over = int(np.argmax(np.abs(summed) > kernels.RING_RANGE))
            raise CodecError(f"{self.layout.where(over)} is {delta[over]:g}: {e}") from e
        return info
