"""Compiling: what a plan holds, that equal inputs give equal bytes, and that bad models get one clear error."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleetgrad.edge.autodiff import ModelError, UnsupportedModel, compile_model, export_model, survey, zoo
from fleetgrad.native import kernels
from fleetgrad.wire import plan
from fleetgrad.wire.choice import Choice
from fleetgrad.wire.loss import LossOptions


def make(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    size: tuple[Any, ...] = ("N", 4),
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
    outputs: tuple[str, ...] = ("y",),
) -> onnx.ModelProto:
    """A model from x (float32 `size` unless told otherwise) to y."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", kind, size)],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, ("rows", "columns")) for o in outputs],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=f"the-{output}", **attributes)


def ones(*shape: int) -> np.ndarray:
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


DENSE = make([node("MatMul", "x w", "y")], {"w": ones(4, 3)})


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(kernels.custom_ops_library())
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def gradients(
    model: onnx.ModelProto, x: np.ndarray, label: np.ndarray, where: Path, **how: Any
) -> dict[str, np.ndarray]:
    """Loss and gradients of a model at its own weights."""
    how = {"loss": "cross-entropy", "gradients": "fp32", **how}
    manifest = compile_model(model, output=where, **how)
    flat = np.fromfile(where / plan.PARAMS, "<f4")
    weights = {t.name: flat[t.offset : t.offset + t.size].reshape(t.shape) for t in manifest.of_role("trainable")}
    fetches = [plan.LOSS, *(plan.GRADIENT + n for n in weights)]
    values = session(where / plan.TRAIN).run(fetches, {manifest.inputs[0].name: x, plan.LABEL: label, **weights})
    return dict(zip(["loss", *weights], values, strict=True))


def test_a_plan_holds_what_its_manifest_says(tmp_path: Path) -> None:
    manifest = compile_model(zoo.digits_cnn(), loss="cross-entropy", output=tmp_path / "plan")
    assert plan.decode((tmp_path / "plan" / plan.MANIFEST).read_bytes()) == manifest
    for file, digest in manifest.files.items():
        assert hashlib.sha256((tmp_path / "plan" / file).read_bytes()).hexdigest() == digest
    assert {p.name for p in (tmp_path / "plan").iterdir()} == {*manifest.files, plan.MANIFEST}
    train = session(tmp_path / "plan" / plan.TRAIN)
    names = [t.name for t in manifest.of_role("trainable")]
    assert [i.name for i in train.get_inputs()] == ["image", plan.LABEL, *names]
    assert [o.name for o in train.get_outputs()] == [plan.LOSS, *(plan.GRADIENT + n for n in names)]
    assert manifest.inputs == (plan.Feed(name="image", shape=(1, 8, 8), dtype="float32"),)
    assert manifest.label == plan.Feed(name=plan.LABEL, shape=(), dtype="int64")
    assert manifest.output == (10,)


def test_the_zoo_has_the_sizes_it_states(tmp_path: Path) -> None:
    for model, parameters in ((zoo.digits_cnn(), 38_282), (zoo.fedavg_cnn(), 1_663_370)):
        assert sum(int(np.prod(t.dims)) for t in model.graph.initializer) == parameters


