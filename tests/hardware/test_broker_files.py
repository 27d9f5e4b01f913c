"""The broker files that are generated: a real mosquitto obeys them, and the other brokers' say the same."""

import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any

import onnx
import pytest

from fleetgrad.broker import founding
from fleetgrad.broker.registrar import broker_files
from fleetgrad.broker.registrar.registrar import Registrar
from fleetgrad.broker.settings import Broker, Settings
from fleetgrad.edge.autodiff import zoo
from fleetgrad.hardware.fleet import Fleet, find_mosquitto, free_port
from fleetgrad.wire import mqtt
from fleetgrad.wire.address import Address
from fleetgrad.wire.tls import Credentials
from fleetgrad.wire.topics import Topics

SECONDS = 30.0
TOPICS = Topics("fed")
END = b"end"


class Client:
    """One party's connection to the broker."""

    def __init__(self, name: str, port: int, credentials: Credentials) -> None:
        self.inbox = mqtt.Inbox()
        endpoint = mqtt.Endpoint(Address("localhost", port, "mqtts"), credentials)
        self.session = mqtt.Session(endpoint, name, inbox=self.inbox, will=None, random=random.Random(name))
        self.session.start()

    def await_(self, kind: type | UnionType) -> Any:
        while not isinstance(event := self.inbox.get(timeout=SECONDS), kind):
            continue
        return event

    def heard(self) -> set[str]:
        """Topics of what has come, up to the end's mark."""
        found = set()
        while (message := self.await_(mqtt.Message)).payload != END:
            found.add(message.topic)
        return found

    def publish(self, *topics: str, retain: bool = False) -> None:
        for topic in topics:
            assert self.session.publish(topic, b"x", retain=retain)


class Place:
    """A federation's folder with its broker, and two devices' kits installed."""

    def __init__(self, root: Path) -> None:
        onnx.save(zoo.mlp(inputs=8, hidden=4, classes=3), str(root / "m.onnx"))
        self.port = free_port()
        self.directory = root / "fed"
        broker = Broker(url=f"mqtts://localhost:{self.port}")
        founding.create(self.directory, root / "m.onnx", Settings(name="fed", broker=broker))
        for name in ("dev-1", "dev-2"):
            founding.enlist(self.directory, name)
        path = self.directory / "broker" / "mosquitto.conf"
        enrol = free_port()  # the next one may be taken on a machine with many tests
        user = "user root\n" if os.geteuid() == 0 else ""
        path.write_text(user + path.read_text().replace(f"listener {self.port + 1}", f"listener {enrol}"))
        self.enrol_port, self.config = enrol, path
        self.fleet = Fleet(root / "logs")
        self.clients: list[Client] = []

    def start(self) -> None:
        found = find_mosquitto()
        assert found
        self.fleet.start("broker", [found, "-c", str(self.config)])
        self.fleet.await_port("broker", self.port)

    def credentials(self, name: str) -> Credentials:
        folders = {"aggregator": "aggregator/keys", "registrar": "registrar"}
        folder = self.directory / folders.get(name, f"devices/{name}")
        return Credentials(folder / "ca.pem", folder / "tls.pem")

    def client(self, name: str) -> Client:
        made = Client(name, self.port, self.credentials(name))
        self.clients.append(made)
        return made

    def stranger(self, port: int) -> Client:
        made = Client("stranger", port, Credentials(self.directory / "broker" / "ca.pem"))
        self.clients.append(made)
        return made


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for client in made.clients:
        client.session.stop()
    made.fleet.stop()


@pytest.mark.needs("mosquitto")
def test_mosquitto_lets_each_party_write_and_read_its_own_topics_alone(place: Place) -> None:
    place.start()
    aggregator, device = place.client("aggregator"), place.client("dev-1")
    for client in (aggregator, device):
        client.await_(mqtt.Up)
    aggregator.session.subscribe(["fl1/fed/#"])
    t = TOPICS
    own = {t.birth("dev-1"), t.status("dev-1"), t.update("dev-1", 1), t.want("dev-1"), t.renew("dev-1")}
    others = {
        t.birth("dev-2"), t.status("dev-2"), t.update("dev-2", 1), t.want("dev-2"), t.renew("dev-2"), t.command("dev-1"),
        t.command("dev-2"), t.served("dev-1"), t.head, t.object("0" * 64, 0), t.member("dev-1"), t.member("dev-9"),
        t.issued("dev-1"), t.aggregator, t.metrics, t.enrol("abc"), t.enrolled("abc"), t.candidate, t.signature("0a"),
    }  # fmt: skip
    aggregator.publish(t.head)
    aggregator.await_(mqtt.Message)  # subscribed
    device.publish(*sorted(own | others))
    assert device.session.publish(t.status("dev-1"), END)
    assert aggregator.heard() == own
    device.session.stop()
    open_to_it = {
        t.head, t.object("0" * 64, 0), t.command("dev-1"), t.served("dev-1"), t.aggregator, t.member("dev-1"), t.issued("dev-1"),
    }  # fmt: skip
    ours = {
        t.head,
        t.object("0" * 64, 0),
        t.aggregator,
        t.candidate,
        *(f(n) for f in (t.command, t.served) for n in ("dev-1", "dev-2")),
    }
    aggregator.publish(*sorted(ours), retain=True)
    registrar = place.client("registrar")
    registrar.await_(mqtt.Up)
    registrar.publish(*(f(n) for f in (t.member, t.issued) for n in ("dev-1", "dev-2")), retain=True)
    second = place.client("dev-2")
    second.await_(mqtt.Up)
    second.publish(t.status("dev-2"), retain=True)
    for client, topic in ((aggregator, t.metrics), (registrar, t.enrolled("z")), (second, t.birth("dev-2"))):
        assert client.session.publish(topic, END)
    for _ in range(3):  # what each has published before is with the broker, too
        aggregator.heard()
    assert aggregator.session.publish(t.metrics, END, retain=True)
    device = place.client("dev-1")
    device.await_(mqtt.Up)
    wild = [
        t.every(row)
        for row in ("command", "served", "status", "birth", "update", "member", "issued", "object", "candidate")
    ]
    device.session.subscribe([*wild, t.head, t.aggregator])
    device.session.subscribe([t.metrics])
    assert device.heard() == open_to_it


