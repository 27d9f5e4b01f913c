"""A training step of the FedAvg CNN against torch in eager mode: one thread each, in turns, in one process.

A step is forward, backward and the SGD update with momentum. Without torch (an oracle, in no extra) its rows are left out.
"""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fleetgrad.edge.autodiff import zoo
from fleetgrad.edge.autodiff.compiling import compile_model
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Trainer
from fleetgrad.native import optimizers
from fleetgrad.native.bench.kernels import best_seconds, row
from fleetgrad.wire.plan import Gradients

BATCHES = (1, 32)
REPEATS = {1: 60, 32: 15}


def ours(gradients: Gradients, batch: int, folder: Path) -> Callable[[], object]:
    """One step of our plan."""
    compile_model(zoo.fedavg_cnn(), loss="cross-entropy", gradients=gradients, output=folder)
    trainer = Trainer(open_plan(folder))
    x, y = _batch(batch)
    flat, gradient, velocity = trainer.vectors()
    optimizer = optimizers.Optimizer("momentum", 0.001)

    def step() -> None:
        trainer.step(x, y)
        optimizers.step(optimizer, flat, gradient, velocity)

    return step


def torchs(batch: int) -> Callable[[], object]:
    """The same step in torch."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, foreach=True)
    loss = nn.CrossEntropyLoss()
    x, y = (torch.from_numpy(a) for a in _batch(batch))

    def step() -> None:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()

    return step


def _batch(size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((size, 1, 28, 28), np.float32), rng.integers(0, 10, size)


def rows() -> list[dict[str, Any]]:
    """Milliseconds a step, and how many times torch's speed that is."""
    table: list[dict[str, Any]] = []
    has_torch = importlib.util.find_spec("torch") is not None
    with tempfile.TemporaryDirectory() as folder:
        for batch in BATCHES:
            times = {
                g: best_seconds(ours(g, batch, Path(folder) / f"{g}{batch}"), REPEATS[batch]) for g in ("fp32", "int8")
            }
            peer = best_seconds(torchs(batch), REPEATS[batch]) if has_torch else None
            if peer is not None:
                table.append(row(f"torch eager, batch {batch}", peer * 1e3, "ms a step", ""))
            for name, seconds in times.items():
                table.append(row(f"FedAvg CNN {name}, batch {batch}", seconds * 1e3, "ms a step", ""))
                if peer is not None:
                    table.append(row(f"FedAvg CNN {name}, batch {batch}", peer / seconds, "x as fast", "torch eager"))
    return table
