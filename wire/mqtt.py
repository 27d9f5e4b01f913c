"""One MQTT connection that comes back by itself and hides nothing.

Three faults of the client library shape this file: its own reconnect has no jitter and replays a whole queue at once, its
thread dies silently when a callback raises, and what it queues is unbounded. So each connection is a new client without
automatic reconnect, its loop runs on our thread (whatever ends it is an event), callbacks do nothing but
enqueue, and `publish` says no when the queue is full. Nothing outlives a connection: no session, no queue, no
subscription. The state machines above repeat themselves instead.

    start --> connecting --Up--> connected --Down--> waiting (full jitter: uniform(0, min(most, first * 2^tries))) --> connecting

MQTT 5 is tried first, 3.1.1 when a broker hangs up on it or doesn't answer (amqtt waits for ever for the rest of a CONNECT whose
last will has the properties of MQTT 5).
"""

import queue
import random
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from fleetgrad.wire.address import Address

QUEUE_LIMIT = 64  # publishes that wait for the broker's acknowledgement, at most
IN_FLIGHT = 8  # of these, sent and not yet acknowledged: under the smallest Receive Maximum among known brokers
CONNECT_SECONDS = 10.0
VERSION_SECONDS = 2.0  # for the answer to a CONNECT of MQTT 5; one round trip, as TCP is connected
FLUSH_SECONDS = 2.0
UNSUPPORTED_VERSION = 132  # MQTT 5 reason code "unsupported protocol version"; paho maps 3.1.1's code 1 onto it


@dataclass(frozen=True, slots=True)
class Up:
    """Connected; nothing is subscribed yet."""


@dataclass(frozen=True, slots=True)
class Down:
    """The connection ended or couldn't be made; the next try is in `retry_in` seconds."""

    reason: str
    retry_in: float


@dataclass(frozen=True, slots=True)
class Ready:
    """There is room for publishes again after `publish` has said no."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message from the broker; `retained` means that it was published earlier."""

    topic: str
    payload: bytes
    retained: bool


