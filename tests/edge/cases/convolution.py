"""Convolutions."""

from tests.edge.cases.inputs import Case, numbers

r = numbers()
C2 = (r(2, 3, 7, 6), r(4, 3, 3, 3), r(4))  # few channels
C9 = (r(2, 9, 6, 5), r(4, 9, 3, 2), r(4))  # many channels


CASES: list[Case] = [
    ("Conv", C2, {}),
    ("Conv", C2, {"pads": [1, 1, 1, 1]}),
    ("Conv", C2, {"pads": [2, 0, 1, 1], "strides": [2, 2]}),
    ("Conv", C2, {"strides": [3, 2]}),
    ("Conv", C2, {"dilations": [2, 2], "pads": [1, 2, 0, 1]}),
    ("Conv", C2, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", C2, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("Conv", C2, {"auto_pad": "SAME_UPPER"}),
    ("Conv", C2, {"auto_pad": "VALID"}),
    ("Conv", C9[:2], {}),
    ("Conv", C9, {"pads": [1, 0, 1, 1]}),
    ("Conv", C9, {"pads": [0, 1, 1, 0], "strides": [2, 2]}),
    ("Conv", C9, {"dilations": [2, 1], "strides": [1, 2]}),
    ("Conv", (r(2, 9, 5, 4), r(6, 9, 1, 1), r(6)), {}),
    ("Conv", (r(2, 3, 5, 4), r(6, 3, 1, 1)), {"strides": [2, 2]}),
    ("Conv", (r(2, 3, 5, 4), r(6, 3, 1, 1)), {"pads": [1, 1, 1, 1]}),
    ("Conv", (r(2, 3, 9), r(4, 3, 3), r(4)), {"pads": [1, 1]}),
    ("Conv", (r(2, 9, 9), r(4, 9, 3), r(4)), {"strides": [2], "dilations": [2], "pads": [0, 1]}),
    ("Conv", (r(2, 4, 6, 5), r(6, 2, 3, 3), r(6)), {"group": 2, "pads": [1, 1, 1, 1]}),
    (
        "Conv",
        (r(2, 4, 7, 6), r(6, 2, 3, 3)),
        {"group": 2, "strides": [2, 2], "dilations": [2, 1], "pads": [1, 0, 2, 1]},
    ),
    ("Conv", (r(2, 4, 6, 5), r(4, 1, 3, 3), r(4)), {"group": 4, "pads": [1, 1, 1, 1]}),
    ("Conv", (r(2, 4, 7, 6), r(8, 1, 3, 3)), {"group": 4, "strides": [2, 2]}),
    ("Conv", (r(2, 4, 9), r(4, 1, 3)), {"group": 4, "auto_pad": "SAME_LOWER"}),
    ("Conv", (r(2, 6, 7), r(6, 1, 3), r(6)), {"group": 6, "strides": [2], "dilations": [2], "pads": [2, 1]}),
    ("Conv", (r(2, 2, 4, 3, 5), r(3, 2, 2, 2, 3), r(3)), {"pads": [1, 0, 1, 0, 1, 0], "strides": [2, 1, 2]}),
    ("Conv", (r(2, 4, 4, 3, 3), r(6, 2, 2, 2, 2)), {"group": 2, "dilations": [1, 2, 1]}),
    ("Conv", (r(2, 4, 4, 3, 3), r(4, 1, 2, 2, 2), r(4)), {"group": 4}),
]
