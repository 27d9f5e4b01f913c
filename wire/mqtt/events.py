"""What a session tells its owner beside the events of wire/events.py, and the queue that it does so by."""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fleetgrad.wire.events import Connected, Disconnected, Message

INBOX_BYTES, INBOX_MESSAGES = 16 * 2**20, 4096  # messages that wait for their reader, at most


@dataclass(frozen=True, slots=True)
class Ready:
    """There is room for publishes again after `publish` has said no."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A publish that will not reach anyone, or a filter (`size` 0) that will bring nothing; the reason in words."""

    topic: str
    size: int
    reason: str


Event = Connected | Disconnected | Message | Ready | Refused


class Inbox:
    """A queue that anyone puts into and one thread reads. A session stops reading its socket while `full`, so it is bounded
    though nothing that is put in is refused: the broker waits."""

    def __init__(self, most_bytes: int = INBOX_BYTES, most_messages: int = INBOX_MESSAGES) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._most_bytes, self._most_messages = most_bytes, most_messages
        self._lock = threading.Lock()
        self._bytes = self._messages = 0
        self._on_room: list[Callable[[], None]] = []

    @property
    def full(self) -> bool:
        return self._bytes >= self._most_bytes or self._messages >= self._most_messages

    def on_room(self, call: Callable[[], None]) -> None:
        """`call` is called, from the reader's thread, whenever the inbox is no longer full."""
        self._on_room.append(call)

    def put(self, item: Any) -> None:
        """Takes an Event, or whatever else the owner serves."""
        if isinstance(item, Message):
            with self._lock:
                self._bytes += len(item.payload)
                self._messages += 1
        self._queue.put(item)

    def get(self, timeout: float | None = None) -> Any:
        """The next item; raises queue.Empty after `timeout` seconds."""
        return self._taken(self._queue.get(timeout=timeout))

    def get_nowait(self) -> Any:
        return self._taken(self._queue.get_nowait())

    def _taken(self, item: Any) -> Any:
        if isinstance(item, Message):
            with self._lock:
                was_full = self.full
                self._bytes -= len(item.payload)
                self._messages -= 1
                room = was_full and not self.full
            if room:
                for call in self._on_room:
                    call()
        return item
