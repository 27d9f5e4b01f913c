"""Elementwise arithmetic."""

import numpy as np

from fleetgrad.edge.autodiff.graph import Array
from tests.edge.cases.inputs import Case, numbers, whole

r = numbers()
TRUE = np.array([[True], [False], [True]])


def above(x: Array, low: float = 0.2) -> Array:
    """Numbers over `low`."""
    return np.asarray(np.abs(x) + low)


CASES: list[Case] = [
    ("Add", (r(3, 4), r(3, 4)), {"batched": (0, 1)}),
    ("Add", (r(3, 4, 5), r(4, 1)), {}),
    ("Add", (r(3, 4), r()), {}),
    ("Add", (r(4), r(3, 4)), {"batched": (1,)}),
    ("Sub", (r(3, 4), r(1, 4)), {}),
    ("Sub", (r(1, 4), r(3, 4)), {"batched": (1,)}),
    ("Mul", (r(3, 2, 4), r(2, 1)), {}),
    ("Mul", (r(3, 1, 4), r(3, 5, 1)), {"batched": (0, 1)}),
    ("Div", (r(3, 4), r(4)), {}),
    ("Div", (r(1), r(3, 4)), {"batched": (1,)}),
    ("Sum", (r(3, 4), r(4), r(3, 1)), {"batched": (0, 2)}),
    ("Sum", (r(3, 4),), {}),
    ("Mean", (r(3, 4), r(4), r(3, 1)), {"batched": (0, 2)}),
    ("Max", (r(3, 4), r(3, 4), r(3, 4)), {"batched": (0, 1, 2)}),
    ("Max", (r(3, 4), r(4), r()), {}),
    ("Max", (r(3, 4),), {}),
    ("Min", (r(3, 4), r(3, 1)), {"batched": (0, 1)}),
    ("Min", (r(3, 2, 4), r(2, 1)), {}),
    ("Pow", (r(3, 4), np.array(2.0)), {"fixed": (1,)}),
    ("Pow", (r(3, 4), whole(3)), {}),
    ("Pow", (r(3, 4), np.array(1.0)), {"fixed": (1,)}),
    ("Pow", (r(3, 4), np.array(0.0)), {"fixed": (1,)}),
    ("Pow", (r(3, 4), whole(5)), {}),
    ("Pow", (r(3, 4), np.array([[[-1.0]]])), {"fixed": (1,)}),
    ("Pow", (above(r(3, 4)), np.array(0.5)), {"fixed": (1,)}),
    ("Pow", (above(r(3, 4)), np.array(2.3)), {"fixed": (1,)}),
    ("Pow", (above(r(3, 4)), np.array(-1.7)), {"fixed": (1,)}),
    ("Pow", (r(3, 4), whole(2, 0, 1, 3)), {}),
    ("Pow", (above(r(3, 4)), r(4)), {}),
    ("Pow", (above(r(3, 1)), r(3, 4)), {"batched": (0, 1)}),
    ("Mod", (3 * r(3, 4), above(r(4))), {"fmod": 1}),
    ("Mod", (3 * r(3, 4), r(3, 1)), {"fmod": 1, "batched": (0, 1)}),
    ("Where", (TRUE, r(3, 4), r(4)), {"batched": (0, 1)}),
    ("Where", (TRUE, r(1), r(3, 4)), {"batched": (0, 2)}),
    ("Where", (TRUE[:, 0], r(), r(3)), {"batched": ()}),
    ("Clip", (r(3, 5), np.array(-0.5), np.array(0.7)), {"fixed": (1, 2)}),
    ("Clip", (r(3, 5), None, np.array(0.7)), {}),
    ("Clip", (r(3, 5), np.array(-0.2)), {}),
    ("Clip", (r(3, 5),), {}),
    ("Cast", (r(3, 5),), {"to": 11}),
    ("Cast", (r(3, 5),), {"to": 7}),
    ("CastLike", (r(3, 5), np.zeros(1)), {}),
    ("Sign", (r(3, 5),), {}),
    ("Floor", (r(3, 5),), {}),
    ("Ceil", (r(3, 5),), {}),
    ("Round", (r(3, 5),), {}),
    ("Abs", (r(3, 5),), {}),
    ("Neg", (r(3, 5),), {}),
    ("Exp", (r(3, 5),), {}),
    ("Log", (above(r(3, 5)),), {}),
    ("Sqrt", (above(r(3, 5)),), {}),
    ("Reciprocal", (r(3, 5) * 3,), {}),
]
