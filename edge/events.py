"""What the participant is told (events) and what it asks for (effects). What goes to the trainer child and comes from it travels as JSON."""

from dataclasses import dataclass

import msgspec

from fleetgrad.edge.link.residual import Residual
from fleetgrad.wire.events import Connected, Disconnected, Log, Message, Publish, Subscribe, Tick
from fleetgrad.wire.messages import Policy
from fleetgrad.wire.seeds import Keys
from fleetgrad.wire.strict import Strict

__all__ = [
    "CancelTraining",
    "Connected",
    "Disconnected",
    "Effect",
    "Event",
    "Log",
    "Message",
    "Progress",
    "Publish",
    "Subscribe",
    "Tick",
    "Train",
    "Trained",
    "TrainerWord",
    "TrainingFailed",
    "Unsubscribe",
]


class Progress(msgspec.Struct, frozen=True, tag_field="kind", tag="progress"):
    """The trainer's word between epochs."""

    round: int
    attempt: int
    steps: int
    loss: float


class Trained(msgspec.Struct, frozen=True, tag_field="kind", tag="trained"):
    """The sealed payload is on disk under `payload`; size in bytes, hashes in hex, the rate in bits per coordinate.

    `plain` is the hash of the payload before it was sealed, `residual` of what it left out if that is kept.
    """

    round: int
    attempt: int
    payload: str
    size: int
    sha256: str
    weight: int
    steps: int
    loss: float
    rate: float
    residual: str = ""
    plain: str = ""


class TrainingFailed(msgspec.Struct, frozen=True, tag_field="kind", tag="failed"):
    """`lasting`: this plan can't be trained here at all, as when the data doesn't fit it."""

    round: int
    attempt: int
    reason: str
    lasting: bool = False


TrainerWord = Progress | Trained | TrainingFailed
Event = Connected | Disconnected | Message | TrainerWord | Tick


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    filters: list[str]


class Train(Strict, frozen=True):
    """Train `params` of `plan` (file names of verified objects) and store the payload, durably, as `output`: sealed to the key `seal`
    with the associated data `sealed_with`, both in hex.

    Under a codec with error feedback: add what is `carried`, and store what is left out, durably, as `residual_output` before, and
    the payload unsealed as `plain_output`.
    """

    round: int
    attempt: int
    plan: str
    params: str
    policy: Policy
    seed: int
    keys: Keys
    output: str
    seal: str
    sealed_with: str
    residual_output: str = ""
    plain_output: str = ""
    carried: Residual | None = None


@dataclass(frozen=True, slots=True)
class CancelTraining:
    pass


Effect = Publish | Subscribe | Unsubscribe | Train | CancelTraining | Log