@pytest.mark.needs("mosquitto")
def test_a_co_signer_reads_what_it_is_to_sign_and_writes_signatures_alone(place: Place) -> None:
    folder = place.directory / "devices" / "cosigner"  # where the others' logins lie
    folder.mkdir()
    (folder / "tls.pem").write_text(Registrar(place.directory).login("cosigner"))
    (folder / "ca.pem").write_bytes((place.directory / "registrar" / "ca.pem").read_bytes())
    place.start()
    aggregator, cosigner, device = (place.client(name) for name in ("aggregator", "cosigner", "dev-1"))
    for client in (aggregator, cosigner, device):
        client.await_(mqtt.Up)
    t = TOPICS
    cosigner.session.subscribe([t.candidate, t.head, t.root(1)])
    aggregator.session.subscribe(["fl1/fed/#"])
    aggregator.publish(t.candidate, t.head, t.root(1), retain=True)
    assert {cosigner.await_(mqtt.Message).topic for _ in range(3)} == {t.candidate, t.head, t.root(1)}
    for _ in range(3):
        aggregator.await_(mqtt.Message)
    others = (t.candidate, t.head, t.root(1), t.member("dev-1"), t.command("dev-1"), t.birth("dev-1"), t.aggregator)
    cosigner.publish(*others, t.signature("0a"))
    assert cosigner.session.publish(t.signature("0a"), END)
    assert aggregator.heard() == {t.signature("0a")}


@pytest.mark.needs("mosquitto")
def test_boards_that_enrol_reach_nothing_but_that_and_members_need_a_certificate(place: Place) -> None:
    place.start()
    aggregator, stranger = place.client("aggregator"), place.stranger(place.enrol_port)
    for client in (aggregator, stranger):
        client.await_(mqtt.Up)
    aggregator.session.subscribe(["fl1/fed/#"])
    aggregator.publish(TOPICS.head)
    aggregator.await_(mqtt.Message)
    stranger.publish(
        TOPICS.birth("dev-1"), TOPICS.head, TOPICS.enrolled("abc"), TOPICS.renew("dev-1"), TOPICS.enrol("abc")
    )
    assert stranger.session.publish(TOPICS.enrol("abc"), END)
    assert aggregator.heard() == {TOPICS.enrol("abc")}
    outside = place.stranger(place.port)
    assert "certificate" in outside.await_(mqtt.Down).reason


@pytest.mark.needs("mosquitto")
def test_a_revoked_device_is_refused_by_a_broker_that_was_told_to_read_the_list(place: Place) -> None:
    place.start()
    place.client("dev-1").await_(mqtt.Up)
    Registrar(place.directory).revoke("dev-1", "stolen")
    os.kill(place.fleet.pid("broker"), signal.SIGHUP)
    place.clients[0].session.stop()  # a connection that stands stays
    end = time.monotonic() + SECONDS
    while isinstance(event := place.client("dev-1").await_(mqtt.Up | mqtt.Down), mqtt.Up):  # the signal is on its way
        place.clients[-1].session.stop()
        assert time.monotonic() < end
    assert "certificate revoked" in event.reason
    place.client("dev-2").await_(mqtt.Up)


def test_the_other_brokers_files_give_a_device_the_same_rights() -> None:
    acl = broker_files.mosquitto_acl("fed")
    for act, verb in (("write", "publish"), ("read", "subscribe")):
        expected = re.findall(rf"^pattern {act} (\S+)$", acl, re.MULTILINE)
        assert expected
        emqx = re.search(rf"allow, all, {verb}, \[(.*)\]", broker_files.emqx_acl("fed"))
        assert emqx is not None
        assert json.loads(f"[{emqx.group(1)}]") == [e.replace("%u", "${username}") for e in expected]
        action = {"write": ["iot:Publish", "iot:RetainPublish"], "read": "iot:Receive"}[act]
        statements = json.loads(broker_files.aws_policies("fed")["device"])["Statement"]
        (topics,) = [s["Resource"] for s in statements if s["Action"] == action]
        thing = "${iot:Connection.Thing.ThingName}"
        assert [t.partition("topic/")[2] for t in topics] == [
            e.replace("%u", thing).replace("+", "*") for e in expected
        ]
    assert broker_files.emqx_acl("fed").rstrip().endswith("{deny, all}.")
