"""What every process on the broker is made of: a session, and the one queue that is served: MQTT's events, ticks, a stop by signal,
and whatever else its owner puts in.

It says on standard error when the broker is gone, and gives up when that lasts longer than asked.
"""

import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from fleetgrad.wire import mqtt
from fleetgrad.wire.events import Connected, Disconnected, Message, Tick, earliest
from fleetgrad.wire.exits import EXIT_INTERRUPTED, EXIT_NO_BROKER


@dataclass(frozen=True, slots=True)
class Stop:
    """Someone asked the process to end; `code` is its exit code."""

    code: int = 0


class GaveUp(ConnectionError):
    """The broker stayed away for longer than `--timeout`."""


class Loop:
    """`next` is called from one thread; `inbox` takes items from any. `timeout` in seconds, 0 waits for ever."""

    def __init__(
        self, broker: mqtt.Endpoint, client_id: str, timeout: float, log: Callable[..., None], *,
        will: mqtt.Will | None = None, random: Random | None = None,
    ) -> None:  # fmt: skip
        self.inbox = mqtt.Inbox()
        self.session = mqtt.Session(broker, client_id, inbox=self.inbox, will=will, random=random)
        self.connected = False
        self.patience = timeout
        self._address, self._log = broker.address, log
        self._down_since = time.monotonic()

    def run(self, serve: Callable[[], int], after: float = 0.0) -> int:
        """Connects, `after` seconds from now, and calls `serve`, which calls `next`; the exit code."""
        self._stop_on_signals()
        self.session.start(after)
        try:
            return serve()
        except GaveUp:
            return EXIT_NO_BROKER
        finally:
            self.session.stop()

    def stop(self, code: int = 0) -> None:
        """Makes `next` return Stop, after what is queued already."""
        self.inbox.put(Stop(code))

    def _stop_on_signals(self) -> None:
        """Lets SIGTERM and SIGINT stop the loop; only the main thread can have that."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self.stop())
            signal.signal(signal.SIGINT, lambda *_: self.stop(EXIT_INTERRUPTED))

    def next(self, wake_at: float | None) -> object:
        """Waits for the next item; Tick when `wake_at` (monotonic) comes first. Raises GaveUp."""
        give_up_at = self._down_since + self.patience if self.patience and not self.connected else None
        due = earliest(wake_at, give_up_at)
        try:
            item = self.inbox.get(timeout=None if due is None else max(0.0, due - time.monotonic()))
        except queue.Empty:
            item = Tick()
        now = time.monotonic()
        match item:
            case Connected():
                self.connected = True
                self._log("connected", broker=self._address)
                return item
            case Message():
                return item
            case mqtt.Refused():
                self._log("publish_refused", topic=item.topic, size=item.size, reason=item.reason)
                return Tick()
            case Disconnected():
                if self.connected:
                    self._down_since = now
                self.connected = False
                self._log("broker_unreachable", reason=item.reason, retry_in=f"{item.retry_in:.1f}s")
        if give_up_at is not None and now >= give_up_at and not isinstance(item, Stop):
            self._log("gave_up", broker=self._address, seconds=self.patience)
            raise GaveUp(f"no broker at {self._address} for {self.patience:g} s")
        return item