def test_equal_inputs_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        compile_model(zoo.digits_cnn(), loss="cross-entropy", output=tmp_path / name)
    for file in (plan.MANIFEST, plan.TRAIN, plan.EVAL, plan.INFER, plan.PARAMS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_inference_evaluation_and_export_give_the_users_predictions(tmp_path: Path) -> None:
    model = zoo.digits_cnn()
    x = np.random.Generator(np.random.PCG64(1)).random((5, 1, 8, 8), np.float32)
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": x})
    manifest = compile_model(model, loss="cross-entropy", output=tmp_path / "plan")
    flat = np.fromfile(tmp_path / "plan" / plan.PARAMS, "<f4")
    export_model(tmp_path / "plan", flat, tmp_path / "out.onnx")
    for path in (tmp_path / "plan" / plan.INFER, tmp_path / "out.onnx"):
        assert np.array_equal(onnxruntime.InferenceSession(str(path)).run(None, {"image": x})[0], expected)
    weights = {t.name: flat[t.offset : t.offset + t.size].reshape(t.shape) for t in manifest.tensors}
    feeds = {"image": x, plan.LABEL: np.arange(5), **weights}
    (prediction,) = session(tmp_path / "plan" / plan.EVAL).run([plan.PREDICTION], feeds)
    np.testing.assert_allclose(prediction, expected, atol=1e-5)  # weights as inputs take other kernels
    assert [t.name for t in onnx.load(tmp_path / "out.onnx").graph.initializer] == [
        t.name for t in model.graph.initializer
    ]


def test_export_refuses_a_vector_of_another_plan(tmp_path: Path) -> None:
    compile_model(DENSE, loss="mse", output=tmp_path / "plan")
    with pytest.raises(ModelError, match=r"float32 \[3\], the plan has float32 \[16\]"):
        export_model(tmp_path / "plan", np.zeros(3, np.float32), tmp_path / "out.onnx")


def test_a_plan_replaces_a_plan_and_nothing_else(tmp_path: Path) -> None:
    compile_model(DENSE, loss="mse", output=tmp_path / "plan")
    compile_model(DENSE, loss="cross-entropy", output=tmp_path / "plan")
    assert plan.decode((tmp_path / "plan" / plan.MANIFEST).read_bytes()).loss == "cross-entropy"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one").write_text("mine")
    with pytest.raises(ModelError, match="won't overwrite"):
        compile_model(DENSE, loss="mse", output=tmp_path / "photos")
    assert (tmp_path / "photos" / "one").read_text() == "mine"
    for below in ("one/plan", "one/more/plan"):
        with pytest.raises(ModelError, match=r"can't write the plan \S+/plan: \S+/photos/one is no folder"):
            compile_model(DENSE, loss="mse", output=tmp_path / "photos" / below)
    assert {p.name for p in tmp_path.iterdir()} == {"plan", "photos"}


def test_frozen_weights_stay_in_the_graph_and_get_no_gradient(tmp_path: Path) -> None:
    manifest = compile_model(
        zoo.digits_cnn(), loss="cross-entropy", choice=Choice(freeze=["conv*"]), output=tmp_path / "plan"
    )
    frozen = {t.name for t in manifest.of_role("frozen")}
    assert frozen == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}
    train = onnx.load(tmp_path / "plan" / plan.TRAIN)
    assert frozen <= {t.name for t in train.graph.initializer}
    assert not {"ConvTranspose", "Resize"} & {n.op_type for n in train.graph.node}


def test_int8_plans_use_the_custom_ops_for_dense_and_conv_weights(tmp_path: Path) -> None:
    compile_model(zoo.digits_cnn(), loss="cross-entropy", output=tmp_path / "plan")
    kinds = [n.op_type for n in onnx.load(tmp_path / "plan" / plan.TRAIN).graph.node]
    assert kinds.count("MatMulWeightGrad") == 2
    assert kinds.count("ConvWeightGrad") == 2


