"""Reductions over axes, scans and selections."""

import numpy as np

from fleetgrad.edge.autodiff.graph import Array
from tests.edge.cases.inputs import Case, numbers, whole

r = numbers()
NONE = whole()
ZEROS = np.array([[[2.0, 0.0, 1.5], [0.0, 0.0, -1.0]], [[0.5, 2.0, 1.2], [1.0, 0.0, 3.0]], [[1.0, -2.0, 0.5]] * 2])


def positive(x: Array) -> Array:
    """Numbers over 0.1."""
    return np.asarray(np.abs(x) + 0.1)


CASES: list[Case] = [
    *(
        (op, (positive(r(3, 4, 2)) if "Log" in op else r(3, 4, 2), *axes), how)
        for op in (
            *("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
            *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
        )
        for axes, how in (
            ((), {}),
            ((), {"keepdims": 0}),
            ((), {"noop_with_empty_axes": 1}),
            ((NONE,), {"keepdims": 0}),
            ((whole(-1),), {"keepdims": 0}),
            ((whole(1, -1),), {}),
            ((whole(0, 2),), {"keepdims": 0}),
        )
    ),
    ("ReduceMean", (r(3, 4), NONE), {"noop_with_empty_axes": 1}),
    ("ReduceMean", (r(3, 4), whole(0)), {"keepdims": 0}),
    ("ReduceProd", (ZEROS, whole(2)), {"keepdims": 0}),
    ("ReduceProd", (ZEROS[0] + np.eye(2, 3), whole(0)), {}),
    ("CumSum", (r(3, 4, 2), np.array(1)), {}),
    ("CumSum", (r(3, 4, 2), np.array(-1)), {"exclusive": 1}),
    ("CumSum", (r(3, 4, 2), np.array(1)), {"reverse": 1}),
    ("CumSum", (r(3, 4, 2), np.array(1)), {"reverse": 1, "exclusive": 1}),
    ("TopK", (r(3, 5), whole(2)), {"outputs": 2}),
    ("TopK", (r(3, 5, 2), whole(3)), {"outputs": 2, "axis": 1, "largest": 0}),
    ("TopK", (r(3, 5, 2), whole(3)), {"outputs": 2, "axis": -2}),
    ("Dropout", (r(3, 5),), {}),
    ("Dropout", (r(3, 5), np.array(0.5)), {"fixed": (1,), "outputs": 2}),
    ("Dropout", (r(3, 5), np.array(0.5), np.array(False)), {"fixed": (1,)}),
]
