"""Resize, by scales and by sizes."""

import numpy as np

from tests.edge.cases.inputs import Case, numbers, whole

r = numbers()
MODES = ("asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners")


def scales(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def how(**attributes: object) -> dict[str, object]:
    return {"fixed": (2,), **attributes}


CASES: list[Case] = [
    ("Resize", (r(2, 3, 4, 5), None, scales(1, 1, 2, 3)),
     how(coordinate_transformation_mode="asymmetric", nearest_mode="floor")),
    ("Resize", (r(2, 3, 5), None, scales(1, 1, 2)), how()),
    *(("Resize", (r(2, 2, 4, 3), None, scales(1, 1, 2, 1.7)), how(coordinate_transformation_mode=m)) for m in MODES),
    *(
        ("Resize", (r(2, 2, 4, 3), None, scales(1, 1, 1.5, 2)), how(mode="linear", coordinate_transformation_mode=m))
        for m in MODES
    ),
    *(
        ("Resize", (r(2, 2, 4, 3), None, None, whole(2, 2, 3, 7)),
         {"mode": "linear", "coordinate_transformation_mode": m, "batched": ()})
        for m in MODES
    ),
    ("Resize", (r(2, 2, 4, 3), None, None, whole(7, 2)), {"axes": [2, 3]}),
    ("Resize", (r(2, 2, 4, 3), None, None, whole(6)), {"axes": [2], "mode": "linear"}),
    ("Resize", (r(2, 2, 5, 4), None, None, whole(2, 2)), {"axes": [2, 3], "nearest_mode": "ceil"}),
    ("Resize", (r(2, 2, 5, 4), None, scales(1, 1, 0.6, 2)), how(mode="cubic", cubic_coeff_a=-0.5)),
    ("Resize", (r(2, 5, 3), None, scales(1, 2, 1)), how(mode="linear")),
    ("Resize", (r(2, 2, 3, 2, 3), None, scales(1, 1, 2, 2, 2)), how()),
    ("Resize", (r(2, 2, 3, 2, 3), None, scales(1, 1, 2, 1.5, 2)), how(mode="linear")),
    ("Resize", (r(2, 2, 8, 7), None, scales(1, 1, 0.5, 0.6)), how(mode="linear", antialias=1)),
    ("Resize", (r(2, 2, 5, 4), None, scales(1, 1, 1.6, 2)), how(mode="cubic", exclude_outside=1)),
    ("Resize", (r(2, 2, 4, 6), scales(0, 0, 0.2, -0.1, 1, 1, 0.7, 1.2), None, whole(2, 2, 3, 5)),
     {"fixed": (1,), "batched": (), "mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.0}),
]  # fmt: skip