def test_a_weight_that_is_moved_before_it_is_used_takes_the_int8_op(tmp_path: Path) -> None:
    turned = [node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "x t", "y")]
    parted = [
        helper.make_node("Split", ["w"], ["a", "b"], num_outputs=2),
        node("Transpose", "a", "t", perm=[1, 0]), node("Transpose", "b", "u", perm=[1, 0]),
        node("MatMul", "x t", "c"), node("MatMul", "x u", "d"), node("Sub", "c d", "y"),
    ]  # fmt: skip
    scaled = [node("Mul", "w two", "s"), node("Transpose", "s", "t", perm=[1, 0]), node("MatMul", "x t", "y")]
    tied = [
        node("Cast", "x", "i", to=TensorProto.INT64),
        node("Gather", "w i", "e"),
        *turned[:1],
        node("MatMul", "e t", "y"),
    ]
    random = np.random.Generator(np.random.PCG64(7))
    x, y = random.integers(0, 6, (8, 4)).astype(np.float32), random.integers(0, 3, 8)
    cases = (
        (turned, "MatMulWeightGrad", 1),
        (parted, "MatMulWeightGrad", 2),
        (scaled, "Gemm", 1),
        (tied, "MatMulWeightGrad", 1),
    )
    for nodes, op, count in cases:
        model = make(nodes, {"w": random.standard_normal((6, 4), np.float32), "two": np.array(2, np.float32)}, opset=18)
        label = y if nodes is not tied else random.integers(0, 6, (8, 4))
        how = {"loss_options": LossOptions(class_axis=-1)} if nodes is tied else {}
        pair = [
            gradients(model, x, label, tmp_path / kind, gradients=kind, **how)["w"].ravel() for kind in ("int8", "fp32")
        ]
        kinds = [n.op_type for n in onnx.load(tmp_path / "int8" / plan.TRAIN).graph.node]
        assert kinds.count(op) == count, nodes
        assert pair[0] @ pair[1] / np.linalg.norm(pair[0]) / np.linalg.norm(pair[1]) > 0.999


@pytest.mark.parametrize("scaled", [False, True], ids=["bias last", "scaled, then reshaped"])
@pytest.mark.parametrize(("classes", "count"), [(32, 2), (33, 1)])
def test_the_last_layer_of_many_classes_is_not_rounded(tmp_path: Path, classes: int, count: int, scaled: bool) -> None:
    random = np.random.Generator(np.random.PCG64(7))
    nodes = [node("MatMul", "x v", "a"), node("Relu", "a", "r"), node("MatMul", "r w", "b"), node("Add", "b c", "y")]
    if scaled:
        nodes[-1:] = [node("Add", "b c", "d"), node("Div", "d two", "e"), node("Reshape", "e shape", "y")]
    weights = {"v": random.standard_normal((4, 5), np.float32), "w": random.standard_normal((5, classes), np.float32),
               "c": np.zeros(classes, np.float32), "two": np.array(2, np.float32), "shape": np.array([-1, classes])}  # fmt: skip
    compile_model(make(nodes, weights), loss="cross-entropy", output=tmp_path / "p")
    kinds = [n.op_type for n in onnx.load(tmp_path / "p" / plan.TRAIN).graph.node]
    assert kinds.count("MatMulWeightGrad") == count


def test_mse_has_the_gradient_of_its_mean(tmp_path: Path) -> None:
    random = np.random.Generator(np.random.PCG64(3))
    x, y = random.random((5, 4), np.float32), random.random((5, 3), np.float32)
    found = gradients(DENSE, x, y, tmp_path / "p", loss="mse")
    error = x @ ones(4, 3) - y
    np.testing.assert_allclose(found["loss"], (error**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["w"], 2 * x.T @ error / error.size, rtol=1e-4, atol=1e-6)


def test_cross_entropy_is_stable_at_huge_logits(tmp_path: Path) -> None:
    found = gradients(DENSE, np.full((2, 4), 1e4, np.float32), np.array([0, 2]), tmp_path / "p")
    assert all(np.isfinite(v).all() for v in found.values())


def test_a_final_softmax_is_taken_into_the_loss(tmp_path: Path) -> None:
    soft = make([node("MatMul", "x w", "z"), node("Softmax", "z", "y")], {"w": ones(4, 3)})
    x, y = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 0])
    one, other = gradients(soft, x, y, tmp_path / "a"), gradients(DENSE, x, y, tmp_path / "b")
    np.testing.assert_allclose(one["w"], other["w"])


