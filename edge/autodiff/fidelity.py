"""Measures how close the int8 weight gradients of a plan are to fp32, per layer, over the steps of a short training.

At each step both plans' training graphs see the same weights and the same batch; the cosine of each layer's two gradients
is taken; then the int8 gradients are applied (SGD with momentum), so that the steps are those of int8 training.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from fleetgrad.edge.autodiff.compiling import compile_model
from fleetgrad.native import kernels
from fleetgrad.wire import plan


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Cosines of one weight's gradients over all steps."""

    weight: str
    median: float
    low: float  # 5th percentile


def session(path: Path) -> onnxruntime.InferenceSession:
    """A training graph with the custom ops, one thread."""
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(kernels.custom_ops_library()))
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure(
    model: onnx.ModelProto, x: NDArray[np.float32], y: NDArray[np.int64], *, steps: int, batch: int = 16, seed: int = 0
) -> list[Fidelity]:
    """Trains `steps` steps on x [n, ...] and labels y [n] and returns each weight matrix's or kernel's fidelity."""
    with tempfile.TemporaryDirectory() as folder:
        manifests = {
            kind: compile_model(model, loss="cross-entropy", gradients=kind, output=Path(folder) / kind)
            for kind in ("int8", "fp32")
        }
        sessions = {kind: session(Path(folder) / kind / plan.TRAIN) for kind in manifests}
        flat = np.fromfile(Path(folder) / "int8" / plan.PARAMS, "<f4")
    manifest = manifests["int8"]
    weights = {t.name: flat[t.offset : t.offset + t.size].reshape(t.shape) for t in manifest.of_role("trainable")}
    speed = {name: np.zeros_like(w) for name, w in weights.items()}
    cosines: dict[str, list[float]] = {name: [] for name, w in weights.items() if w.ndim > 1}
    random = np.random.Generator(np.random.PCG64(seed))
    optimizer = manifest.optimizer
    for _ in range(steps):
        rows = random.choice(len(x), batch, replace=False)
        feeds: dict[str, Any] = {manifest.inputs[0].name: x[rows], plan.LABEL: y[rows], **weights}
        feeds |= {f.name: random.random((batch, *f.shape), np.float32) for f in manifest.noise}
        fetches = [plan.GRADIENT + name for name in weights]
        pair = {k: dict(zip(weights, s.run(fetches, feeds), strict=True)) for k, s in sessions.items()}
        for name, found in cosines.items():
            a, b = (pair[kind][name].astype(np.float64).ravel() for kind in ("int8", "fp32"))
            found.append(float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) if b.any() else 1.0)
        for name, w in weights.items():
            speed[name] = optimizer.momentum * speed[name] + pair["int8"][name]
            w -= np.float32(optimizer.learning_rate) * speed[name]
    return [Fidelity(n, float(np.median(c)), float(np.percentile(c, 5))) for n, c in cosines.items()]
