"""The way in for updates: what isn't the open round's is turned away before anything it says is used.

The order of the checks is wire/SPEC.md 5.3: lengths, magic, counts, CRC, then the fields against the round, then, once a body
is whole, its hash and signature, then that it opens, then what it decodes to. Each drop is counted by reason.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from fleetgrad.wire import frames, seal
from fleetgrad.wire.codecs import payload_bound
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.frames import Header
from fleetgrad.wire.signing import SIGNATURE_BYTES, PublicKey, Untrusted
from fleetgrad.wire.topics import name_hash

MAX_REASONS = 256  # a stranger chooses part of a reason's text: what comes after these is counted as "other"


@dataclass(slots=True)
class Intake:
    """The checks of one federation's frames; `codec` is the open round's, `layout` the plan's; `opens` are the keys that payloads
    may be sealed to, the current one first."""

    federation: str
    layout: VectorLayout
    codec: CodecSpec
    opens: Sequence[seal.SealKey]
    drops: Counter[str] = field(default_factory=Counter)
    most_bytes: int = 0  # of the largest body that is accepted

    def __post_init__(self) -> None:
        self.begin(self.codec)

    def begin(self, codec: CodecSpec) -> None:
        """A round in this codec opens."""
        self.codec = codec
        self.most_bytes = payload_bound(codec, self.layout) + seal.OVERHEAD + SIGNATURE_BYTES

    def dropped(self, reason: str, messages: int = 1) -> None:
        """Counts messages that were turned away."""
        self.drops[reason if reason in self.drops or len(self.drops) < MAX_REASONS else "other"] += messages

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

    def prove(self, header: Header, body: memoryview, key: PublicKey) -> memoryview:
        """The sealed payload of a whole body; raises Untrusted unless hash and signature hold."""
        if not frames.signature_holds(key, header, body):
            raise Untrusted("update whose hash or signature doesn't hold")
        return body[:-SIGNATURE_BYTES]

    def open(self, header: Header, sealed: bytes | memoryview) -> bytes:
        """The payload as its device made it; raises SealError with the reason for a refusal."""
        return seal.open_with(self.opens, sealed, header.sealed_with())
