"""Ops that take or put entries by index."""

import numpy as np

from tests.edge.cases.inputs import Case, numbers, whole

r = numbers()


def table(*rows: object) -> np.ndarray:
    return np.array(rows, np.int64)


I32 = np.array([[0, 3], [3, -1], [2, 2]], np.int32)

CASES: list[Case] = [
    ("Gather", (r(5, 4), table([0, 3], [3, -1], [2, 2])), {"batched": (1,)}),
    ("Gather", (r(5, 2, 3), I32), {"batched": (1,)}),
    ("Gather", (r(5, 4), whole(4, 0, 4)), {"batched": ()}),
    ("Gather", (r(3, 5, 4), whole(1, -1, 1)), {"axis": 1}),
    ("Gather", (r(3, 5, 4), table([1, 0], [-2, 2])), {"axis": -1}),
    ("Gather", (r(3, 5, 4), np.array(0)), {"axis": 1}),
    ("Gather", (r(3, 5, 4), np.array(-1, np.int32)), {"axis": 2}),
    ("Gather", (r(3, 4), np.array(1)), {"axis": 0}),
    ("Gather", (r(3, 4), np.array(1)), {"axis": 1, "longer": {1: np.array(1)}}),
    ("GatherElements", (r(3, 4), table([0, 0], [-1, 2], [1, 1])), {"axis": 1, "batched": (0, 1)}),
    ("GatherElements", (r(3, 4), table([0, 2, 1, 1])), {"batched": ()}),
    ("GatherND", (r(3, 4, 2), table([0, 1], [2, -1], [0, 1])), {"batched": ()}),
    ("GatherND", (r(3, 4, 2), table([[1, 0]], [[-1, 1]], [[0, 1]])), {"batch_dims": 1, "batched": (0, 1)}),
    ("GatherND", (r(3, 4, 5), table([[1]] * 4, [[-1]] * 4, [[0]] * 4)), {"batch_dims": 2, "batched": (0, 1)}),
    ("ScatterElements", (r(3, 5), table([1, 3], [0, -1], [2, 0]), r(3, 2)), {"axis": 1, "batched": (0, 1, 2)}),
    ("ScatterElements", (r(3, 5), table([1, 1], [0, -1], [2, 2]), r(3, 2)),
     {"axis": 1, "reduction": "add", "batched": (0, 1, 2)}),
    ("ScatterND", (r(4, 5), table([1], [-1]), r(2, 5)), {"batched": ()}),
    ("ScatterND", (r(4, 5), table([1, 0], [1, 0], [3, -1]), r(3)), {"reduction": "add", "batched": ()}),
    ("OneHot", (r(3), np.array(4.0), r(2)), {"fixed": (1, 2)}),
    ("Range", (r(), np.array(3.0), np.array(0.5)), {"batched": (), "fixed": (1,)}),
    ("EyeLike", (r(3, 4),), {}),
]  # fmt: skip
