"""Losses as ONNX nodes, with the gradient of their mean: the seed of the reverse pass.

    cross-entropy   mean over samples (and positions) of -log softmax(z)[label]:  dz = (softmax(z) - onehot) / count
    kl              mean over samples of T^2 sum p log(p / softmax(z / T)):       dz = T (softmax(z / T) - p) / count
    bce             mean over all numbers of -log of the label's probability:     dz = (sigmoid(z) - label) / count
    mse, l1         mean over all numbers of (z - label)^2, |z - label|:          dz = 2 (z - label), its sign / count
    huber           mean of c (d - c / 2), d = z - label, c = d within +-delta:   dz = c / count
    output          mean of the model's output:                                   dz = 1 / count

All are computed from the logits z with log-sum-exp, so that no logit overflows. With smoothing e and weights w, the onehot
of cross-entropy is q = w ((1 - e) onehot + e / classes), its loss -sum(q log softmax(z)) and its count the sum of the
labels' weights, as in torch (arXiv:1512.00567 for the smoothing). kl is Hinton's distillation (arXiv:1503.02531).
"""

from collections.abc import Callable, Mapping, Sequence, Set

import numpy as np
import onnx

from fleetgrad.edge.autodiff.errors import ModelError
from fleetgrad.edge.autodiff.graph import DOMAIN, Builder, Shape
from fleetgrad.wire.loss import LEAST_COUNT, LossName, LossOptions, check
from fleetgrad.wire.plan import LABEL

MANY_CLASSES = 32  # a probability of 1/32 is four units
FINAL: Mapping[str, frozenset[str]] = {  # what a model may end with that its loss computes itself
    "cross-entropy": frozenset({"Softmax", "LogSoftmax"}),
    "kl": frozenset({"Softmax", "LogSoftmax"}),
    "bce": frozenset({"Sigmoid"}),
}


def target(
    nodes: Sequence[onnx.NodeProto], output: str, loss: LossName, options: LossOptions, shapes: Mapping[str, Shape]
) -> str:
    """The value that the loss is taken of: the output, or the input of a final Softmax or Sigmoid that the loss includes."""
    makers = {name: node for node in nodes for name in node.output}
    found = output
    while found in makers and makers[found].op_type == "Identity":
        found = makers[found].input[0]
    last, rank = makers.get(found), len(shapes[found])
    if last is not None and last.op_type == "Reshape":
        return _before_flattened(makers, last, shapes, FINAL.get(loss, frozenset()), options.class_axis) or output
    if last is not None and last.op_type in FINAL.get(loss, ()):
        axis = next((a.i for a in last.attribute if a.name == "axis"), -1)
        if last.op_type == "Sigmoid" or (rank > 1 and axis % rank == options.class_axis % rank):
            return str(last.input[0])
    return output


def _before_flattened(
    makers: Mapping[str, onnx.NodeProto], last: onnx.NodeProto, shapes: Mapping[str, Shape], kinds: Set[str], axis: int
) -> str:
    """What goes into a final Flatten, Softmax, Reshape to the shape of before, if no dimension but the classes' has a size; else ''.

    So converted is a Softmax of before opset 13, which goes over all dimensions from its axis on: [N, classes, 1, 1].
    """
    softmax = makers.get(last.input[0])
    flat = makers.get(softmax.input[0]) if softmax is not None and softmax.op_type in kinds else None
    if softmax is None or flat is None or flat.op_type != "Flatten":
        return ""
    over = next((a.i for a in softmax.attribute if a.name == "axis"), -1)
    shape = shapes[flat.input[0]]
    same = shape == shapes[last.output[0]] and over in (1, -1) and shapes[flat.output[0]] == (shape[0], shape[axis])
    return str(flat.input[0]) if same else ""


def label_shape(loss: LossName, options: LossOptions, shape: Shape) -> Shape:
    """The label's shape, without the batch, for predictions of a shape; raises ModelError when the loss doesn't fit, LossError when an
    option doesn't."""
    if any(d < 0 for d in shape[1:]):
        raise ModelError(f"the output {shown(shape)} has the batch in more than its first dimension: no loss fits it")
    if loss == "output":
        return ()
    if loss in {"cross-entropy", "kl"} and (len(shape) < 2 or shape[options.class_axis] < 2):
        where = "[N, classes, ...]" if options.class_axis == 1 else "[N, ..., classes]"
        raise ModelError(f"{loss} needs an output {where} with at least two classes, the model gives {shown(shape)}")
    check(loss, options, shape[options.class_axis] if len(shape) > 1 else None)
    if loss != "cross-entropy":
        return shape[1:]
    return shape[2:] if options.class_axis == 1 else shape[1:-1]


