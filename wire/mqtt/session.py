"""The supervisor: keeps one connection to a broker, and judges how each has ended.

Faults of the client library and of brokers shape it: the library's own reconnect has no jitter and replays a whole queue at once,
its thread dies silently, what it queues is unbounded, it ignores what the broker says it takes; and a broker may answer one
publish by hanging up, for ever. So each connection is a new client on a thread that is watched, `publish` says no when the
queue is full, and nothing outlives a connection: no session, no queue, no subscription. The machines above repeat themselves.

    start --> connecting --Connected--> connected --Disconnected--> waiting --> connecting
    waiting: backoff.py

MQTT 5 is tried first, 3.1.1 when a broker hangs up on it or doesn't answer (amqtt waits for ever for the rest of a CONNECT whose
last will has the properties of MQTT 5).
"""

import threading
import time
from collections import deque
from random import Random

from paho.mqtt.enums import MQTTProtocolVersion

from fleetgrad.wire.address import Address
from fleetgrad.wire.events import Connected, Disconnected
from fleetgrad.wire.mqtt import client
from fleetgrad.wire.mqtt.backoff import Backoff
from fleetgrad.wire.mqtt.connection import CONNECT_SECONDS, Connection, Control, Will, start
from fleetgrad.wire.mqtt.events import Inbox, Ready, Refused
from fleetgrad.wire.mqtt.profiles import Limits, profile_for
from fleetgrad.wire.mqtt.sending import QUEUE_LIMIT, STRIKES, Outgoing, Sending
from fleetgrad.wire.mqtt.settings import Endpoint
from fleetgrad.wire.mqtt.transport import listens
from fleetgrad.wire.tls import Floor

__all__ = ["Session", "Will"]

FLUSH_SECONDS = 2.0
PROBE_SECONDS = 1.0  # whether a broker still listens: for a TCP handshake, and for what it took to be reset
CHECK_SECONDS = 5.0  # between two looks at the connection's thread
STALL_SECONDS = 45.0  # without a turn of its loop a connection is given up; opening takes a few CONNECT_SECONDS


