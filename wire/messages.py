"""The control messages, as strict structs: unknown fields, wrong types and numbers out of range are refused.

    head      aggregator -> all      which model is current and how to train it (retained)
    birth     device -> aggregator   who is here, what it holds, what it does
    want      device -> aggregator   which chunks of an object it lacks
    command   aggregator -> device   select | receipt | bitmap | retry-after
    candidate aggregator -> cosigner the head to be, which others must sign as well
    status    both -> people         unsigned JSON for dashboards; nothing acts on it

All but the status travel as JWS (wire/signing.py) of the kinds HEAD, BIRTH, WANT, COMMAND and CANDIDATE.
"""

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.signing import MAX_SIGNATURES
from fleetgrad.wire.strict import Strict

HEAD, BIRTH, WANT, COMMAND = "fl1-head", "fl1-birth", "fl1-want", "fl1-command"
CANDIDATE = "fl1-candidate"
PROTOCOL: Literal[1] = 1
MAX_OBJECT_BYTES = 2**30 + 2**20  # a model of plan.MAX_FLOATS and its graphs
MAX_WEIGHT_SUM = 2**24  # so that a round's fixed-point sum fits an int64
MAX_CLONES = 32  # that a status names
MAX_EXPIRES_SECONDS = 366 * 86400
REVOKED = "revoked"  # the reason of a receipt `refused` to a device that is no member any more
WINDOW = 8  # chunks that a device may have under way, at most

