"""Activations kept as int8: the same gradients to the last bit, in less memory, and only where nothing else reads them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from fleetgrad.edge.autodiff import compile_model
from fleetgrad.edge.autodiff.graph import DOMAIN
from fleetgrad.edge.autodiff.passes import Graph, narrow
from fleetgrad.wire import plan
from tests.edge.test_autodiff_compile import gradients, make, node
from tests.edge.test_passes import graph, shown

FORWARD = [node("Abs", "x", "h"), node("MatMul", "h w", "o"), node("ReduceMean", "o", "fleetgrad.loss")]
SLOPE = node("Neg", "fleetgrad.loss", "d")


def product(x: str, y: str = "y") -> onnx.NodeProto:
    return helper.make_node("MatMulWeightGrad", [x, "d"], [y], domain=DOMAIN)


def narrowed(nodes: list[onnx.NodeProto], goals: str = "fleetgrad.loss y") -> list[str]:
    found: Graph = narrow(graph(nodes, {"rows": [-1, 4]}, goals, narrow=True))
    return shown(found)


def test_what_a_weight_gradient_alone_reads_is_rounded_where_it_is_made() -> None:
    nodes = [*FORWARD, SLOPE, node("Reshape", "h rows", "r"), product("r"), product("r", "z")]
    assert narrowed(nodes, "fleetgrad.loss y z") == [
        "Abs(x) h", "Reshape(h rows) r", "QuantizeColumns(r) r.codes r.scale", "MatMul(h w) o", "ReduceMean(o) fleetgrad.loss",
        "Neg(fleetgrad.loss) d", "MatMulWeightGrad(r.codes d r.scale) y", "MatMulWeightGrad(r.codes d r.scale) z",
    ]  # fmt: skip


def test_a_transposed_activation_is_moved_with_it() -> None:
    nodes = [*FORWARD, SLOPE, node("Transpose", "h", "t", perm=[1, 0]), node("Reshape", "t rows", "r"), product("r")]
    assert narrowed(nodes)[:4] == [
        "Abs(x) h", "Transpose(h) t", "Reshape(t rows) r", "QuantizeColumns(r) r.codes r.scale",
    ]  # fmt: skip


@pytest.mark.parametrize(("nodes", "goals"), [
    ([*FORWARD, SLOPE, product("h"), node("Mul", "h d", "z")], "fleetgrad.loss y z"),  # another reader
    ([*FORWARD, SLOPE, node("Reshape", "h rows", "r"), product("r"), node("Mul", "r d", "z")], "fleetgrad.loss y z"),  # by another view
    ([*FORWARD, SLOPE, product("h")], "fleetgrad.loss y h"),  # it goes out
    ([*FORWARD, SLOPE, product("x")], "fleetgrad.loss y"),  # it is a feed
    ([*FORWARD, SLOPE, node("Exp", "d", "e"), product("e")], "fleetgrad.loss y"),  # it is made in the backward pass
    ([*FORWARD, SLOPE, helper.make_node("MatMulWeightGrad", ["d", "h"], ["y"], domain=DOMAIN)], "fleetgrad.loss y"),  # it is dY
    ([*FORWARD, SLOPE, node("Gemm", "h d", "y", transA=1)], "fleetgrad.loss y"),  # fp32
])  # fmt: skip
def test_other_activations_stay_as_they_are(nodes: list[onnx.NodeProto], goals: str) -> None:
    assert narrowed(nodes, goals) == shown(graph(nodes))


def wide(turned: bool = False) -> onnx.ModelProto:
    """Grouped convolution, pool, a normalised dense layer over a sequence, GELU: inputs of four weights are read by nothing else."""
    nodes = [
        node("Conv", "x c", "a", kernel_shape=[3], pads=[1, 1]), node("MaxPool", "a", "p", kernel_shape=[2], strides=[2]),
        node("Conv", "p g", "b", kernel_shape=[3], pads=[1, 1], group=2), node("Transpose", "b", "t", perm=[0, 2, 1]),
        node("LayerNormalization", "t s", "n"), node("MatMul", "n u", "h"), node("Gelu", "h", "k"),
        node("MatMul", "k v", "m"), node("ReduceMean", "m axes", "f", keepdims=0), node("MatMul", "f w", "y"),
    ]  # fmt: skip
    sizes = {"c": (8, 1, 3), "g": (8, 4, 3), "u": (8, 32), "v": (32, 8), "w": (8, 3)}
    if turned:
        nodes.insert(5, node("Transpose", "q", "u", perm=[1, 0]))
        sizes["q"] = sizes.pop("u")[::-1]
    random = np.random.Generator(np.random.PCG64(8))
    weights = {name: random.standard_normal(size, np.float32) / 2 for name, size in sizes.items()}
    return make(nodes, {**weights, "s": np.ones(8, np.float32), "axes": np.array([1])}, ("N", 1, 64), opset=20)


@pytest.mark.parametrize("turned", [False, True])
def test_gradients_are_the_same_bits(turned: bool, tmp_path: Path) -> None:
    """Of 12 samples: of 8 or fewer, the last layer's gradient isn't rounded unless its activations are kept so."""
    random = np.random.Generator(np.random.PCG64(9))
    x, y = random.standard_normal((12, 1, 64), np.float32), random.integers(0, 3, 12)
    found = {}
    kinds: tuple[plan.Activations, ...] = ("fp32", "int8")
    for kind in kinds:
        found[kind] = gradients(wide(turned), x, y, tmp_path / kind, gradients="int8", activations=kind)
        ops = [n.op_type for n in onnx.load(tmp_path / kind / plan.TRAIN).graph.node]
        assert ops.count("QuantizeColumns") == (4 if kind == "int8" else 0)
        assert plan.decode((tmp_path / kind / plan.MANIFEST).read_bytes()).activations == kind
    for name, value in found["fp32"].items():
        assert np.array_equal(found["int8"][name], value), name


def test_a_sample_takes_less_memory(tmp_path: Path) -> None:
    least = {}
    kinds: tuple[plan.Activations, ...] = ("fp32", "int8")
    for kind in kinds:
        manifest = compile_model(wide(), loss="cross-entropy", activations=kind, output=tmp_path / kind)
        assert manifest.memory
        least[kind] = max(line.at(64) for line in manifest.memory.train.arena)
    assert least["int8"] < 0.85 * least["fp32"], least


def test_fp32_gradients_keep_fp32_activations(tmp_path: Path) -> None:
    how: dict[str, Any] = {"loss": "cross-entropy", "gradients": "fp32", "activations": "int8"}
    assert compile_model(wide(), output=tmp_path / "plan", **how).activations == "fp32"
    assert "QuantizeColumns" not in {n.op_type for n in onnx.load(tmp_path / "plan" / plan.TRAIN).graph.node}
