"""The nets of the onnx package's own test data train: nine of 1.2 to 144 million weights, in files of opset 9 as Caffe2 wrote them.

Their weights are outputs of ConstantOfShape; the test draws others. CI runs one of the two small ones, drawn from the commit; all do in full,
but VGG-19 by standard ops alone: it takes 7 GB, and two of it might meet.
"""

import os
import random
from pathlib import Path

import numpy as np
import onnx
import pytest

from fleetgrad.edge.autodiff import compile_model
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Trainer
from fleetgrad.wire import plan

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
SMALL = ("shufflenet", "squeezenet")
ALL = (*SMALL, "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "vgg19", "zfnet512")
SAMPLE = os.environ.get("FLEETGRAD_SAMPLE", "none")
DRAWN = ALL if SAMPLE == "full" else (random.Random(SAMPLE).choice(SMALL),)
KINDS: tuple[tuple[plan.Profile, plan.Gradients], ...] = (("cpu-std", "fp32"), ("cpu-native", "int8"))
CASES = [(name, *kind) for name in DRAWN for kind in KINDS if (name, kind) != ("vgg19", KINDS[1])]
PART = 0.01  # of the loss: what a step along the gradient is to change. Smaller ones drown in float32's rounding of the weights
CLOSE = 2e-3  # relative, of that change; 9e-4 was the most over the nine, kinks of ReLU and pooling and the curvature included


def drawn(trainer: Trainer) -> tuple[np.ndarray, np.ndarray]:
    """Draws the trainer's weights (He's normal ones; scales and biases about 1, so that no layer is mute) and two samples."""
    generator = np.random.Generator(np.random.PCG64(0))
    for weight in trainer.weights().values():
        if weight.ndim > 1:
            generator.standard_normal(out=weight, dtype=np.float32)
            weight *= np.float32(np.sqrt(2 / np.prod(weight.shape[1:])))
        else:
            weight[:] = generator.uniform(0.5, 1.5, weight.shape)
    (feed,), label = trainer.manifest.inputs, trainer.manifest.label
    return generator.standard_normal((2, *feed.shape), np.float32), generator.integers(0, 1000, (2, *label.shape))


def test_the_onnx_package_has_just_these() -> None:
    assert {path.stem.removeprefix("light_") for path in FOLDER.glob("*.onnx")} == set(ALL)


@pytest.mark.parametrize(("name", "profile", "gradients"), CASES)
def test_it_compiles_and_its_gradient_is_the_losss_slope(
    name: str, profile: plan.Profile, gradients: plan.Gradients, tmp_path: Path
) -> None:
    where = tmp_path / "plan"
    compile_model(
        FOLDER / f"light_{name}.onnx", loss="cross-entropy", profile=profile, gradients=gradients, output=where
    )
    trainer = Trainer(open_plan(where))
    x, y = drawn(trainer)
    loss = trainer.step(x, y)
    assert np.isfinite(loss)
    for weight, gradient in trainer.gradients().items():
        assert np.isfinite(gradient).all(), weight
        assert gradient.any(), weight

    weights, gradient, _ = trainer.vectors()
    start, slope = weights.copy(), gradient.copy()
    squared = float((slope.astype(np.float64) ** 2).sum())
    step = np.float32(PART * loss / squared)
    weights[:] = start + step * slope
    above = trainer.step(x, y)
    weights[:] = start - step * slope
    below = trainer.step(x, y)
    assert (above - below) / (2 * float(step) * squared) == pytest.approx(1, abs=CLOSE)

    losses = [below]
    for _ in range(3):
        weights -= step * gradient
        losses.append(trainer.step(x, y))
    assert losses == sorted(losses, reverse=True), losses
    assert losses[-1] < (1 - 2 * PART) * loss
