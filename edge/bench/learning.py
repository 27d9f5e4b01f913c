"""Real learning: the accuracy that plans and torch come to from the same weights, batches, optimizer and epochs.

Whatever the engine, a seed gives the initial weights and the order of the samples, and the rate falls linearly to 0, so that the
last steps don't toss the accuracy about. Promised is torch's accuracy less half a point at most, by fp32 gradients and by int8
ones. Accuracies are of the whole test set after the last step. One thread each, one after another: no time is measured.
"""

import importlib.util
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any, Protocol

import numpy as np

from fleetgrad.edge.autodiff import compile_model
from fleetgrad.edge.bench.subjects import SUBJECTS, Array, Samples, Subject
from fleetgrad.edge.data.dataset import fit
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Trainer
from fleetgrad.native import optimizers
from fleetgrad.native.bench.kernels import row
from fleetgrad.native.bench.results import skipped
from fleetgrad.wire.loss import LossOptions
from fleetgrad.wire.plan import Gradients

FOLDER = "FLEETGRAD_DATA"
PEER = "torch"
GRADIENTS: tuple[Gradients, ...] = ("fp32", "int8")
MOST_LOST = 0.5  # points of accuracy
SAME_LOSS = 1e-4  # relative difference of the first losses: roundings
REPORTS = 10  # a run
EVAL_BATCH = 256


class Learner(Protocol):
    """A model that learns: one step at a rate returns the batch's loss, and the accuracy is in percent."""

    def step(self, x: Array, y: Array, rate: float) -> float: ...
    def accuracy(self, test: Samples) -> float: ...


class Planned:
    """A plan's trainer."""

    def __init__(self, subject: Subject, seed: int, gradients: Gradients) -> None:
        self._folder = tempfile.TemporaryDirectory()  # as long as the trainer, which opens the evaluation graph late
        plan = Path(self._folder.name) / "plan"
        compile_model(
            subject.task.exported(seed), loss="cross-entropy", gradients=gradients, output=plan,
            loss_options=LossOptions(class_axis=subject.class_axis),
        )  # fmt: skip
        self._trainer = Trainer(open_plan(plan))
        self._flat, self._gradient, velocity = self._trainer.vectors()
        self._moments = [velocity, np.zeros_like(velocity)][: optimizers.MOMENTS[subject.rule]]
        self._rule, self._time = subject.rule, 0

    def step(self, x: Array, y: Array, rate: float) -> float:
        loss = self._trainer.step(x, y)
        self._time += 1
        rule = optimizers.Optimizer(self._rule, rate)
        optimizers.step(rule, self._flat, self._gradient, *self._moments, time=self._time)
        return loss

    def accuracy(self, test: Samples) -> float:
        return 100 * (self._trainer.evaluate(fit("test", *test, self._trainer.manifest)).accuracy or 0.0)


class Torch:
    """The same model in torch, eager, with its own optimizer."""

    def __init__(self, subject: Subject, seed: int) -> None:
        import torch

        torch.set_num_threads(1)
        self._torch, self._module, self._axis = torch, subject.task.module(seed), subject.class_axis
        constants = {"momentum": 0.9} if subject.rule == "momentum" else {}
        kind = torch.optim.SGD if subject.rule == "momentum" else torch.optim.Adam
        self._optimizer: Any = kind(self._module.parameters(), lr=subject.rate, **constants)

    def step(self, x: Array, y: Array, rate: float) -> float:
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.zero_grad()
        logits = self._module(self._torch.from_numpy(x)).movedim(self._axis, 1)
        loss = self._torch.nn.functional.cross_entropy(logits, self._torch.from_numpy(y))
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())

    def accuracy(self, test: Samples) -> float:
        self._module.eval()
        right, (x, y) = 0, test
        with self._torch.no_grad():
            for start in range(0, len(x), EVAL_BATCH):
                logits = self._module(self._torch.from_numpy(x[start : start + EVAL_BATCH]))
                right += int((logits.argmax(self._axis).numpy() == y[start : start + EVAL_BATCH]).sum())
        self._module.train()
        return 100 * right / y.size


