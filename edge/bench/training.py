"""Training steps of seven models against torch in eager mode, at three batch sizes: time and peak memory.

Each engine has one thread and a process of its own; their turns alternate, and each one's fastest step counts. The promise is
the default plan's, with int8 weight gradients by the C core; fp32 gradients and the plan of standard ops alone stand beside it.
A missed promise names the ops that take most of the step. Without torch (an oracle, in no extra) nothing is measured.

With an environment for onnxruntime-training, its steps take their turns too, and the default plan's by plain SGD, which is all
that it has beside AdamW; the promise is to be at par or faster.
"""

import importlib.util
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from fleetgrad.edge.autodiff.compiling import compile_model
from fleetgrad.edge.bench import ort_training
from fleetgrad.edge.bench.models import TASKS
from fleetgrad.native.bench.kernels import row
from fleetgrad.native.bench.results import at_most, skipped

BATCHES = (1, 16, 32)
PLANS: dict[str, dict[str, Any]] = {
    "native int8": {"gradients": "int8", "profile": "cpu-native"},
    "native fp32": {"gradients": "fp32", "profile": "cpu-native"},
    "standard fp32": {"gradients": "fp32", "profile": "cpu-std"},
}
PROMISED, PEER = "native int8", "torch"
PLAIN, OTHER_STEP = f"{PROMISED} by plain SGD", f"step beside {ort_training.PEER}"
LEAST_SPEED, LEAST_MEAN, MOST_MEMORY = 1.0, 1.5, 0.5
MEMORY_OF = {("MobileNetV2-0.35", 16): 2 / 3, ("MobileNetV2-0.35", 32): 2 / 3}  # activations are most of it
TURNS, TURN_SECONDS = 8, 0.1
NAMED_OPS = 4
ENGINE = [sys.executable, "-m", "fleetgrad.edge.bench.engine"]


class Engine:
    """A process that makes steps."""

    def __init__(self, kind: str, what: str, batch: Path, command: Sequence[str] = ENGINE) -> None:
        self.best, self._name = math.inf, f"{kind} {what}"
        self._process = subprocess.Popen(
            [*command, kind, what, str(batch)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def heard(self, key: str) -> float:
        """What it says next."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"an engine ended with {self._process.wait()}: {self._name}")
        return float(json.loads(line)[key])

    def turn(self) -> None:
        """Lets it make steps for a while."""
        assert self._process.stdin
        print(TURN_SECONDS, file=self._process.stdin, flush=True)
        self.best = min(self.best, self.heard("seconds"))

    def megabytes(self) -> float:
        """Ends it; its peak."""
        assert self._process.stdin
        self._process.stdin.close()
        found = self.heard("megabytes")
        self._process.wait()
        return found


def cell(name: str, batch: int, folder: Path, other: Path | None = None) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds of the fastest step and megabytes at the peak, by engine; the plans lie in folder.

    `other` is the Python that has onnxruntime-training, whose artifacts lie in folder too.
    """
    file = _batch(name, batch, folder)
    engines = {plan: Engine("plan", str(folder / plan), file) for plan in PLANS} | {PEER: Engine("torch", name, file)}
    if other:
        artifacts = str(folder / ort_training.PEER)
        engines[PLAIN] = Engine("plan-sgd", str(folder / PROMISED), file)
        engines[ort_training.PEER] = Engine(ort_training.PEER, artifacts, file, ort_training.command(other))
    losses = {engine: found.heard("loss") for engine, found in engines.items()}
    for engine, loss in losses.items():
        assert math.isclose(loss, losses[PEER], rel_tol=1e-3), (name, batch, engine, losses)
    for _ in range(TURNS):
        for found in engines.values():
            found.turn()
    peaks = {engine: found.megabytes() for engine, found in engines.items()}
    return {engine: found.best * 1e3 for engine, found in engines.items()}, peaks


def _batch(name: str, batch: int, folder: Path) -> Path:
    file = folder / f"batch{batch}.npz"
    if not file.exists():
        x, y = TASKS[name].batch(batch)
        np.savez(file, x=x, y=y)
    return file


def busiest(name: str, batch: int, folder: Path) -> str:
    """'Conv 41 %, ...': the ops that take most of the promised plan's step."""
    run = [*ENGINE, "profile", str(folder / PROMISED), str(_batch(name, batch, folder))]
    shares: dict[str, float] = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    return ", ".join(f"{op} {share:.0%}" for op, share in list(shares.items())[:NAMED_OPS])


def beside(values: dict[str, float], unit: str) -> str:
    """'native int8 0.31, ..., torch 1.1 ms'."""
    return ", ".join(f"{engine} {value:.3g}" for engine, value in values.items()) + f" {unit}"


def of_model(name: str, python: Path | None) -> tuple[list[dict[str, Any]], ...]:
    """Rows beside onnxruntime-training, of speed and of memory, one of each for a batch size."""
    beside_other: list[dict[str, Any]] = []
    speeds: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder, model = Path(temporary), TASKS[name].exported()
        for plan, how in PLANS.items():
            compile_model(model, loss="cross-entropy", output=folder / plan, **how)
        if python:
            try:
                ort_training.make_artifacts(python, model, folder / ort_training.PEER)
            except ort_training.PeerError as e:
                beside_other.append(skipped(f"{name}: {OTHER_STEP}", str(e), LEAST_SPEED))
                python = None
        for batch in BATCHES:
            times, peaks = cell(name, batch, folder, python)
            figure = f"{name}, batch {batch}"
            for own, peer, title, table in (
                (PROMISED, PEER, "step", speeds),
                (PLAIN, ort_training.PEER, OTHER_STEP, beside_other),
            ):
                if peer in times:
                    ratio = times[peer] / times[own]
                    found = row(f"{figure}: {title}", ratio, "x as fast", beside(times, "ms"), LEAST_SPEED)
                    if not found["holds"]:
                        found["peer"] += f"; most time: {busiest(name, batch, folder)}"
                    table.append({**found, "ms": times})
            most = MEMORY_OF.get((name, batch), MOST_MEMORY)
            ratio = peaks[PROMISED] / peaks[PEER]
            memory.append({
                **at_most(f"{figure}: peak memory", ratio, "of torch's", beside(peaks, "MB"), most), "MB": peaks,
            })  # fmt: skip
    return beside_other, speeds, memory


def rows(environment: Path | None = None) -> list[dict[str, Any]]:
    """Two rows a model and batch size, and the geometric mean of the speeds.

    With `environment`, the folder where onnxruntime-training is or is to be installed, there is a third row each.
    """
    if importlib.util.find_spec("torch") is None:
        return [skipped("training steps", "torch isn't installed", LEAST_MEAN)]
    beside_other: list[dict[str, Any]] = []
    python: Path | None = None
    if environment:
        try:
            python = ort_training.prepare(environment)
        except ort_training.PeerError as e:
            beside_other.append(skipped(OTHER_STEP, str(e), LEAST_SPEED))
    found = [of_model(name, python) for name in TASKS]
    others, speeds, memory = (list(chain.from_iterable(tables)) for tables in zip(*found, strict=True))
    mean = math.exp(sum(math.log(step["value"]) for step in speeds) / len(speeds))
    peer = f"torch eager, one thread; {len(speeds)} steps, {PROMISED}"
    return [
        *speeds,
        row("geometric mean of the steps", mean, "x as fast", peer, LEAST_MEAN),
        *beside_other,
        *others,
        *memory,
    ]
