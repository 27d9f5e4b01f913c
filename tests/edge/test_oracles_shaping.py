"""Ops that move, repeat, resize and index numbers against torch's autograd, and networks of them as torch exports them."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from fleetgrad.edge.autodiff import compile_model, rules, survey
from fleetgrad.edge.autodiff.graph import IR_VERSION, OPSET, Array, Builder
from fleetgrad.edge.autodiff.registry import differentiate
from tests.edge.cases.inputs import numbers, whole
from tests.edge.test_oracles_layers import PROFILES, exported, hold, normal

pytestmark = pytest.mark.needs("torch")
assert rules
r = numbers(9)
LAST, FIRST = np.iinfo(np.int64).max, np.iinfo(np.int64).min
Case = tuple[str, tuple[Array | None, ...], dict[str, Any], Callable[..., Any]]


def scales(*values: float) -> Array:
    return np.array(values, np.float32)


def interpolated(mode: str, **how: Any) -> Callable[..., Any]:
    return lambda t, x, *_: t.nn.functional.interpolate(x, mode=mode, **how)


def padded(pads: tuple[int, ...], mode: str) -> Callable[..., Any]:
    return lambda t, x, *_: t.nn.functional.pad(x, pads, mode=mode)


CASES: list[Case] = [
    ("Concat", (r(3, 2, 4), r(3, 1, 4), r(3, 5, 4)), {"axis": -2}, lambda t, *xs: t.cat(xs, -2)),
    ("Slice", (r(5, 7, 6), whole(-2, 1), whole(FIRST, LAST), whole(-1, 0), whole(-1, 2)), {},
     lambda t, x, *_: x[1::2, :, :5].flip(-1)),
    ("Slice", (r(2, 9), whole(-1), whole(-9), whole(1), whole(-3)), {}, lambda t, x, *_: x[:, [8, 5, 2]]),
    ("Pad", (r(2, 3, 5, 4), whole(0, 0, 1, 2, 0, 0, 3, 0)), {"mode": "reflect"}, padded((2, 0, 1, 3), "reflect")),
    ("Pad", (r(2, 3, 5, 4), whole(0, 0, 1, 2, 0, 0, 3, 0)), {"mode": "edge"}, padded((2, 0, 1, 3), "replicate")),
    ("Pad", (r(2, 3, 5, 4), whole(0, 0, 1, 2, 0, 0, 3, 0)), {"mode": "wrap"}, padded((2, 0, 1, 3), "circular")),
    ("Pad", (r(2, 3, 5), whole(0, -1, 2, 0, 3, -2)), {}, lambda t, x, _: t.nn.functional.pad(x, (2, -2, -1, 3))),
    ("Expand", (r(3, 1, 4), whole(2, 1, 5, 4)), {}, lambda t, x, _: x.expand(2, 3, 5, 4)),
    ("Tile", (r(3, 1, 2), whole(2, 4, 3)), {}, lambda t, x, _: x.repeat(2, 4, 3)),
    ("Gather", (r(6, 3), np.array([[5, -1, 0], [5, 5, 2]])), {}, lambda t, x, i: x[i]),
    ("Gather", (r(3, 5, 2), np.array([[1, -1], [1, 4]])), {"axis": -2}, lambda t, x, i: x[:, i]),
    ("GatherElements", (r(3, 5), np.array([[1, 1, 4], [0, 2, 2], [3, 3, 3]])), {"axis": -1}, lambda t, x, i: x.gather(-1, i)),
    ("GatherND", (r(3, 4, 2), np.array([[[1], [1]], [[0], [3]], [[2], [2]]])), {"batch_dims": 1},
     lambda t, x, i: x[t.arange(3)[:, None], i[..., 0]]),
    ("ScatterElements", (r(3, 5), np.array([[1, 0], [4, 2], [3, 0]]), r(3, 2)), {"axis": 1}, lambda t, x, i, u: x.scatter(1, i, u)),
    ("ScatterElements", (r(3, 5), np.array([[1, 1], [4, 4], [3, 0]]), r(3, 2)), {"axis": 1, "reduction": "add"},
     lambda t, x, i, u: x.scatter_add(1, i, u)),
    ("ScatterND", (r(4, 5), np.array([[1], [-1]]), r(2, 5)), {}, lambda t, x, i, u: x.index_put((i[:, 0],), u)),
    ("ScatterND", (r(4, 5), np.array([[1, 0], [1, 0]]), r(2)), {"reduction": "add"},
     lambda t, x, i, u: x.index_put((i[:, 0], i[:, 1]), u, accumulate=True)),
    ("Trilu", (r(3, 4, 5), np.array(1)), {}, lambda t, x, k: x.triu(1)),
    ("DepthToSpace", (r(2, 12, 3, 2),), {"blocksize": 2, "mode": "CRD"}, lambda t, x: t.nn.functional.pixel_shuffle(x, 2)),
    ("Resize", (r(2, 3, 4, 5), None, scales(1, 1, 2, 2)),
     {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, interpolated("nearest", scale_factor=2)),
    ("Resize", (r(2, 3, 4, 5), None, None, whole(2, 3, 7, 3)),
     {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, interpolated("nearest", size=(7, 3))),
    ("Resize", (r(2, 3, 4, 5), None, None, whole(2, 3, 7, 3)),
     {"coordinate_transformation_mode": "pytorch_half_pixel", "mode": "linear"}, interpolated("bilinear", size=(7, 3))),
    ("Resize", (r(2, 3, 4, 5), None, None, whole(2, 3, 7, 9)),
     {"coordinate_transformation_mode": "align_corners", "mode": "linear"},
     interpolated("bilinear", size=(7, 9), align_corners=True)),
    ("Resize", (r(2, 3, 4, 5), None, None, whole(2, 3, 8, 10)),
     {"coordinate_transformation_mode": "half_pixel", "mode": "cubic"}, interpolated("bicubic", size=(8, 10))),
    ("Resize", (r(2, 3, 5), None, None, whole(2, 3, 8)),
     {"coordinate_transformation_mode": "half_pixel", "mode": "linear"}, interpolated("linear", size=8)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "formula"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_a_rule_equals_torch(
    op: str, inputs: tuple[Array | None, ...], attributes: dict[str, Any], formula: Callable[..., Any]
) -> None:
    """On onnxruntime, in float32; the forward values too, so that both mean the same op."""
    import torch

    given = {f"x{i}": x for i, x in enumerate(inputs) if x is not None}
    leaves = {n: torch.tensor(x, requires_grad=x.dtype == np.float64) for n, x in given.items()}
    y = formula(torch, *leaves.values())
    dy = r(*y.shape)
    y.backward(torch.tensor(dy))
    wanted = [n for n, leaf in leaves.items() if leaf.requires_grad]
    forward = helper.make_node(
        op, [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)], ["y"], **attributes
    )
    known = {n: x for n, x in given.items() if n not in wanted}
    g = Builder({**{n: x.shape for n, x in given.items()}, "y": dy.shape}, [*given, "y", "dy"], known=known)
    found = differentiate([forward], {"y": "dy"}, wanted, {*wanted, "y"}, g, OPSET)
    feeds = {n: x.astype(np.float32) for n, x in {**given, "dy": dy}.items() if n not in known}
    graph = helper.make_graph(
        [forward, *g.nodes],
        "oracle",
        [helper.make_tensor_value_info(n, 1, x.shape) for n, x in feeds.items()],
        [helper.make_tensor_value_info(n, 1, None) for n in ["y", *found.values()]],
        [*(numpy_helper.from_array(x, n) for n, x in known.items()), *g.constants.values()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    values = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    np.testing.assert_allclose(values[0], y.detach().numpy(), rtol=1e-5, atol=1e-5)
    for name, value in zip(found, values[1:], strict=True):
        np.testing.assert_allclose(value, leaves[name].grad.numpy(), rtol=1e-5, atol=2e-5)


def networks() -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Name: (module, shape of the input)."""
    import torch
    from torch import nn

    class Net(nn.Module):  # type: ignore[misc]
        def __init__(self, run: Callable[..., Any], **layers: Any) -> None:
            super().__init__()
            self.run = run
            for name, layer in layers.items():
                setattr(self, name, nn.Parameter(layer) if isinstance(layer, torch.Tensor) else layer)

        def forward(self, x: Any) -> Any:
            return self.run(self, x)

    def upsampled(self: Any, x: Any) -> Any:
        low = self.down(x).relu()
        up = nn.functional.interpolate(low, scale_factor=2, mode=self.mode, align_corners=self.corners)
        return self.last(torch.cat([up, x], 1)).mean((2, 3))

    def unet(mode: str, corners: bool | None) -> Any:
        net = Net(upsampled, down=nn.Conv2d(3, 4, 3, 2, 1), last=nn.Conv2d(7, 5, 3, padding=1, padding_mode="reflect"))
        net.mode, net.corners = mode, corners
        return net

    def shuffled(self: Any, x: Any) -> Any:
        a, b = self.one(x).chunk(2, 1)
        y = torch.cat([a, self.two(b)], 1)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return nn.functional.pixel_shuffle(y, 2).mean((2, 3))

    def focused(self: Any, x: Any) -> Any:
        x = self.stem(x)
        parts = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return self.last(torch.cat(parts, 1)).amax((2, 3))

    def tokens(self: Any, x: Any) -> Any:
        cls = self.first.expand(x.shape[0], -1, -1)
        h = torch.cat([cls, self.project(x)], 1) + self.place[:, : x.shape[1] + 1]
        q, k, v = self.mix(h).chunk(3, -1)
        mask = torch.ones(6, 6, dtype=torch.bool).triu(1)
        scores = (q @ k.transpose(-2, -1) / 2.0).masked_fill(mask, float("-inf"))
        return self.last((scores.softmax(-1) @ v)[:, -1])

    def embedded(self: Any, x: Any) -> Any:
        index = (x * 2).long().clamp(-3, 3) + 3
        return self.last(self.table(index).flip(1).roll(1, 2).flatten(1))

    return {
        "U-net nearest": (unet("nearest", None), (2, 3, 6, 8)),
        "U-net bilinear": (unet("bilinear", False), (2, 3, 6, 8)),
        "U-net corners": (unet("bilinear", True), (2, 3, 6, 8)),
        "shuffles": (Net(shuffled, one=nn.Conv2d(3, 8, 1), two=nn.Conv2d(4, 4, 3, padding=1)), (2, 3, 4, 4)),
        "focus": (Net(focused, stem=nn.Conv2d(2, 3, 3, padding=1), last=nn.Conv2d(12, 4, 1)), (2, 2, 6, 4)),
        "attention": (
            Net(tokens, first=torch.randn(1, 1, 8), place=torch.randn(1, 9, 8), project=nn.Linear(3, 8),
                mix=nn.Linear(8, 24), last=nn.Linear(8, 4)),
            (2, 5, 3),
        ),
        "embedding": (Net(embedded, table=nn.Embedding(7, 4), last=nn.Linear(20, 3)), (3, 5)),
    }  # fmt: skip


