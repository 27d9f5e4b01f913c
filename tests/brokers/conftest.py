"""A federation of two devices on any broker, as real processes."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleetgrad.broker import settings, watching
from fleetgrad.hardware.fleet import Fleet
from tests.brokers import servers
from tests.conftest import TOOLS
from tests.fleet.conftest import Federation, found

KINDS: dict[str, type[servers.Broker]] = {
    "mosquitto": servers.Mosquitto, "nats": servers.Nats, "nats-cluster": servers.NatsCluster,
    "forgetful": servers.Forgetful,
    "rabbitmq": servers.RabbitMq, "embedded": servers.Embedded,
}  # fmt: skip
DEVICES = ("dev-1", "dev-2")
ROUNDS = 2
SECONDS = 90.0  # a hang guard: scenarios wait for events


@dataclass
class Site:
    """A broker and a federation on it."""

    broker: servers.Broker
    federation: Federation

    def settle(self) -> None:
        """Writes into each member's settings how it reaches the broker."""
        _rewrite(self.federation.directory / "federation.toml", self.broker.ways["aggregator"])
        for device in DEVICES:
            _rewrite(self.config(device), self.broker.ways[device])

    def config(self, device: str) -> Path:
        return self.federation.folder(device) / "edge.toml"

    def until(self, done: Callable[[watching.View], bool]) -> None:
        """Follows the federation's topics until `done`; raises FleetError as soon as a process has died."""
        end = time.monotonic() + SECONDS
        with watching.Watch(self.broker.ways["watch"].endpoint(Path()), "test") as watch:
            while not done(watch.view):
                watch.step(0.2)
                self.federation.fleet.check()
                self.broker.fleet.check()
                assert time.monotonic() < end, f"{watch.view}\n{self.federation.fleet.tail('aggregator')}"


def _rewrite(path: Path, way: Any) -> None:
    """Replaces the keys of [broker] that say where it is."""
    lines, table = [], ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            table = line.split("]")[0][1:]
        if table == "broker" and line.split("=")[0].strip() in ("url", "profile", "ca", "certificate", "key"):
            continue
        lines.append(line)
        if table == "broker" and line.startswith("["):
            lines += [
                f"{key} = {msgspec.json.encode(value).decode()}"
                for key, value in msgspec.to_builtins(way).items()
                if value is not None and key in ("url", "profile", "ca", "certificate", "key")
            ]
    path.write_text("\n".join(lines) + "\n")


def make_broker(kind: str, folder: Path) -> servers.Broker:
    (folder / "broker").mkdir()
    return KINDS[kind](folder / "broker", Fleet(folder / "broker-logs"))


@pytest.fixture(scope="session")
def early(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, servers.Broker]]:
    """RabbitMQ takes 14 s to start: it does so while other brokers are tested, where a test of it was chosen and can run."""
    made: dict[str, servers.Broker] = {}
    chosen = any(
        "rabbitmq" in item.name and "early" in getattr(item, "fixturenames", ()) for item in request.session.items
    )
    if chosen and TOOLS["rabbitmq"]():
        made["rabbitmq"] = make_broker("rabbitmq", tmp_path_factory.mktemp("early"))
        made["rabbitmq"].launch()
    yield made
    for broker in made.values():
        broker.fleet.stop()


@pytest.fixture
def site(tmp_path: Path, kind: str, early: dict[str, servers.Broker]) -> Iterator[Site]:
    """A federation on a started broker of the kind that the test names.

    Its model is many chunks long, but for a cluster of NATS: it elects a leader for each subscription, half a second a chunk.
    """
    hidden = 64 if kind == "nats-cluster" else 512
    found(tmp_path, DEVICES, hidden=hidden, round=settings.Round(rounds=ROUNDS, minimum=1.0))
    federation = Federation(tmp_path, 0, Fleet(tmp_path / "logs"), ROUNDS)
    broker = early.pop(kind, None)
    if broker is None:
        broker = make_broker(kind, tmp_path)
        broker.launch()
    made = Site(broker, federation)
    made.settle()
    try:
        broker.ready()
        yield made
    finally:
        federation.fleet.stop()
        broker.fleet.stop()