Event = Up | Down | Ready | Message
Inbox = queue.SimpleQueue[Any]  # takes Event; owners mix in events of their own


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes (retained) when this side vanishes."""

    topic: str
    payload: bytes


class Session:
    """A supervised connection. `publish`, `subscribe` and `unsubscribe` are called from one thread, the inbox's reader."""

    def __init__(
        self,
        address: Address,
        client_id: str,
        *,
        inbox: Inbox,
        will: Will | None = None,
        random: random.Random,
        keepalive: int = 60,
        first_backoff: float = 1.0,
        most_backoff: float = 300.0,
    ) -> None:
        self._address, self._client_id, self._inbox, self._will = address, client_id, inbox, will
        self._random, self._keepalive = random, keepalive
        self._first, self._most = first_backoff, most_backoff
        self._stopping = threading.Event()
        self._lock = threading.Condition()
        self._client: paho.Client | None = None  # set while connected
        self._pending = 0
        self._refused = False
        self._version = MQTTProtocolVersion.MQTTv5
        self._thread = threading.Thread(target=self._supervise, name=f"mqtt-{client_id}", daemon=True)

    @property
    def connected(self) -> bool:
        return self._client is not None

    def start(self) -> None:
        """Begins to connect; Up or Down follows in the inbox."""
        self._thread.start()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Hands one message to the connection; False when there is none or QUEUE_LIMIT are waiting (Ready follows)."""
        with self._lock:
            client = self._client
            if client is None or self._pending >= QUEUE_LIMIT:
                self._refused = True
                return False
            self._pending += 1
        if client.publish(topic, payload, qos=qos, retain=retain).rc == paho.MQTT_ERR_SUCCESS:
            return True
        with self._lock:
            self._pending = max(0, self._pending - 1)
        return False

    def subscribe(self, filters: list[str]) -> None:
        """Asks for messages, with QoS 1; without a connection it does nothing."""
        if filters and (client := self._client):
            client.subscribe([(f, 1) for f in filters])

    def unsubscribe(self, filters: list[str]) -> None:
        if filters and (client := self._client):
            client.unsubscribe(filters)

    def stop(self) -> None:
        """Waits up to FLUSH_SECONDS for what is published, disconnects (no last will is sent) and ends the thread."""
        with self._lock:
            self._lock.wait_for(lambda: self._pending == 0 or self._client is None, timeout=FLUSH_SECONDS)
        self._stopping.set()
        if client := self._client:
            client.disconnect()
        if self._thread.is_alive():
            self._thread.join(timeout=CONNECT_SECONDS)

    # --- the supervisor's thread ------------------------------------------------------------------------------------
    def _supervise(self) -> None:
        tries = 0
        while not self._stopping.is_set():
            connection = _Connection(self)
            reason = connection.run()
            with self._lock:
                self._client, self._pending, self._refused = None, 0, False
                self._lock.notify_all()
            if self._stopping.is_set():
                return
            if connection.hung_up_on_version:
                older = self._version is MQTTProtocolVersion.MQTTv5
                self._version = MQTTProtocolVersion.MQTTv311 if older else MQTTProtocolVersion.MQTTv5
                if older:
                    continue  # the other version at once; only when both fail there is something to report
            tries = 1 if connection.was_up else tries + 1
            delay = self._random.uniform(0, min(self._most, self._first * 2.0 ** min(tries - 1, 30)))
            self._inbox.put(Down(reason, delay))
            self._stopping.wait(delay)

    def _opened(self, client: paho.Client) -> None:
        with self._lock:
            self._client, self._pending, self._refused = client, 0, False
        self._inbox.put(Up())

    def _acknowledged(self) -> None:
        with self._lock:
            self._pending = max(0, self._pending - 1)
            ready = self._refused and self._pending <= QUEUE_LIMIT // 2
            if ready:
                self._refused = False
            if self._pending == 0:
                self._lock.notify_all()
        if ready:
            self._inbox.put(Ready())


class _Connection:
    """One client from connect to its end, all on the supervisor's thread."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.was_up = False
        self.reached = False  # TCP connected
        self.hung_up_on_version = False
        self._reason = f"{session._address}: connection closed by the broker"

    def run(self) -> str:
        """Connects and serves until the end; the reason for it, in words."""
        session = self._session
        address = session._address
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=session._client_id,
            protocol=session._version,
            reconnect_on_failure=False,
            clean_session=True if session._version is MQTTProtocolVersion.MQTTv311 else None,
        )
        client.connect_timeout = CONNECT_SECONDS
        client.max_queued_messages_set(QUEUE_LIMIT)
        client.max_inflight_messages_set(IN_FLIGHT)
        # With a write callback set, publish() leaves writing to the loop: no two threads write one socket.
        client.on_socket_register_write = lambda *_: None
        client.on_socket_unregister_write = lambda *_: None
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = lambda _c, _u, m: session._inbox.put(Message(m.topic, bytes(m.payload), m.retain))
        client.on_publish = lambda *_: session._acknowledged()
        if session._will:
            client.will_set(session._will.topic, session._will.payload, qos=1, retain=True)
        try:
            client.connect(address.host, address.port, keepalive=session._keepalive)
            self.reached = True
            self._loop(client)
        except (OSError, socket.gaierror) as e:
            self._reason = f"{address}: {e.strerror or e}"
        except ValueError as e:
            self._reason = f"{address}: the broker sent what is no MQTT: {e}"
        finally:
            with session._lock:
                session._client = None
            client.disconnect()
        self.hung_up_on_version |= self.reached and not self.was_up and not session._stopping.is_set()
        return self._reason

    def _loop(self, client: paho.Client) -> None:
        newer = self._session._version is MQTTProtocolVersion.MQTTv5
        patience = VERSION_SECONDS if newer else CONNECT_SECONDS
        connected_by = time.monotonic() + patience
        while client.loop(timeout=1.0 if self.was_up else 0.1) == paho.MQTT_ERR_SUCCESS:
            if self._session._stopping.is_set() and self._session._client is None:
                return
            if not self.was_up and time.monotonic() > connected_by:
                self._reason = f"{self._session._address}: no answer to CONNECT within {patience:.0f} s"
                return

    def _on_connect(self, client: paho.Client, _user: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._reason = f"{self._session._address}: connection refused: {reason}"
            self.hung_up_on_version = reason.value == UNSUPPORTED_VERSION
            self.reached = self.hung_up_on_version
            return
        self.was_up = True
        self._session._opened(client)

    def _on_disconnect(self, _client: paho.Client, _user: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if self.was_up:
            self._reason = f"{self._session._address}: disconnected: {reason}"
