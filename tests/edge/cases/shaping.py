"""Ops that only move numbers."""

from tests.edge.cases.inputs import Case, numbers, whole

r = numbers()

CASES: list[Case] = [
    ("Identity", (r(3, 5),), {}),
    ("Reshape", (r(3, 4, 2), whole(0, -1)), {}),
    ("Reshape", (r(3, 4, 2), whole(-1, 2)), {}),
    ("Flatten", (r(3, 4, 2),), {}),
    ("Flatten", (r(3, 4, 2),), {"axis": 2}),
    ("Flatten", (r(3, 4, 2),), {"axis": -1}),
    ("Squeeze", (r(3, 1, 2), whole(1)), {}),
    ("Unsqueeze", (r(3, 2), whole(1, 3)), {}),
    ("Transpose", (r(3, 4, 2),), {}),
    ("Transpose", (r(3, 4, 2, 5),), {"perm": [0, 3, 1, 2]}),
    ("Transpose", (r(3, 4, 2),), {"perm": [2, 0, 1]}),
]
