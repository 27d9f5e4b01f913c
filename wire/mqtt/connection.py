"""One connection from opening to its end, on a thread of its own; the session above judges what the end means.

All of the client library runs on this thread, callbacks included, and these do nothing but enqueue. The loop waits on the
socket itself, so it can leave the socket unread while the inbox is full, and it holds a watch over silence: a PINGRESP that
doesn't come within half a keep-alive means that the other side is gone, whatever TCP says.
"""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from fleetgrad.wire.events import Message
from fleetgrad.wire.mqtt import transport
from fleetgrad.wire.mqtt.client import Client
from fleetgrad.wire.mqtt.events import Inbox
from fleetgrad.wire.mqtt.profiles import Connack, Limits, Profile, limits
from fleetgrad.wire.mqtt.sending import Outgoing
from fleetgrad.wire.mqtt.settings import Endpoint
from fleetgrad.wire.tls import Floor, explain

CONNECT_SECONDS = 10.0
VERSION_SECONDS = 2.0  # for the answer to a CONNECT of MQTT 5; one round trip, as TCP is connected
SILENCE = 1.5  # keep-alives without a byte from the broker end a connection
PACKETS = 32  # are read at most before the loop turns
IDLE_SECONDS = 5.0  # the loop looks around so often at least
UNSUPPORTED_VERSION = 132  # MQTT 5 reason code "unsupported protocol version"; paho maps 3.1.1's code 1 onto it
RETAIN_NOT_SUPPORTED = 154
TAKEN_OVER = 142
NOT_POISON = (
    137,
    139,
    141,
    TAKEN_OVER,
    152,
    156,
    157,
    159,
    160,
)  # busy, shutting down, keep alive, taken over, administrative, moved ...

Control = tuple[Literal["subscribe", "unsubscribe"], list[str]]


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes (retained) when this side vanishes."""

    topic: str
    payload: bytes


class Owner(Protocol):
    """What a connection asks of its session; all of it is called from the connection's thread."""

    stopping: threading.Event

    def opened(self, connection: "Connection", limits: Limits) -> None: ...

    def controls(self) -> list[Control]: ...

    def take(self, connection: "Connection", now: float) -> Outgoing | float | None: ...

    def sent(self, connection: "Connection", packet_id: int, publish: Outgoing) -> None: ...

    def acknowledged(self, connection: "Connection", packet_id: int, refusal: str) -> None: ...

    def refused(self, connection: "Connection", topic: str, size: int, reason: str) -> None: ...


