"""Training steps of recurrent layers and gradients of embeddings against torch and against graphs of standard ops: one thread each, in turns.

A step is forward and backward with all gradients. Layers: those of LEAF's Shakespeare model (8 or 256 inputs, 256 units, 80 characters) and a
GRU classifier's. For an embedding the best standard form is the fastest of ScatterND, ScatterElements and OneHot + MatMul.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from fleetgrad.native.bench import recurrent_graphs as graphs
from fleetgrad.native.bench.kernels import best_seconds, row
from fleetgrad.native.bench.optimizers import in_turns
from fleetgrad.native.binding import capability

LAYERS = {  # kind, steps, batch, inputs, units
    "Shakespeare LSTM, layer 1, batch 4": ("LSTM", 80, 4, 8, 256),
    "Shakespeare LSTM, layer 2, batch 4": ("LSTM", 80, 4, 256, 256),
    "Shakespeare LSTM, layer 1, batch 16": ("LSTM", 80, 16, 8, 256),
    "Shakespeare LSTM, layer 2, batch 16": ("LSTM", 80, 16, 256, 256),
    "GRU classifier, batch 16": ("GRU", 50, 16, 40, 128),
}
EMBEDDINGS = {
    "1,280 of 90 x 8": (1280, 90, 8),
    "2,048 of 1,000 x 128": (2048, 1000, 128),
    "2,048 of 30,000 x 128": (2048, 30000, 128),
}
STANDARD = ("ScatterND", "ScatterElements", "OneHot")


def rows() -> list[dict[str, Any]]:
    """Milliseconds a step, and how many times as fast as each peer that is."""
    table: list[dict[str, Any]] = []
    has_torch = importlib.util.find_spec("torch") is not None
    rng = np.random.default_rng(0)
    for name, (kind, t, n, i, h) in LAYERS.items():
        gates = 4 if kind == "LSTM" else 3
        shapes = {"x": (t, n, i), "w": (1, gates * h, i), "r": (1, gates * h, h), "b": (1, 2 * gates * h)}
        shapes |= {"h0": (1, n, h), "c0": (1, n, h), "dy": (t, 1, n, h)}
        feeds = {k: rng.standard_normal(shapes[k], np.float32) * np.float32(0.1) for k in graphs.INPUTS[kind]}
        acts = {
            "ours": _run(graphs.native(kind, t, n, i, h), feeds),
            "standard ops, unrolled": _run(graphs.twin(kind, t, n, i, h), feeds),
        }
        if has_torch:
            acts[f"torch nn.{kind}, eager"] = torchs(kind, feeds)
        table += _compare(name, "ms a step", acts)
    for name, (count, vocabulary, width) in EMBEDDINGS.items():
        given: dict[str, Any] = {
            "indices": rng.integers(0, vocabulary, count),
            "dy": rng.standard_normal((count, width), np.float32),
        }
        forms = {form: _run(graphs.embedding(form, vocabulary, width), given) for form in STANDARD}
        best = min(forms, key=lambda form: best_seconds(forms[form], 3))
        for op in ("EmbeddingGrad", "SparseEmbeddingGrad"):
            acts = {
                "ours": _run(graphs.embedding(op, vocabulary, width), given),
                f"{best}, the best standard form": forms[best],
            }
            table += _compare(f"{op}, {name}", "ms", acts)
    return table


def _run(session: Any, feeds: dict[str, Any]) -> Callable[[], object]:
    return lambda: session.run(None, feeds)


def _compare(name: str, unit: str, acts: dict[str, Callable[[], object]]) -> list[dict[str, Any]]:
    seconds = dict(zip(acts, in_turns(*acts.values()), strict=True))
    ours = seconds.pop("ours")
    figure = f"{name} ({capability()})"
    return [
        row(figure, ours * 1e3, unit, ""),
        *(row(figure, theirs / ours, "x as fast", peer) for peer, theirs in seconds.items()),
    ]


def torchs(kind: str, feeds: dict[str, Any]) -> Callable[[], object]:
    """The same step in torch."""
    import torch

    torch.set_num_threads(1)
    t, n, i = feeds["x"].shape
    h = feeds["h0"].shape[2]
    layer = getattr(torch.nn, kind)(i, h)
    x = torch.tensor(feeds["x"], requires_grad=True)
    dy = torch.tensor(feeds["dy"].reshape(t, n, h))

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        layer(x)[0].backward(dy)

    return step
