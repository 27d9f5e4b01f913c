"""Transposed convolutions."""

from tests.edge.cases.inputs import Case, numbers

r = numbers()
X = r(2, 3, 4, 5)
W = r(3, 4, 3, 2)


CASES: list[Case] = [
    ("ConvTranspose", (X, W, r(4)), {}),
    ("ConvTranspose", (X, W), {"strides": [2, 3], "pads": [1, 0, 0, 1]}),
    ("ConvTranspose", (X, W, r(4)), {"strides": [2, 2], "output_padding": [1, 1], "pads": [1, 1, 1, 0]}),
    ("ConvTranspose", (X, W), {"strides": [3, 3], "output_padding": [2, 1]}),
    ("ConvTranspose", (X, W), {"strides": [1, 2], "dilations": [2, 3]}),
    ("ConvTranspose", (X, W), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("ConvTranspose", (X, W), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ("ConvTranspose", (X, W), {"strides": [2, 2], "output_shape": [8, 9]}),
    ("ConvTranspose", (r(2, 9, 4, 3), r(9, 2, 2, 2), r(2)), {"strides": [2, 2]}),
    ("ConvTranspose", (r(2, 9, 4, 3), r(9, 2, 1, 1), r(2)), {}),
    ("ConvTranspose", (r(2, 4, 4, 3), r(4, 3, 3, 3), r(6)), {"group": 2, "strides": [2, 1], "pads": [1, 1, 0, 1]}),
    ("ConvTranspose", (r(2, 4, 4, 3), r(4, 1, 3, 3), r(4)), {"group": 4, "strides": [2, 2], "output_padding": [1, 1]}),
    ("ConvTranspose", (r(2, 4, 4, 3), r(4, 2, 3, 3)), {"group": 4}),
    ("ConvTranspose", (r(2, 3, 7), r(3, 2, 4), r(2)), {"strides": [2], "pads": [1, 1]}),
    ("ConvTranspose", (r(2, 2, 3, 2, 3), r(2, 3, 2, 2, 2), r(3)), {"strides": [2, 1, 2]}),
    ("ConvTranspose", (r(2, 4, 3, 2, 3), r(4, 1, 2, 2, 2)), {"group": 2, "pads": [0, 1, 0, 0, 0, 1]}),
]
