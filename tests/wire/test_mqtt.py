"""The MQTT session against a broker played byte by byte: which version it speaks, and what it does when nobody answers."""

import random
from collections.abc import Iterator

import pytest

from fleetgrad.wire import mqtt
from fleetgrad.wire.address import Address
from fleetgrad.wire.mqtt import connection as connection_module
from tests.wire.fake_broker import CONNACK, PUBACK, PUBLISH, SECONDS, FakeBroker

REFUSED_VERSION_311 = b"\x20\x02\x00\x01"
REFUSED_RETAIN_5 = b"\x20\x03\x00\x9a\x00"
WILL = mqtt.Will("fl1/t/st/dev-1", b"offline")


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    made = FakeBroker()
    yield made
    made.close()


@pytest.fixture
def inbox(broker: FakeBroker) -> Iterator[mqtt.Inbox]:
    """Events of a session that connects to the broker."""
    events = mqtt.Inbox()
    session = mqtt.Session(
        Address("127.0.0.1", broker.port), "dev-1", inbox=events, will=WILL, random=random.Random(0), first_backoff=0.05
    )
    session.start()
    yield events
    broker.close()
    session.stop()


def test_mqtt_5_is_tried_first_and_kept_where_it_works(broker: FakeBroker, inbox: mqtt.Inbox) -> None:
    peer = broker.connect()
    assert inbox.get(timeout=SECONDS) == mqtt.Connected()
    peer.socket.close()
    assert isinstance(inbox.get(timeout=SECONDS), mqtt.Disconnected)
    assert broker.accept()[1] == 5


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a session connects: it doesn't wait long for answers to a CONNECT."""
    monkeypatch.setattr(connection_module, "VERSION_SECONDS", 0.2)
    monkeypatch.setattr(connection_module, "CONNECT_SECONDS", 0.4)


@pytest.mark.usefixtures("impatience")
@pytest.mark.parametrize("answer", [None, b"", REFUSED_VERSION_311], ids=["silence", "hangs up", "refuses the version"])
def test_a_broker_that_knows_only_3_1_1_is_spoken_to_in_it_at_once(
    broker: FakeBroker, inbox: mqtt.Inbox, answer: bytes | None
) -> None:
    peer, level = broker.accept()
    assert level == 5
    if answer:
        peer.socket.sendall(answer)
    elif answer is not None:
        peer.socket.close()
    peer, level = broker.accept()
    assert level == 4
    peer.socket.sendall(CONNACK[4])
    assert inbox.get(timeout=SECONDS) == mqtt.Connected()  # no Down before it: nothing had gone wrong


def test_a_broker_that_knows_mqtt_5_is_spoken_to_in_it_again_after_it_was_down(
    broker: FakeBroker, inbox: mqtt.Inbox
) -> None:
    broker.connect().socket.close()
    peer, level = broker.accept()
    peer.socket.close()  # it is just starting
    older, fallback = broker.accept()
    older.socket.sendall(CONNACK[4])
    older.socket.close()
    assert (level, fallback, broker.accept()[1]) == (5, 4, 5)


@pytest.mark.usefixtures("impatience")
def test_a_broker_that_answers_in_no_version_is_reported_and_tried_again(broker: FakeBroker, inbox: mqtt.Inbox) -> None:
    assert [broker.accept()[1], broker.accept()[1]] == [5, 4]
    down = inbox.get(timeout=SECONDS)
    assert isinstance(down, mqtt.Disconnected)
    assert "no answer to CONNECT" in down.reason
    assert str(broker.port) in down.reason
    assert broker.accept()[1] == 5


def test_a_broker_that_refuses_retained_wills_is_asked_without_at_once(broker: FakeBroker, inbox: mqtt.Inbox) -> None:
    peer, _ = broker.accept()
    peer.socket.sendall(REFUSED_RETAIN_5)
    peer = broker.connect(b"\x25\x00")  # retain available: 0
    assert inbox.get(timeout=SECONDS) == mqtt.Connected(retained=False)


