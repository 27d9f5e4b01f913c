"""Files that are damaged, or that no exporter writes: each is one ModelError, whatever onnx, NumPy and onnxruntime say to it."""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleetgrad.edge.autodiff import ModelError, compile_model, export_model, survey, zoo
from fleetgrad.edge.autodiff.errors import Unsupported
from fleetgrad.edge.autodiff.graph import Builder
from fleetgrad.wire import plan


def dense() -> onnx.ModelProto:
    """One product from x [N, 4] to y [N, 4]."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", 4)) for name in "xy"]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    graph = helper.make_graph([node], "test", ends[:1], ends[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_cut_and_flipped_files_are_refused_as_model_errors(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    raw = zoo.mlp(hidden=4).SerializeToString()
    random = np.random.Generator(np.random.PCG64(seed))
    for _ in range(30):
        with pytest.raises(ModelError):  # the opset comes last
            compile_model(raw[: random.integers(0, len(raw))], loss="cross-entropy", output=tmp_path / "p")
        flipped = bytearray(raw)
        flipped[random.integers(0, len(raw))] ^= 1 << int(random.integers(0, 8))
        with contextlib.suppress(ModelError):
            compile_model(bytes(flipped), loss="cross-entropy", output=tmp_path / "p")


def test_names_that_are_no_text_and_types_that_onnx_does_not_know_are_refused(tmp_path: Path) -> None:
    raw = zoo.mlp(hidden=4).SerializeToString()
    name = next(n.name for n in zoo.mlp(hidden=4).graph.node if n.name).encode()
    unknown = zoo.mlp(hidden=4)
    unknown.graph.input[0].type.tensor_type.elem_type = 65
    for broken, message in (
        (raw.replace(name, b"\xff" + name[1:]), "no UTF-8 text"),
        (unknown.SerializeToString(), "element type that ONNX doesn't know: 65"),
    ):
        with pytest.raises(ModelError, match=message):
            compile_model(broken, loss="cross-entropy", output=tmp_path / "p")


def long_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data *= 2


def weight_of_no_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 100


def wide_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2**40


def large_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**40


def constant_of_nothing(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Constant", [], ["nothing"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (long_weight, r"its tensor 'w' of \[4, 4\] values of type 1 can't be read"),
        (weight_of_no_type, "isn't a valid ONNX model"),
        (wide_input, r"input 'x' has shape \[0, 1099511627776\]: .*and 268,435,456 values are the most"),
        (large_batch, r"input 'x' has shape \[1099511627776, 4\]"),
        (constant_of_nothing, "its constant 'nothing' has no value"),
    ],
)
def test_what_onnxs_checker_lets_pass_is_refused_in_words(
    change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    model = dense()
    change(model)
    with pytest.raises(ModelError, match=message):
        survey(model, loss="mse")


def test_a_batch_below_zero_is_any_batch() -> None:
    model = dense()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -(2**31)
    assert survey(model, loss="mse").trains


def test_a_quantizers_node_without_an_output_is_one_that_nothing_reads() -> None:
    model = dense()
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["x", "x"], []))
    assert survey(model, loss="mse").trains


def test_an_attribute_that_a_rule_can_not_count_with_is_an_objection() -> None:
    with pytest.raises(Unsupported, match="attribute that ONNX can't hold: Value out of range: 9223372036854775808"):
        Builder({}, []).op("Gemm", "a", "b", transB=2**63)


def test_a_plan_whose_model_is_damaged_is_not_exported(tmp_path: Path) -> None:
    folder, out = tmp_path / "p", tmp_path / "out.onnx"
    made = compile_model(dense(), loss="mse", output=folder)
    params, whole = np.zeros(made.length, np.float32), (folder / plan.INFER).read_bytes()
    (folder / plan.INFER).write_bytes(whole[:-1])
    with pytest.raises(plan.PlanError, match=f"{plan.INFER} isn't what the manifest says"):
        export_model(folder, params, out)
    # With the right hash, and a length that is wrong where the gate doesn't look: protobuf's own parser finds it.
    model = onnx.ModelProto.FromString(whole)
    model.graph.value_info.add(name="note")
    raw = model.SerializeToString().replace(b"\x0a\x04note", b"\x0a\x05note")
    files = {**made.files, plan.INFER: hashlib.sha256(raw).hexdigest()}
    (folder / plan.INFER).write_bytes(raw)
    (folder / plan.MANIFEST).write_bytes(plan.encode(msgspec.structs.replace(made, files=files)))
    with pytest.raises(ModelError, match=r"can't export: .* isn't a model with the plan's weights"):
        export_model(folder, params, out)
    assert not out.exists()