def is_spread(loss: LossName, options: LossOptions, shape: Shape) -> bool:
    """Whether probabilities are spread over so many classes that int8 would round most of the loss's gradient to nothing.

    Beside a label, where it is 1, a column's unit is 1/127; what rarely is a label would never be pushed down.
    """
    return loss in {"cross-entropy", "kl"} and shape[options.class_axis] > MANY_CLASSES


def shown(shape: Shape) -> str:
    """A shape for people: [N, 16, 8]."""
    return "[" + ", ".join("N" if d == -1 else f"{-d}N" if d < 0 else str(d) for d in shape) + "]"


def emit(g: Builder, z: str, loss: LossName, options: LossOptions, gradient: bool) -> tuple[str, str]:
    """Emits the loss of z against LABEL; returns its name and that of its gradient ('' unless `gradient`)."""
    mean, seed = EMITTERS[loss](g, z, options)
    return mean, seed() if gradient else ""


Emitted = tuple[str, Callable[[], str]]  # the loss, and what emits its gradient


def _mean(g: Builder, x: str) -> str:
    return g.op("ReduceMean", x, keepdims=0)


def _per_number(g: Builder, z: str, factor: float = 1.0) -> str:
    """factor / count, where every number of z counts."""
    return g.op("Div", g.constant(factor), g.as_float(g.op("Size", z)))


def _mse(g: Builder, z: str, options: LossOptions) -> Emitted:
    difference = g.op("Sub", z, LABEL)
    mean = _mean(g, g.op("Mul", difference, difference))
    return mean, lambda: g.op("Mul", difference, _per_number(g, z, 2.0))


def _l1(g: Builder, z: str, options: LossOptions) -> Emitted:
    difference = g.op("Sub", z, LABEL)
    return _mean(g, g.op("Abs", difference)), lambda: g.op("Mul", g.op("Sign", difference), _per_number(g, z))


def _huber(g: Builder, z: str, options: LossOptions) -> Emitted:
    difference = g.op("Sub", z, LABEL)
    near = g.op("Clip", difference, g.constant(-options.delta), g.constant(options.delta))
    rest = g.op("Sub", difference, g.op("Mul", near, g.constant(0.5)))
    return _mean(g, g.op("Mul", near, rest)), lambda: g.op("Mul", near, _per_number(g, z))


def _bce(g: Builder, z: str, options: LossOptions) -> Emitted:
    """max(z, 0) - z label + log(1 + exp(-|z|)) for each number; with weights w of positives and f = 1 + (w - 1) label,
    (1 - label) z + f (max(-z, 0) + log(1 + exp(-|z|))), whose gradient is f sigmoid(z) - w label."""
    tail = g.op("Log", g.op("Add", g.op("Exp", g.op("Neg", g.op("Abs", z))), g.constant(1.0)))
    if options.positive_weights:
        axes = (1 for _ in range(len(g.shapes[z]) - 1 - options.class_axis % len(g.shapes[z])))
        w = g.constant(np.array(options.positive_weights).reshape(-1, *axes))
        weighted = g.op("Mul", w, LABEL)
        f = g.op("Add", g.op("Sub", weighted, LABEL), g.constant(1.0))
        least = g.op("Sub", z, g.op("Mul", z, LABEL))
        loss = g.op("Add", least, g.op("Mul", f, g.op("Add", g.op("Relu", g.op("Neg", z)), tail)))
        return _mean(g, loss), lambda: g.op(
            "Mul", g.op("Sub", g.op("Mul", f, g.op("Sigmoid", z)), weighted), _per_number(g, z)
        )
    mean = _mean(g, g.op("Add", g.op("Sub", g.op("Relu", z), g.op("Mul", z, LABEL)), tail))
    return mean, lambda: g.op("Mul", g.op("Sub", g.op("Sigmoid", z), LABEL), _per_number(g, z))


