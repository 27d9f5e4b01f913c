"""Random slices, pads and resizes through the numeric checker."""

from typing import Any

import numpy as np

from fleetgrad.edge.autodiff.checker import check_rule
from tests.edge.cases.inputs import numbers, whole


def test_random_slices_pads_and_resizes_equal_finite_differences(seed: int) -> None:
    print(f"seed {seed}")
    random, r = np.random.Generator(np.random.PCG64(seed)), numbers(seed)
    how: dict[str, Any] = {"probes": 8, "seed": seed}
    for _ in range(12):
        size = random.integers(2, 8, 2)
        x = r(2, *size)
        starts, stops = random.integers(-9, 9, (2, 2))
        steps = random.choice([-3, -2, -1, 1, 2, 3], 2)
        check_rule("Slice", x, starts, stops, whole(1, -1), steps, **how)
        pads = random.integers(-1, np.repeat(size, 2).reshape(2, 2).T.ravel())
        mode = str(random.choice(["constant", "reflect", "edge", "wrap"]))
        kept = np.minimum(pads[:2], 0) + np.minimum(pads[2:], 0) + size
        if min(kept) > 0 and (mode != "reflect" or (np.maximum(pads[:2], pads[2:]) < kept).all()):
            check_rule("Pad", x, pads, None, whole(1, 2), mode=mode, **how)
        sizes = whole(2, *random.integers(1, 9, 2))
        modes = ["asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners"]
        form: dict[str, Any] = {
            "mode": str(random.choice(["nearest", "linear"])),
            "coordinate_transformation_mode": str(random.choice(modes)),
        }
        check_rule("Resize", x, None, None, sizes, batched=(), **form, **how)
