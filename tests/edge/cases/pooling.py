"""Pools."""

from tests.edge.cases.inputs import Case, numbers

r = numbers()
P2 = r(2, 3, 7, 6)


CASES: list[Case] = [
    ("MaxPool", (P2,), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("MaxPool", (r(2, 3, 6, 4),), {"kernel_shape": [3, 2], "strides": [3, 2]}),
    ("MaxPool", (P2,), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", (P2,), {"kernel_shape": [2, 3], "pads": [0, 1, 1, 0]}),
    ("MaxPool", (P2,), {"kernel_shape": [2, 2], "dilations": [2, 2]}),
    ("MaxPool", (P2,), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", (P2,), {"kernel_shape": [2, 2], "strides": [3, 3]}),
    ("MaxPool", (P2,), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("MaxPool", (r(2, 3, 9),), {"kernel_shape": [2], "strides": [2]}),
    ("MaxPool", (r(2, 3, 9),), {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    ("AveragePool", (P2,), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("AveragePool", (P2,), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("AveragePool", (P2,), {"kernel_shape": [3, 3], "pads": [1, 0, 1, 1], "count_include_pad": 1}),
    ("AveragePool", (P2,), {"kernel_shape": [3, 2], "strides": [1, 2]}),
    ("AveragePool", (P2,), {"kernel_shape": [2, 2], "dilations": [2, 1]}),
    ("AveragePool", (P2,), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", (P2,), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ("AveragePool", (r(2, 3, 9),), {"kernel_shape": [3], "strides": [3]}),
    ("AveragePool", (r(2, 3, 9),), {"kernel_shape": [3], "strides": [2]}),
    (
        "AveragePool",
        (P2,),
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, "ceil_mode": 1, "count_include_pad": 1},
    ),
    (
        "AveragePool",
        (r(1, 2, 6, 7),),
        {"kernel_shape": [3, 3], "strides": [3, 2], "ceil_mode": 1, "count_include_pad": 1},
    ),
    ("AveragePool", (r(2, 2, 4, 5, 4),), {"kernel_shape": [2, 2, 2], "strides": [1, 2, 2]}),
    ("MaxPool", (r(2, 2, 4, 5, 4),), {"kernel_shape": [2, 3, 2], "strides": [2, 1, 2], "pads": [0, 1, 0, 0, 1, 0]}),
    ("LpPool", (P2,), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("LpPool", (P2,), {"kernel_shape": [3, 2], "p": 3, "pads": [1, 0, 0, 1]}),
    ("LpPool", (P2,), {"kernel_shape": [2, 2], "strides": [2, 1], "p": 1}),
    ("LpPool", (r(2, 3, 9),), {"kernel_shape": [3], "strides": [2], "ceil_mode": 1}),
    ("LpPool", (P2,), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("LpPool", (P2,), {"kernel_shape": [2, 2], "dilations": [2, 1]}),
    ("GlobalLpPool", (P2,), {}),
    ("GlobalLpPool", (P2,), {"p": 3}),
    ("GlobalLpPool", (r(2, 3, 9),), {"p": 1}),
    ("GlobalMaxPool", (P2,), {}),
    ("GlobalMaxPool", (r(2, 3, 5),), {}),
    ("GlobalAveragePool", (P2,), {}),
    ("GlobalAveragePool", (r(2, 3, 5),), {}),
]