@pytest.mark.parametrize("shape", [[1, 8], [1, -1], [0, -1], [-1, 8]])
@pytest.mark.parametrize("batch", [1, "N"])
def test_reshapes_to_the_traced_batch_follow_the_batch(tmp_path: Path, shape: list[int], batch: Any) -> None:
    nodes = [node("Reshape", "x s", "f"), node("MatMul", "f w", "y")]
    model = make(nodes, {"s": np.array(shape), "w": ones(8, 3)}, (batch, 2, 4))
    x = np.random.Generator(np.random.PCG64(3)).random((5, 2, 4), np.float32)
    found = gradients(model, x, np.zeros((5, 3), np.float32), tmp_path / "p", loss="mse")
    error = x.reshape(5, 8) @ ones(8, 3)
    np.testing.assert_allclose(found["w"], 2 * x.reshape(5, 8).T @ error / error.size, rtol=1e-4, atol=1e-6)


def test_shape_arithmetic_of_exporters_is_followed(tmp_path: Path) -> None:
    nodes = [
        node("Shape", "x", "size"),
        node("Gather", "size zero", "n"),
        node("Concat", "n rest", "s", axis=0),
        node("Reshape", "x s", "f"),
        node("MatMul", "f w", "y"),
    ]
    model = make(nodes, {"zero": np.array([0]), "rest": np.array([-1]), "w": ones(8, 3)}, ("N", 2, 4))
    found = gradients(model, np.ones((5, 2, 4), np.float32), np.zeros((5, 3), np.float32), tmp_path / "p", loss="mse")
    assert found["w"].shape == (8, 3)


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 20, 21, 22])
def test_models_of_other_opsets_are_converted(tmp_path: Path, opset: int) -> None:
    nodes = [node("Conv", "x k", "c"), node("Relu", "c", "r"), node("Flatten", "r", "f"), node("MatMul", "f w", "y")]
    model = make(nodes, {"k": ones(2, 1, 3, 3), "w": ones(8, 3)}, ("N", 1, 4, 4), opset)
    x = np.random.Generator(np.random.PCG64(3)).random((5, 1, 4, 4), np.float32)
    found = gradients(model, x, np.arange(5) % 3, tmp_path / "p")
    assert found["k"].shape == (2, 1, 3, 3)


def test_one_error_lists_every_unsupported_node(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x w", "a"),
        node("Bernoulli", "a", "b"),
        node("Relu", "b", "c"),
        node("Bernoulli", "c", "y"),
    ]
    with pytest.raises(UnsupportedModel) as caught:
        compile_model(make(nodes, {"w": ones(4, 3)}), loss="mse", output=tmp_path / "p")
    assert [(op, name) for op, name, _ in caught.value.nodes] == [("Bernoulli", "the-b"), ("Bernoulli", "the-y")]
    assert "Bernoulli 'the-b': no gradient rule" in str(caught.value)
    assert not (tmp_path / "p").exists()


def test_ops_before_the_first_weight_need_no_rule(tmp_path: Path) -> None:
    model = make([node("Bernoulli", "x", "a"), node("MatMul", "a w", "y")], {"w": ones(4, 3)})
    assert compile_model(model, loss="mse", output=tmp_path / "p").of_role("trainable")


def test_survey_tells_what_trains_and_why_not() -> None:
    nodes = [node("MatMul", "x w", "a"), node("Bernoulli", "a", "b"), node("Reshape", "b s", "y")]
    found = survey(make(nodes, {"w": ones(4, 3), "s": np.array([-1, 3]), "unused": ones(2)}))
    assert [(n.op, n.trains) for n in found.nodes] == [("MatMul", True), ("Bernoulli", False), ("Reshape", True)]
    assert [(w.name, w.trains, w.reason) for w in found.weights] == [
        ("w", True, ""),
        ("s", False, "not float32"),
        ("unused", False, "doesn't reach the output"),
    ]
    assert not found.trains
    assert survey(zoo.fedavg_cnn()).trains


def _if() -> onnx.ModelProto:
    branch = helper.make_graph(
        [node("Neg", "a", "n")], "b", [], [helper.make_tensor_value_info("n", 1, ("rows", "columns"))]
    )
    nodes = [node("MatMul", "x w", "a"), node("If", "c", "y", then_branch=branch, else_branch=branch)]
    return make(nodes, {"w": ones(4, 3), "c": np.array(True)})


