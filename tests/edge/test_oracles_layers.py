"""Layers that torch exports, trained by plans of both profiles, against torch's autograd in float64."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fleetgrad.edge.autodiff import compile_model, fidelity
from fleetgrad.wire import plan

pytestmark = pytest.mark.needs("torch")
TOLERANCE = 2e-5  # of a value's largest entry: float32 against float64
PROFILES: list[plan.Profile] = ["cpu-native", "cpu-std"]


def exported(module: Any, x: np.ndarray, mode: Any = None, fold: bool = False, opset: int = 20) -> onnx.ModelProto:
    """A torch module in training mode (or `mode`) as ONNX, with its parameters as initializers and a free batch."""
    import torch

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.tensor(x),), file, dynamo=False, training=mode or torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=fold, opset_version=opset, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def hold(
    module: Any, x: np.ndarray, folder: Path, profile: plan.Profile, model: onnx.ModelProto | None = None
) -> plan.Manifest:
    """Compares loss, gradients and what becomes of running statistics in one step on x, with cross-entropy on the output."""
    import torch

    model = model or exported(module, x)
    manifest = compile_model(model, loss="cross-entropy", gradients="fp32", profile=profile, output=folder)
    flat = np.fromfile(folder / plan.PARAMS, "<f4")
    weights = {t.name: flat[t.offset : t.offset + t.size].reshape(t.shape) for t in manifest.tensors}
    session = fidelity.session(folder / plan.TRAIN)
    label = np.arange(len(x)) % manifest.output[0]
    fed = {i.name for i in session.get_inputs()}
    fetches = [o.name for o in session.get_outputs()]
    feeds = {n: v for n, v in {"x": x, plan.LABEL: label, **weights}.items() if n in fed}
    found = dict(zip(fetches, session.run(fetches, feeds), strict=True))

    exact = module.double()
    loss = torch.nn.functional.cross_entropy(exact(torch.tensor(x.astype(np.float64))), torch.tensor(label))
    loss.backward()
    assert found[plan.LOSS] == pytest.approx(float(loss.detach()), rel=1e-5)
    parameters = {n: p.grad.numpy() for n, p in exact.named_parameters()}
    assert {t.name for t in manifest.of_role("trainable")} == set(parameters)
    buffers = {n: b.numpy() for n, b in exact.named_buffers()}
    expected = {plan.GRADIENT + n: v for n, v in parameters.items()}
    expected |= {plan.STATISTIC + t.name: buffers[t.name] for t in manifest.of_role("personal")}
    for name, value in expected.items():
        scale = max(1e-2, float(np.abs(value).max()))
        np.testing.assert_allclose(found[name], value, atol=TOLERANCE * scale, rtol=0, err_msg=name)
    return manifest


def normal(*shape: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(8)).standard_normal(shape).astype(np.float32)


def networks() -> dict[str, tuple[Callable[[], Any], tuple[int, ...]]]:
    """Name: (module, shape of the input)."""
    from torch import nn

    class Last(nn.Module):  # type: ignore[misc]
        """The last step's output of a recurrent layer, as logits."""

        def __init__(self, kind: type, **how: Any) -> None:
            super().__init__()
            self.layer = kind(3, 5, batch_first=True, **how)
            self.head = nn.Linear(5 * (2 if how.get("bidirectional") else 1), 4)

        def forward(self, x: Any) -> Any:
            return self.head(self.layer(x)[0][:, -1])

    def image(*layers: Any) -> Callable[[], Any]:
        return lambda: nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3))

    size = (4, 4, 9, 7)
    return {
        "batch norm": (
            image(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4, momentum=0.3)),
            size,
        ),
        "batch norm of rows": (lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), (7, 6)),
        "group norm": (image(nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), nn.ReLU()), size),
        "instance norm": (image(nn.Conv2d(4, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.Tanh()), size),
        "layer norm": (lambda: nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)), (7, 6)),
        "depthwise": (
            image(nn.Conv2d(4, 8, 3, padding=1, groups=4, stride=2), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8, padding=2)),
            size,
        ),
        "transposed": (
            image(
                nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), nn.ReLU(),
                nn.ConvTranspose2d(6, 4, 2, groups=2, dilation=2), nn.ConvTranspose2d(4, 4, 3, groups=4, stride=2),
            ),
            size,
        ),
        "pools": (
            image(
                nn.Conv2d(4, 6, 3, padding=1), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.Conv2d(6, 6, 1),
                nn.AvgPool2d(3, 1, 1, count_include_pad=True), nn.Conv2d(6, 6, 1), nn.MaxPool2d(2, 1, dilation=2),
            ),
            size,
        ),
        "LSTM": (lambda: Last(nn.LSTM, num_layers=2), (4, 6, 3)),
        "LSTM both ways": (lambda: Last(nn.LSTM, bidirectional=True), (4, 6, 3)),
        "GRU": (lambda: Last(nn.GRU, bidirectional=True), (4, 6, 3)),
        "RNN": (lambda: Last(nn.RNN, nonlinearity="relu"), (4, 6, 3)),
    }  # fmt: skip


