"""Peak memory of training as the plan predicts it, beside what a new process takes: seven models, three plans, three batch sizes.

What counts is the growth of the resident memory over what the process has with everything imported and the plan opened. Evaluation
isn't part of it. Without torch, which makes the models, nothing is measured.

    python -m fleetgrad.edge.bench.memory DIRECTORY BATCH [MICRO]     one measurement: MB that training took, as JSON
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fleetgrad.edge.bench.engine import peak_megabytes
from fleetgrad.edge.training import memory
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Trainer
from fleetgrad.edge.training.trial import draw
from fleetgrad.native import optimizers
from fleetgrad.native.bench.kernels import row
from fleetgrad.native.bench.results import at_most, skipped
from fleetgrad.wire.choice import Choice

BATCHES = (1, 16, 32)
PLANS: dict[str, dict[str, Any]] = {
    "int8": {"gradients": "int8", "profile": "cpu-native"},
    "standard": {"gradients": "fp32", "profile": "cpu-std"},
    "last layer": {"choice": Choice(last=1)},
}
BOUND = 0.15
STEPS = 6
MB = 1e6


def measured(directory: Path, batch: int, micro: int | None = None) -> float:
    """Megabytes by which a new process grows when it trains."""
    words = [str(directory), str(batch), *([str(micro)] if micro else [])]
    done = subprocess.run(
        [sys.executable, "-m", "fleetgrad.edge.bench.memory", *words], check=True, capture_output=True, text=True
    )
    return float(json.loads(done.stdout)["megabytes"])


def grow(directory: Path, batch: int, micro: int | None) -> float:
    """Trains in this process; by how many megabytes its peak is over what it had."""
    plan = open_plan(directory)
    limits = plan.manifest.trial.limits if plan.manifest.trial else {}
    drawn = draw(plan.manifest, limits, 1, batch)
    x, *more = (drawn[feed.name] for feed in plan.manifest.inputs)
    optimizer = optimizers.Optimizer("momentum", 1e-4)
    before = memory.resident()
    trainer = Trainer(plan, micro_batch=micro)
    for _ in range(STEPS):
        trainer.step(x, drawn[plan.manifest.label.name], *more, micro_batch=micro)
        optimizers.step(optimizer, *trainer.vectors())
    return peak_megabytes() * 2**20 / MB - before / MB


def rows() -> list[dict[str, Any]]:
    """How far each prediction is off."""
    if importlib.util.find_spec("torch") is None:
        return [skipped("memory of training", "torch isn't installed", BOUND)]
    from fleetgrad.edge.autodiff.compiling import compile_model
    from fleetgrad.edge.bench.models import TASKS

    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, task in TASKS.items():
            model = task.exported()
            for kind, how in PLANS.items():
                directory = Path(folder) / f"{name}.{kind}"
                manifest = compile_model(model, loss="cross-entropy", output=directory, **how)
                for batch in BATCHES:
                    predicted, taken = memory.growth(manifest, batch) / MB, measured(directory, batch)
                    off = abs(predicted / taken - 1)
                    told = f"predicted {predicted:.1f}, measured {taken:.1f} MB"
                    found.append(at_most(f"{name} {kind}, batch {batch}: memory", off, "off", told, BOUND))
    held = sum(bool(one["holds"]) for one in found)
    return [*found, row("memory: predictions within the bound", held, f"of {len(found)}", "", len(found))]


if __name__ == "__main__":
    where, size, *piece = sys.argv[1:]
    print(json.dumps({"megabytes": grow(Path(where), int(size), int(piece[0]) if piece else None)}))
