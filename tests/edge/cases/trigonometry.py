"""Trigonometric and hyperbolic functions and their inverses."""

import numpy as np

from tests.edge.cases.inputs import Case, numbers

r = numbers()
SMALL = np.tanh(r(3, 5)) * 0.9  # within (-1, 1)

CASES: list[Case] = [
    *((op, (r(3, 5),), {}) for op in ("Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh")),
    *((op, (SMALL,), {}) for op in ("Asin", "Acos", "Atanh")),
    ("Acosh", (1.2 + np.abs(r(3, 5)),), {}),
]
