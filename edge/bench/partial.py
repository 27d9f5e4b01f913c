"""What training a part of a model saves, and what averaging adapters costs.

A step's time and the bytes that travel, as ratios to training the whole model: one thread, in turns, in one process. Then a
federation in which devices that see few classes each adapt a model of upright digits to transposed ones: the accuracy after
some rounds, and how far the product of averaged factors is from the average of the products that devices trained.
"""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fleetgrad.edge.autodiff import compile_model, export_model, zoo
from fleetgrad.edge.bench.models import TASKS
from fleetgrad.edge.data.dataset import Dataset, fit
from fleetgrad.edge.data.split import dirichlet, held_out
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Floats, Trainer
from fleetgrad.native.bench.kernels import in_turns, row
from fleetgrad.wire.choice import ALL, Choice, Lora
from fleetgrad.wire.plan import Manifest

MODELS, BATCH = ("FedAvg CNN", "ResNet-8", "MobileNetV2-0.35", "transformer"), 16
CHOICES = {
    "--last 1": Choice(last=1),
    "--biases-only": Choice(biases_only=True),
    "--lora '*'": Choice(lora=Lora(["*"])),
    "--lora '*' --lora-freeze-a": Choice(lora=Lora(["*"], freeze_a=True)),
}
DEVICES, ALPHA, ROUNDS, SEEDS = 8, 0.3, 15, 3
TRAINING = {"epochs": 4, "batch_size": 16, "learning_rate": 0.01, "momentum": 0.9}


def rows() -> list[dict[str, Any]]:
    """Ratios of times and bytes for each model and choice, then the federation's."""
    found = []
    if importlib.util.find_spec("torch") is not None:  # its exporter makes the models
        for name in MODELS:
            found += saved(name)
    return found + federated()


def saved(name: str) -> list[dict[str, Any]]:
    """Two rows a choice: a step's time, and bytes, as parts of the whole model's."""
    model = TASKS[name].exported()
    x, y = TASKS[name].batch(BATCH)
    with tempfile.TemporaryDirectory() as folder:
        trainers = dict[str, Trainer]()
        for label, choice in {"all": ALL, **CHOICES}.items():
            where = Path(folder) / str(len(trainers))
            compile_model(model, loss="cross-entropy", batch_norm="frozen", choice=choice, output=where)
            trainers[label] = Trainer(open_plan(where))
        times = in_turns({label: lambda t=t: t.step(x, y) for label, t in trainers.items()}, repeats=2)  # type: ignore[misc]
    travels = {label: 4 * t.manifest.travels for label, t in trainers.items()}
    table = []
    for label in CHOICES:
        peer = f"all: {times['all'] * 1e3:.3g} ms, {travels['all']:,} bytes as fp32"
        table.append(row(f"{name}, {label}: step", times[label] / times["all"], "of all's", peer))
        table.append(row(f"{name}, {label}: bytes", travels[label] / travels["all"], "of all's", peer))
    return table


def federated() -> list[dict[str, Any]]:
    """Accuracies of the federation for each choice, means of seeds, and the gap of averaged factors in its first round."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = (digits.images[:, None] / 16).astype(np.float32)
    kept, held = held_out(digits.target, 0.2, 0)
    choices = {"all": ALL, **{k: CHOICES[k] for k in list(CHOICES)[-2:]}}
    scores: dict[str, list[float]] = {label: [] for label in choices}
    gaps: dict[str, list[float]] = {label: [] for label in choices}
    with tempfile.TemporaryDirectory() as folder:
        before = _pretrained(Path(folder), x, digits.target, kept)
        for seed in range(SEEDS):
            parts = dirichlet(digits.target[kept], DEVICES, ALPHA, seed)
            for label, choice in choices.items():
                where = Path(folder) / "plan"
                manifest = compile_model(before, loss="cross-entropy", choice=choice, output=where)
                turned = fit("d", x.transpose(0, 1, 3, 2), digits.target, manifest)
                trainer = Trainer(open_plan(where))
                data = [turned.subset(kept[part]) for part in parts]
                gaps[label].append(play(trainer, data, seed, TRAINING))
                scores[label].append(trainer.evaluate(turned.subset(held)).accuracy or 0.0)
    note = f"{DEVICES} devices, {ROUNDS} rounds, seeds 0 to {SEEDS - 1}"
    table = [row(f"transposed digits, {k}: accuracy", 100 * float(np.mean(v)), "%", note) for k, v in scores.items()]
    table += [
        row(
            f"transposed digits, {k}: gap",
            float(np.mean(v)),
            "of the mean product",
            "round 1, |mean - product of means|",
        )
        for k, v in gaps.items()
        if k != "all"
    ]
    return table


def _pretrained(folder: Path, x: Floats, y: Any, kept: Any) -> Path:
    """A model that knows upright digits."""
    manifest = compile_model(zoo.digits_cnn(), loss="cross-entropy", output=folder / "upright")
    trainer = Trainer(open_plan(folder / "upright"))
    trainer.run_epochs(fit("d", x, y, manifest).subset(kept), seed=0, **{**TRAINING, "epochs": 10})  # type: ignore[arg-type]
    export_model(folder / "upright", trainer.model, folder / "upright.onnx")
    return folder / "upright.onnx"


def play(trainer: Trainer, data: list[Dataset], seed: int, training: dict[str, Any]) -> float:
    """All rounds of FedAvg; the trainer has the last model then. The gap of the first round's factors."""
    gap = 0.0
    shares = np.array([len(d) for d in data]) / sum(map(len, data))
    for round_ in range(ROUNDS):
        base, results = trainer.parameters.copy(), []
        for own in data:
            trainer.load(base)
            trainer.run_epochs(own, seed=seed * ROUNDS + round_, **training)
            results.append(trainer.model.copy())
        mean = np.tensordot(shares.astype(np.float32), np.stack(results), 1)
        if round_ == 0 and trainer.manifest.adapters:
            products = np.tensordot(shares, np.stack([_products(trainer.manifest, r) for r in results]), 1)
            gap = float(np.linalg.norm(products - _products(trainer.manifest, mean)) / np.linalg.norm(products))
        trainer.load(mean[: base.size])
    return gap


def _products(manifest: Manifest, vector: Floats) -> Floats:
    """All adapters' products, one after another."""
    tensors = {t.name: vector[t.offset : t.offset + t.size].reshape(t.shape[0], -1) for t in manifest.tensors}
    parts = [(a.a, a.b) if a.order == "ab" else (a.b, a.a) for a in manifest.adapters]
    return np.concatenate([(tensors[left] @ tensors[right]).ravel() for left, right in parts])
