"""Cross-entropy and its gradient in one node: float64, extremes, onnxruntime's own ops, threads, and what is refused."""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from fleetgrad.native import losses
from fleetgrad.native.binding import KernelError
from tests.native.every import run_op, same_everywhere

Array = NDArray[Any]
OP = "SoftmaxCrossEntropy"
# A float's rounding of the logits' difference, of e^y (2 units), of the sum in lanes (at most 64 additions each) and of the product.
ERROR = 2.0**-23


def drawn(seed: int, rows: int, classes: int, scale: float) -> tuple[Array, Array]:
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, classes)) * scale).astype(np.float32), rng.integers(0, classes, rows)


def exact(z: Array, labels: Array) -> tuple[float, Array]:
    """Loss and gradient in float64."""
    y = z.astype(np.float64) - z.max(1, keepdims=True).astype(np.float64)
    total, rows = np.exp(y).sum(1), np.arange(len(z))
    gradient = np.exp(y) / total[:, None]
    gradient[rows, labels] -= 1
    return float((np.log(total) - y[rows, labels]).mean()), gradient / len(z)


@pytest.mark.parametrize("shape", [(1, 10), (3, 1), (7, 33), (64, 1000), (2, 5001)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_loss_and_gradient_are_those_of_float64(isa: str, seed: int, shape: tuple[int, int], scale: float) -> None:
    z, labels = drawn(seed, *shape, scale)
    loss, gradient = losses.softmax_cross_entropy(z, labels)
    expected, slope = exact(z, labels)
    assert abs(loss - expected) <= 8 * ERROR * max(1, expected)
    # y = z - max is rounded to a unit of its own size: e^y by as much more as |y| is more than 1.
    spread = 8 + np.abs(z - z.max(1, keepdims=True)).max()
    assert np.abs(gradient - slope).max() * len(z) <= spread * ERROR


def test_the_bytes_are_the_same_everywhere(seed: int) -> None:
    z, labels = drawn(seed, 37, 777, 5.0)
    same_everywhere(lambda: [np.asarray(x, np.float32) for x in losses.softmax_cross_entropy(z, labels)])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(1, 10), (200, 501), (3, 20000)])
def test_the_node_gives_the_kernels_bytes_on_any_number_of_threads(
    isa: str, seed: int, threads: int, shape: tuple[int, int]
) -> None:
    z, labels = drawn(seed, *shape, 3.0)
    expected, slope = losses.softmax_cross_entropy(z, labels)
    loss, gradient = run_op(OP, {"z": z, "labels": labels}, outputs=2, threads=threads)
    assert loss.shape == ()
    assert float(loss) == expected
    assert gradient.tobytes() == slope.tobytes()
    (alone,) = run_op(OP, {"z": z, "labels": labels}, threads=threads)
    assert float(alone) == expected


def test_the_loss_is_that_of_onnxruntimes_own_node(seed: int) -> None:
    z, labels = drawn(seed, 50, 12, 2.0)
    node = helper.make_node("SoftmaxCrossEntropyLoss", ["z", "labels"], ["y"], reduction="mean")
    feeds = [
        helper.make_tensor_value_info("z", TensorProto.FLOAT, z.shape),
        helper.make_tensor_value_info("labels", TensorProto.INT64, labels.shape),
    ]
    graph = helper.make_graph([node], "g", feeds, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (expected,) = ort.InferenceSession(model.SerializeToString()).run(None, {"z": z, "labels": labels})
    assert abs(losses.softmax_cross_entropy(z, labels)[0] - float(expected)) <= 8 * ERROR * float(expected)


def test_a_class_that_is_masked_has_no_part_in_it(isa: str) -> None:
    z = np.array([[1.0, -np.inf, 0.5, -200.0]], np.float32)
    loss, gradient = losses.softmax_cross_entropy(z, np.array([0]))
    expected, slope = exact(z[:, ::2].copy(), np.array([0]))
    assert abs(loss - expected) <= 8 * ERROR
    assert (gradient[0, 1::2] == 0).all()
    assert np.abs(gradient[:, ::2] - slope).max() <= 8 * ERROR
    assert losses.softmax_cross_entropy(z, np.array([1]))[0] == np.inf


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
def test_a_row_without_a_softmax_makes_the_loss_and_its_gradient_nan(isa: str, bad: float) -> None:
    z = np.zeros((3, 40), np.float32)
    z[1, 37] = bad
    loss, gradient = losses.softmax_cross_entropy(z, np.zeros(3, np.int64))
    assert np.isnan(loss)
    assert np.isnan(gradient).all(1).tolist() == [False, True, False]
    z[1] = -np.inf
    assert np.isnan(losses.softmax_cross_entropy(z, np.zeros(3, np.int64))[0])


@pytest.mark.parametrize("label", [-1, 5, 2**40])
def test_a_label_that_is_no_class_is_refused_with_its_row(isa: str, label: int) -> None:
    z, labels = np.zeros((9000, 5), np.float32), np.zeros(9000, np.int64)
    labels[8123] = label
    with pytest.raises(KernelError, match=f"label {label} at row 8123, there are 5 classes"):
        losses.softmax_cross_entropy(z, labels)
    with pytest.raises(Exception, match=f"label {label} at row 8123, there are 5 classes"):
        run_op(OP, {"z": z, "labels": labels}, outputs=2)


@pytest.mark.parametrize(
    ("z", "labels", "match"),
    [
        (np.zeros((3, 2), np.float32), np.zeros(4, np.int64), "3 rows of 2 logits for 4 labels"),
        (np.zeros((0, 2), np.float32), np.zeros(0, np.int64), "0 rows"),
        (np.zeros((2, 0), np.float32), np.zeros(2, np.int64), "2 rows of 0 logits"),
        (np.zeros((3, 2), np.float32), np.zeros(3, np.float32), "a vector of int64"),
        (np.zeros((3, 2, 1), np.float32), np.zeros(3, np.int64), "a matrix of floats"),
    ],
)
def test_shapes_that_do_not_fit_fail_the_run(z: Array, labels: Array, match: str) -> None:
    with pytest.raises(Exception, match=match):
        run_op(OP, {"z": z, "labels": labels}, outputs=2)
    with pytest.raises(KernelError, match="cross-entropy"):
        losses.softmax_cross_entropy(z, labels)
