"""Cheap values are computed again for the backward pass, from what it keeps anyway, instead of being kept beside it.

    forward    x -> BatchNorm -> b -> Relu -> y           x is kept for the gradient of BatchNorm
    backward   x -> BatchNormalization by the batch's mean and variance -> Relu -> y again, for its readers there

Half of the activations of a convolutional net are such: a y for each x. All that y needs is there when the forward pass ends, so
it is made to wait for its first reader's dY: the bias is cut to a size, all of it, in whose computation dY's has a part.
In graphs of standard ops masks are made of y alone, with no dY to wait for, and nothing would be gained.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fleetgrad.edge.autodiff.graph import DOMAIN
from fleetgrad.edge.autodiff.passes.graph import Graph, renamed
from fleetgrad.edge.autodiff.registry import reads

ACTIVATIONS = {"Relu", "Clip", "LeakyRelu", "HardSigmoid", "HardSwish"}
AGAIN = ".again"
ZERO, EVERY = "fleetgrad.again.zero", "fleetgrad.again.every"
MOST_CHANNELS = 1 << 30


def repeat(graph: Graph) -> Graph:
    """Lets the backward pass compute again what it can, where the graph is to be so."""
    if not graph.repeat:
        return graph
    late = graph.backward
    makers = {name: node for node in graph.nodes for name in node.output if name not in late}
    kept = {name for node in graph.nodes if late.intersection(node.output) for name in reads(node)}
    names, made, found = dict[str, str](), set[str](), list[onnx.NodeProto]()
    for node in graph.nodes:
        gate = next((name for name in node.input if name in late), None)
        if gate and late.intersection(node.output):
            for name in node.input:
                steps = _chain(name, makers, kept, gate) if name not in names else []
                for step in steps:
                    if step.output[0] not in made:
                        made.add(step.output[0])
                        found.append(step)
                if steps:
                    names[name] = steps[-1].output[0]
            node = renamed(node, {name: names[name] for name in node.input if name in names})
        found.append(node)
    if not made:
        return graph
    ends = {ZERO: np.array([0]), EVERY: np.array([MOST_CHANNELS])}
    constants = {name: numpy_helper.from_array(value, name) for name, value in ends.items()}
    return replace(graph, nodes=tuple(found), constants={**graph.constants, **constants})


def _chain(name: str, makers: Mapping[str, onnx.NodeProto], kept: set[str], gate: str) -> list[onnx.NodeProto]:
    """The nodes that make a value again when `gate` is there; none where that isn't cheap."""
    maker = makers.get(name)
    if maker is None or name != maker.output[0]:
        return []
    again = onnx.NodeProto()
    again.CopyFrom(maker)
    if not maker.domain and maker.op_type in ACTIVATIONS:
        before = _chain(maker.input[0], makers, kept, gate)
        if before:
            again.input[0] = before[-1].output[0]
            again.output[0] = again.name = name + AGAIN
            return [*before, again]
        return []
    if maker.input[0] not in kept or (maker.op_type, maker.domain) != ("BatchNorm", DOMAIN):
        return []
    x, scale, bias = maker.input[:3]
    size, end, whole = (f"{name}.{part}{AGAIN}" for part in ("size", "end", "bias"))
    epsilon = [a for a in maker.attribute if a.name == "epsilon"]
    again = helper.make_node("BatchNormalization", [x, scale, whole, *maker.output[1:3]], [name + AGAIN], name + AGAIN)
    again.attribute.extend(epsilon)
    return [
        helper.make_node("Size", [gate], [size], size),
        helper.make_node("Add", [size, EVERY], [end], end),
        helper.make_node("Slice", [bias, ZERO, end], [whole], whole),
        again,
    ]
