"""Inputs of the cases."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fleetgrad.edge.autodiff.graph import Array

Case = tuple[str, tuple[Any, ...], dict[str, Any]]  # op, inputs, what check_rule is told beside them


def numbers(seed: int = 20) -> Callable[..., Array]:
    """A maker of random numbers of a shape, at least 0.05 from zero and, as good as surely, from each other: no kinks, no ties."""
    random = np.random.Generator(np.random.PCG64(seed))

    def make(*shape: int) -> Array:
        x = random.standard_normal(shape)
        return np.asarray(x + np.copysign(0.05, x))

    return make


def whole(*values: int) -> Array:
    """int64[n]."""
    return np.array(values, np.int64)
