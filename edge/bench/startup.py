"""How long a training session takes to be made: anew, and from the cache of optimised graphs, its hash checked."""

import importlib.util
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from fleetgrad.edge.bench.memory import PLANS
from fleetgrad.edge.training.cache import cached_session
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.sessions import open_session, options
from fleetgrad.native.bench.kernels import in_turns, row
from fleetgrad.native.bench.results import skipped
from fleetgrad.wire import plan

NAMES = ("MobileNetV2-0.35", "transformer")
LEAST = 1.5


def rows() -> list[dict[str, Any]]:
    """How many times as fast the cache is."""
    if importlib.util.find_spec("torch") is None:
        return [skipped("session from the cache", "torch isn't installed", LEAST)]
    from fleetgrad.edge.autodiff.compiling import compile_model
    from fleetgrad.edge.bench.models import TASKS

    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            for kind, how in PLANS.items():
                directory = Path(folder) / f"{name}.{kind}"
                compile_model(TASKS[name].exported(), loss="cross-entropy", output=directory, **how)
                opened = open_plan(directory)
                how_made = options(opened.manifest.op_abi, threads=1)
                anew = partial(open_session, opened, plan.TRAIN, how_made)
                cached = partial(cached_session, opened, plan.TRAIN, 1, opened.directory / "cache")
                best = in_turns({"anew": anew, "cache": cached}, turns=4, repeats=3)
                told = f"anew {best['anew'] * 1e3:.1f}, cached {best['cache'] * 1e3:.1f} ms"
                found.append(
                    row(
                        f"{name} {kind}: session from the cache", best["anew"] / best["cache"], "x as fast", told, LEAST
                    )
                )
    return found
