"""Passes over training graphs: each finds what it is for, leaves what it must, and gradients stay what they were."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from fleetgrad.edge.autodiff import passes, zoo
from fleetgrad.edge.autodiff.graph import DOMAIN
from fleetgrad.edge.autodiff.passes import Graph, alive, fold, remove, share, turn
from fleetgrad.wire import plan
from tests.edge.test_autodiff_compile import gradients, make, node, ones


def graph(
    nodes: list[onnx.NodeProto], constants: Mapping[str, Any] | None = None, goals: str = "y", **more: Any
) -> Graph:
    held = {name: numpy_helper.from_array(np.asarray(v), name) for name, v in (constants or {}).items()}
    return Graph(tuple(nodes), held, frozenset(goals.split()), **{"shapes": {}, "known": {}, **more})


def shown(found: Graph) -> list[str]:
    return [f"{n.op_type}({' '.join(n.input)}) {' '.join(n.output)}" for n in found.nodes]


def test_what_no_goal_depends_on_goes() -> None:
    found = alive(graph([node("Add", "x a", "y"), node("Mul", "x b", "z")], {"a": 1, "b": 2}))
    assert shown(found) == ["Add(x a) y"]
    assert found.constants.keys() == {"a"}


def test_shapes_that_no_batch_changes_are_folded_with_what_depends_on_them() -> None:
    nodes = [
        node("Shape", "x", "s"), node("Shape", "x", "tail", start=1), node("Gather", "tail one", "width"),
        node("Concat", "minus width", "goal", axis=0), node("Reshape", "x goal", "a"), node("Expand", "a s", "y"),
    ]  # fmt: skip
    found = fold(graph(nodes, {"one": [1], "minus": [-1]}, shapes={"x": (-1, 3, 4)}))
    assert shown(found) == ["Shape(x) s", "Reshape(x goal) a", "Expand(a s) y"]
    assert numpy_helper.to_array(found.constants["goal"]).tolist() == [-1, 4]


def test_a_reshape_to_one_batch_has_its_shape_written_down() -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Slice", "s a b", "n"),
        node("Concat", "n k", "goal", axis=0),
        node("Reshape", "x goal", "y"),
    ]
    for shape, kept, goal in (((-2, 3), 1, [-1, 3]), ((-2, -1), 4, None), ((-2, 0), 4, None)):
        found = alive(fold(graph(nodes, {"a": [0], "b": [1], "k": [3]}, shapes={"x": (-1, 6), "y": shape})))
        assert len(found.nodes) == kept, shape
        if goal:
            assert numpy_helper.to_array(found.constants[found.nodes[0].input[1]]).tolist() == goal


def test_a_known_value_is_folded_but_a_large_one() -> None:
    nodes = [node("Mul", "a k", "b"), node("Add", "x b", "y")]
    for count, kept in ((4, 1), (1 << 15, 2)):
        found = fold(graph(nodes, {"a": np.ones(count, np.float32), "k": np.float32(2)}))
        assert len(found.nodes) == kept, count


@pytest.mark.parametrize("nodes", [
    [node("RandomNormal", "", "r", shape=[2]), node("Add", "x r", "y")],
    [helper.make_node("Twice", ["a"], ["b"], domain=DOMAIN), node("Add", "x b", "y")],
    [node("Neg", "a", "y")],
])  # fmt: skip
def test_random_numbers_foreign_ops_and_goals_arent_folded(nodes: list[onnx.NodeProto]) -> None:
    assert fold(graph(nodes, {"a": np.ones(2, np.float32)})).nodes == tuple(nodes)


def test_an_identity_goes_and_a_goal_takes_the_name_of_what_it_is() -> None:
    nodes = [node("Identity", "x", "a"), node("Neg", "a", "b"), node("Abs", "b", "z"), node("Identity", "b", "y")]
    assert shown(remove(graph(nodes, goals="y z"))) == ["Neg(x) y", "Abs(y) z"]
    twice = [node("Neg", "x", "b"), node("Identity", "b", "y"), node("Identity", "b", "z")]
    assert shown(remove(graph(twice, goals="y z"))) in (["Neg(x) z", "Identity(z) y"], ["Neg(x) y", "Identity(y) z"])
    fed = [node("Identity", "x", "y")]
    assert remove(graph(fed)).nodes == tuple(fed)


def test_of_moves_in_a_row_the_last_is_left() -> None:
    shapes = {"a": np.array([2, 6]), "b": np.array([-1, 3]), "c": np.array([0, 4])}
    rows = [node("Reshape", "x a", "p"), node("Reshape", "p b", "y")]
    assert shown(alive(remove(graph(rows, shapes)))) == ["Reshape(x b) y"]
    own = [node("Reshape", "x a", "p"), node("Reshape", "p c", "y")]  # 0 is the size of p, not of x
    assert remove(graph(own, shapes)).nodes == tuple(own)
    there = [
        node("Transpose", "x", "p", perm=[1, 2, 0]),
        node("Transpose", "p", "q", perm=[2, 0, 1]),
        node("Neg", "q", "y"),
    ]
    assert shown(alive(remove(graph(there)))) == ["Neg(x) y"]
    twice = alive(remove(graph([*there[:1], node("Transpose", "p", "y", perm=[1, 2, 0])])))
    assert shown(twice) == ["Transpose(x) y"]
    assert list(twice.nodes[0].attribute[0].ints) == [2, 0, 1]


def test_equal_nodes_and_constants_are_shared_and_others_not() -> None:
    nodes = [
        node("Mul", "x a", "p"), node("Mul", "x b", "q"), node("Mul", "x c", "r"), node("Sum", "p q r", "y"),
        node("LeakyRelu", "x", "s", alpha=0.1), node("LeakyRelu", "x", "t", alpha=0.2), node("Add", "s t", "z"),
        node("RandomUniformLike", "x", "u"), node("RandomUniformLike", "x", "v"), node("Sub", "u v", "w"),
        node("Mul", "x a", "again"),
    ]  # fmt: skip
    found = share(graph(nodes, {"a": np.float32(2), "b": np.float32(2), "c": np.float32(3)}, goals="y z w again"))
    assert shown(found)[:3] == ["Mul(x a) p", "Mul(x c) r", "Sum(p p r) y"]
    assert len(found.nodes) == len(nodes) - 1
    assert found.constants.keys() == {"a", "c"}


def test_what_a_subgraph_reads_keeps_its_name() -> None:
    inner = helper.make_graph([node("Neg", "b", "c")], "then", [], [onnx.ValueInfoProto(name="c")])
    nodes = [
        node("Abs", "x", "a"), node("Abs", "x", "b"), node("Identity", "b", "c"),
        node("If", "flag", "y", then_branch=inner, else_branch=inner),
    ]  # fmt: skip
    assert {n.output[0] for n in remove(share(graph(nodes))).nodes} >= {"b", "y"}


def test_a_transposed_weight_gradient_is_the_turned_product() -> None:
    back = node("Transpose", "p", "y", perm=[1, 0])
    for made in (
        node("Gemm", "x d", "p", transA=1),
        helper.make_node("MatMulWeightGrad", ["x", "d"], ["p"], domain=DOMAIN),
    ):
        assert shown(turn(graph([made, back]))) == [f"{made.op_type}(d x) y"]
        used = [made, back, node("Neg", "p", "z")]
        assert turn(graph(used, goals="y z")).nodes == tuple(used)
    for kept in (node("Gemm", "x d", "p"), node("Gemm", "x d", "p", transA=1, alpha=2.0), node("MatMul", "x d", "p")):
        assert turn(graph([kept, back])).nodes == (kept, back)


def attention() -> onnx.ModelProto:
    """A layer of attention as exporters write it: transposed weights, and the heads' sizes computed of shapes."""
    nodes = [
        *(helper.make_node("Constant", [], [n], value=numpy_helper.from_array(np.array(v))) for n, v in
          (("zero", [0]), ("one", [1]), ("two", [2]), ("heads", [2]))),
        node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Gather", "s one", "t"), node("Gather", "s two", "d"),
        node("Div", "d heads", "size"), node("Cast", "size", "f", to=1), node("Sqrt", "f", "root"),
        node("Concat", "n t heads size", "split", axis=0), node("Concat", "n t d", "whole", axis=0),
    ]  # fmt: skip
    for part in "qkv":
        nodes += [
            node("Transpose", f"w{part}", f"t{part}", perm=[1, 0]), node("MatMul", f"x t{part}", f"m{part}"),
            node("Reshape", f"m{part} split", f"r{part}"), node("Transpose", f"r{part}", part, perm=[0, 2, 1, 3]),
        ]  # fmt: skip
    nodes += [
        node("Transpose", "k", "kt", perm=[0, 1, 3, 2]), node("MatMul", "q kt", "a"), node("Div", "a root", "b"),
        node("Softmax", "b", "p"), node("MatMul", "p v", "o"), node("Transpose", "o", "ot", perm=[0, 2, 1, 3]),
        node("Reshape", "ot whole", "h"), node("ReduceMean", "h", "m", axes=[1], keepdims=0), node("MatMul", "m w", "y"),
    ]  # fmt: skip
    random = np.random.Generator(np.random.PCG64(5))
    weights = {f"w{p}": random.standard_normal((8, 8), np.float32) for p in "qkv"} | {"w": ones(8, 3)}
    return make(nodes, weights, ("N", 6, 8))


def test_passes_shorten_a_graph_and_leave_its_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.Generator(np.random.PCG64(6))
    cases = (
        (attention(), (6, 8), 3, ("Gather", "Concat", "Sqrt", "Constant"), 0.75),
        (zoo.digits_cnn(), (1, 8, 8), 10, ("Identity",), 1.0),
    )
    for model, shape, classes, gone, share_left in cases:
        x, y = (
            random.standard_normal((12, *shape), np.float32),
            random.integers(0, classes, 12),
        )  # int8 is for more than 8
        for kind in ("fp32", "int8"):
            counts, values = [], []
            for name, taken in (("plain", (alive,)), ("short", passes.PASSES)):
                monkeypatch.setattr(passes, "PASSES", taken)
                values.append(gradients(model, x, y, tmp_path / name, gradients=kind))
                counts.append(Counter(n.op_type for n in onnx.load(tmp_path / name / plan.TRAIN).graph.node))
                monkeypatch.undo()
            assert counts[1].total() <= share_left * counts[0].total(), counts
            assert not set(gone) & counts[1].keys()
            for name, value in values[0].items():
                np.testing.assert_allclose(values[1][name], value, rtol=1e-5, atol=2e-6 * np.abs(value).max())
