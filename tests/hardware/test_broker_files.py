"""The broker files that are generated: a real mosquitto obeys them, and the other brokers' say the same."""

import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal

import onnx
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from fleetgrad.broker import founding
from fleetgrad.broker.registrar import broker_files
from fleetgrad.broker.registrar.registrar import Registrar
from fleetgrad.broker.settings import Broker, Settings
from fleetgrad.edge.autodiff import zoo
from fleetgrad.hardware.fleet import Fleet, find_mosquitto, free_port
from fleetgrad.wire import mqtt
from fleetgrad.wire.address import Address, parse
from fleetgrad.wire.tls import Credentials

SECONDS = 30.0

# Who writes and who reads what, by hand from wire/SPEC.md; of two devices, dev-1 is the one that is looked at, and "" has no certificate.
RELEASES = {f"fl1/fed/{topic}" for topic in ("head", "root/1", "m/0011223344556677/0", "agg/st", "agg/metrics")}
COMMANDS, STATEMENTS, BY_DEVICES = (
    {f"fl1/fed/{kind}/{name}" for kind in kinds for name in ("dev-1", "dev-2")}
    for kinds in (("cmd", "dl"), ("reg", "issued"), ("birth", "st", "up/0", "want", "renew"))
)
CANDIDATE, SIGNATURE, ASK, ANSWER = (
    f"fl1/fed/{topic}" for topic in ("agg/candidate", "sig/0011223344556677", "enrol/0011223344", "enrolled/0011223344")
)
EVERYTHING = RELEASES | COMMANDS | STATEMENTS | BY_DEVICES | {CANDIDATE, SIGNATURE, ASK, ANSWER}
FOREIGN = {
    "fl1/other/head",
    "fl1/fed",
    "fl1/fed/up/dev-1",
    "fl1/fed/st/dev-1/x",
    "fl2/fed/st/dev-1",
    "st/dev-1",
    "$SYS/x",
}
WRITES = {
    "dev-1": {topic for topic in BY_DEVICES if topic.endswith("/dev-1")},
    "aggregator": RELEASES | COMMANDS | {CANDIDATE},
    "registrar": STATEMENTS | {ANSWER},
    "cosigner": {SIGNATURE},
    "operator": set(),
    "": {ASK},
}
READS = {
    "dev-1": RELEASES | {topic for topic in COMMANDS | STATEMENTS if topic.endswith("/dev-1")},
    **dict.fromkeys(("aggregator", "registrar", "cosigner", "operator"), EVERYTHING),
    "": {ANSWER},
}


class Client:
    """One party's connection to the broker."""

    def __init__(self, name: str, where: Address, credentials: Credentials) -> None:
        self.inbox = mqtt.Inbox()
        endpoint = mqtt.Endpoint(where, credentials)
        self.session = mqtt.Session(endpoint, name, inbox=self.inbox, will=None, random=random.Random(name))
        self.session.start()

    def await_(self, kind: type | UnionType) -> Any:
        while not isinstance(event := self.inbox.get(timeout=SECONDS), kind):
            continue
        return event


class Party:
    """A client of MQTT 5, whom the broker tells what it refuses: what it received, and what was said to each of its publishes."""

    def __init__(self, port: int, credentials: Credentials, username: str | None = None) -> None:
        self.received: set[str] = set()
        self._said: dict[int, int] = {}
        self._news = threading.Condition()
        self.client = client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        client.tls_set(str(credentials.ca), str(credentials.certificate) if credentials.certificate else None)
        if username:
            client.username_pw_set(username, "x")
        client.on_message = lambda *args: self._note(lambda: self.received.add(args[-1].topic))
        client.on_publish = lambda *args: self._note(lambda: self._said.update({args[2]: args[3].value}))
        client.connect("localhost", port)
        client.loop_start()

    def _note(self, act: Callable[[], object]) -> None:
        with self._news:
            act()
            self._news.notify_all()

    def until(self, done: Callable[[], bool]) -> None:
        with self._news:
            assert self._news.wait_for(done, SECONDS), f"{self.received} {self._said}"

    def publish(self, topics: set[str]) -> set[str]:
        """Tries all; those that the broker took."""
        sent = {self.client.publish(topic, b"x", qos=1).mid: topic for topic in sorted(topics)}
        self.until(lambda: sent.keys() <= self._said.keys())
        return {topic for mid, topic in sent.items() if self._said[mid] < 0x80}


class Place:
    """A federation's folder with its broker, and two devices' kits installed."""

    def __init__(self, root: Path, scheme: Literal["mqtts", "wss"] = "mqtts") -> None:
        onnx.save(zoo.mlp(inputs=8, hidden=4, classes=3), str(root / "m.onnx"))
        self.port, self.scheme = free_port(), scheme
        self.directory = root / "fed"
        broker = Broker(url=f"{scheme}://localhost:{self.port}")
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
        self.parties: list[Party] = []

    def start(self) -> None:
        found = find_mosquitto()
        assert found
        self.fleet.start("broker", [found, "-c", str(self.config)])
        for port in (self.port, self.enrol_port):
            self.fleet.await_port("broker", port)

    def credentials(self, name: str) -> Credentials:
        ca = self.directory / "broker" / "ca.pem"
        if not name:
            return Credentials(ca)
        login = self.directory / "devices" / name / "tls.pem"
        if not login.exists():
            login.parent.mkdir(exist_ok=True)
            login.write_text(Registrar(self.directory).login(name))
        return Credentials(ca, login)

    def address(self, port: int) -> Address:
        return parse(f"{self.scheme}://localhost:{port}")

    def party(self, name: str, username: str | None = None) -> Party:
        made = Party(self.port if name else self.enrol_port, self.credentials(name), username)
        self.parties.append(made)
        return made

    def client(self, name: str) -> Client:
        made = Client(name, self.address(self.port), self.credentials(name))
        self.clients.append(made)
        return made

    def stranger(self, port: int) -> Client:
        made = Client("stranger", self.address(port), self.credentials(""))
        self.clients.append(made)
        return made


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path, getattr(request, "param", "mqtts"))
    yield made
    for client in made.clients:
        client.session.stop()
    for party in made.parties:
        party.client.disconnect()
        party.client.loop_stop()
    made.fleet.stop()


