"""Losses as ONNX nodes, with the gradient of their mean: the seed of the reverse pass.

    cross-entropy   mean over samples (and positions) of -log softmax(z)[label]:  dz = (softmax(z) - onehot) / count
    mse             mean over all numbers of (z - label)^2:                       dz = 2 (z - label) / count

Both are computed from the logits z with log-sum-exp, so that no logit overflows.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto

from fleetgrad.edge.autodiff.errors import ModelError
from fleetgrad.edge.autodiff.graph import Builder, Shape
from fleetgrad.wire.plan import LABEL, LossName


def target(nodes: Sequence[onnx.NodeProto], output: str, loss: LossName, shapes: Mapping[str, Shape]) -> str:
    """The value that the loss is taken of: the output, or for cross-entropy the input of a final Softmax."""
    makers = {name: node for node in nodes for name in node.output}
    found = output
    while found in makers and makers[found].op_type == "Identity":
        found = makers[found].input[0]
    last = makers.get(found)
    if loss == "cross-entropy" and last is not None and last.op_type in {"Softmax", "LogSoftmax"}:
        axis = next((a.i for a in last.attribute if a.name == "axis"), -1)
        if axis % len(shapes[found]) == 1:
            return str(last.input[0])
    return output


def label_shape(loss: LossName, shape: Shape) -> Shape:
    """The label's shape, without the batch, for predictions of a shape; raises ModelError when the loss doesn't fit."""
    if any(d < 0 for d in shape[1:]):
        raise ModelError(f"the output {shown(shape)} has the batch in more than its first dimension: no loss fits it")
    if loss == "mse":
        return shape[1:]
    if len(shape) < 2 or shape[1] < 2:
        raise ModelError(
            f"cross-entropy needs an output [N, classes, ...] with at least two classes, the model gives {shown(shape)}"
        )
    return shape[2:]


def shown(shape: Shape) -> str:
    """A shape for people: [N, 16, 8]."""
    return "[" + ", ".join("N" if d == -1 else f"{-d}N" if d < 0 else str(d) for d in shape) + "]"


def emit(g: Builder, z: str, loss: LossName, gradient: bool) -> tuple[str, str]:
    """Emits the loss of z against LABEL; returns its name and that of its gradient ('' unless `gradient`)."""
    if loss == "mse":
        difference = g.op("Sub", z, LABEL)
        mean = g.op("ReduceMean", g.op("Mul", difference, difference), keepdims=0)
        if not gradient:
            return mean, ""
        count = g.op("Cast", g.op("Size", z), to=TensorProto.FLOAT)
        return mean, g.op("Mul", difference, g.op("Div", g.constant(2.0), count))
    mean, logs = g.ops("SoftmaxCrossEntropyLoss", z, LABEL, outputs=2, reduction="mean")
    if not gradient:
        return mean, ""
    classes = g.constant(g.shapes[z][1], np.int64)
    hot = g.op("OneHot", LABEL, classes, g.constant([0.0, 1.0]), axis=1)
    count = g.op("Cast", g.op("Size", LABEL), to=TensorProto.FLOAT)
    return mean, g.op("Div", g.op("Sub", g.op("Exp", logs), hot), count)
