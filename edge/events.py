"""What the participant is told (events) and what it asks for (effects)."""

from dataclasses import dataclass, field

from fleetgrad.wire.messages import Policy


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker took us; nothing is subscribed."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    reason: str


@dataclass(frozen=True, slots=True)
class Message:
    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Progress:
    """The trainer's word between epochs."""

    round: int
    attempt: int
    steps: int
    loss: float


@dataclass(frozen=True, slots=True)
class Trained:
    """The payload is on disk under `payload`; sizes in bytes, the hash in hex."""

    round: int
    attempt: int
    payload: str
    size: int
    sha256: str
    weight: int
    steps: int
    loss: float


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    round: int
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that `wake_at` named has come."""


Event = Connected | Disconnected | Message | Progress | Trained | TrainingFailed | Tick


@dataclass(frozen=True, slots=True)
class Publish:
    topic: str
    payload: bytes
    retained: bool = False


@dataclass(frozen=True, slots=True)
class Subscribe:
    filters: list[str]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    filters: list[str]


@dataclass(frozen=True, slots=True)
class Train:
    """Train `params` of `plan` (file names of verified objects) and store the payload, durably, as `output`."""

    round: int
    attempt: int
    plan: str
    params: str
    policy: Policy
    seed: int
    codec_seed: int
    output: str


@dataclass(frozen=True, slots=True)
class CancelTraining:
    pass


@dataclass(frozen=True, slots=True)
class Log:
    """A line for people: an event with fields."""

    event: str
    fields: dict[str, object] = field(default_factory=dict)


Effect = Publish | Subscribe | Unsubscribe | Train | CancelTraining | Log
