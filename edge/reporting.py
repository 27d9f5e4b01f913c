"""What a device says of itself: births, which are signed and acted on, and the retained status, which is for people."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from fleetgrad.edge.events import Publish
from fleetgrad.wire.messages import BIRTH, WANT, Birth, DeviceState, DeviceStatus, Head, ObjectRef, Want
from fleetgrad.wire.release import Root
from fleetgrad.wire.signing import PrivateKey, PublicKey, sign_message
from fleetgrad.wire.topics import Topics

if TYPE_CHECKING:
    from fleetgrad.edge.link.delivery import Delivery

STATUS_BYTES = 1 << 20  # traffic alone is worth a new status every so many bytes, not every chunk


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the device is, whom it trusts, and how many samples it has."""

    federation: str
    device: str
    key: PrivateKey
    aggregator: PublicKey
    samples: int
    software: str = ""
    root: Root | None = None  # pinned; None: the aggregator's key alone is trusted, until a next root says otherwise


class Reporter:
    """Speaks for one life of a device; (boot, seq) grows over all of them. The fields are what only people read, and the reason."""

    def __init__(self, identity: Identity, boot: int) -> None:
        self._id, self._boot, self._seq = identity, boot, 0
        self._topics = Topics(identity.federation)
        self.reason = ""
        self.steps = self.updates = 0
        self.loss: float | None = None
        self.rate: float | None = None
        self._shown: DeviceStatus | None = None

    def birth(self, state: DeviceState, holds: Head | None, round_: int | None, attempt: int | None) -> Publish:
        """The signed report; `holds` is the release whose model is here, (round, attempt) the last that was taken up."""
        self._seq += 1
        birth = Birth(
            federation=self._id.federation,
            device=self._id.device,
            boot=self._boot,
            seq=self._seq,
            version=holds.version if holds else None,
            params=holds.params.sha256 if holds else None,
            state=state,
            round=round_,
            attempt=attempt,
            samples=self._id.samples,
            software=self._id.software,
            reason=self.reason,
        )
        return Publish(self._topics.birth(self._id.device), sign_message(self._id.key, BIRTH, birth))

    def want(self, ref: ObjectRef, chunk_bytes: int, received: bytes) -> Publish:
        """Asks the aggregator for the chunks of an object that `received`, a bitmap, doesn't mark."""
        self._seq += 1
        want = Want(
            federation=self._id.federation, device=self._id.device, boot=self._boot, seq=self._seq, object=ref,
            chunk_bytes=chunk_bytes, received=received.hex(),
        )  # fmt: skip
        return Publish(self._topics.want(self._id.device), sign_message(self._id.key, WANT, want))

    def status(
        self,
        state: DeviceState,
        version: int | None,
        round_: int | None,
        attempt: int | None,
        up: "Delivery",
        down: int,
    ) -> DeviceStatus:
        """The status now; `down` is this life's bytes."""
        return DeviceStatus(
            state=state,
            device=self._id.device,
            boot=self._boot,
            version=version,
            round=round_,
            attempt=attempt,
            loss=self.loss,
            steps=self.steps,
            samples=self._id.samples,
            bits=None if self.rate is None else round(self.rate, 4),
            bytes_up=up.bytes_up,
            bytes_down=down,
            updates=self.updates,
            spooled=up.spooled[0],
            resent=up.resent,
            reason=self.reason,
        )

    def publish(self, status: DeviceStatus) -> Publish:
        """A status as it is retained."""
        return Publish(self._topics.status(self._id.device), msgspec.json.encode(status), retained=True)

    def forget_shown(self) -> None:
        """A new connection: whatever was published may be gone."""
        self._shown = None

    def news(self, status: DeviceStatus) -> list[Publish]:
        """The status, when it says something new; traffic alone is new every STATUS_BYTES."""
        shown = self._shown
        if shown is not None:
            traffic = status.bytes_up + status.bytes_down - shown.bytes_up - shown.bytes_down
            same = msgspec.structs.replace(
                status, bytes_up=shown.bytes_up, bytes_down=shown.bytes_down, resent=shown.resent
            )
            if same == shown and traffic < STATUS_BYTES:
                return []
        self._shown = status
        return [self.publish(status)]