class Connection:
    """`run` returns when it has ended; the public fields then say how."""

    def __init__(
        self,
        owner: Owner,
        endpoint: Endpoint,
        profile: Profile,
        floor: Floor,
        client_id: str,
        version: MQTTProtocolVersion,
        will: Will | None,
        will_retained: bool,
        inbox: Inbox,
    ) -> None:
        self._owner, self._endpoint, self._profile, self._floor = owner, endpoint, profile, floor
        self._client_id, self._version, self._inbox = client_id, version, inbox
        self._will, self._will_retained = will, will_retained
        self._transport: transport.Transport | None = None
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._filters: dict[int, list[str]] = {}
        self._heard = 0.0
        self._limits = limits(profile, Connack())
        self.reason = f"{endpoint.address}: connection closed by the broker"
        self.beat = time.monotonic()  # when the loop last turned
        self.up_at: float | None = None
        self.hung_up = False  # it was up, and the broker ended it for no reason that clears us
        self.unexplained = False  # the same, without a word
        self.hung_up_on_version = False
        self.retain_refused = False
        self.taken_over = False
        self.abandoned = False

    def run(self) -> None:
        """Opens, connects and serves until the end."""
        address = self._endpoint.address
        reached = False
        try:
            self._transport = transport.connect(address, self._endpoint.credentials, self._floor, CONNECT_SECONDS)
            reached = True
            client = self._client(self._transport)
            client.connect(address.host, address.port, keepalive=self._endpoint.keepalive)
            try:
                self._serve(client)
            finally:
                client.on_disconnect = None  # it has ended already, and `reason` says why
                client.disconnect()
        except OSError as e:
            self.reason = f"{address}: {e.strerror or e}"
        except ValueError as e:
            self.reason = f"{address}: the broker sent what is no MQTT: {e}"
        finally:
            self._close()
        up, stopping = self.up_at is not None, self._owner.stopping.is_set() or self.abandoned
        self.hung_up_on_version |= reached and not up and not stopping and not self._tls_fault()
        self.hung_up &= not stopping
        self.unexplained &= self.hung_up

    def wake(self) -> None:
        """Makes the loop turn now; from any thread."""
        with contextlib.suppress(OSError):  # full: it will turn anyway; closed: it has ended
            self._wake_writer.send(b"\0")

    def abandon(self, reason: str) -> None:
        """Gives up a connection whose thread doesn't answer."""
        self.abandoned, self.reason = True, reason
        if self._transport:
            self._transport.interrupt()
        self.wake()

    # --- the connection's thread ------------------------------------------------------------------------------------
    def _client(self, opened: transport.Transport) -> Client:
        older = self._version is MQTTProtocolVersion.MQTTv311
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=self._version,
            reconnect_on_failure=False,
            clean_session=True if older else None,
        )
        client.opened = opened
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.arrived = self._on_message
        client.on_publish = lambda _c, _u, mid, code, _p: self._owner.acknowledged(
            self, mid, str(code) if code.is_failure else ""
        )
        client.on_subscribe = self._on_subscribe
        if self._will:
            client.will_set(self._will.topic, self._will.payload, qos=self._limits.qos, retain=self._will_retained)
        return client

    def _serve(self, client: Client) -> None:
        newer = self._version is MQTTProtocolVersion.MQTTv5
        patience = VERSION_SECONDS if newer else CONNECT_SECONDS
        connected_by = time.monotonic() + patience
        self._heard = time.monotonic()
        while client.socket() is not None and not self.abandoned:
            now = self.beat = time.monotonic()
            wait = IDLE_SECONDS
            if self.up_at is None:
                if now > connected_by:
                    self.reason = f"{self._endpoint.address}: no answer to CONNECT within {patience:.0f} s"
                    return
                wait = min(wait, connected_by - now + 0.01)
            else:
                wait = min(wait, self._hand_over(client, now))
            if self._owner.stopping.is_set():
                return
            if client.keepalive:
                wait = min(wait, client.keepalive / 8)
                if now - self._heard > SILENCE * client.keepalive:
                    self.hung_up = False
                    self.reason = f"{self._endpoint.address}: nothing heard for {now - self._heard:.0f} s, not even an answer to a ping"
                    return
            if not self._turn(client, wait):
                return

    def _turn(self, client: Client, wait: float) -> bool:
        """Waits for the socket and lets the library read and write; False when the connection has ended."""
        opened, paused = client.opened, self._inbox.full
        if client.socket() is None:
            return False
        pending = not paused and opened.pending() > 0
        opened.flush()
        poller = select.poll()
        poller.register(self._wake_reader, select.POLLIN)
        events = 0 if paused else select.POLLIN
        poller.register(opened.fileno(), events | (select.POLLOUT if client.want_write() or opened.unsent else 0))
        ready = dict(poller.poll(0 if pending else wait * 1000))
        if ready.pop(self._wake_reader.fileno(), 0):
            with contextlib.suppress(BlockingIOError):
                self._wake_reader.recv(4096)
        event = ready.popitem()[1] if ready else 0
        if paused:  # what isn't read can't be heard
            self._heard = time.monotonic()
        if pending or event & (select.POLLIN | select.POLLHUP | select.POLLERR):
            self._heard = time.monotonic()
            for _ in range(PACKETS):
                if client.loop_read() != paho.MQTT_ERR_SUCCESS:
                    return False
                if not opened.pending() or self._inbox.full:
                    break
        if event & select.POLLOUT and client.loop_write() != paho.MQTT_ERR_SUCCESS:
            return False
        return client.loop_misc() == paho.MQTT_ERR_SUCCESS

    def _hand_over(self, client: Client, now: float) -> float:
        """Gives the library what may leave now; seconds until it may be more."""
        for verb, filters in self._owner.controls():
            size = self._limits.filters_per_subscribe
            for some in (filters[i : i + size] for i in range(0, len(filters), size)):
                if verb == "unsubscribe":
                    client.unsubscribe(some)
                else:
                    _, packet_id = client.subscribe([(f, self._limits.qos) for f in some])
                    if packet_id is not None:
                        self._filters[packet_id] = some
        while client.socket() is not None:
            found = self._owner.take(self, now)
            if not isinstance(found, Outgoing):
                return IDLE_SECONDS if found is None else found
            qos = min(found.qos, self._limits.qos)
            info = client.publish(found.topic, found.payload, qos=qos, retain=found.retain and self._limits.retained)
            if qos and info.rc == paho.MQTT_ERR_SUCCESS:
                self._owner.sent(self, info.mid, found)
        return IDLE_SECONDS

    def _on_connect(self, client: paho.Client, _user: Any, _flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self.reason = f"{self._endpoint.address}: connection refused: {reason}"
            self.hung_up_on_version = reason.value == UNSUPPORTED_VERSION
            self.retain_refused = reason.value == RETAIN_NOT_SUPPORTED
            self.abandoned = not self.hung_up_on_version
            return

        def said(name: str) -> int | None:
            found = getattr(properties, name, None)
            return None if found is None else int(found)

        self._limits = limits(
            self._profile,
            Connack(
                said("ReceiveMaximum"), said("MaximumPacketSize"), said("MaximumQoS"), said("RetainAvailable") != 0
            ),
        )
        self.hung_up = self.unexplained = True
        self.up_at = time.monotonic()
        self._owner.opened(self, self._limits)

    def _on_disconnect(self, _client: paho.Client, _user: Any, flags: Any, reason: Any, _properties: Any) -> None:
        if self.up_at is None or self.abandoned:
            return
        fault = self._transport.fault if self._transport else None
        told = flags.is_disconnect_packet_from_server
        if told and reason.value in NOT_POISON:
            self.hung_up = False
        self.unexplained = not told
        self.taken_over = told and reason.value == TAKEN_OVER
        said = str(reason) if told else "the broker closed the connection"
        if fault is not None and not told:
            said = explain(fault, self._endpoint.address, self._endpoint.credentials)
        self.reason = f"{self._endpoint.address}: disconnected: {said}"

    def _on_message(self, topic: bytes, payload: bytes, retained: bool) -> None:
        with contextlib.suppress(UnicodeDecodeError):  # a topic that is no text isn't one of ours
            self._inbox.put(Message(topic.decode(), payload, retained))

    def _on_subscribe(self, _client: paho.Client, _user: Any, packet_id: int, codes: Any, _properties: Any) -> None:
        for asked, code in zip(self._filters.pop(packet_id, []), codes, strict=False):
            if code.is_failure:
                self._owner.refused(self, asked, 0, f"the broker refused the subscription: {code}")

    def _tls_fault(self) -> bool:
        """Whether TLS ended it before MQTT began; then `reason` says how."""
        fault = self._transport.fault if self._transport else None
        if self.up_at is None and self._endpoint.address.tls and fault is not None:
            self.reason = (
                f"{self._endpoint.address}: {explain(fault, self._endpoint.address, self._endpoint.credentials)}"
            )
            return True
        return False

    def _close(self) -> None:
        if self._transport:
            self._transport.close()
        self._wake_reader.close()
        self._wake_writer.close()


def start(connection: Connection, name: str, done: Callable[[], None]) -> threading.Thread:
    """Runs a connection on a new thread and calls `done` when it has ended, however that was."""

    def body() -> None:
        try:
            connection.run()
        except Exception as e:  # noqa: BLE001  (a fault of ours or the library's: it mustn't end in silence)
            connection.reason = f"the connection's thread died: {type(e).__name__}: {e}"
        finally:
            done()

    thread = threading.Thread(target=body, name=name, daemon=True)
    thread.start()
    return thread
