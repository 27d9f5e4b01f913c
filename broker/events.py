"""What the round machine is told (events) and what it asks for (effects)."""

from dataclasses import dataclass

from fleetgrad.wire.events import Connected, Disconnected, Log, Message, Publish, Subscribe, Tick

Event = Connected | Disconnected | Message | Tick

__all__ = [
    "Connected",
    "Disconnected",
    "Effect",
    "Event",
    "Finished",
    "Log",
    "Message",
    "Publish",
    "Published",
    "Subscribe",
    "Tick",
]


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
    codec: str
    bits: float | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The last round is published."""


Effect = Publish | Subscribe | Published | Finished | Log
