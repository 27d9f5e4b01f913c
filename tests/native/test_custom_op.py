"""The weight gradients' custom ops in a stock onnxruntime session: the kernels' bytes, on any number of threads, and refusals in words."""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from fleetgrad.native import gradients, kernels

Array = NDArray[Any]
KINDS = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int8): TensorProto.INT8}


def run(op: str, feeds: dict[str, Array], outputs: int = 1, threads: int = 1, **attributes: Any) -> list[Array]:
    """Runs one node whose inputs are the feeds in order; a name that starts with '-' stands for an input left out."""
    names = ["" if name.startswith("-") else name for name in feeds]
    given = {name: x for name, x in feeds.items() if name in names}
    results = [f"y{i}" for i in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, results, domain=kernels.DOMAIN, **attributes)],
        "op",
        [helper.make_tensor_value_info(name, KINDS[x.dtype], [None] * x.ndim) for name, x in given.items()],
        [helper.make_empty_tensor_value_info(name) for name in results],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(kernels.DOMAIN, kernels.OP_ABI)]
    options = ort.SessionOptions()
    options.register_custom_ops_library(kernels.custom_ops_library())
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    found: list[Array] = ort.InferenceSession(model.SerializeToString(), options).run(None, given)
    return found


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_session_gets_the_matrix_kernels_bytes_on_any_number_of_threads(isa: str, seed: int, threads: int) -> None:
    print(f"seed {seed}")
    x, dy, base = normal(seed, 1301, 275), normal(seed + 1, 1301, 118), normal(seed + 2, 275, 118)
    expected = np.empty((275, 118), np.float32)
    gradients.matmul_weight_grad(x, dy, expected)
    assert (run("MatMulWeightGrad", {"x": x, "dy": dy}, threads=threads)[0] == expected).all()
    total = np.empty(275, np.float32)
    gradients.matmul_weight_grad(x, dy, expected, total=total)
    both = run("MatMulWeightGrad", {"x": x, "dy": dy}, outputs=2, threads=threads)
    assert (both[0] == expected).all()
    assert (both[1] == total).all()
    codes, scale = run("QuantizeColumns", {"x": x}, outputs=2, threads=threads)
    assert codes.dtype == np.int8
    with pytest.raises(Exception, match="x_total belongs to a float X"):
        run("MatMulWeightGrad", {"x": codes, "dy": dy, "scale": scale}, outputs=2)
    (found,) = run("MatMulWeightGrad", {"x": codes, "dy": dy, "scale": scale}, threads=threads)
    assert (found == expected).all()
    gradients.matmul_weight_grad(x, dy, expected, base=base)
    (found,) = run("MatMulWeightGrad", {"x": x, "dy": dy, "-": x, "base": base}, threads=threads)
    assert (found == expected).all()


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((3, 5, 12, 13), (3, 18, 10, 12), (18, 5, 3, 2), {}),
    "every attribute": (
        (2, 6, 14, 31), (2, 27, 7, 10), (27, 2, 3, 3),
        {"strides": [2, 3], "dilations": [1, 2], "pads": [0, 1, 1, 0], "group": 3},
    ),
    "depthwise": ((2, 96, 9, 9), (2, 96, 5, 5), (96, 1, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 96}),
    "one axis": ((4, 3, 500), (4, 40, 250), (40, 3, 8), {"strides": [2], "pads": [3, 3]}),
    "many tasks": ((2, 40, 16, 16), (2, 40, 16, 16), (40, 40, 3, 3), {"pads": [1, 1, 1, 1]}),
}  # fmt: skip


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_session_gets_the_convolution_kernels_bytes_on_any_number_of_threads(
    isa: str, seed: int, case: str, threads: int
) -> None:
    print(f"seed {seed}")
    size, y, weight, attributes = CONVOLUTIONS[case]
    x, dy, base, expected = (
        normal(seed, *size),
        normal(seed + 1, *y),
        normal(seed + 2, *weight),
        np.empty(weight, np.float32),
    )
    more = {"kernel_shape": weight[2:], "threads": threads, **attributes}
    gradients.conv_weight_grad(x, dy, expected, **attributes)
    assert (run("ConvWeightGrad", {"x": x, "dy": dy}, **more)[0] == expected).all()
    codes, scale = run("QuantizeColumns", {"x": x}, outputs=2)
    assert (run("ConvWeightGrad", {"x": codes, "dy": dy, "scale": scale}, **more)[0] == expected).all()
    gradients.conv_weight_grad(x, dy, expected, base=base, **attributes)
    assert (run("ConvWeightGrad", {"x": x, "dy": dy, "-": x, "base": base}, **more)[0] == expected).all()


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_the_convolutions_gradient_is_that_of_the_reference_conv_on_the_quantized_operands(
    seed: int, case: str
) -> None:
    """<dW, V> = <dY, Conv(X, V)> for every V, with onnx's own Conv in float64: the definition of the gradient.

    dY is made of codes, so that rounding adds nothing to it which the node would take off again.
    """
    from onnx.reference.ops.op_conv import _conv_implementation

    print(f"seed {seed}")
    size, y, weight, attributes = CONVOLUTIONS[case]
    x, dy = (
        normal(seed, *size),
        gradients.quantize_columns(normal(seed + 1, *y))[0].astype(np.float32) / np.float32(128),
    )
    (dw,) = run("ConvWeightGrad", {"x": x, "dy": dy}, kernel_shape=weight[2:], **attributes)
    exact = []
    for operand in (x, dy):
        codes, scale = gradients.quantize_columns(operand)
        exact.append(codes * scale.astype(np.float64).reshape(1, -1, *(1 for _ in operand.shape[2:])))
    rank = len(weight) - 2
    for probe in range(3):
        direction = normal(seed + 3 + probe, *weight).astype(np.float64)
        seen = _conv_implementation(
            exact[0], direction, None, None, attributes.get("dilations", [1] * rank), attributes.get("group", 1),
            list(weight[2:]), attributes.get("pads", [0] * 2 * rank), attributes.get("strides", [1] * rank),
        )  # fmt: skip
        # float32 rounds dW's scale and its entries: 2^-24 of each term, and the sum of them is what the two sides share.
        terms = np.abs(dw * direction).sum()
        assert abs((dw * direction).sum() - (exact[1] * seen).sum()) <= 4 * 2**-24 * terms


