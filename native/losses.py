"""Cross-entropy of logits and its gradient, as the custom op SoftmaxCrossEntropy computes them."""

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native.binding import Floats, KernelError, check, ffi, lib, pointer


def softmax_cross_entropy(logits: Floats, labels: NDArray[np.int64]) -> tuple[float, Floats]:
    """Mean of -log softmax(logits [rows, classes])[label] over the rows, and its gradient float32[rows, classes].

    Not a number where a row has a NaN, a positive infinity or nothing but negative ones. Raises KernelError with the row of a label that is
    no class.
    """
    act = "cross-entropy"
    check(act, logits, np.float32)
    check(act, labels, np.int64)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not logits.size:
        raise KernelError(
            f"{act}: logits {logits.shape} and labels {labels.shape}, expected [rows, classes] and [rows]"
        )
    rows, classes = logits.shape
    losses, gradient, where = np.empty(rows), np.empty_like(logits), ffi.new("size_t *")
    pointers = pointer("double *", losses), pointer("float *", gradient)
    if lib.fg_cross_entropy(
        pointer("float *", logits), pointer("int64_t *", labels), rows, classes, rows, *pointers, where
    ):
        raise KernelError(f"{act}: label {labels[where[0]]} at row {where[0]}, there are {classes} classes")
    return float(np.float32(sum(losses.tolist()) / rows)), gradient
