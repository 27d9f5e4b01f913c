"""What the round machine is told (events) and what it asks for (effects)."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker took us; nothing is subscribed, and what it retained may be gone."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    reason: str


@dataclass(frozen=True, slots=True)
class Message:
    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that `wake_at` named has come."""


Event = Connected | Disconnected | Message | Tick


@dataclass(frozen=True, slots=True)
class Publish:
    topic: str
    payload: bytes
    retained: bool = False


@dataclass(frozen=True, slots=True)
class Subscribe:
    filters: list[str]


@dataclass(frozen=True, slots=True)
class Published:
    """A new version is durable; `seconds` since its round was opened. Evaluation and reports hang on it."""

    round: int
    version: int
    params: str
    members: int
    loss: float
    bytes_up: int
    bytes_down: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The last round is published."""


@dataclass(frozen=True, slots=True)
class Log:
    """A line for people: an event with fields."""

    event: str
    fields: dict[str, object] = field(default_factory=dict)


Effect = Publish | Subscribe | Published | Finished | Log