NAMES = [
    "batch norm", "batch norm of rows", "group norm", "instance norm", "layer norm", "depthwise", "transposed",
    "pools", "LSTM", "LSTM both ways", "GRU", "RNN",
]  # fmt: skip


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", NAMES)
def test_a_networks_gradient_equals_torch(tmp_path: Path, name: str, profile: plan.Profile) -> None:
    import torch

    torch.manual_seed(5)
    make, shape = networks()[name]
    module, x = make(), normal(*shape)
    module(torch.tensor(x))  # gives lazy layers their sizes, and running statistics a history
    manifest = hold(module, x, tmp_path / "plan", profile)
    assert profile == "cpu-native" or not manifest.op_abi


def test_the_first_of_equal_maxima_gets_the_gradient_in_native_plans(tmp_path: Path) -> None:
    import torch
    from torch import nn

    torch.manual_seed(5)
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(3, 2, 1), nn.Conv2d(2, 3, 1), nn.MaxPool2d(2), nn.Flatten())
    hold(module, np.floor(normal(4, 1, 7, 7)), tmp_path / "plan", "cpu-native")


@pytest.mark.parametrize("name", ["layer norm", "group norm", "rms norm", "lp norm"])
def test_norms_that_are_exported_as_arithmetic_train(tmp_path: Path, name: str) -> None:
    import torch
    from torch import nn

    class Unit(nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return nn.functional.normalize(x, dim=-1)

    class RMS(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6))

        def forward(self, x: Any) -> Any:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight

    torch.manual_seed(5)
    norms = {"layer norm": nn.LayerNorm(6), "group norm": nn.GroupNorm(2, 6), "rms norm": RMS(), "lp norm": Unit()}
    module, x = nn.Sequential(nn.Linear(4, 6), norms[name], nn.Linear(6, 3)), normal(7, 4)
    model = exported(module, x, opset=14)
    assert "LayerNormalization" not in {n.op_type for n in model.graph.node}
    hold(module, x, tmp_path / "plan", "cpu-native", model=model)


@pytest.mark.parametrize("profile", PROFILES)
def test_rms_normalization_trains_as_what_it_is_made_of(tmp_path: Path, profile: plan.Profile) -> None:
    import torch
    from onnx import TensorProto, helper, numpy_helper
    from torch import nn

    torch.manual_seed(5)
    module = nn.Sequential(nn.Linear(6, 5, bias=False), nn.RMSNorm(5, eps=1e-5), nn.Linear(5, 3, bias=False))
    with torch.no_grad():
        module[1].weight.mul_(torch.randn(5))
    nodes = [
        helper.make_node("Gemm", ["x", "0.weight"], ["a"], transB=1),
        helper.make_node("RMSNormalization", ["a", "1.weight"], ["b"], epsilon=1e-5),
        helper.make_node("Gemm", ["b", "2.weight"], ["y"], transB=1),
    ]
    weights = [numpy_helper.from_array(p.detach().numpy(), n) for n, p in module.named_parameters()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 6))]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("N", 3))]
    graph = helper.make_graph(nodes, "rms", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    hold(module, normal(7, 6), tmp_path / "plan", profile, model=model)


@pytest.mark.parametrize("heads", [2, 1], ids=["each with its own keys", "heads share keys"])
@pytest.mark.parametrize("causal", [0, 1], ids=["whole", "causal"])
def test_attention_trains_as_what_it_is_made_of(tmp_path: Path, causal: int, heads: int) -> None:
    import torch
    from onnx import TensorProto, helper, numpy_helper
    from torch import nn

    class Attention(nn.Module):  # type: ignore[misc]
        """Two heads of three numbers over five places; keys and values have `heads`."""

        def __init__(self) -> None:
            super().__init__()
            sizes = {"q": (4, 6), "k": (4, 3 * heads), "v": (4, 3 * heads), "out": (6, 3)}
            self.weights = nn.ParameterDict({n: nn.Parameter(torch.randn(s)) for n, s in sizes.items()})

        def forward(self, x: Any) -> Any:
            q, k, v = ((x @ self.weights[n]).unflatten(2, (-1, 3)).transpose(1, 2) for n in "qkv")
            k, v = (t.repeat_interleave(2 // heads, 1) for t in (k, v))
            seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=bool(causal))
            return seen.transpose(1, 2).flatten(2).mean(1) @ self.weights["out"]

    torch.manual_seed(5)
    module = Attention()
    nodes = [
        *(helper.make_node("MatMul", ["x", f"weights.{n}"], [n]) for n in "qkv"),
        helper.make_node("Attention", ["q", "k", "v"], ["a"], q_num_heads=2, kv_num_heads=heads, is_causal=causal),
        helper.make_node("ReduceMean", ["a", "places"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights.out"], ["y"]),
    ]
    weights = [numpy_helper.from_array(p.detach().numpy(), n) for n, p in module.named_parameters()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 5, 4))]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("N", 3))]
    places = numpy_helper.from_array(np.array([1]), "places")
    graph = helper.make_graph(nodes, "attention", inputs, outputs, [*weights, places])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    hold(module, normal(7, 5, 4), tmp_path / "plan", "cpu-native", model=model)
