"""The custom op in a stock onnxruntime session."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from fleetgrad.native import gradients, kernels


def session() -> ort.InferenceSession:
    graph = helper.make_graph(
        [helper.make_node("MatMulWeightGrad", ["x", "dy"], ["dw"], domain=kernels.DOMAIN)],
        "op",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "dy")],
        [helper.make_tensor_value_info("dw", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(kernels.DOMAIN, kernels.OP_ABI)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = ort.SessionOptions()
    options.register_custom_ops_library(kernels.custom_ops_library())
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options)


def test_a_stock_session_runs_the_op_and_gets_the_kernels_bytes(isa: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, dy = (rng.standard_normal((301, n), np.float32) for n in (75, 18))
    expected = np.empty((75, 18), np.float32)
    gradients.matmul_weight_grad(x, dy, expected)
    run = session()
    assert (run.run(None, {"x": x, "dy": dy})[0] == expected).all()
    assert run.run(None, {"x": x[:1], "dy": dy[:1]})[0].shape == (75, 18)


@pytest.mark.parametrize(
    ("x", "dy", "match"),
    [
        (np.ones((3, 2)), np.ones((4, 2)), "X has 3 rows, dY has 4"),
        (np.ones((0, 2)), np.ones((0, 2)), "X has 0 rows"),
        (np.ones((3, 2, 1)), np.ones((3, 2)), "isn't a matrix"),
        (np.ones((3, 2)), np.full((3, 2), np.nan), "column 0 of dY"),
    ],
)
def test_the_op_fails_the_run_with_a_message_on_bad_input(x: np.ndarray, dy: np.ndarray, match: str) -> None:
    with pytest.raises(Exception, match=match):
        session().run(None, {"x": x.astype(np.float32), "dy": dy.astype(np.float32)})
