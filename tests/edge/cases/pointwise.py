"""Elementwise ops and softmax."""

from tests.edge.cases.inputs import Case, numbers

r = numbers()

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
    ("Sign", (r(3, 5),), {}),
    ("Floor", (r(3, 5),), {}),
    ("Ceil", (r(3, 5),), {}),
    ("Round", (r(3, 5),), {}),
    ("Relu", (r(3, 5),), {}),
    ("Sigmoid", (r(3, 5),), {}),
    ("Tanh", (r(3, 5),), {}),
    ("Softmax", (r(3, 5),), {}),
    ("Softmax", (r(3, 5, 2),), {"axis": 1}),
    ("Softmax", (r(3, 5, 2),), {"axis": -2}),
]
