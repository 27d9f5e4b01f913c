"""What a session tells its owner beside the events of wire/events.py, and the queue that it does so by."""

import queue
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, slots=True)
class Crowded:
    """So many messages of a topic weren't put in, as too many of it waited; see `Inbox.limit`."""

    topic: str
    messages: int = 0


Event = Connected | Disconnected | Message | Ready | Refused | Crowded


class Inbox:
    """A queue that anyone puts into and one thread reads. A session stops reading its socket while `full`, so it is bounded
    though nothing that is put in is refused, unless it is of a crowded topic: the broker waits."""

    def __init__(self, most_bytes: int = INBOX_BYTES, most_messages: int = INBOX_MESSAGES) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._most_bytes, self._most_messages = most_bytes, most_messages
        self._lock = threading.Lock()
        self._bytes = self._messages = 0
        self._on_room: list[Callable[[], None]] = []
        self._limited, self._most_of_topic = "", 0
        self._waiting, self._left_out = Counter[str](), Counter[str]()  # of limited topics, by topic

    @property
    def full(self) -> bool:
        return self._bytes >= self._most_bytes or self._messages >= self._most_messages

    def on_room(self, call: Callable[[], None]) -> None:
        """`call` is called, from the reader's thread, whenever the inbox is no longer full."""
        self._on_room.append(call)

    def limit(self, prefix: str, most: int) -> None:
        """Of each topic that begins so, at most so many messages wait, lest one sender hold up all others: more are left out, and Crowded
        says how many."""
        self._limited, self._most_of_topic = prefix, most

    def put(self, item: Any) -> None:
        """Takes an Event, or whatever else the owner serves."""
        if isinstance(item, Message):
            with self._lock:
                if self._most_of_topic and item.topic.startswith(self._limited):
                    if self._waiting[item.topic] >= self._most_of_topic:
                        self._left_out[item.topic] += 1
                        if self._left_out[item.topic] == 1:
                            self._queue.put(Crowded(item.topic))
                        return
                    self._waiting[item.topic] += 1
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
                if item.topic in self._waiting:
                    self._waiting[item.topic] -= 1
                    if not self._waiting[item.topic]:
                        del self._waiting[item.topic]
                room = was_full and not self.full
            if room:
                for call in self._on_room:
                    call()
        elif isinstance(item, Crowded):
            with self._lock:
                return replace(item, messages=self._left_out.pop(item.topic))
        return item