def test_a_refusal_is_reported_in_the_brokers_words(broker: FakeBroker, inbox: mqtt.Inbox) -> None:
    peer, level = broker.accept()
    assert level == 5
    peer.socket.sendall(b"\x20\x03\x00\x87\x00")
    down = inbox.get(timeout=SECONDS)
    assert isinstance(down, mqtt.Disconnected)
    assert "connection refused: Not authorized" in down.reason
    assert broker.accept()[1] == 5  # the version wasn't the matter


def test_what_is_no_mqtt_ends_the_connection_with_a_reason(broker: FakeBroker, inbox: mqtt.Inbox) -> None:
    for _ in range(2):  # in both versions
        peer, _ = broker.accept()
        peer.socket.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        peer.socket.close()
    down = inbox.get(timeout=SECONDS)
    assert isinstance(down, mqtt.Disconnected)
    assert str(broker.port) in down.reason
    assert down.retry_in <= 0.05


def arriving(topic: bytes, payload: bytes, *, level: int, qos: int = 1, properties: bytes = b"") -> bytes:
    """A PUBLISH with packet id 0x0102, shorter than 128 bytes."""
    body = len(topic).to_bytes(2, "big") + topic + (b"\x01\x02" if qos else b"")
    body += (bytes([len(properties)]) + properties if level == 5 else b"") + payload
    return bytes([PUBLISH << 4 | qos << 1, len(body)]) + body


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("level", [4, 5])
def test_messages_come_whole_however_the_bytes_are_cut_and_each_is_acknowledged(
    broker: FakeBroker, inbox: mqtt.Inbox, level: int, qos: int
) -> None:
    peer = broker.connect() if level == 5 else broker.connect_older()
    assert isinstance(inbox.get(timeout=SECONDS), mqtt.Connected)
    properties = b"\x03\x00\x03a/b"  # content type
    packets = b"".join(
        arriving(b"fl1/t/a", payload, level=level, qos=qos, properties=properties) for payload in (b"one", b"", b"two")
    )
    peer.socket.sendall(packets)
    for byte in packets:
        peer.socket.sendall(bytes([byte]))
    for payload in (b"one", b"", b"two") * 2:
        assert inbox.get(timeout=SECONDS) == mqtt.Message("fl1/t/a", payload, False)
    for _ in range(6 * qos):
        assert peer.expect(PUBACK).body[:2] == b"\x01\x02"
    assert peer.quiet(0.1)


WHOLE = arriving(b"fl1/t/a", b"x", level=5)


@pytest.mark.parametrize(
    "packet",
    [
        arriving(b"fl1/t/a", b"x", level=5, qos=2),
        arriving(b"", b"x", level=5),
        bytes([PUBLISH << 4 | 2, 4]) + b"\x00\x09fl",
        bytes([PUBLISH << 4 | 2, 3]) + b"\x00\x01f",
        bytes([PUBLISH << 4, 1]) + b"\x00",
        bytes([PUBLISH << 4, 0]),
        WHOLE[:-2] + b"\x09x",
        WHOLE[:-2] + b"\xffx",
    ],
    ids=[
        "QoS 2", "no topic", "topic over the end", "no packet id", "half a length", "nothing",
        "properties over the end", "endless length",
    ],
)  # fmt: skip
def test_a_message_that_is_malformed_ends_the_connection_and_is_not_taken(
    broker: FakeBroker, inbox: mqtt.Inbox, packet: bytes
) -> None:
    peer = broker.connect()
    assert isinstance(inbox.get(timeout=SECONDS), mqtt.Connected)
    peer.socket.sendall(packet)
    down = inbox.get(timeout=SECONDS)
    assert isinstance(down, mqtt.Disconnected)
    assert "disconnected" in down.reason
    assert "thread died" not in down.reason


def test_nothing_is_published_without_a_connection() -> None:
    session = mqtt.Session(Address("127.0.0.1", 1), "x", inbox=mqtt.Inbox(), will=None, random=random.Random(0))
    assert not session.connected
    assert not session.publish("fl1/t/a", b"lost")
