"""Small federations of real processes: an MLP on blobs of numbers, a few devices and rounds, seconds a run."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fleetgrad.broker import founding, settings, watching
from fleetgrad.broker.registrar.registrar import forget_authority
from fleetgrad.edge.autodiff import zoo
from fleetgrad.hardware.fleet import Fleet, console_script, find_mosquitto, free_port
from fleetgrad.wire.address import Address
from fleetgrad.wire.messages import Training

DEVICES = ("dev-1", "dev-2", "dev-3")
SECONDS = 90.0  # a hang guard: scenarios wait for events


@dataclass
class Federation:
    """One federation's directory and processes."""

    root: Path
    port: int
    fleet: Fleet
    rounds: int
    kind: str = "mosquitto"
    started: list[str] = field(default_factory=list)

    @property
    def address(self) -> Address:
        return Address("127.0.0.1", self.port)

    @property
    def directory(self) -> Path:
        """The aggregator's folder."""
        return self.root / "federation" / "aggregator"

    def folder(self, device: str) -> Path:
        return self.root / "federation" / "devices" / device

    def start_broker(self) -> None:
        if self.kind == "mosquitto":
            self.fleet.broker(self.port)
        else:
            self.fleet.embedded_broker(self.port)

    def start_aggregator(self, *flags: str) -> None:
        self.fleet.aggregator(self.directory, *flags)

    def start_edge(self, name: str) -> None:
        self.fleet.edge(name, self.folder(name) / "edge.toml")

    def start(self) -> None:
        self.start_broker()
        self.start_aggregator()
        for name in DEVICES:
            self.start_edge(name)

    def watch(self) -> watching.Watch:
        return watching.Watch(self.address, "test")

    def until(self, done: Callable[[watching.View], bool]) -> watching.View:
        """Follows the topics until `done`, on a connection of its own."""
        with self.watch() as watch:
            watch.until(done, SECONDS)
            return watch.view

    def until_reported(self) -> list[dict[str, Any]]:
        """Follows to the last round's metrics; the rows of rounds.jsonl."""
        self.until(lambda v: self.rounds in v.metrics)
        return [json.loads(line) for line in (self.directory / "rounds.jsonl").read_text().splitlines()]

    def model_hash(self) -> str:
        """SHA-256 of the final model's weights."""
        model = onnx.load(str(self.directory / "model.onnx"))
        weights = b"".join(t.SerializeToString(deterministic=True) for t in model.graph.initializer)
        return hashlib.sha256(weights).hexdigest()


def command(*words: object, code: int = 0, cwd: Path | None = None) -> str:
    """Runs one of our commands; its whole output."""
    done = subprocess.run(
        [console_script(str(words[0])), *map(str, words[1:])], capture_output=True, text=True, timeout=120, check=False, cwd=cwd,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    text = done.stdout + done.stderr
    assert "Traceback" not in text, text
    assert done.returncode == code, text
    return text


@dataclass
class Secured:
    """A federation over TLS with mosquitto's generated files. Its registrar lies elsewhere, and boards enrol at `enrol_port`."""

    root: Path
    rounds: settings.Round

    def __post_init__(self) -> None:
        self.port, self.enrol_port = free_port(), free_port()
        self.directory, self.registrar = self.root / "fed", self.root / "registrar"
        onnx.save(zoo.mlp(inputs=8, hidden=16, classes=3), str(self.root / "m.onnx"))
        founding.create(
            self.directory,
            self.root / "m.onnx",
            settings.Settings(
                name="test",
                broker=settings.Broker(url=f"mqtts://localhost:{self.port}"),
                training=Training(local_epochs=1),
                round=self.rounds,
            ),
            registrar=self.registrar,
        )
        self.conf = self.directory / "broker" / "mosquitto.conf"
        user = "user root\n" if os.geteuid() == 0 else ""
        self.conf.write_text(
            user + self.conf.read_text().replace(f"listener {self.port + 1}", f"listener {self.enrol_port}")
        )
        self.fleet = Fleet(self.root / "logs")

    def start_broker(self) -> None:
        mosquitto = find_mosquitto()
        assert mosquitto
        self.fleet.start("broker", [mosquitto, "-c", str(self.conf)])
        self.fleet.await_port("broker", self.port)
        self.fleet.await_port("broker", self.enrol_port)

    def join(self, name: str, number: int = 0) -> Path:
        """A board with its kit and its data; its folder."""
        command("fleetgrad", "device", "add", name, "--dir", self.registrar)
        folder = self.root / name
        command("fleetgrad-edge", "join", self.registrar / "kits" / f"{name}.kit", "--into", folder)
        np.savez(folder / "data.npz", **samples(100, number))
        return folder

    def watch(self) -> watching.Watch:
        home = self.directory / "aggregator"
        return watching.Watch(settings.load(home).broker.endpoint(home), "test")


def samples(count: int, seed: int) -> dict[str, Any]:
    """Two features decide among three classes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 8)).astype(np.float32)
    return {"x": x, "y": (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0.5)}


def found(root: Path, devices: Sequence[str], *, hidden: int, **fields: Any) -> None:
    """A federation in root/federation, by the fields of its settings, of devices that have their data; its CA is gone."""
    directory, model = root / "federation", root / "mlp.onnx"
    onnx.save(zoo.mlp(inputs=8, hidden=hidden, classes=3), str(model))
    plain: dict[str, Any] = {
        "name": "test",
        "training": Training(local_epochs=1),
        "data": settings.Data(path="eval.npz"),
    }
    founding.create(directory, model, settings.Settings(**(plain | fields)))
    np.savez(directory / "aggregator" / "eval.npz", **samples(200, 99))
    for number, device in enumerate(devices):
        folder = founding.enlist(directory, device)
        np.savez(folder / "data.npz", **samples(150 + 20 * number, number))
    forget_authority(directory)


MakeFederation = Callable[..., Federation]
MakeSecured = Callable[..., Secured]


@pytest.fixture
def make_secured(tmp_path: Path) -> Iterator[MakeSecured]:
    """Builds federations over TLS, by the fields of [round], and ends their processes."""
    made: list[Secured] = []

    def make(**rounds: Any) -> Secured:
        made.append(Secured(tmp_path, settings.Round(**rounds)))
        return made[-1]

    yield make
    for federation in made:
        federation.fleet.stop()


@pytest.fixture
def make_federation(tmp_path: Path) -> Iterator[MakeFederation]:
    """Builds federations and ends their processes."""
    made: list[Federation] = []

    def make(
        name: str = "a", kind: str = "mosquitto", rounds: int = 4, epochs: int = 2, hidden: int = 32
    ) -> Federation:
        root = tmp_path / name
        root.mkdir()
        port = free_port()
        found(
            root,
            DEVICES,
            hidden=hidden,
            broker=settings.Broker(url=f"mqtt://127.0.0.1:{port}"),
            training=Training(local_epochs=epochs),
            round=settings.Round(rounds=rounds),
        )
        federation = Federation(root, port, Fleet(root / "logs"), rounds, kind)
        made.append(federation)
        return federation

    yield make
    for federation in made:
        federation.fleet.stop()