class Session:
    """A supervised connection. `publish`, `subscribe` and `unsubscribe` are called from one thread, the inbox's reader."""

    def __init__(
        self,
        broker: Endpoint | Address,
        client_id: str,
        *,
        inbox: Inbox,
        will: Will | None = None,
        random: Random | None = None,
        first_backoff: float = 1.0,
        most_backoff: float = 300.0,
    ) -> None:
        """Raises client.LibraryUnfit."""
        client.check()
        self._endpoint = broker if isinstance(broker, Endpoint) else Endpoint(broker)
        self._client_id, self._inbox, self._will = client_id, inbox, will
        self.backoff = Backoff(random or Random(), first_backoff, most_backoff)
        self._profile = profile_for(self._endpoint.profile, self._endpoint.address)
        self._will_retained = self._profile.retained != "none"
        self._floor = Floor(self._endpoint.floor)
        self._version = MQTTProtocolVersion.MQTTv5
        self._knows_newer = False  # whether the broker has ever taken a connection of MQTT 5
        self._lock = threading.Condition()
        self._sending, self._controls = Sending(), deque[Control]()
        self._up: Connection | None = None
        self._refused = False
        self._leave_at: float | None = None  # the connection under way, on which the broker has refused something
        self._ended = threading.Event()  # the connection under way has, or the session stops
        self._thread = threading.Thread(target=self._supervise, name=f"mqtt-{client_id}", daemon=True)
        self.stopping = threading.Event()
        self._begins_after = 0.0
        inbox.on_room(self._wake)

    @property
    def connected(self) -> bool:
        return self._up is not None

    def start(self, after: float = 0.0) -> None:
        """Begins to connect, `after` seconds from now; Connected or Disconnected follows in the inbox."""
        self._begins_after = after
        self._thread.start()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Hands one message to the connection; False when there is none or QUEUE_LIMIT are waiting (Ready follows).

        What the broker would never take is taken off the caller's hands too, and Refused follows. QoS 2 raises ValueError:
        it isn't exactly-once across a restart, and some brokers have none.
        """
        if qos not in (0, 1):
            raise ValueError(f"publish to {topic}: QoS {qos}, and only 0 and 1 are used")
        publish = Outgoing(topic, bytes(payload), qos, retain)
        with self._lock:
            if self._up is None or self._sending.full:
                self._refused = True
                return False
            reason = self._sending.offer(publish, time.monotonic())
        if reason:
            self._inbox.put(Refused(topic, len(payload), reason))
        else:
            self._wake()
        return True

    def subscribe(self, filters: list[str]) -> None:
        """Asks for messages, with QoS 1; without a connection it does nothing."""
        self._control(("subscribe", list(filters)))

    def unsubscribe(self, filters: list[str]) -> None:
        self._control(("unsubscribe", list(filters)))

    def stop(self) -> None:
        """Waits up to FLUSH_SECONDS for what is published, disconnects (no last will is sent) and ends the threads."""
        with self._lock:
            self._lock.wait_for(lambda: self._sending.pending == 0 or self._up is None, timeout=FLUSH_SECONDS)
        self.stopping.set()
        self._ended.set()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout=CONNECT_SECONDS)

    def _control(self, control: Control) -> None:
        with self._lock:
            if not control[1] or self._up is None:
                return
            self._controls.append(control)
        self._wake()

    def _wake(self) -> None:
        if up := self._up:
            up.wake()

    # --- the supervisor's thread ------------------------------------------------------------------------------------
    def _supervise(self) -> None:
        self.stopping.wait(self._begins_after)
        while not self.stopping.is_set():
            connection = Connection(
                self, self._endpoint, self._profile, self._floor, self._client_id, self._version, self._will,
                self._will_retained, self._inbox,
            )  # fmt: skip
            self._watch(connection)
            self._forget(connection)
            if self.stopping.is_set():
                return
            if self._other_way(connection):
                continue  # at once; only when that fails too there is something to report
            lasted = None if connection.up_at is None else time.monotonic() - connection.up_at
            hung_up = connection.unexplained
            if hung_up and self.backoff.suspected(lasted):
                hung_up = listens(self._endpoint.address, PROBE_SECONDS)
            delay = self.backoff.after(lasted, taken_over=connection.taken_over, hung_up=hung_up)
            self._inbox.put(Disconnected(self._why(connection), delay))
            self.stopping.wait(delay)

    def _why(self, connection: Connection) -> str:
        """The reason of an end, in words that name what is to be done where another one has our name."""
        if connection.taken_over:
            return (
                f"{self._endpoint.address}: another connection has taken the name {self._client_id!r}: this runs twice, or two boards "
                "have the same kit; stop the other one"
            )
        if connection.unexplained and self.backoff.rival:
            return (
                f"{connection.reason}, again soon after it had connected: does another process, or a board with the same kit, "
                f"connect as {self._client_id!r}?"
            )
        return connection.reason

    def _watch(self, connection: Connection) -> None:
        """Runs a connection to its end, or until its thread has stalled."""
        self._ended.clear()
        thread = start(connection, f"mqtt-{self._client_id}-connection", self._ended.set)
        while thread.is_alive():
            self._ended.wait(CHECK_SECONDS)
            if self._ended.is_set():
                connection.wake()
                thread.join(timeout=CONNECT_SECONDS)
                return
            if self._leave_at is not None and time.monotonic() >= self._leave_at:
                connection.abandon(f"{self._endpoint.address}: left, to ask anew for what the broker has refused")
                thread.join(timeout=CONNECT_SECONDS)
                return
            if (silent := time.monotonic() - connection.beat) > STALL_SECONDS:
                connection.abandon(f"{self._endpoint.address}: the connection has been stuck for {silent:.0f} s")
                return

    def _forget(self, connection: Connection) -> None:
        """Drops what was under way, and reports publishes that broke three connections running."""
        with self._lock:
            self._up, self._refused, self._leave_at = None, False, None
            guilty = self._sending.lost(connection.hung_up, time.monotonic())
            self._controls.clear()
            self._lock.notify_all()
        for publish in guilty:
            reason = f"the broker hung up {STRIKES} times while it was in flight"
            self._inbox.put(Refused(publish.topic, len(publish.payload), reason))

    def _other_way(self, connection: Connection) -> bool:
        """Whether another way of connecting is worth a try before anything is reported."""
        if connection.retain_refused and self._will_retained:
            self._will_retained = False
            return True
        if connection.up_at is not None:
            self._knows_newer |= self._version is MQTTProtocolVersion.MQTTv5
            if self._knows_newer:  # it was down when it hung up on MQTT 5, and says more of itself in that
                self._version = MQTTProtocolVersion.MQTTv5
        if connection.hung_up_on_version:
            older = self._version is MQTTProtocolVersion.MQTTv5
            self._version = MQTTProtocolVersion.MQTTv311 if older else MQTTProtocolVersion.MQTTv5
            return older
        return False

    # --- called by the connection, on its thread ----------------------------------------------------------------------
    def opened(self, connection: Connection, limits: Limits) -> None:
        """The broker took us."""
        with self._lock:
            self._up, self._refused = connection, False
            self._sending.opened(limits)
        self._inbox.put(Connected(limits.chunk_bytes, limits.retained))

    def controls(self) -> list[Control]:
        """Subscriptions to ask for; they go before all publishes, whose answers they may bring."""
        with self._lock:
            found = list(self._controls)
            self._controls.clear()
        return found

    def take(self, connection: Connection, now: float) -> Outgoing | float | None:
        with self._lock:
            return self._sending.take(now) if connection is self._up else None

    def sent(self, connection: Connection, packet_id: int, publish: Outgoing) -> None:
        with self._lock:
            if connection is self._up:
                self._sending.sent(packet_id, publish)

    def acknowledged(self, connection: Connection, packet_id: int, refusal: str) -> None:
        """The broker has answered a publish; `refusal` is its reason where it didn't take it (MQTT 5 alone tells)."""
        with self._lock:
            if connection is not self._up:
                return
            publish = self._sending.acknowledged(packet_id)
            ready = self._refused and self._sending.pending <= QUEUE_LIMIT // 2
            if ready:
                self._refused = False
            if self._sending.pending == 0:
                self._lock.notify_all()
        if publish and refusal:
            self.refused(connection, publish.topic, len(publish.payload), f"the broker refused it: {refusal}")
        if ready:
            self._inbox.put(Ready())

    def refused(self, connection: Connection, topic: str, size: int, reason: str) -> None:
        """The broker wants no such publish or subscription: this connection is left in a while, since all is asked anew on the next."""
        with self._lock:
            if connection is self._up and self._leave_at is None:
                self._leave_at = time.monotonic() + self.backoff.refused()
        self._inbox.put(Refused(topic, size, reason))
