"""The embedded broker keeps what the protocol rests on: retained chunks of full size, wildcards, last wills, loopback alone."""

import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleetgrad.hardware.fleet import Fleet, free_port
from fleetgrad.wire import mqtt
from fleetgrad.wire.address import Address

SECONDS = 30.0
CHUNK = 60 * 1024 + 224  # data, header, signature: the largest message there is


class Client:
    """A session whose events are awaited one by one."""

    def __init__(self, port: int, name: str, will: mqtt.Will | None = None) -> None:
        self.inbox: mqtt.Inbox = mqtt.Inbox()
        self.session = mqtt.Session(
            Address("127.0.0.1", port), name, inbox=self.inbox, will=will, random=random.Random(name)
        )
        self.session.start()
        self.next(mqtt.Connected)

    def next(self, kind: type) -> Any:
        while not isinstance(event := self.inbox.get(timeout=SECONDS), kind):
            continue
        return event


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    fleet, number = Fleet(tmp_path / "logs"), free_port()
    fleet.embedded_broker(number)
    yield number
    fleet.stop()


def test_retained_chunks_of_full_size_reach_a_late_subscriber_whole(port: int) -> None:
    chunks = {f"fl1/t/m/0123456789abcdef/{i}": random.Random(i).randbytes(CHUNK) for i in range(8)}
    early = Client(port, "early")
    early.session.subscribe([*chunks])
    for topic, payload in chunks.items():
        assert early.session.publish(topic, payload, retain=True)
    for _ in chunks:
        early.next(mqtt.Message)  # the broker has them all
    late = Client(port, "late")
    late.session.subscribe([*chunks])
    got = [late.next(mqtt.Message) for _ in chunks]
    assert {m.topic: m.payload for m in got} == chunks
    assert all(m.retained for m in got)
    early.session.stop()
    late.session.stop()


def test_a_wildcard_brings_retained_and_live_messages_of_its_level_alone(port: int) -> None:
    sender, reader = Client(port, "sender"), Client(port, "reader")
    sender.session.subscribe(["fl1/t/st/dev-1"])
    sender.session.publish("fl1/t/st/dev-1", b"old", retain=True)
    sender.next(mqtt.Message)
    reader.session.subscribe(["fl1/t/st/+"])
    first = reader.next(mqtt.Message)
    assert (first.topic, first.payload, first.retained) == ("fl1/t/st/dev-1", b"old", True)
    sender.session.publish("fl1/t/birth/dev-1", b"elsewhere")
    sender.session.publish("fl1/t/st/dev-2/deep", b"deeper")
    sender.session.publish("fl1/t/st/dev-2", b"new")
    second = reader.next(mqtt.Message)
    assert (second.topic, second.payload) == ("fl1/t/st/dev-2", b"new")
    sender.session.stop()
    reader.session.stop()


def test_an_empty_retained_message_clears_a_topic(port: int) -> None:
    sender = Client(port, "sender")
    sender.session.subscribe(["fl1/t/a", "fl1/t/b"])
    for payload in (b"1", b""):
        sender.session.publish("fl1/t/a", payload, retain=True)
        assert sender.next(mqtt.Message).payload == payload
    sender.session.publish("fl1/t/b", b"2", retain=True)
    sender.next(mqtt.Message)
    reader = Client(port, "reader")
    reader.session.subscribe(["fl1/t/a"])
    reader.session.subscribe(["fl1/t/b"])
    assert reader.next(mqtt.Message).topic == "fl1/t/b"
    sender.session.stop()
    reader.session.stop()


def test_only_this_machine_can_connect(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=SECONDS)