def _output(g: Builder, z: str, options: LossOptions) -> Emitted:
    return _mean(g, z), lambda: g.op("Expand", _per_number(g, z), g.op("Shape", z))


def _kl(g: Builder, z: str, options: LossOptions) -> Emitted:
    axis, t = options.class_axis, options.temperature
    scaled = z if t == 1 else g.op("Mul", z, g.constant(1 / t))
    logs = g.op("LogSoftmax", scaled, axis=axis)
    zero = g.as_float(g.op("Equal", LABEL, g.constant(0.0)))
    distance = g.op("Mul", LABEL, g.op("Sub", g.op("Log", g.op("Add", LABEL, zero)), logs))
    classes = g.shapes[z][axis]
    mean = g.op("Mul", _mean(g, distance), g.constant(classes * t * t))
    return mean, lambda: g.op(
        "Mul",
        g.op("Sub", g.op("Mul", g.op("Exp", logs), g.total(LABEL, axis, keep=True)), LABEL),
        _per_number(g, z, classes * t),
    )


def _cross_entropy(g: Builder, z: str, options: LossOptions) -> Emitted:
    shape, label = g.shapes[z], LABEL
    if options.class_axis == 1 or len(shape) == 2:
        return _classes_first(g, z, label, shape, options)
    rows: Shape = (-1, shape[-1])
    mean, seed = _classes_first(g, g.reshape(z, rows), g.op("Reshape", label, g.integers(-1)), rows, options)
    return mean, lambda: g.reshape(seed(), shape)


def _classes_first(g: Builder, z: str, label: str, shape: Shape, options: LossOptions) -> Emitted:
    """Cross-entropy of z [N, classes, ...] against label [N, ...]."""
    classes = shape[1]
    if options.label_smoothing == 0 and not options.class_weights and options.ignore_index is None:
        if g.native and len(shape) == 2:
            mean, gradient = g.ops("SoftmaxCrossEntropy", z, label, outputs=2, domain=DOMAIN)
            return mean, lambda: gradient
        mean, logs = g.ops("SoftmaxCrossEntropyLoss", z, label, outputs=2, reduction="mean")
        return mean, lambda: g.op(
            "Div",
            g.op("Sub", g.op("Exp", logs), _one_hot(g, label, classes)),
            g.as_float(g.op("Size", label)),
        )
    weights = np.array(options.class_weights or [1.0] * classes).reshape(classes, *(1 for _ in shape[2:]))
    logs, counts = g.op("LogSoftmax", z, axis=1), ""
    if options.ignore_index is not None:
        ignored = g.op("Equal", label, g.constant(options.ignore_index, np.int64))
        counts = g.op("Unsqueeze", g.as_float(g.op("Not", ignored)), g.integers(1))
        # OneHot has zeros for the number after the last class, and takes negative ones from the end.
        label = g.op("Where", ignored, g.constant(classes, np.int64), label)
    hot = _one_hot(g, label, classes)
    if options.class_weights:
        hot = g.op("Mul", hot, g.constant(weights))
    count = g.op("Max", g.op("ReduceSum", hot, keepdims=0), g.constant(LEAST_COUNT))
    goal = hot
    if (smoothing := options.label_smoothing) > 0:
        share = g.constant(weights * smoothing / classes)
        share = g.op("Mul", share, counts) if counts else share
        goal = g.op("Add", g.op("Mul", hot, g.constant(1 - smoothing)), share)
    mean = g.op("Neg", g.op("Div", g.op("ReduceSum", g.op("Mul", goal, logs), keepdims=0), count))
    return mean, lambda: g.op(
        "Div", g.op("Sub", g.op("Mul", g.op("Exp", logs), g.total(goal, 1, keep=True)), goal), count
    )


def _one_hot(g: Builder, label: str, classes: int) -> str:
    return g.op("OneHot", label, g.constant(classes, np.int64), g.constant([0.0, 1.0]), axis=1)


EMITTERS: Mapping[LossName, Callable[[Builder, str, LossOptions], Emitted]] = {
    "cross-entropy": _cross_entropy,
    "bce": _bce,
    "kl": _kl,
    "mse": _mse,
    "l1": _l1,
    "huber": _huber,
    "output": _output,
}
