"""The client library, paho-mqtt, on a transport that is open already, and with one copy of what a PUBLISH brings instead of five.

It has no public way to either. So these of its insides are relied on, as they are in SERIES, and `check` refuses others:

    _create_socket()     makes what `connect` then speaks through
    _handle_publish()    is called with a whole PUBLISH in `_in_packet`: its first byte under "command", the rest under "packet"
    _send_puback(id)     queues an acknowledgement behind what is half sent
"""

import contextlib
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
from paho import mqtt as paho_mqtt
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion

from fleetgrad.wire.mqtt import transport

SERIES = 2, 2  # before it, the reason of a DISCONNECT without properties is lost
PUBACK = b"\x40\x02"  # and the packet id: success, in either version


class LibraryUnfit(ValueError):
    """The installed paho-mqtt is of another series than the one whose insides are known."""


def check() -> None:
    """Raises LibraryUnfit."""
    major, minor = SERIES
    if paho_mqtt.__version__.split(".")[:2] != [str(major), str(minor)]:
        raise LibraryUnfit(
            f"paho-mqtt {paho_mqtt.__version__} is installed, and {major}.{minor} is needed: "
            f"pip install 'paho-mqtt>={major}.{minor},<{major}.{minor + 1}'"
        )


class Client(paho.Client):
    """One connection's; both fields are set before `connect`."""

    opened: transport.Transport
    arrived: Callable[[bytes, bytes, bool], None]  # topic, payload, whether it was retained

    def _create_socket(self) -> Any:
        return self.opened

    def _handle_publish(self) -> MQTTErrorCode:
        first, packet = self._in_packet["command"], self._in_packet["packet"]
        qos, topic_end = first >> 1 & 3, 2 + int.from_bytes(packet[:2], "big")
        at = topic_end + (2 if qos else 0)
        if self.protocol is MQTTProtocolVersion.MQTTv5:
            at = _after_properties(packet, at)
        if qos > 1 or not 2 < topic_end <= at <= len(packet):
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        self.arrived(bytes(packet[2:topic_end]), bytes(memoryview(packet)[at:]), bool(first & 1))
        return self._acknowledge(packet[topic_end : topic_end + 2]) if qos else MQTTErrorCode.MQTT_ERR_SUCCESS

    def _acknowledge(self, packet_id: bytes | bytearray) -> MQTTErrorCode:
        with contextlib.suppress(BlockingIOError):
            if not self.want_write():  # else what is half sent comes first
                self.opened.send(PUBACK + packet_id)
                return MQTTErrorCode.MQTT_ERR_SUCCESS
        return self._send_puback(int.from_bytes(packet_id, "big"))


def _after_properties(packet: bytes | bytearray, at: int) -> int:
    """Where what follows the properties at `at` begins; none is used here."""
    length = 0
    for i in range(4):  # bytes of a length at most
        byte = packet[at + i] if at + i < len(packet) else 255
        length |= (byte & 127) << 7 * i
        if byte < 128:
            return at + i + 1 + length
    return len(packet) + 1