def zeros(*shape: int, dtype: type = np.float32) -> Array:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("feeds", "match"),
    [
        ({"x": zeros(3, 2), "dy": zeros(4, 2)}, "X has 3 rows, dY has 4"),
        ({"x": zeros(0, 2), "dy": zeros(0, 2)}, "X has 0 rows"),
        ({"x": zeros(3, 2, 1), "dy": zeros(3, 2)}, "isn't a matrix"),
        ({"x": zeros(3, 2), "dy": np.full((3, 2), np.nan, np.float32)}, "column 0 of dY"),
        ({"x": zeros(3, 2, dtype=np.int8), "dy": zeros(3, 2)}, "x_scale belongs to an int8 X"),
        ({"x": zeros(3, 2), "dy": zeros(3, 2), "s": zeros(2)}, "x_scale belongs to an int8 X"),
        ({"x": zeros(3, 2, dtype=np.int8), "dy": zeros(3, 2), "s": zeros(3)}, "a vector of 2 floats"),
        ({"x": zeros(3, 2), "dy": zeros(3, 5), "-": zeros(1), "base": zeros(5, 2)}, "a matrix of 2 x 5 floats"),
    ],
)
def test_the_matrix_op_fails_the_run_with_a_message_on_bad_input(feeds: dict[str, Array], match: str) -> None:
    with pytest.raises(Exception, match=match):
        run("MatMulWeightGrad", feeds)


GOOD = {"x": zeros(2, 4, 6, 6), "dy": zeros(2, 6, 4, 4)}


@pytest.mark.parametrize(
    ("feeds", "attributes", "match"),
    [
        ({}, {"kernel_shape": [3, 2]}, "4 values along axis 3, the windows on X give 5"),
        ({}, {"kernel_shape": [9, 3]}, "4 values along axis 2, the windows on X give 0"),
        ({}, {"kernel_shape": [3, 3], "group": 3}, "don't divide into 3 groups"),
        ({}, {"kernel_shape": [3, 3], "group": 0}, "group is 0"),
        ({}, {}, "kernel_shape is missing"),
        ({}, {"kernel_shape": [3, 3, 3]}, "kernel_shape has 3 values"),
        ({}, {"kernel_shape": [3]}, "must be floats .* with 3 dimensions, have 4 and 4"),
        ({}, {"kernel_shape": [3, 0]}, "kernel_shape has the value 0, expected 1"),
        ({}, {"kernel_shape": [3, 3], "auto_pad": "VALID"}, "auto_pad isn't supported"),
        ({}, {"kernel_shape": [3, 3], "group": 2.0}, "attribute group isn't a whole number"),
        ({}, {"kernel_shape": [3, 3], "strides": 1}, "attribute strides isn't a list of whole numbers"),
        ({}, {"kernel_shape": [3.0, 3.0]}, "attribute kernel_shape isn't a list of whole numbers"),
        ({}, {"kernel_shape": [3, 3], "pads": [0, 0]}, "pads has 2 values, 2 axes need 4"),
        ({}, {"kernel_shape": [3, 3], "pads": [0, 0, -1, 0]}, "pads has the value -1"),
        ({}, {"kernel_shape": [3, 3], "strides": [1, 70000]}, "strides has the value 70000, expected 1 to 65535"),
        ({"dy": zeros(3, 6, 4, 4)}, {"kernel_shape": [3, 3]}, "batches must be equal"),
        ({"x": zeros(0, 4, 6, 6), "dy": zeros(0, 6, 4, 4)}, {"kernel_shape": [3, 3]}, "none empty"),
        ({"x": zeros(2, 4, 6, 6, dtype=np.int8)}, {"kernel_shape": [3, 3]}, "x_scale belongs to an int8 X"),
        ({"-": zeros(1), "base": zeros(6, 4, 3, 2)}, {"kernel_shape": [3, 3]}, "the shape of dW, 6 x 4"),
        ({"dy": np.full((2, 6, 4, 4), np.inf, np.float32)}, {"kernel_shape": [3, 3]}, "channel 0 of dY"),
    ],
)
def test_the_convolution_op_fails_with_a_message_on_what_does_not_fit(
    feeds: dict[str, Array], attributes: dict[str, Any], match: str
) -> None:
    with pytest.raises(Exception, match=match):
        run("ConvWeightGrad", {**GOOD, **feeds}, **attributes)


def test_columns_to_quantize_must_be_finite_floats() -> None:
    with pytest.raises(Exception, match="column 1: value is NaN"):
        run("QuantizeColumns", {"x": np.array([[0, np.nan]], np.float32)}, outputs=2)
    with pytest.raises(Exception, match="2 dimensions or more, has 1"):
        run("QuantizeColumns", {"x": zeros(3)}, outputs=2)
