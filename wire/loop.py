"""The one queue that a process serves: MQTT's events, ticks, a stop by signal, and whatever else its owner puts in.

It turns the session's events into those of wire/events.py, says on standard error when the broker is gone, and gives up when
that lasts longer than asked.
"""

import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fleetgrad.wire import mqtt
from fleetgrad.wire.address import Address
from fleetgrad.wire.events import Connected, Disconnected, Message, Tick

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@dataclass(frozen=True, slots=True)
class Stop:
    """Someone asked the process to end; `code` is its exit code."""

    code: int = 0


class GaveUp(ConnectionError):
    """The broker stayed away for longer than `--timeout`."""


class Loop:
    """`next` is called from one thread; `inbox` takes items from any."""

    def __init__(self, address: Address, timeout: float, log: Callable[..., None]) -> None:
        self.inbox = mqtt.Inbox()
        self.connected = False
        self._address, self._timeout, self._log = address, timeout, log
        self._down_since = time.monotonic()

    def stop(self, code: int = 0) -> None:
        """Makes `next` return Stop, after what is queued already."""
        self.inbox.put(Stop(code))

    def stop_on_signals(self) -> None:
        """Lets SIGTERM and SIGINT stop the loop; only the main thread can have that."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self.stop())
            signal.signal(signal.SIGINT, lambda *_: self.stop(EXIT_INTERRUPTED))

    def next(self, wake_at: float | None) -> object:
        """Waits for the next item; Tick when `wake_at` (monotonic) comes first. Raises GaveUp."""
        give_up_at = self._down_since + self._timeout if self._timeout and not self.connected else None
        due = [t for t in (wake_at, give_up_at) if t is not None]
        try:
            item = self.inbox.get(timeout=max(0.0, min(due) - time.monotonic()) if due else None)
        except queue.Empty:
            item = Tick()
        now = time.monotonic()
        match item:
            case mqtt.Up():
                self.connected = True
                self._log("connected", broker=self._address)
                return Connected(item.chunk_bytes, item.retained)
            case mqtt.Message():
                return Message(item.topic, item.payload)
            case mqtt.Refused():
                self._log("publish_refused", topic=item.topic, size=item.size, reason=item.reason)
                return Tick()
            case mqtt.Down():
                if self.connected:
                    self._down_since = now
                self.connected = False
                self._log("broker_unreachable", reason=item.reason, retry_in=f"{item.retry_in:.1f}s")
                item = Disconnected(item.reason)
        if give_up_at is not None and now >= give_up_at and not isinstance(item, Stop):
            self._log("gave_up", broker=self._address, seconds=self._timeout)
            raise GaveUp(f"no broker at {self._address} for {self._timeout:g} s")
        return item