BAD = {
    "fixed first dimension": (make([node("Gemm", "w x", "y")], {"w": ones(2, 4)}, (4, 3)), "batch"),
    "two outputs": (
        make([node("MatMul", "x w", "y"), node("Relu", "y", "z")], {"w": ones(4, 3)}, outputs=("y", "z")),
        "2 outputs",
    ),
    "half precision": (
        make([node("Cast", "x", "a", to=1), node("MatMul", "a w", "y")], {"w": ones(4, 3)}, kind=10),
        "float16",
    ),
    "dynamic": (make([node("MatMul", "x w", "y")], {"w": ones(4, 3)}, ("N", "time", 4)), r"dimension 1 \(time\)"),
    "no weights": (make([node("Relu", "x", "y")], {}), "no trainable weights"),
    "unknown op": (make([node("Frob", "x w", "y", domain="acme")], {"w": ones(4, 3)}), "Frob|domain"),
    "a subgraph": (_if(), "If"),
    "empty": (onnx.ModelProto(), "no nodes"),
    "one class": (make([node("MatMul", "x w", "y")], {"w": ones(4, 1)}), "at least two classes"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_model_is_one_clear_error(tmp_path: Path, name: str) -> None:
    model, message = BAD[name]
    with pytest.raises(ModelError, match=message) as caught:
        compile_model(model, loss="cross-entropy", output=tmp_path / "p")
    assert "Traceback" not in str(caught.value)
    assert not (tmp_path / "p").exists()


def test_freezing_nothing_or_everything_is_refused(tmp_path: Path) -> None:
    for glob, message in (("dense9*", "matches no float32 weight"), ("*", "all are frozen")):
        with pytest.raises(ModelError, match=message):
            compile_model(DENSE, loss="mse", choice=Choice(freeze=[glob]), output=tmp_path / "p")


def test_files_that_miss_or_are_no_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello, this is no model")
    onnx.save(DENSE, tmp_path / "outside.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    for name, message in (
        ("absent.onnx", "can't read"),
        ("text.onnx", "isn't an ONNX"),
        ("outside.onnx", "another file|can't be read"),
    ):
        with pytest.raises(ModelError, match=message):
            compile_model(tmp_path / name, loss="mse", output=tmp_path / "p")


def test_dense_predictions_have_a_label_per_position(tmp_path: Path) -> None:
    model = make([node("Conv", "x k", "y")], {"k": ones(3, 2, 1, 1)}, ("N", 2, 4, 5))
    x = np.random.Generator(np.random.PCG64(3)).random((2, 2, 4, 5), np.float32)
    label = np.arange(40).reshape(2, 4, 5) % 3
    found = gradients(model, x, label, tmp_path / "p")
    z = np.einsum("mc,nchw->nmhw", ones(3, 2), x).astype(np.float64)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    dz = (p - np.eye(3)[label].transpose(0, 3, 1, 2)) / 40
    np.testing.assert_allclose(found["k"][..., 0, 0], np.einsum("nmhw,nchw->mc", dz, x), rtol=1e-4, atol=1e-6)


def test_a_weight_used_twice_gets_the_sum_of_its_gradients(tmp_path: Path) -> None:
    model = make([node("MatMul", "x w", "a"), node("MatMul", "a w", "y")], {"w": ones(4, 4)})
    x = np.random.Generator(np.random.PCG64(3)).random((5, 4), np.float32)
    w = ones(4, 4)
    found = gradients(model, x, np.zeros((5, 4), np.float32), tmp_path / "p", loss="mse")
    dy = 2 * (x @ w @ w) / 20
    np.testing.assert_allclose(found["w"], (x @ w).T @ dy + x.T @ (dy @ w.T), rtol=1e-4, atol=1e-6)


def test_equal_maxima_of_a_window_share_its_gradient(tmp_path: Path) -> None:
    nodes = [node("Conv", "x k", "c"), node("MaxPool", "c", "y", kernel_shape=[2, 2], strides=[2, 2])]
    model = make(nodes, {"k": np.ones((1, 1, 1, 1), np.float32)}, ("N", 1, 4, 4))
    found = gradients(
        model, np.ones((1, 1, 4, 4), np.float32), np.zeros((1, 1, 2, 2), np.float32), tmp_path / "p", loss="mse"
    )
    assert found["k"].item() == 2.0  # d mean(k^2) / dk at k = 1, whatever the ties


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_groups_pools_and_residuals_train_together(tmp_path: Path, kind: plan.Gradients) -> None:
    nodes = [
        node("Conv", "x k", "a", pads=[1, 1, 1, 1]),
        node("Conv", "a d", "b", pads=[1, 1, 1, 1], group=4),
        node("Add", "a b", "c"),
        node("AveragePool", "c", "e", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("GlobalAveragePool", "e", "f"),
        node("Flatten", "f", "h"),
        node("Gemm", "h w", "y"),
    ]
    model = make(nodes, {"k": ones(4, 2, 3, 3), "d": ones(4, 1, 3, 3), "w": ones(4, 3)}, ("N", 2, 6, 6))
    x = np.random.Generator(np.random.PCG64(3)).random((5, 2, 6, 6), np.float32)
    found = gradients(model, x, np.arange(5) % 3, tmp_path / "p", gradients=kind)
    assert {name: v.shape for name, v in found.items()} == {
        "loss": (),
        "k": (4, 2, 3, 3),
        "d": (4, 1, 3, 3),
        "w": (4, 3),
    }
    exact = gradients(model, x, np.arange(5) % 3, tmp_path / "q", gradients="fp32")
    for name, value in found.items():
        assert np.abs(value - exact[name]).max() <= 0.02 * np.abs(exact[name]).max()  # int8 has steps of 1/127


@pytest.mark.parametrize(
    ("size", "kernel", "attributes"),
    [
        ((4, 11), (6, 4, 3), {}),
        ((4, 11), (6, 2, 4), {"group": 2, "strides": [2], "pads": [1, 2]}),
        ((3, 9, 8), (5, 3, 3, 2), {"pads": [1, 0, 2, 1]}),
        ((3, 9, 8), (5, 3, 3, 3), {"strides": [2, 3], "dilations": [2, 1]}),
        ((3, 9, 8), (5, 3, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
        ((4, 9, 8), (6, 2, 3, 3), {"group": 2}),
        ((4, 9, 8), (4, 1, 3, 3), {"group": 4, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ((4, 9, 8), (8, 1, 3, 3), {"group": 4}),
        ((2, 5, 4, 6), (3, 2, 2, 2, 2), {}),
        ((2, 5, 4, 6), (4, 1, 2, 2, 2), {"group": 2}),
        ((4, 5, 4, 6), (6, 2, 2, 2, 2), {"group": 2, "strides": [2, 1, 2]}),
    ],
)  # fmt: skip
def test_a_convolutions_int8_gradient_points_where_the_standard_ops_do(
    tmp_path: Path, size: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    nodes = [node("Conv", "x k", "a", **attributes), node("Flatten", "a", "f"), node("MatMul", "f w", "y")]
    random = np.random.Generator(np.random.PCG64(7))
    forward = make(nodes[:2], {"k": np.zeros(kernel, np.float32)}, ("N", *size), outputs=("f",))
    session = onnxruntime.InferenceSession(forward.SerializeToString(), providers=["CPUExecutionProvider"])
    width = session.run(None, {"x": np.zeros((1, *size), np.float32)})[0].shape[1]
    weights = {n: random.standard_normal(s).astype(np.float32) for n, s in {"k": kernel, "w": (width, 3)}.items()}
    model = make(nodes, weights, ("N", *size))
    x, y = random.standard_normal((6, *size), np.float32), random.standard_normal((6, 3), np.float32)
    found = [
        gradients(model, x, y, tmp_path / kind, loss="mse", gradients=kind)["k"].astype(np.float64)
        for kind in ("int8", "fp32")
    ]
    assert found[0].shape == kernel
    a, b = (v.ravel() for v in found)
    assert a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) > 0.9995
