"""What the participant is told (events) and what it asks for (effects)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fleetgrad.wire.events import Connected, Disconnected, Log, Message, Publish, Subscribe, Tick
from fleetgrad.wire.messages import Policy
from fleetgrad.wire.seeds import Keys

if TYPE_CHECKING:
    from fleetgrad.edge.link.residual import Residual

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
    "TrainingFailed",
    "Unsubscribe",
]


@dataclass(frozen=True, slots=True)
class Progress:
    """The trainer's word between epochs."""

    round: int
    attempt: int
    steps: int
    loss: float


@dataclass(frozen=True, slots=True)
class Trained:
    """The payload is on disk under `payload`, what it left out (if anything is kept) has the hash `residual`; size in bytes, the hash in hex, the rate in bits per coordinate."""

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


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """`lasting`: this plan can't be trained here at all, as when the data doesn't fit it."""

    round: int
    attempt: int
    reason: str
    lasting: bool = False


Event = Connected | Disconnected | Message | Progress | Trained | TrainingFailed | Tick


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    filters: list[str]


@dataclass(frozen=True, slots=True)
class Train:
    """Train `params` of `plan` (file names of verified objects) and store the payload, durably, as `output`.

    Under a codec with error feedback: add what is `carried`, and store what is left out, durably, as `residual_output` before.
    """

    round: int
    attempt: int
    plan: str
    params: str
    policy: Policy
    seed: int
    keys: Keys
    output: str
    residual_output: str = ""
    carried: "Residual | None" = None


@dataclass(frozen=True, slots=True)
class CancelTraining:
    pass


Effect = Publish | Subscribe | Unsubscribe | Train | CancelTraining | Log
