"""Fused optimizer steps: their memory traffic against memcpy, and their time against torch's and NumPy's step, one thread.

The traffic counts each vector once for each time that a step reads or writes it, the scan of the gradient for NaN (or its norm) included;
memcpy counts what it reads and what it writes, in the same process. Sizes: the FedAvg CNN, which fits many third-level caches, and
ten million parameters, which fit none.
"""

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fleetgrad.native import optimizers
from fleetgrad.native.bench.kernels import COUNT, best_seconds, row
from fleetgrad.native.binding import Floats, capability
from fleetgrad.native.optimizers import MOMENTS, Optimizer, Rule

SIZES = {"1.66 M": COUNT, "10 M": 10_000_000}
REPEATS = 12
RULES: tuple[Rule, ...] = ("sgd", "momentum", "nesterov", "adam", "adamw")
TERMS = {"FedProx": ("anchor",), "SCAFFOLD": ("control", "own_control"), "FedDyn": ("anchor", "dynamic")}


def rows() -> list[dict[str, Any]]:
    """Per rule and size: share of memcpy's bandwidth, and how many times as fast as torch (foreach, fused) and NumPy."""
    return [found for name, size in SIZES.items() for found in _of_size(name, size)]


def _of_size(name: str, size: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    w, g, anchor, control, own, dynamic = (rng.standard_normal(size, np.float32) for _ in range(6))
    state = [np.zeros(size, np.float32) for _ in range(2)]
    bandwidth = 2 * w.nbytes / best_seconds(lambda: np.copyto(anchor, g), REPEATS)
    memcpy = f"memcpy {bandwidth / 1e9:.1f} GB/s read and written"
    extra = {"anchor": anchor, "control": control, "own_control": own, "dynamic": dynamic}
    table: list[dict[str, Any]] = []

    def measure(figure: str, o: Optimizer, vectors: tuple[str, ...] = ()) -> Callable[[], object]:
        given: dict[str, Any] = {v: extra[v] for v in vectors}
        moments = state[: MOMENTS[o.rule]]

        def act() -> object:
            return optimizers.step(o, w, g, *moments, **given)

        passes = 1 + 1 + 2 * (1 + len(moments)) + len(vectors)  # scan, gradient, what is updated, terms
        share = passes * w.nbytes / best_seconds(act, REPEATS) / bandwidth
        table.append(row(f"{figure}, {name} ({capability()})", share, "of memcpy's bandwidth", memcpy))
        return act

    ours: dict[str, Callable[[], object]] = {
        rule: measure(rule, Optimizer(rule, 1e-6, weight_decay=1e-4)) for rule in RULES
    }
    clipped = measure("clipped momentum", Optimizer("momentum", 1e-6, max_norm=1.0))
    for method, vectors in TERMS.items():
        proximal = 0.01 if "anchor" in vectors else 0.0
        measure(f"momentum with {method}", Optimizer("momentum", 1e-6, proximal=proximal), vectors)
    peers: dict[str, tuple[str, Callable[[], object]]] = {
        "numpy momentum": ("momentum", numpy_momentum(w, g, state[0]))
    }
    if importlib.util.find_spec("torch"):
        peers |= torchs(w, g)
    ours["clipped momentum"] = clipped
    for peer, (rule, act) in peers.items():
        seconds, peers_seconds = in_turns(ours[rule], act)
        table.append(row(f"{rule}, {name}", peers_seconds / seconds, "x as fast", peer))
    return table


def in_turns(*acts: Callable[[], object]) -> list[float]:
    """The fastest call of each, measured in turns, so that what else the machine does meets them alike."""
    best = [math.inf for _ in acts]
    for _ in range(REPEATS):
        for i, act in enumerate(acts):
            best[i] = min(best[i], best_seconds(act, 1))
    return best


def numpy_momentum(w: Floats, g: Floats, v: Floats) -> Callable[[], object]:
    """The step as one writes it in NumPy, without a temporary more than it needs."""
    work = np.empty_like(w)

    def act() -> None:
        np.multiply(w, np.float32(1e-4), out=work)
        np.add(work, g, out=work)
        np.multiply(v, np.float32(0.9), out=v)
        np.add(v, work, out=v)
        np.multiply(v, np.float32(1e-6), out=work)
        np.subtract(w, work, out=w)

    return act


def torchs(w: Floats, g: Floats) -> dict[str, tuple[str, Callable[[], object]]]:
    """Peer -> our rule and torch's step on one parameter of the same size; neither scans the gradient for NaN."""
    import torch

    torch.set_num_threads(1)
    acts: dict[str, tuple[str, Callable[[], object]]] = {}
    for rule, make in (
        ("momentum", lambda p, **how: torch.optim.SGD([p], lr=1e-6, momentum=0.9, weight_decay=1e-4, **how)),
        ("adam", lambda p, **how: torch.optim.Adam([p], lr=1e-6, weight_decay=1e-4, **how)),
        ("adamw", lambda p, **how: torch.optim.AdamW([p], lr=1e-6, weight_decay=1e-4, **how)),
    ):
        for how in ("foreach", "fused"):
            parameter = torch.tensor(w, requires_grad=True)
            parameter.grad = torch.tensor(g)
            acts[f"torch {rule}, {how}"] = (rule, make(parameter, **{how: True}).step)  # type: ignore[no-untyped-call]
    parameter = torch.tensor(w, requires_grad=True)
    parameter.grad = torch.tensor(g)
    momentum = torch.optim.SGD([parameter], lr=1e-6, momentum=0.9, foreach=True)

    def clipped() -> None:
        torch.nn.utils.clip_grad_norm_([parameter], 1.0)
        momentum.step()

    acts["torch momentum, foreach, after clip_grad_norm_"] = ("clipped momentum", clipped)
    return acts