Name = Annotated[str, Meta(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?\Z")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
RawKey = Sha256  # a public key of 32 bytes, in hex as a hash is
Round = Annotated[int, Meta(ge=1, le=2**32 - 1)]
Attempt = Annotated[int, Meta(ge=1, le=2**16 - 1)]
Version = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Weight = Annotated[int, Meta(ge=1, le=MAX_WEIGHT_SUM)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Seconds = Annotated[float, Meta(ge=0, le=30 * 86400)]
Received = Annotated[str, Meta(pattern=r"^([0-9a-f]{2})*\Z", max_length=16384)]  # which chunks, see Bitmap
ChunkBytes = Annotated[int, Meta(ge=1024, le=120 * 1024)]
ShortName = Annotated[str, Meta(pattern="^[a-z0-9-]{1,32}$")]
Reason = Annotated[str, Meta(max_length=500)]

Verdict = Literal["accepted", "duplicate", "late", "stale", "refused"]
Outcome = Literal["published", "abandoned"]
DeviceState = Literal["idle", "fetching", "training", "uploading", "offline", "refused", "stale"]
RoundState = Literal["open", "selecting", "collecting", "committing", "published", "abandoned", "finished", "offline"]


class Training(Strict, frozen=True, kw_only=True):
    """What every device does in a round."""

    local_epochs: Annotated[int, Meta(ge=1, le=1000)] = 4
    batch_size: Annotated[int, Meta(ge=1, le=65536)] = 16
    learning_rate: Annotated[float, Meta(gt=0, le=1000)] = 0.05
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Meta(ge=0, lt=1)] = 0.0


class Policy(Training, frozen=True, kw_only=True):
    """How devices train and code an update. Its hash is in every update's header."""

    codec: CodecSpec = CodecSpec(name="blk8")

    def sha256(self) -> str:
        """Hash of the policy's canonical JSON, in hex: both sides compute it, so a device can't train by another."""
        as_read = msgspec.json.decode(msgspec.json.encode(self), type=Policy)  # a rate given as 1 travels as 1.0
        return hashlib.sha256(msgspec.json.encode(as_read, order="deterministic")).hexdigest()


class ObjectRef(Strict, frozen=True, kw_only=True):
    """A content-addressed object: its whole SHA-256 and exact length."""

    sha256: Sha256
    size: Annotated[int, Meta(ge=1, le=MAX_OBJECT_BYTES)]


class Delta(Strict, frozen=True, kw_only=True):
    """An object that turns the params with hash `base` into the head's, bit for bit; smaller than these."""

    base: Sha256
    object: ObjectRef


class Link(Strict, frozen=True, kw_only=True):
    """How this federation's broker is to be used.

    `chunk_bytes` is the length of all chunks but a body's last; after a lost connection, or a life that was cut off, a device
    first comes back at a time uniform in `reconnect_seconds`; `retained` says whether the broker keeps heads and chunks for who comes later.
    """

    chunk_bytes: ChunkBytes = 60 * 1024
    reconnect_seconds: Seconds = 0.0
    retained: bool = True


class Closed(Strict, frozen=True, kw_only=True):
    """How one attempt at a round ended."""

    round: Round
    attempt: Attempt
    outcome: Outcome


class Head(Strict, frozen=True, kw_only=True):
    """The current release. `parent` is the hash of the previous release's record, zeros for version 0.

    `sequence` grows with each head that is signed. A device that hears no new one for `expires` seconds takes up no training until it does.
    A head goes back to a lower version only if `withdrawn` names the highest that is taken back.
    `closed` lists the last closed attempts, newest last; `boot` changes whenever the aggregator starts; updates are sealed to `seal`.
    """

    protocol: Literal[1] = PROTOCOL
    federation: Name
    version: Version
    plan: ObjectRef
    params: ObjectRef
    parent: Sha256
    policy: Policy
    seal: RawKey
    shards: Annotated[int, Meta(ge=1, le=256)] = 1
    boot: Count
    sequence: Count
    expires: Annotated[float, Meta(ge=1, le=MAX_EXPIRES_SECONDS)]
    withdrawn: Version | None = None
    closed: Annotated[tuple[Closed, ...], Meta(max_length=64)] = ()
    link: Link = Link()
    deltas: Annotated[tuple[Delta, ...], Meta(max_length=4)] = ()


class Record(Strict, frozen=True, kw_only=True):
    """What a version came from. The hash of its JSON, keys sorted, is the next one's `parent`, so that versions are a chain."""

    config: Sha256
    members: Sha256
    params: Sha256
    parent: Sha256
    round: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    version: Version


class Candidate(Strict, frozen=True, kw_only=True):
    """`head` is the JSON that is to be signed, byte for byte; `records` are those of the versions before its own, newest last."""

    federation: Name
    head: Annotated[str, Meta(max_length=40 * 1024)]
    records: Annotated[tuple[Annotated[str, Meta(max_length=1024)], ...], Meta(max_length=8)] = ()


class Birth(Strict, frozen=True, kw_only=True):
    """A device's own word on itself. (boot, seq) grows over its lifetime; `samples` is what it would train on."""

    protocol: Literal[1] = PROTOCOL
    federation: Name
    device: Name
    boot: Count
    seq: Count
    version: Version | None
    params: Sha256 | None
    state: DeviceState
    round: Round | None = None
    attempt: Attempt | None = None
    samples: Count
    software: Annotated[str, Meta(max_length=64)] = ""
    reason: Reason = ""


class Want(Strict, frozen=True, kw_only=True):
    """Asks for chunks of an object on the device's own topic. (boot, seq) is counted with births; `received` and `chunk_bytes` are as in
    a bitmap."""

    federation: Name
    device: Name
    boot: Count
    seq: Count
    object: ObjectRef
    chunk_bytes: ChunkBytes
    received: Received = ""


class Select(Strict, frozen=True, kw_only=True, tag_field="command", tag="select"):
    """Asks a device to train model `params` under the policy with hash `config` and to upload within `deadline`.

    `window` is how many chunks it may have under way; it waits `slot` seconds before the first. Durations, in seconds.
    """

    federation: Name
    device: Name
    round: Round
    attempt: Attempt
    version: Version
    params: Sha256
    config: Sha256
    window: Annotated[int, Meta(ge=1, le=WINDOW)]
    slot: Seconds = 0.0
    deadline: Seconds


class Receipt(Strict, frozen=True, kw_only=True, tag_field="command", tag="receipt"):
    """The last word on one update; sent after the update is on the aggregator's disk. Every verdict is terminal, but for `refused` with
    the reason REVOKED, which is said of the device: what becomes of its updates isn't known."""

    federation: Name
    device: Name
    round: Round
    attempt: Attempt
    payload: Sha256
    verdict: Verdict
    reason: Reason = ""


class Bitmap(Strict, frozen=True, kw_only=True, tag_field="command", tag="bitmap"):
    """Which chunks of an upload have arrived: bit i of byte i // 8, least significant first, in hex. It means something for chunks of
    `chunk_bytes` alone."""

    federation: Name
    device: Name
    round: Round
    attempt: Attempt
    payload: Sha256
    chunk_bytes: ChunkBytes
    received: Received


class RetryAfter(Strict, frozen=True, kw_only=True, tag_field="command", tag="retry-after"):
    """Not now: the device reports again after a random time between the two, in seconds."""

    federation: Name
    device: Name
    least: Seconds
    most: Seconds


Command = Select | Receipt | Bitmap | RetryAfter


class DeviceStatus(Strict, frozen=True, kw_only=True):
    """Retained on st/{device}, for people. `boot` tells a stale last will from a newer birth; `bits` is what a coordinate of
    the last update took; `spooled` are updates on their way, `resent` chunks of this life that were sent more than once."""

    state: DeviceState
    device: Name
    boot: Count
    version: Version | None = None
    round: Round | None = None
    attempt: Attempt | None = None
    loss: float | None = None
    steps: Count = 0
    samples: Count = 0
    bits: float | None = None
    bytes_up: Count = 0
    bytes_down: Count = 0
    updates: Count = 0
    spooled: Count = 0
    resent: Count = 0
    reason: Reason = ""


class AggregatorStatus(Strict, frozen=True, kw_only=True):
    """Retained on agg/st. Devices read `boot` alone: when it changes they report again.

    `instance` is drawn anew at each start. `turned_away` counts since that boot: messages `dropped`, and receipts by verdict other than accepted. `clones` are devices whose identity
    two boards seem to use. The newest head waits for `signatures_missing` more signatures, by any of `unsigned_by`, which are keys' ids.
    """

    state: RoundState
    federation: Name
    boot: Count
    version: Version | None = None
    round: Round | None = None
    attempt: Attempt | None = None
    members: Count = 0
    received: Count = 0
    goal: Count = 0
    rounds: Count = 0
    instance: Count = 0
    turned_away: Annotated[dict[ShortName, Count], Meta(max_length=16)] = msgspec.field(default_factory=dict)
    clones: Annotated[tuple[Name, ...], Meta(max_length=MAX_CLONES)] = ()
    signatures_missing: Annotated[int, Meta(ge=0, le=MAX_SIGNATURES)] = 0
    unsigned_by: Annotated[tuple[ShortName, ...], Meta(max_length=MAX_SIGNATURES)] = ()
    reason: Reason = ""


class Metrics(Strict, frozen=True, kw_only=True, rename=None):
    """Retained on agg/metrics and one row of rounds.jsonl: what the round that made `version` cost and gave.

    Bytes are sums over its members, headers included, each chunk once: `bytes_up` of their updates, `bytes_down` of what brings them from the
    version before to this one, which is the delta if one is offered, else the params. `loss` is the evaluation's, or without one the members' mean;
    `accuracy` is None where there is no evaluation or the loss defines none; `seconds` where a restart lost the time.
    `scores` are other figures of the evaluation, as edge/training/scores.py names them. `codec` is the round's in words; `bits` what a coordinate of an update took, the mean of the members.
    """

    round: Round
    version: Version
    members: Count
    accuracy: float | None
    loss: float | None
    bytes_up: Count
    bytes_down: Count
    seconds: float | None
    codec: str = ""
    bits: float | None = None
    scores: Annotated[dict[ShortName, float], Meta(max_length=16)] = msgspec.field(default_factory=dict)


class UpdateInfo(Strict, frozen=True, kw_only=True):
    """Stands before the coded vector inside an update's payload, as msgpack.

    `codec` and `parameter` are those of codecs.py's table, `rate` the bits that a coordinate took, coded vector's overhead included;
    `weight` is the number of samples trained on, `steps` the optimizer steps, `loss` the mean of the last epoch.
    """

    codec: Annotated[int, Meta(ge=0, le=255)]
    parameter: Annotated[int, Meta(ge=0, le=255)]
    count: Annotated[int, Meta(ge=1, le=2**28)]
    rate: Annotated[float, Meta(ge=0)]
    weight: Weight
    steps: Annotated[int, Meta(ge=1, le=2**53)]
    loss: float
