"""Whole models against torch's autograd, and int8 gradients against fp32 over a short training."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fleetgrad.edge.autodiff import compile_model, fidelity, zoo
from fleetgrad.wire import plan


def torch_gradients(model: onnx.ModelProto, x: np.ndarray, y: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients in float64 by torch, reading the graph node by node."""
    import torch
    from torch.nn import functional

    weights = {
        t.name: torch.tensor(onnx.numpy_helper.to_array(t).astype(np.float64), requires_grad=True)
        for t in model.graph.initializer
    }
    values: dict[str, Any] = {"image": torch.tensor(x.astype(np.float64)), **weights}
    for node in model.graph.node:
        a = [values[name] for name in node.input]
        how = {k.name: onnx.helper.get_attribute_value(k) for k in node.attribute}
        match node.op_type:
            case "Conv":
                out = functional.conv2d(*a, padding=how["pads"][0])
            case "Relu":
                out = functional.relu(a[0])
            case "MaxPool":
                out = functional.max_pool2d(a[0], 2)
            case "Flatten":
                out = a[0].flatten(1)
            case "Gemm":
                out = functional.linear(*a)
            case other:
                raise AssertionError(other)
        values[node.output[0]] = out
    loss = functional.cross_entropy(values["logits"], torch.tensor(y))
    loss.backward()
    return float(loss.detach()), {name: w.grad.numpy() for name, w in weights.items()}


@pytest.mark.needs("torch")
@pytest.mark.parametrize("name", ["mlp", "digits_cnn", "fedavg_cnn"])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("profile", ["cpu-native", "cpu-std"])
def test_the_whole_gradient_equals_torch(tmp_path: Path, name: str, batch: int, profile: plan.Profile) -> None:
    model = getattr(zoo, name)(seed=3)
    manifest = compile_model(model, loss="cross-entropy", gradients="fp32", profile=profile, output=tmp_path / "plan")
    random = np.random.Generator(np.random.PCG64(4))
    x = random.standard_normal((batch, *manifest.inputs[0].shape), np.float32)
    y = random.integers(0, 10, batch)
    flat = np.fromfile(tmp_path / "plan" / plan.PARAMS, "<f4")
    weights = {t.name: flat[t.offset : t.offset + t.size].reshape(t.shape) for t in manifest.tensors}
    assert (manifest.op_abi == 0) == (profile == "cpu-std")
    session = fidelity.session(tmp_path / "plan" / plan.TRAIN)
    loss, *found = session.run(None, {"image": x, plan.LABEL: y, **weights})
    expected, exact = torch_gradients(model, x, y)
    assert loss == pytest.approx(expected, rel=1e-5)
    error = sum(((a - exact[n]) ** 2).sum() for n, a in zip(weights, found, strict=True))
    norm = sum((e**2).sum() for e in exact.values())
    assert np.sqrt(error / norm) < 3e-6  # float32 rounding; torch's own float32 gradients are off by about 5e-7


def test_int8_gradients_point_where_fp32_ones_do() -> None:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    found = fidelity.measure(
        zoo.digits_cnn(), (x / 16).astype(np.float32).reshape(-1, 1, 8, 8), y.astype(np.int64), steps=200
    )
    print(*found, sep="\n")
    assert len(found) == 4
    for layer in found:
        assert layer.median >= 0.9999, layer
        assert layer.low >= 0.9995, layer


def separable() -> onnx.ModelProto:
    """A convolution, a depthwise one with stride, one of four groups, and one of a single tap: what mobile networks are made of."""
    c = zoo._Chain(5)
    c.conv("stem", 1, 16, 3)
    for name, group, taps, attributes in (
        ("depthwise", 16, 3, {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("grouped", 4, 3, {"pads": [1, 1, 1, 1]}),
        ("pointwise", 1, 1, {}),
    ):
        w = c.draw(f"{name}.weight", (16, 16 // group, taps, taps), 2 * group / (16 * taps * taps))
        c.layer("Conv", w, c.draw(f"{name}.bias", (16,), 0.0), kernel_shape=[taps, taps], group=group, **attributes)
        c.layer("Relu")
    c.layer("Flatten")
    c.dense("dense", 256, 10, last=True)
    return c.model("separable", (1, 8, 8), 10)


def test_int8_gradients_of_grouped_and_depthwise_convolutions_point_where_fp32_ones_do() -> None:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    found = fidelity.measure(
        separable(), (x / 16).astype(np.float32).reshape(-1, 1, 8, 8), y.astype(np.int64), steps=120
    )
    print(*found, sep="\n")
    assert len(found) == 5
    for layer in found:
        assert layer.median >= 0.9999, layer
        assert layer.low >= 0.9995, layer


def test_the_measure_notices_a_bad_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one plan's gradients turned around, the cosine is negative: the measure can fail."""
    real = fidelity.session
    random = np.random.Generator(np.random.PCG64(5))

    class Turned:
        def __init__(self, path: Path) -> None:
            self.inner, self.sign = real(path), -1 if "int8" in str(path) else 1

        def run(self, *arguments: Any) -> list[np.ndarray]:
            return [self.sign * v for v in self.inner.run(*arguments)]

    monkeypatch.setattr(fidelity, "session", Turned)
    x, y = random.random((64, 64), np.float32), random.integers(0, 10, 64)
    for layer in fidelity.measure(zoo.mlp(), x, y, steps=2):
        assert layer.median < -0.99
