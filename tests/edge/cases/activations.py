"""Activation functions."""

import numpy as np

from tests.edge.cases.inputs import Case, numbers

r = numbers()
WIDE = np.array([[-40.0, -9.0, -3.1, -2.9, -0.4], [0.3, 1.2, 2.9, 3.1, 40.0]])

CASES: list[Case] = [
    ("Relu", (r(3, 5),), {}),
    ("LeakyRelu", (r(3, 5),), {}),
    ("LeakyRelu", (r(3, 5),), {"alpha": -0.25}),
    ("PRelu", (r(3, 5), r(5)), {}),
    ("PRelu", (r(3, 4, 2), r(4, 1)), {}),
    ("PRelu", (r(3, 4, 2), r(1)), {}),
    ("ThresholdedRelu", (r(3, 5),), {}),
    ("ThresholdedRelu", (r(3, 5),), {"alpha": -0.25}),
    ("Shrink", (r(3, 5),), {}),
    ("Shrink", (r(3, 5),), {"bias": 1.5, "lambd": 0.25}),
    ("Elu", (r(3, 5),), {}),
    ("Elu", (WIDE,), {"alpha": 1.5}),
    ("Selu", (WIDE,), {}),
    ("Selu", (r(3, 5),), {"gamma": 2.0, "alpha": 0.5}),
    ("Celu", (WIDE,), {}),
    ("Celu", (r(3, 5),), {"alpha": 2.0}),
    ("Sigmoid", (r(3, 5),), {}),
    ("HardSigmoid", (3 * r(3, 5),), {}),
    ("HardSigmoid", (r(3, 5),), {"alpha": 0.75, "beta": 0.25}),
    ("HardSwish", (WIDE,), {}),
    ("Mish", (WIDE,), {}),
    ("Mish", (r(3, 5),), {}),
    ("Softplus", (WIDE,), {}),
    ("Softsign", (WIDE,), {}),
    ("Tanh", (r(3, 5),), {}),
    ("Erf", (r(3, 5),), {}),
    ("Gelu", (WIDE,), {}),
    ("Gelu", (r(3, 5),), {"approximate": "none"}),
    ("Gelu", (WIDE,), {"approximate": "tanh"}),
    ("Hardmax", (r(3, 5),), {}),
    *(
        (op, inputs, how)
        for op in ("Softmax", "LogSoftmax")
        for inputs, how in (
            ((r(3, 5),), {}),
            ((r(3, 5, 2),), {"axis": 1}),
            ((r(3, 5, 2),), {"axis": -2}),
        )
    ),
]
