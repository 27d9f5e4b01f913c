"""int8 gradients of the demo's model against fp32: cosine per weight over every step of a training run on real digits."""

from typing import Any

import numpy as np

from fleetgrad.edge.autodiff import zoo
from fleetgrad.edge.autodiff.fidelity import measure
from fleetgrad.native.bench.kernels import row

STEPS = 450
MEDIAN, LOW = 0.9999, 0.9995


def rows() -> list[dict[str, Any]]:
    """Median and 5th percentile for each weight, with their bounds."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = (digits.images[:, None] / 16).astype(np.float32)
    table = []
    for found in measure(zoo.digits_cnn(), x, digits.target.astype(np.int64), steps=STEPS):
        table.append(row(f"{found.weight}: median cosine", found.median, "cosine", "fp32 gradient", MEDIAN))
        table.append(row(f"{found.weight}: 5th percentile", found.low, "cosine", "fp32 gradient", LOW))
    return table
