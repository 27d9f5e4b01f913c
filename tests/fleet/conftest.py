"""A small federation of real processes: an MLP on blobs of numbers, 3 devices, a few rounds, seconds a run."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fleetgrad.broker import founding, settings, watching
from fleetgrad.broker.registrar.registrar import forget_authority
from fleetgrad.edge.autodiff import zoo
from fleetgrad.hardware.fleet import Fleet, free_port
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


def samples(count: int, seed: int) -> dict[str, Any]:
    """Two features decide among three classes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 8)).astype(np.float32)
    return {"x": x, "y": (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0.5)}


MakeFederation = Callable[..., Federation]


@pytest.fixture
def make_federation(tmp_path: Path) -> Iterator[MakeFederation]:
    """Builds federations and ends their processes."""
    made: list[Federation] = []

    def make(
        name: str = "a", kind: str = "mosquitto", rounds: int = 4, epochs: int = 2, hidden: int = 32
    ) -> Federation:
        root = tmp_path / name
        root.mkdir()
        onnx.save(zoo.mlp(inputs=8, hidden=hidden, classes=3), str(root / "mlp.onnx"))
        port = free_port()
        founding.create(
            root / "federation",
            root / "mlp.onnx",
            settings.Settings(
                name="test",
                broker=settings.Broker(url=f"mqtt://127.0.0.1:{port}"),
                training=Training(local_epochs=epochs),
                round=settings.Round(rounds=rounds),
                data=settings.Data(path="eval.npz"),
            ),
        )
        np.savez(root / "federation" / "aggregator" / "eval.npz", **samples(200, 99))
        for number, device in enumerate(DEVICES):
            folder = founding.enlist(root / "federation", device)
            np.savez(folder / "data.npz", **samples(150 + 20 * number, number))
        forget_authority(root / "federation")
        federation = Federation(root, port, Fleet(root / "logs"), rounds, kind)
        made.append(federation)
        return federation

    yield make
    for federation in made:
        federation.fleet.stop()
