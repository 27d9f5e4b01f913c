"""What was measured of mosquitto with its defaults, and what it does to us: acknowledged isn't delivered, a message that is too
large vanishes (MQTT 3.1.1) or ends the connection (MQTT 5), and who takes a name over ends the other one's connection."""

import json
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.enums import MQTTProtocolVersion

from fleetgrad.hardware.fleet import Fleet
from fleetgrad.wire import frames, mqtt
from fleetgrad.wire.messages import WINDOW
from fleetgrad.wire.topics import Topics
from tests.brokers.conftest import SECONDS, Site
from tests.brokers.servers import Mosquitto

pytestmark = pytest.mark.needs("mosquitto")
TOPICS = Topics("test")


class Client:
    """A session that the test drives."""

    def __init__(
        self, way: mqtt.BrokerSettings, name: str, version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5
    ) -> None:
        self.inbox = mqtt.Inbox()
        self.session = mqtt.Session(
            way.endpoint(Path()),
            name,
            inbox=self.inbox,
            random=random.Random(name),
            first_backoff=0.05,
            most_backoff=0.1,
        )
        self.session._version = version
        self.session.start()

    def until(self, kind: type[mqtt.Event], seconds: float = SECONDS) -> mqtt.Event | None:
        """The next event of a kind, or None."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                event: mqtt.Event = self.inbox.get(timeout=left)
            except queue.Empty:
                break
            if isinstance(event, kind):
                return event
        return None

    def listen(self, prefix: str) -> None:
        """Subscribes to all under a prefix, and returns when the broker has taken that."""
        self.session.subscribe([f"{prefix}/#"])
        self.session.publish(f"{prefix}/subscribed", b"")  # a broker takes packets in their order
        assert self.until(mqtt.Message)


MakeClient = Callable[..., Client]


@pytest.fixture
def client() -> Iterator[MakeClient]:
    made: list[Client] = []

    def make(*arguments: object) -> Client:
        made.append(Client(*arguments))  # type: ignore[arg-type]
        assert made[-1].until(mqtt.Connected)
        return made[-1]

    yield make
    for each in made:
        each.session.stop()


def limited(folder: Path, limit: str) -> Mosquitto:
    """A started mosquitto with a line more in its settings."""
    (folder / "broker").mkdir()
    broker = Mosquitto(folder / "broker", Fleet(folder / "broker-logs"))
    config = folder / "broker" / "mosquitto.conf"
    config.write_text(f"{limit}\n{config.read_text()}")
    broker.start()
    return broker


@pytest.fixture
def mosquitto(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Mosquitto]:
    broker = limited(tmp_path, request.param)
    yield broker
    broker.fleet.stop()


@pytest.mark.parametrize("kind", ["mosquitto"])
def test_an_update_that_the_broker_acknowledges_and_forgets_is_not_lost(site: Site, client: MakeClient) -> None:
    fleet, settings = site.federation.fleet, site.federation.directory / "federation.toml"
    settings.write_text(settings.read_text().replace("[broker]\n", "[broker]\nchunk-bytes = 8192\n"))
    fleet.aggregator(site.federation.directory)
    for device in ("dev-1", "dev-2"):
        fleet.edge(device, site.config(device))
    site.until(lambda v: any(d.state == "training" for d in v.devices.values()))
    fleet.kill("aggregator")
    spy = client(site.broker.ways["aggregator"], "spy")
    spy.session.subscribe([TOPICS.every("update")])
    seen: dict[str, set[int]] = {}
    end = time.monotonic() + SECONDS
    while not seen:  # a device sends into the void, and the broker says thank you
        assert time.monotonic() < end
        message = spy.until(mqtt.Message, 1.0)
        if isinstance(message, mqtt.Message):
            seen.setdefault(message.topic, set()).add(frames.parse(message.payload, most=2**24)[0].seq)
    while isinstance(message := spy.until(mqtt.Message, 1.5), mqtt.Message):
        seen.setdefault(message.topic, set()).add(frames.parse(message.payload, most=2**24)[0].seq)
    # Of 35 chunks, and nobody confirms one: a window, and another if a confirmation was on its way when the aggregator died.
    assert all(len(chunks) <= 2 * WINDOW for chunks in seen.values()), seen
    site.broker.kill()
    site.broker.start()
    fleet.aggregator(site.federation.directory)
    site.until(lambda v: 2 in v.metrics)
    rows = [json.loads(line) for line in (site.federation.directory / "rounds.jsonl").read_text().splitlines()]
    assert [(r["round"], r["members"]) for r in rows] == [(1, 2), (2, 2)]


@pytest.mark.parametrize("mosquitto", ["message_size_limit 20000"], indirect=True)
def test_a_message_on_which_mosquitto_hangs_up_is_given_up_and_the_connection_lives(
    mosquitto: Mosquitto, client: MakeClient
) -> None:
    way = mosquitto.ways["aggregator"]
    publisher, reader = client(way, "publisher"), client(way, "reader")
    reader.listen("fl1/t")
    refused, hang_ups = None, 0
    while refused is None:
        publisher.session.publish("fl1/t/large", b"x" * 30_000)
        publisher.session.publish("fl1/t/small", b"fine")
        event = publisher.until((mqtt.Disconnected, mqtt.Refused), 10.0)  # type: ignore[arg-type]
        assert event is not None
        if isinstance(event, mqtt.Refused):
            refused = event
        else:
            hang_ups += 1
            assert hang_ups <= 3
            assert publisher.until(mqtt.Connected) if hang_ups < 3 else True
    assert (refused.topic, refused.size) == ("fl1/t/large", 30_000)
    while not publisher.session.connected:
        time.sleep(0.01)
    publisher.session.publish("fl1/t/large", b"x" * 30_000)  # not sent again for a while
    publisher.session.publish("fl1/t/last", b"fine")
    while True:
        message = reader.until(mqtt.Message)
        assert isinstance(message, mqtt.Message)
        assert message.topic != "fl1/t/large"
        if message.topic == "fl1/t/last":
            return


@pytest.mark.parametrize("mosquitto", ["message_size_limit 20000"], indirect=True)
def test_mqtt_3_1_1_does_not_tell_that_a_message_was_too_large(mosquitto: Mosquitto, client: MakeClient) -> None:
    way = mosquitto.ways["aggregator"]
    publisher, reader = client(way, "publisher", MQTTProtocolVersion.MQTTv311), client(way, "reader")
    reader.listen("fl1/t")
    for topic, size in (("large", 30_000), ("fits", 16 * 1024 + 300)):
        assert publisher.session.publish(f"fl1/t/{topic}", b"x" * size)
    message = reader.until(mqtt.Message)
    assert isinstance(message, mqtt.Message)
    assert message.topic == "fl1/t/fits"  # which is why chunk-bytes is the operator's to set there
    assert publisher.session.connected


VERSIONS = pytest.mark.parametrize("version", [MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311])
PLAIN = pytest.mark.parametrize("mosquitto", ["# its defaults"], indirect=True)


@PLAIN
@VERSIONS
def test_a_broker_that_dies_soon_after_each_connection_is_not_taken_for_another_of_the_name(
    mosquitto: Mosquitto, version: MQTTProtocolVersion
) -> None:
    """It is up again at each retry, which waits for it here: no try fails that would tell."""
    one = Client(mosquitto.ways["aggregator"], "one", version)
    judged, up, after = threading.Event(), threading.Event(), one.session.backoff.after

    def judge(*arguments: Any, **told: Any) -> float:
        after(*arguments, **told)
        judged.set()
        assert up.wait(SECONDS)
        return 0.0

    one.session.backoff.after = judge  # type: ignore[method-assign]
    for _ in range(4):
        assert one.until(mqtt.Connected)
        up.clear()
        mosquitto.kill()
        assert judged.wait(SECONDS)
        judged.clear()
        assert not one.session.backoff.rival
        mosquitto.start()
        up.set()
        down = one.until(mqtt.Disconnected)
        assert isinstance(down, mqtt.Disconnected)
        assert "connect as" not in down.reason
    one.session.stop()


@PLAIN
@VERSIONS
def test_another_of_the_name_is_named_as_what_ends_the_connections(
    mosquitto: Mosquitto, version: MQTTProtocolVersion
) -> None:
    """Before 2.0.15 mosquitto doesn't tell, whatever the version."""
    both = [Client(mosquitto.ways["aggregator"], "one", version) for _ in range(2)]
    reason, end = "", time.monotonic() + SECONDS
    while not ("another connection has taken the name" in reason or "connect as 'one'?" in reason):
        assert time.monotonic() < end
        down = both[0].until(mqtt.Disconnected, 1.0)
        reason = down.reason if isinstance(down, mqtt.Disconnected) else ""
    for each in both:
        each.session.stop()


@pytest.mark.parametrize("mosquitto", ["max_packet_size 20000"], indirect=True)
def test_a_limit_that_the_broker_tells_is_obeyed_and_gives_the_chunks_that_fit(
    mosquitto: Mosquitto, client: MakeClient
) -> None:
    way = mosquitto.ways["aggregator"]
    publisher = Client(way, "publisher")
    assert publisher.until(mqtt.Connected) == mqtt.Connected(chunk_bytes=19 * 1024)
    publisher.session.publish("fl1/t/large", b"x" * 30_000)
    refused = publisher.until(mqtt.Refused)
    assert isinstance(refused, mqtt.Refused)
    assert "the broker takes 20,000" in refused.reason
    assert publisher.session.connected
    publisher.session.stop()