NAMES = ["U-net nearest", "U-net bilinear", "U-net corners", "shuffles", "focus", "attention", "embedding"]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", NAMES)
def test_an_exported_networks_gradient_equals_torch(tmp_path: Path, name: str, profile: Any) -> None:
    import torch

    torch.manual_seed(5)
    module, shape = networks()[name]
    hold(module, normal(*shape), tmp_path / "plan", profile)


def test_parameters_that_torch_merged_because_they_were_equal_train_apart(tmp_path: Path) -> None:
    """Exported in eval mode, a fresh network's biases and running means are one initializer, as are scales and variances."""
    import torch
    from torch import nn

    torch.manual_seed(5)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten()
    )
    x = normal(5, 3, 5, 5)
    model = exported(module.eval(), x, torch.onnx.TrainingMode.EVAL)
    assert sum(n.op_type == "Identity" for n in model.graph.node) == 6
    manifest = compile_model(model, loss="cross-entropy", gradients="fp32", output=tmp_path / "plan")
    assert {t.name for t in manifest.of_role("trainable")} == {n for n, _ in module.named_parameters()}
    assert {t.name for t in manifest.of_role("personal")} == {
        f"{i}.running_{what}" for i in (1, 4) for what in ("mean", "var")
    }


def test_copies_of_a_layer_train_apart_and_tied_weights_together(tmp_path: Path) -> None:
    import torch
    from torch import nn

    class Tied(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.one, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
            self.two = copy.deepcopy(self.one)
            self.last.weight = self.one.weight

        def forward(self, x: Any) -> Any:
            return self.last(self.two(self.one(x).relu()).relu())

    torch.manual_seed(5)
    model = exported(Tied().eval(), normal(3, 4), torch.onnx.TrainingMode.EVAL)
    manifest = compile_model(model, loss="cross-entropy", output=tmp_path / "plan")
    names = {"one.weight", "one.bias", "two.weight", "two.bias", "last.bias"}
    assert {t.name for t in manifest.of_role("trainable")} == names


def test_batch_normalisation_that_torch_folded_is_told() -> None:
    import torch
    from torch import nn

    for layers, count in (([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)], 1), ([nn.Conv2d(3, 4, 3)], 0)):
        module = nn.Sequential(*layers, nn.ReLU(), nn.Flatten()).eval()
        found = survey(exported(module, normal(2, 3, 5, 5), torch.onnx.TrainingMode.EVAL, fold=True))
        assert len(found.notes) == count
        assert all("TrainingMode.TRAINING" in text for text in found.notes)
