"""What sharing batch normalisation's statistics is worth: a fresh CNN on digits, by devices that see few classes each.

With frozen statistics the layers normalise nothing that they have seen: a fresh model's are mean 0 and variance 1.
"""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fleetgrad.edge.autodiff import compile_model
from fleetgrad.edge.bench.models import Task
from fleetgrad.edge.bench.partial import DEVICES, ROUNDS, play
from fleetgrad.edge.data.dataset import fit
from fleetgrad.edge.data.split import dirichlet, held_out
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Trainer
from fleetgrad.native.bench.kernels import row
from fleetgrad.wire.plan import BatchNorm

KINDS: tuple[BatchNorm, ...] = ("frozen", "shared")
ALPHAS, SEEDS = (100.0, 0.5, 0.1), 2
TRAINING = {"epochs": 2, "batch_size": 16, "learning_rate": 0.03, "momentum": 0.9}


def normalised_cnn() -> Any:
    """Three convolutions with batch normalisation, pooling, dense."""
    from torch import nn

    def layer(inputs: int, outputs: int) -> list[Any]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
    return nn.Sequential(*layer(1, 16), *layer(16, 32), nn.MaxPool2d(2), *layer(32, 32), *end)


def rows() -> list[dict[str, Any]]:
    """Accuracies after the last round for each skew of the labels."""
    from sklearn.datasets import load_digits

    if importlib.util.find_spec("torch") is None:  # its exporter makes the model
        return []
    digits = load_digits()
    x = (digits.images[:, None] / 16).astype(np.float32)
    kept, held = held_out(digits.target, 0.2, 0)
    model, table = Task(normalised_cnn, (1, 8, 8), 10).exported(), []
    with tempfile.TemporaryDirectory() as folder:
        for alpha in ALPHAS:
            for kind in KINDS:
                manifest = compile_model(model, loss="cross-entropy", batch_norm=kind, output=Path(folder) / "plan")
                data = fit("d", x, digits.target, manifest)
                scores = []
                for seed in range(SEEDS):
                    trainer = Trainer(open_plan(Path(folder) / "plan"))
                    parts = dirichlet(digits.target[kept], DEVICES, alpha, seed)
                    play(trainer, [data.subset(kept[part]) for part in parts], seed, TRAINING)
                    scores.append(trainer.evaluate(data.subset(held)).accuracy or 0.0)
                peer = f"{DEVICES} devices, {ROUNDS} rounds, seeds 0 to {SEEDS - 1}"
                figure = f"batch normalisation {kind}, Dirichlet {alpha:g}: accuracy"
                table.append(row(figure, 100 * float(np.mean(scores)), "%", peer))
    return table
