"""Puts batch normalisation into training mode: layers that are trained normalise with the batch's own statistics.

    y, m', v' = BatchNormalization(x, scale, bias, m, v)     m' = momentum m + (1 - momentum) mean(x), v' likewise

m' and v' become outputs of the training graph, and the trainer keeps them for the next step. A layer whose scale and bias
are frozen, or that no gradient passes, goes on normalising with the statistics it has, as in evaluation.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence

import numpy as np
import onnx
from onnx import helper

from fleetgrad.edge.autodiff.errors import ModelError
from fleetgrad.edge.autodiff.front import Model
from fleetgrad.native.kernels import RING_RANGE
from fleetgrad.wire import plan

HEADROOM = 256.0  # times a statistic's first value, that it may change by in a round


def in_training(model: Model, trained: Collection[str], path: Collection[str]) -> tuple[Model, list[str]]:
    """The model with its trained layers in training mode, and the names of the weights that are their statistics.

    `path` are the outputs of the nodes that a gradient passes. Raises ModelError where two layers share statistics.
    """
    nodes, statistics = [], list[str]()
    for node in model.nodes:
        running = list(node.input[3:5])
        if (
            node.op_type == "BatchNormalization"
            and node.output[0] in path
            and set(node.input[1:3]) & set(trained)
            and set(running) <= set(model.weights)
        ):
            if shared := set(running) & set(statistics):
                raise ModelError(
                    f"two BatchNormalization nodes share the statistics {sorted(shared)[0]!r}: take --batch-norm frozen"
                )
            statistics += running
            node = _trained(node, running)
        nodes.append(node)
    return dataclasses.replace(model, nodes=tuple(nodes)), statistics


def merging(model: Model, statistics: Sequence[str]) -> plan.Statistics:
    """How shared statistics, pairs of mean and variance, are merged: in a unit that leaves them room to grow HEADROOM-fold."""
    least = plan.Statistics().exponent
    largest = max((float(np.abs(model.weights[name]).max()) for name in statistics), default=0.0)
    needed = math.ceil(math.log2(max(HEADROOM * largest / RING_RANGE, 1.0)))
    return plan.Statistics(exponent=min(max(least, needed), plan.MAX_EXPONENT), variances=tuple(statistics[1::2]))


def _trained(node: onnx.NodeProto, running: Collection[str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    kept = [a for a in copy.attribute if a.name != "training_mode"]
    del copy.attribute[:]
    copy.attribute.extend([*kept, helper.make_attribute("training_mode", 1)])
    copy.output[1:] = [plan.STATISTIC + name for name in running]
    return copy
