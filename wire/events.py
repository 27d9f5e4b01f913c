"""What both state machines are told of the link, and ask of it. Each side adds its own events and effects to these."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker took us; nothing is subscribed, and what it retained may be gone.

    `chunk_bytes` is how long a chunk's data may be on it, 0 where there is no room for any, `retained` whether it keeps messages for who comes later.
    """

    chunk_bytes: int = 120 * 1024
    retained: bool = True


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection ended or couldn't be made; the next try is in `retry_in` seconds."""

    reason: str
    retry_in: float = 0.0


@dataclass(frozen=True, slots=True)
class Message:
    """One message from the broker; `retained` means that it was published earlier."""

    topic: str
    payload: bytes
    retained: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """The time that `wake_at` named has come."""


def earliest(*times: float | None) -> float | None:
    """The first of these times; None is never."""
    return min((t for t in times if t is not None), default=None)


@dataclass(frozen=True, slots=True)
class Publish:
    topic: str
    payload: bytes
    retained: bool = False


@dataclass(frozen=True, slots=True)
class Subscribe:
    filters: list[str]


@dataclass(frozen=True, slots=True)
class Log:
    """A line for people: an event with fields."""

    event: str
    fields: dict[str, object] = field(default_factory=dict)
