"""The MQTT session against a broker played byte by byte: which version it speaks, and what it does when nobody answers."""

import random
import socket
from collections.abc import Iterator

import pytest

from fleetgrad.wire import mqtt
from fleetgrad.wire.address import Address
from fleetgrad.wire.mqtt import connection as connection_module

SECONDS = 30.0
CONNACK = {4: b"\x20\x02\x00\x00", 5: b"\x20\x03\x00\x00\x00"}
REFUSED_VERSION_311 = b"\x20\x02\x00\x01"
WILL = mqtt.Will("fl1/t/st/dev-1", b"offline")


class Broker:
    """Listens, and takes one connection after the other."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self._listener.settimeout(SECONDS)
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []

    def accept(self) -> tuple[socket.socket, int]:
        """The next connection and the protocol level of its CONNECT: 5, or 4 for 3.1.1."""
        connection, _ = self._listener.accept()
        connection.settimeout(SECONDS)
        self._open.append(connection)
        packet = connection.recv(4096)
        assert packet[0] == 0x10, packet
        assert packet[2:8] == b"\x00\x04MQTT", packet
        return connection, packet[8]

    def close(self) -> None:
        for each in [*self._open, self._listener]:
            each.close()


@pytest.fixture
def broker() -> Iterator[Broker]:
    made = Broker()
    yield made
    made.close()


@pytest.fixture
def inbox(broker: Broker) -> Iterator[mqtt.Inbox]:
    """Events of a session that connects to the broker."""
    events = mqtt.Inbox()
    session = mqtt.Session(
        Address("127.0.0.1", broker.port), "dev-1", inbox=events, will=WILL, random=random.Random(0), first_backoff=0.05
    )
    session.start()
    yield events
    broker.close()
    session.stop()


def test_mqtt_5_is_tried_first_and_kept_where_it_works(broker: Broker, inbox: mqtt.Inbox) -> None:
    connection, level = broker.accept()
    assert level == 5
    connection.sendall(CONNACK[5])
    assert inbox.get(timeout=SECONDS) == mqtt.Up()
    connection.close()
    assert isinstance(inbox.get(timeout=SECONDS), mqtt.Down)
    assert broker.accept()[1] == 5


@pytest.mark.parametrize("answer", [None, b"", REFUSED_VERSION_311], ids=["silence", "hangs up", "refuses the version"])
def test_a_broker_that_knows_only_3_1_1_is_spoken_to_in_it_at_once(
    monkeypatch: pytest.MonkeyPatch, broker: Broker, inbox: mqtt.Inbox, answer: bytes | None
) -> None:
    monkeypatch.setattr(connection_module, "VERSION_SECONDS", 0.2)
    connection, level = broker.accept()
    assert level == 5
    if answer:
        connection.sendall(answer)
    elif answer is not None:
        connection.close()
    connection, level = broker.accept()
    assert level == 4
    connection.sendall(CONNACK[4])
    assert inbox.get(timeout=SECONDS) == mqtt.Up()  # no Down before it: nothing had gone wrong


def test_a_broker_that_answers_in_no_version_is_reported_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, broker: Broker, inbox: mqtt.Inbox
) -> None:
    monkeypatch.setattr(connection_module, "VERSION_SECONDS", 0.2)
    monkeypatch.setattr(connection_module, "CONNECT_SECONDS", 0.4)
    assert [broker.accept()[1], broker.accept()[1]] == [5, 4]
    down = inbox.get(timeout=SECONDS)
    assert isinstance(down, mqtt.Down)
    assert "no answer to CONNECT" in down.reason
    assert str(broker.port) in down.reason
    assert broker.accept()[1] == 5


def test_what_is_no_mqtt_ends_the_connection_with_a_reason(broker: Broker, inbox: mqtt.Inbox) -> None:
    for _ in range(2):  # in both versions
        connection, _ = broker.accept()
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.close()
    down = inbox.get(timeout=SECONDS)
    assert isinstance(down, mqtt.Down)
    assert str(broker.port) in down.reason
    assert down.retry_in <= 0.05


def test_nothing_is_published_without_a_connection() -> None:
    session = mqtt.Session(Address("127.0.0.1", 1), "x", inbox=mqtt.Inbox(), will=None, random=random.Random(0))
    assert not session.connected
    assert not session.publish("fl1/t/a", b"lost")
