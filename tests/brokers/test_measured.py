"""What mosquitto does with its defaults, as it was measured, and that a federation loses nothing and counts nothing twice by it.

    1,500 publishes to an offline subscriber: all are acknowledged, 1,000 are delivered
    kill -9 of the broker, with `persistence true`: what it had acknowledged is gone
    a publisher that is killed after it has sent, and sends again: two deliveries, with QoS 2 too
    a client library that sends all that waits at once on its second connection, whatever its window

So here an update of 1,500 chunks meets all four, and what its device has in flight is read off the wire.
"""

import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fleetgrad.broker import settings
from fleetgrad.hardware.fleet import Fleet, find_mosquitto, free_port
from fleetgrad.wire import frames
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.messages import WINDOW
from tests.brokers.conftest import SECONDS
from tests.brokers.tap import Tap
from tests.fleet.conftest import Federation, found

pytestmark = pytest.mark.needs("mosquitto")
DEVICE = "dev-1"
CHUNKS = 1500
CHUNK_BYTES = 1024
HIDDEN = 620  # two such layers: 392,460 floats


class Site:
    """A mosquitto with its defaults, but that it keeps its memory on disk and sends small packets at once, and a device behind a tap."""

    def __init__(self, root: Path) -> None:
        self.port, self.broker = free_port(), Fleet(root / "broker-logs")
        self.config = root / "mosquitto.conf"
        (root / "memory").mkdir()
        lines = [f"listener {self.port} 127.0.0.1", "allow_anonymous true", "persistence true", "set_tcp_nodelay true"]
        lines += [f"persistence_location {root / 'memory'}/", *(["user root"] if os.geteuid() == 0 else [])]
        self.config.write_text("\n".join(lines) + "\n")
        self.start_broker()
        found(
            root,
            [DEVICE],
            hidden=HIDDEN,
            broker=settings.Broker(url=f"mqtt://127.0.0.1:{self.port}", chunk_bytes=CHUNK_BYTES),
            round=settings.Round(rounds=1, minimum=1.0),
            codec=CodecSpec(name="raw32"),
        )
        self.federation = Federation(root, self.port, Fleet(root / "logs"), 1)
        self.tap, self.edge = Tap(self.port), self.federation.folder(DEVICE) / "edge.toml"
        self.edge.write_text(self.edge.read_text().replace(f":{self.port}", f":{self.tap.port}"))

    def start_broker(self) -> None:
        path = find_mosquitto()
        assert path
        self.broker.start("broker", [path, "-c", str(self.config)])
        self.broker.await_port("broker", self.port)

    def until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + SECONDS
        while not done():
            assert time.monotonic() < end, self.federation.fleet.tail("aggregator")
            time.sleep(0.02)

    def stop(self) -> None:
        self.federation.fleet.stop()
        self.broker.stop()
        self.tap.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.stop()


def acknowledged_and_delivered(port: int) -> tuple[int, int]:
    """CHUNKS publishes of QoS 1 to a subscriber that has a session and is away: how many mosquitto acknowledges, and delivers."""

    def client(name: str, *, clean: bool) -> paho.Client:
        made = paho.Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTProtocolVersion.MQTTv5)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 3600
        made.connect("127.0.0.1", port, clean_start=clean, properties=properties)
        made.loop_start()
        return made

    subscribed, delivered, said = threading.Event(), [0], threading.Event()
    reader = client("reader", clean=True)
    reader.on_subscribe = lambda *_: subscribed.set()
    reader.subscribe("fact/#", 1)
    assert subscribed.wait(SECONDS)
    reader.disconnect()
    reader.loop_stop()

    publisher = client("publisher", clean=True)
    sent = [publisher.publish("fact/a", b"%d" % i, 1) for i in range(CHUNKS)]
    for each in sent:
        each.wait_for_publish(SECONDS)

    reader = paho.Client(CallbackAPIVersion.VERSION2, "reader", protocol=MQTTProtocolVersion.MQTTv5)

    def on_message(_client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        delivered[0] += message.topic == "fact/a"
        if message.topic == "fact/last":
            said.set()

    reader.on_message = on_message
    reader.connect("127.0.0.1", port, clean_start=False)
    reader.loop_start()
    before = -1
    while before != delivered[0] or not delivered[0]:
        before = delivered[0]
        time.sleep(0.3)
    publisher.publish("fact/last", b"", 1)
    assert said.wait(SECONDS)
    for member in (reader, publisher):
        member.disconnect()
        member.loop_stop()
    return sum(each.is_published() for each in sent), delivered[0]


def test_an_update_of_1500_chunks_outlives_all_that_was_measured(site: Site) -> None:
    acknowledged, delivered = acknowledged_and_delivered(site.port)
    assert acknowledged == CHUNKS > delivered, "this broker loses nothing: the facts are another's"

    fleet, tap, directory = site.federation.fleet, site.tap, site.federation.directory
    fleet.aggregator(directory, "--exit-when-done")
    fleet.edge(DEVICE, site.edge)
    site.until(lambda: bool(tap.chunks))
    fleet.kill("aggregator")  # the broker acknowledges chunks that nobody gets
    time.sleep(0.5)
    sent = len(tap.chunks)
    site.broker.kill("broker")  # and forgets what it still had
    site.start_broker()
    fleet.aggregator(directory, "--exit-when-done")

    site.until(lambda: len(tap.chunks) > sent + 100)
    tap.cut()  # hundreds of chunks are still to go, and don't all go at once
    last = threading.Event()

    def kill(header: frames.Header) -> None:
        """Once the last chunk is on its way, and before a receipt can be."""
        if header.seq == header.nchunks - 1 and not last.is_set():
            os.kill(fleet.pid(DEVICE), signal.SIGKILL)
            last.set()

    tap.on_chunk = kill
    assert last.wait(SECONDS)
    fleet.kill(DEVICE)
    fleet.edge(DEVICE, site.edge)

    assert fleet.wait("aggregator", SECONDS) == 0
    rows = [json.loads(line) for line in (directory / "rounds.jsonl").read_text().splitlines()]
    assert [(r["round"], r["members"]) for r in rows] == [(1, 1)]
    with closing(sqlite3.connect(directory / "journal.sqlite")) as journal:
        ((round_, device, payload),) = journal.execute("SELECT round, device, payload FROM contribution").fetchall()
    assert (round_, device) == (1, DEVICE)
    assert {sha.hex() for sha, _ in tap.chunks} == {payload}  # it was trained once
    assert len(tap.chunks) > CHUNKS
    assert 0 < tap.most_in_flight <= WINDOW
    again = tap.chunks.total() - len(tap.chunks)
    assert again <= WINDOW * tap.connections, f"{again} chunks were sent again, more than what was in flight"