@pytest.mark.needs("mosquitto")
def test_each_party_writes_and_reads_in_mosquitto_what_is_its_own_and_nothing_else(place: Place) -> None:
    place.start()
    readers = {name: place.party(name) for name in READS}
    posing = place.party("", username="aggregator")
    for reader in (*readers.values(), posing):
        for topic in ("#", "$SYS/#", "fl1/#", "fl1/fed/+/+", *sorted(EVERYTHING)):
            reader.client.subscribe(topic, qos=1)
    everywhere = EVERYTHING | FOREIGN
    for name, writable in WRITES.items():
        assert place.party(name).publish(everywhere) == writable, name
    assert posing.publish(everywhere) == set()
    assert place.party("dev-2").publish(BY_DEVICES) == BY_DEVICES - WRITES["dev-1"]
    for name, readable in READS.items():
        readers[name].until(lambda reader=readers[name], want=readable: want <= reader.received)  # type: ignore[misc]
    time.sleep(0.3)  # what mustn't come would be here with the rest
    assert {name: reader.received for name, reader in readers.items()} == READS
    assert posing.received == set()


@pytest.mark.needs("mosquitto")
def test_members_need_a_certificate(place: Place) -> None:
    place.start()
    outside = place.stranger(place.port)
    assert "certificate" in outside.await_(mqtt.Disconnected).reason


@pytest.mark.needs("mosquitto")
@pytest.mark.parametrize("place", ["wss"], indirect=True)
def test_members_of_a_federation_over_websockets_are_known_by_their_certificates_too(place: Place) -> None:
    place.start()
    assert isinstance(place.stranger(place.port).await_(mqtt.Connected | mqtt.Disconnected), mqtt.Disconnected)
    member = place.client("dev-1")
    member.await_(mqtt.Connected)
    for topic in ("fl1/fed/birth/dev-1", "fl1/fed/birth/dev-2"):
        member.session.publish(topic, b"x")
    assert member.await_(mqtt.Refused).topic == "fl1/fed/birth/dev-2"


@pytest.mark.needs("mosquitto")
def test_a_revoked_device_is_refused_by_a_broker_that_was_told_to_read_the_list(place: Place) -> None:
    place.start()
    place.client("dev-1").await_(mqtt.Connected)
    Registrar(place.directory).revoke("dev-1", "stolen")
    os.kill(place.fleet.pid("broker"), signal.SIGHUP)
    place.clients[0].session.stop()  # a connection that stands stays
    end = time.monotonic() + SECONDS
    while isinstance(
        event := place.client("dev-1").await_(mqtt.Connected | mqtt.Disconnected), mqtt.Connected
    ):  # the signal is on its way
        place.clients[-1].session.stop()
        assert time.monotonic() < end
    assert "certificate revoked" in event.reason
    place.client("dev-2").await_(mqtt.Connected)


def test_the_other_brokers_files_give_a_device_the_same_rights() -> None:
    acl = broker_files.mosquitto_acl("fed")
    for act, verb in (("write", "publish"), ("read", "subscribe")):
        expected = re.findall(rf"^pattern {act} (\S+)$", acl, re.MULTILINE)
        assert expected
        emqx = re.search(rf"allow, all, {verb}, \[(.*)\]", broker_files.emqx_acl("fed"))
        assert emqx is not None
        assert json.loads(f"[{emqx.group(1)}]") == [e.replace("%u", "${username}") for e in expected]
        action = {"write": ["iot:Publish", "iot:RetainPublish"], "read": "iot:Subscribe"}[act]
        statements = {
            str(s["Action"]): s["Resource"] for s in json.loads(broker_files.aws_policies("fed")["device"])["Statement"]
        }
        assert [t.partition("/")[2] for t in statements[str(action)]] == [
            e.replace("%u", "${iot:ClientId}").replace("+", "*") for e in expected
        ]
        # A client's id is a name that the thing gives, so it holds no wildcard.
        assert statements["iot:Connect"] == ["arn:aws:iot:REGION:ACCOUNT:client/${iot:Connection.Thing.ThingName}"]
    assert broker_files.emqx_acl("fed").rstrip().endswith("{deny, all}.")


def test_a_policy_is_as_long_as_aws_takes_it_or_refused(tmp_path: Path) -> None:
    policies = broker_files.aws_policies("f" * 40)
    filled = policies["device"].replace("REGION", "ap-southeast-1").replace("ACCOUNT", "123456789012")
    assert len("".join(filled.split())) == 2040
    with pytest.raises(broker_files.BrokerFilesError, match="would have 2055 characters, and AWS takes 2048"):
        broker_files.write("aws-iot", "f" * 41, tmp_path, parse("mqtts://broker.lan"))
    assert not list(tmp_path.iterdir())
