"""What models may look like: opsets, hidden weights, several inputs, dynamic dimensions, ops that no gradient passes."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleetgrad.edge.autodiff import ModelError, UnsupportedModel, compile_model, export_model, survey
from fleetgrad.edge.autodiff.front import read
from fleetgrad.edge.data.dataset import DataError, fit
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Trainer
from fleetgrad.wire import plan
from tests.edge.test_autodiff_compile import gradients, node, ones

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
random = np.random.Generator(np.random.PCG64(8))


def build(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    inputs: dict[str, tuple[int, tuple[Any, ...]]],
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """A model from `inputs` (name: type and shape) to y; before IR 4 the weights are inputs as well."""
    feeds = [helper.make_tensor_value_info(name, *what) for name, what in inputs.items()]
    tensors = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    if ir_version < 4:
        feeds += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    goal = helper.make_tensor_value_info("y", FLOAT, ("rows", "columns"))
    graph = helper.make_graph(nodes, "test", feeds, [goal], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


X = {"x": (FLOAT, ("N", 4))}


def trained(manifest: plan.Manifest) -> set[str]:
    return {t.name for t in manifest.of_role("trainable")}


@pytest.mark.parametrize("opset", [11, 12, 13, 15, 18, 22, 23, 24, 25])
def test_each_opset_gives_the_same_gradients(tmp_path: Path, opset: int) -> None:
    nodes = [
        node("Conv", "x k", "a", pads=[1, 1, 1, 1]),
        node("Pad", "a pads", "p", mode="constant"),
        node("MaxPool", "p", "q", kernel_shape=[2, 2], strides=[2, 2]),
        node("Transpose", "q", "t", perm=[0, 2, 3, 1]),
        node("Reshape", "t s", "r"),
        node("Identity", "r", "i"),
        node("MatMul", "i w", "m"),
        node("LeakyRelu", "m", "l"),
        node("TopK", "l three", "y", axis=1),
    ]
    nodes[-1].output.append("places")
    weights = {"k": ones(2, 1, 3, 3), "w": ones(18, 4)}
    fixed = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "s": np.array([0, -1]), "three": np.array([3])}
    x, label = random.random((3, 1, 4, 4), np.float32), np.zeros((3, 3), np.float32)
    found = []
    for version in (21, opset):
        model = build(nodes, weights | fixed, {"x": (FLOAT, ("N", 1, 4, 4))}, version)
        found.append(gradients(model, x, label, tmp_path / str(version), loss="mse"))
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value)


@pytest.mark.parametrize("opset", [9, 10])
def test_upsample_and_dynamic_slices_of_old_opsets_train(tmp_path: Path, opset: int) -> None:
    op = "Upsample" if opset == 9 else "Resize"
    scales = {"scales": np.array([1, 1, 2, 2], np.float32)}
    nodes = [node("Conv", "x k", "a"), node(op, "a scales", "u", mode="nearest"), node("GlobalAveragePool", "u", "g"),
             node("Flatten", "g", "y")]  # fmt: skip
    model = build(nodes, {"k": ones(3, 2, 1, 1), **scales}, {"x": (FLOAT, ("N", 2, 3, 4))}, opset)
    x = random.random((2, 2, 3, 4), np.float32)
    found = gradients(model, x, np.zeros((2, 3), np.float32), tmp_path / "p", loss="mse")
    mean = x.mean((2, 3))
    error = mean @ ones(3, 2).T
    np.testing.assert_allclose(found["k"][..., 0, 0], 2 * error.T @ mean / error.size, rtol=1e-4, atol=1e-6)
    assert "scales" not in found


def test_a_newer_op_that_the_standard_takes_apart_trains(tmp_path: Path) -> None:
    model = build([node("MatMul", "x w", "a"), node("Swish", "a", "y")], {"w": ones(4, 3)}, X, 24)
    x = random.random((2, 4), np.float32)
    found = gradients(model, x, np.zeros((2, 3), np.float32), tmp_path / "p", loss="mse")
    a = x @ ones(4, 3)
    s = 1 / (1 + np.exp(-a))
    np.testing.assert_allclose(found["w"], x.T @ (2 * a * s * (s + a * s * (1 - s)) / 6), rtol=1e-4, atol=1e-6)


def test_ops_that_the_converter_has_no_way_back_for_are_read(tmp_path: Path) -> None:
    nodes = [node("Conv", "x k", "a"), node("GlobalMaxPool", "a", "g"), node("Flatten", "g", "y")]
    model = build(nodes, {"k": ones(3, 2, 1, 1)}, {"x": (FLOAT, ("N", 2, 3, 4))}, 22)
    assert trained(compile_model(model, loss="mse", output=tmp_path / "p")) == {"k"}


def test_a_newer_op_that_nothing_replaces_is_refused_by_name(tmp_path: Path) -> None:
    model = build(
        [node("MatMul", "x w", "a"), node("CumProd", "a axis", "y")], {"w": ones(4, 3), "axis": np.array(1)}, X, 26
    )
    with pytest.raises(ModelError, match=r"CumProd"):
        compile_model(model, loss="mse", output=tmp_path / "p")


def test_constants_in_the_place_of_weights_are_trained_and_exported(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["w0"], value=numpy_helper.from_array(ones(3, 4))),
        helper.make_node("Constant", [], ["half"], value=numpy_helper.from_array(np.full((1, 3), 0.5, np.float32))),
        node("Transpose", "w0", "w"),
        helper.make_node("ConstantOfShape", ["size"], ["b"], value=numpy_helper.from_array(np.ones(1, np.float32))),
        node("Gemm", "x w b", "a"),
        node("Mul", "a half", "y"),
    ]
    model = build(nodes, {"size": np.array([3])}, X)
    manifest = compile_model(model, loss="mse", output=tmp_path / "p")
    assert trained(manifest) == {"w", "b"}  # half may be anything: it stays
    export_model(tmp_path / "p", 2 * np.fromfile(tmp_path / "p" / plan.PARAMS, "<f4"), tmp_path / "out.onnx")
    x = random.random((2, 4), np.float32)
    runs = [
        onnxruntime.InferenceSession(m).run(None, {"x": x})[0]
        for m in (model.SerializeToString(), str(tmp_path / "out.onnx"))
    ]
    np.testing.assert_allclose(runs[1], 2 * runs[0], rtol=1e-5)


def test_a_model_stripped_of_its_weights_has_them_back(tmp_path: Path) -> None:
    """onnx's own light models: IR 3, opset 9, initializers as inputs, a ConstantOfShape in each weight's place."""
    folder = Path(onnx.__file__).parent / "backend/test/data/light"
    model = onnx.load(folder / "light_squeezenet.onnx")
    stripped = {n.output[0] for n in model.graph.node if n.op_type == "ConstantOfShape"}
    found = read(model)
    assert stripped <= found.weights.keys()
    assert found.inputs == (plan.Feed(name="data_0", shape=(3, 224, 224), dtype="float32"),)
    assert survey(model).trains


def test_initializers_as_inputs_shared_and_unused_ones_are_understood(tmp_path: Path) -> None:
    nodes = [node("Gemm", "x w b", "a"), node("Gemm", "a w b", "y")]
    model = build(nodes, {"w": ones(4, 4), "b": ones(4), "spare": ones(2, 2)}, X, 9, ir_version=3)
    notes: list[str] = []
    manifest = compile_model(model, loss="mse", output=tmp_path / "p", notice=notes.append)
    assert trained(manifest) == {"w", "b"}
    assert notes == ["'spare' stays as it is: doesn't reach the output"]


def attention() -> onnx.ModelProto:
    """Tokens through an embedding, masked mean, dense: three inputs of three types."""
    nodes = [
        node("Gather", "table tokens", "e"),
        node("Cast", "mask", "m", to=FLOAT),
        node("Unsqueeze", "m last", "mm"),
        node("Mul", "e mm", "em"),
        node("ReduceSum", "em one", "s", keepdims=0),
        node("Concat", "s extra", "c", axis=1),
        node("MatMul", "c w", "y"),
    ]
    weights = {"table": ones(7, 3), "w": ones(5, 2), "last": np.array([2]), "one": np.array([1])}
    inputs = {"tokens": (INT64, ("N", "time")), "mask": (BOOL, ("N", "time")), "extra": (FLOAT, ("N", 2))}
    return build(nodes, weights, inputs)


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_tokens_mask_and_numbers_train_together(tmp_path: Path, kind: plan.Gradients) -> None:
    manifest = compile_model(attention(), loss="mse", gradients=kind, dims={"time": 4}, output=tmp_path / "p")
    assert [(f.name, f.shape, f.dtype) for f in manifest.inputs] == [
        ("tokens", (4,), "int64"), ("mask", (4,), "bool"), ("extra", (2,), "float32")
    ]  # fmt: skip
    data: dict[str, Any] = {
        "tokens": random.integers(0, 7, (30, 4)),
        "mask": random.random((30, 4)) < 0.7,
        "extra": random.random((30, 2)),
    }
    y = random.random((30, 2))
    own = fit("d", data["tokens"], y, manifest, more=data)
    trainer = Trainer(open_plan(tmp_path / "p"))
    trainer.step(*own.batch(np.arange(10)))
    hidden = (ones(7, 3)[data["tokens"]] * data["mask"][..., None]).sum(1)
    c = np.concatenate([hidden, data["extra"]], 1)[:10]
    dy = 2 * (c @ ones(5, 2) - y[:10]) / 20
    table = np.zeros((7, 3))
    np.add.at(table, data["tokens"][:10], (dy @ ones(5, 2).T)[:, None, :3] * data["mask"][:10, :, None])
    close = 1e-5 if kind == "fp32" else 0.02
    np.testing.assert_allclose(trainer.gradients()["table"], table, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(trainer.gradients()["w"], c.T @ dy, rtol=1e-3, atol=close * np.abs(c.T @ dy).max())
    trained = trainer.run_epochs(own, epochs=30, batch_size=8, learning_rate=0.02, momentum=0.9, seed=1)
    assert trained.loss < trained.first_loss / 2
    assert trainer.evaluate(own.subset(np.arange(5))).samples == 5


def test_data_of_several_inputs_is_checked_by_name(tmp_path: Path) -> None:
    manifest = compile_model(attention(), loss="mse", dims={"time": 4}, output=tmp_path / "p")
    tokens, y = np.zeros((12, 4), np.int64), np.zeros((12, 2))
    more = {"mask": np.ones((12, 4), bool), "extra": np.ones((12, 2))}
    for change, message in (
        ({"mask": np.ones((12, 3))}, r"'mask' has shape \(12, 3\)"),
        ({"extra": np.full((12, 2), np.nan)}, "NaN"),
    ):
        with pytest.raises(DataError, match=message):
            fit("d", tokens, y, manifest, more=more | change)
    with pytest.raises(DataError, match="no array 'mask'"):
        fit("d", tokens, y, manifest)
    with pytest.raises(DataError, match="isn't scaled"):
        fit("d", tokens, y, manifest, more=more, scale=0.5)


def test_dynamic_dimensions_need_a_size_and_a_right_name(tmp_path: Path) -> None:
    for dims, message in (({}, "--dim time=64"), ({"tim": 4}, "'tim'.*there are: time")):
        with pytest.raises(ModelError, match=message):
            compile_model(attention(), loss="mse", dims=dims, output=tmp_path / "p")


def test_a_squeeze_without_axes_keeps_a_batch_of_one(tmp_path: Path) -> None:
    nodes = [node("Unsqueeze", "x two", "a"), node("Squeeze", "a", "b"), node("MatMul", "b w", "y")]
    model = build(nodes, {"w": ones(4, 3), "two": np.array([2])}, X)
    x = random.random((1, 4), np.float32)
    found = gradients(model, x, np.zeros((1, 3), np.float32), tmp_path / "p", loss="mse")
    np.testing.assert_allclose(found["w"], x.T @ (2 * x @ ones(4, 3) / 3), rtol=1e-4, atol=1e-6)


def test_what_no_gradient_passes_stands_anywhere_and_is_named(tmp_path: Path) -> None:
    """v reaches the loss only as an index, u only as a condition, t only through Floor; Sin and the rest need no rule there."""
    nodes = [
        node("MatMul", "x v", "scores"),
        node("Sin", "scores", "wave"),
        node("Det", "cube", "d"),
        node("ArgMax", "wave", "place", axis=1, keepdims=0),
        node("Gather", "table place", "row"),
        node("MatMul", "x u", "gate"),
        node("Greater", "gate zero", "c"),
        node("IsNaN", "gate", "nan"),
        node("Not", "nan", "fine"),
        node("And", "c fine", "both"),
        node("MatMul", "x w", "h"),
        node("Where", "both h row", "chosen"),
        node("MatMul", "x t", "steps"),
        node("Floor", "steps", "floor"),
        node("Shape", "chosen", "size"),
        node("ConstantOfShape", "size", "zeros"),
        node("Sum", "chosen floor zeros", "y"),
    ]
    weights = {name: ones(4, 3) for name in "vuwt"} | {"table": ones(3, 3), "zero": np.array(0, np.float32)}
    model = build([n for n in nodes if n.op_type != "Det"], weights, X)
    reasons = {w.name: w.reason for w in survey(model).weights if not w.trains and w.name != "zero"}
    assert reasons == {
        "v": "no gradient passes ArgMax 'the-place', which gives no float32",
        "u": "no gradient passes Greater 'the-c', which gives no float32",
        "t": "no gradient passes Floor 'the-floor', which is flat",
    }
    notes: list[str] = []
    manifest = compile_model(model, loss="mse", output=tmp_path / "p", notice=notes.append)
    assert trained(manifest) == {"w", "table"}
    assert sorted(notes) == sorted(f"{name!r} stays as it is: {why}" for name, why in reasons.items())


def test_an_op_without_a_rule_that_leads_only_to_an_index_is_no_objection(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x w", "h"),
        node("Compress", "h keep", "part", axis=1),
        node("ArgMax", "part", "place", axis=1, keepdims=0),
        node("Gather", "table place", "row"),
        node("Add", "row h", "y"),
    ]
    model = build(nodes, {"w": ones(4, 3), "table": ones(3, 3), "keep": np.array([True, False, True])}, X)
    assert trained(compile_model(model, loss="mse", output=tmp_path / "p")) == {"w", "table"}
    model.graph.node[-1].input[0] = "part"
    model.graph.node[1].input[1] = "all"
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, bool), "all"))
    with pytest.raises(UnsupportedModel, match="Compress"):
        compile_model(model, loss="mse", output=tmp_path / "q")


def test_sizes_computed_from_shapes_are_known_to_rules(tmp_path: Path) -> None:
    """What exporters write around Resize: Shape, Slice, Mul, Concat."""
    nodes = [
        node("Conv", "x k", "a"),
        node("Shape", "a", "size"),
        node("Slice", "size i0 i2", "head"),
        node("Slice", "size i2 i4", "tail"),
        node("Mul", "tail twice", "large"),
        node("Concat", "head large", "goal", axis=0),
        helper.make_node("Resize", ["a", "", "", "goal"], ["b"], mode="linear"),
        node("GlobalAveragePool", "b", "g"),
        node("Flatten", "g", "y"),
    ]
    fixed = {f"i{i}": np.array([i]) for i in (0, 2, 4)} | {"twice": np.array([2, 2])}
    model = build(nodes, {"k": ones(3, 2, 1, 1), **fixed}, {"x": (FLOAT, ("N", 2, 3, 4))})
    assert trained(compile_model(model, loss="mse", output=tmp_path / "p")) == {"k"}


def test_values_as_long_as_the_data_says_are_refused_where_gradients_go(tmp_path: Path) -> None:
    """x w where it is positive: on the zeros that shapes are measured with there is nothing."""
    nodes = [
        node("MatMul", "x w", "h"),
        node("Greater", "h zero", "c"),
        node("NonZero", "c", "found"),
        node("Transpose", "found", "places"),
        node("GatherND", "h places", "kept"),
        node("ReduceSum", "kept", "s", keepdims=0),
        node("Add", "h s", "y"),
    ]
    model = build(nodes, {"w": ones(4, 3), "zero": np.array(0, np.float32)}, X)
    with pytest.raises(ModelError, match="shape of value 'kept' depends on the data"):
        compile_model(model, loss="mse", output=tmp_path / "p")


@pytest.mark.parametrize("name", [plan.LABEL, plan.LOSS, plan.GRADIENT + "w"])
def test_names_of_the_plan_are_refused_in_models(tmp_path: Path, name: str) -> None:
    for model in (
        build([node("MatMul", f"x {name}", "y")], {name: ones(3, 2)}, {"x": (FLOAT, ("n", 3))}),
        build([node("MatMul", "x w", name), node("Relu", name, "y")], {"w": ones(3, 2)}, {"x": (FLOAT, ("n", 3))}),
    ):
        with pytest.raises(ModelError, match=f"value '{name}': names that begin with 'fleetgrad.'"):
            compile_model(model, loss="mse", output=tmp_path / "p")