def learn(
    learner: Learner, subject: Subject, train: Samples, seed: int, tell: Callable[[int, int, float], None]
) -> float:
    """All epochs; returns the first step's loss. `tell` hears of the step, of how many, and of the mean loss since it last heard."""
    x, y = train
    order = np.random.Generator(np.random.PCG64(seed))
    batches = [
        drawn
        for _ in range(subject.epochs)
        for drawn in np.array_split(order.permutation(len(x)), math.ceil(len(x) / subject.batch))
    ]
    every, losses, first = math.ceil(len(batches) / REPORTS), list[float](), math.nan
    for done, drawn in enumerate(batches):
        losses.append(learner.step(x[drawn], y[drawn], subject.rate * (1 - done / len(batches))))
        first = losses[0] if done == 0 else first
        if (done + 1) % every == 0 or done + 1 == len(batches):
            tell(done + 1, len(batches), mean(losses))
            losses = []
    return first


def studied(subject: Subject, train: Samples, test: Samples) -> dict[str, float]:
    """Accuracies in percent by engine, means of the seeds; raises RuntimeError where engines don't begin alike."""
    found: dict[str, list[float]] = {}
    for seed in range(subject.seeds):
        makers: dict[str, Callable[[], Learner]] = {PEER: lambda s=seed: Torch(subject, s)}  # type: ignore[misc]
        makers |= {g: lambda s=seed, g=g: Planned(subject, s, g) for g in GRADIENTS}  # type: ignore[misc]
        firsts: dict[str, float] = {}
        for name, make in makers.items():

            def tell(step: int, steps: int, loss: float, label: str = f"{subject.name}, seed {seed}, {name}") -> None:
                print(f"{label}: step {step} of {steps}, loss {loss:.4f}", file=sys.stderr, flush=True)

            learner = make()
            firsts[name] = learn(learner, subject, train, seed, tell)
            if not math.isclose(firsts[name], firsts[PEER], rel_tol=SAME_LOSS):
                raise RuntimeError(f"{subject.name}: the first losses differ, so the models did: {firsts}")
            found.setdefault(name, []).append(learner.accuracy(test))
            print(f"{subject.name}, seed {seed}, {name}: {found[name][-1]:.2f} %", file=sys.stderr, flush=True)
    return {name: mean(values) for name, values in found.items()}


def table(subject: Subject, data: Path) -> list[dict[str, Any]]:
    """torch's accuracy, then each plan's, and what it is beside torch's in points."""
    try:
        train, test = subject.samples(data)
    except OSError as e:
        return [skipped(f"{subject.name}: accuracy", f"{FOLDER} has no such data: {e}", subject.least)]
    accuracies = studied(subject, train, test)
    chance = 100 * np.bincount(test[1].ravel()).max() / test[1].size
    how = f"{subject.epochs} epochs of {len(train[0]):,}, {subject.rule} {subject.rate:g}, batch {subject.batch}"
    seeds = f", mean of {subject.seeds} seeds" if subject.seeds > 1 else ""
    peer = f"{how}{seeds}; the most frequent label: {chance:.1f} %"
    found = [row(f"{subject.name}, {PEER}: accuracy", accuracies[PEER], "%", peer, subject.least)]
    for gradients in GRADIENTS:
        ours, beside = accuracies[gradients], f"{PEER} {accuracies[PEER]:.2f} %"
        found.append(row(f"{subject.name}, {gradients}: accuracy", ours, "%", beside, subject.least))
        found.append(
            row(f"{subject.name}, {gradients}: more than {PEER}", ours - accuracies[PEER], "points", beside, -MOST_LOST)
        )
    return found


def rows() -> list[dict[str, Any]]:
    """Five rows a subject; a skipped one where its data or torch is missing."""
    if not (folder := os.environ.get(FOLDER)):
        return [
            skipped("real learning", f"{FOLDER} names no folder of data sets (docs/testing.md says which)", -MOST_LOST)
        ]
    if importlib.util.find_spec("torch") is None:
        return [skipped("real learning", "torch isn't installed", -MOST_LOST)]
    return [found for subject in SUBJECTS for found in table(subject, Path(folder))]
