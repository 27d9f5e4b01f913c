"""Dropout of models that were exported in training mode: in use it does nothing, in training its masks come from outside.

    y = x * (noise >= ratio) / (1 - ratio)      noise uniform in [0, 1), a feed that the trainer fills for each step

The op itself draws from a generator that goes on from run to run, so a trainer that starts anew after a crash couldn't
repeat an update byte for byte; it also takes several times as long.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fleetgrad.edge.autodiff.front import Model
from fleetgrad.edge.autodiff.graph import Array, Shape
from fleetgrad.wire import plan


def settle(model: Model) -> tuple[Model, dict[str, float]]:
    """The model as it is in use, and the ratios of its Dropout nodes by output. Those that can't be fed stay as they are."""
    ratios = {
        node.output[0]: ratio
        for node in model.nodes
        if (ratio := _ratio(node, model.known)) is not None and _axis(model.shapes[node.input[0]]) is not None
    }
    source = onnx.ModelProto()
    source.CopyFrom(model.source)
    for node in source.graph.node:
        if node.op_type == "Dropout" and node.output[0] in ratios:
            del node.input[2:]
    nodes = []
    for node in model.nodes:
        if node.output[0] in ratios:
            settled = onnx.NodeProto()
            settled.CopyFrom(node)
            del settled.input[2:]
            node = settled
        nodes.append(node)
    return dataclasses.replace(model, source=source, nodes=tuple(nodes)), ratios


def in_training(model: Model, ratios: Mapping[str, float]) -> tuple[Model, tuple[plan.Feed, ...]]:
    """A settled model with masks where its Dropout nodes were, and the feeds of noise that they take."""
    nodes, feeds, constants = [], list[plan.Feed](), list(model.constants)
    for node in model.nodes:
        y = node.output[0]
        if y not in ratios:
            nodes.append(node)
            continue
        x, ratio, noise = node.input[0], ratios[y], plan.NOISE + y
        shape = model.shapes[x]
        axis = _axis(shape) or 0
        plain = shape[0] == -1
        size = shape[1:] if plain else (abs(int(np.prod(shape))),)
        feeds.append(plan.Feed(name=noise, shape=size, dtype="float32"))
        for name, value in (("ratio", ratio), ("scale", 1 / (1 - ratio))):
            constants.append(numpy_helper.from_array(np.array(value, np.float32), f"{noise}.{name}"))
        nodes += [
            helper.make_node("GreaterOrEqual", [noise, f"{noise}.ratio"], [f"{noise}.kept"]),
            helper.make_node("Cast", [f"{noise}.kept"], [f"{noise}.ones"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{noise}.ones", f"{noise}.scale"], [f"{noise}.mask"]),
        ]
        mask = f"{noise}.mask"
        if not plain:  # each sample's numbers lie together, so that a part of the batch has a part of them
            rows = np.array([-1, *(d for i, d in enumerate(shape) if i != axis)], np.int64)
            constants.append(numpy_helper.from_array(rows, f"{noise}.rows"))
            nodes.append(helper.make_node("Reshape", [mask, f"{noise}.rows"], [f"{noise}.shaped"]))
            mask = f"{noise}.shaped"
        if axis:
            places = [i + 1 if i < axis else 0 if i == axis else i for i in range(len(shape))]
            nodes.append(helper.make_node("Transpose", [mask], [f"{noise}.placed"], perm=places))
            mask = f"{noise}.placed"
        nodes.append(helper.make_node("Mul", [x, mask], [y], name=node.name))
    return dataclasses.replace(model, nodes=tuple(nodes), constants=tuple(constants)), tuple(feeds)


def _ratio(node: onnx.NodeProto, known: Mapping[str, Array]) -> float | None:
    """What a Dropout node in training mode drops; None where it is another node, or that isn't known."""
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2] or len(node.output) > 1:
        return None
    training = known.get(node.input[2])
    ratio: Array | None = known.get(node.input[1]) if node.input[1] else np.array(0.5)
    if training is None or ratio is None or not bool(training) or not 0 <= float(ratio) < 1:
        return None
    return float(ratio)


def _axis(shape: Shape) -> int | None:
    """The one dimension that holds the batch; None where there is none, or several do."""
    found = [i for i, d in enumerate(shape) if d < 0]
    return found[0] if len(found) == 1 else None
