"""Assembles a plan's graphs: what is trained comes in as feeds and its gradients go out, what is frozen stays in the graph.

train.onnx   the forward nodes as training has them, the loss, the reverse pass
eval.onnx    the forward nodes as they are in use, the loss, the prediction
"""

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper, numpy_helper

from fleetgrad.edge.autodiff import losses
from fleetgrad.edge.autodiff.front import Model
from fleetgrad.edge.autodiff.graph import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET, Builder
from fleetgrad.edge.autodiff.measuring import kind
from fleetgrad.edge.autodiff.passes import simplify
from fleetgrad.edge.autodiff.passes.graph import Graph, renamed
from fleetgrad.edge.autodiff.registry import differentiate, sums
from fleetgrad.wire import plan
from fleetgrad.wire.loss import LossName, LossOptions


def graphs(
    model: Model,
    training: Model,
    objective: tuple[LossName, LossOptions, str],
    trained: Sequence[str],
    statistics: Sequence[str],
    noise: Sequence[plan.Feed],
    *,
    int8: bool,
    native: bool,
    elementary: bool,
    narrow: bool,
    repeat: bool,
) -> tuple[onnx.ModelProto, onnx.ModelProto, plan.Feed]:
    """The training graph, of the model as it is in `training`, the evaluation graph and the label's feed."""
    fed, (loss, options, goal) = [*trained, *statistics], objective
    label = plan.Feed(
        name=plan.LABEL,
        shape=losses.label_shape(loss, options, model.shapes[goal]),
        dtype="int64" if loss == "cross-entropy" else "float32",
    )
    feeds = [
        *(helper.make_tensor_value_info(f.name, kind(f), [plan.BATCH, *f.shape]) for f in model.inputs),
        helper.make_tensor_value_info(
            plan.LABEL, TensorProto.INT64 if label.dtype == "int64" else TensorProto.FLOAT, [plan.BATCH, *label.shape]
        ),
        *(helper.make_tensor_value_info(w, TensorProto.FLOAT, model.weights[w].shape) for w in fed),
    ]
    scalar = helper.make_tensor_value_info(plan.LOSS, TensorProto.FLOAT, [])

    g = Builder(model.shapes, model.shapes, int8=int8, known=model.known, native=native, elementary=elementary)
    mean, seed = losses.emit(g, goal, loss, options, gradient=True)
    exact = sums(training.nodes, goal) if losses.is_spread(loss, options, model.shapes[goal]) else ()
    found = differentiate(training.nodes, {goal: seed}, trained, model.floats, g, OPSET, exact)
    names = {mean: plan.LOSS}
    for weight in trained:
        value = found[weight]
        if value in names or not any(value in n.output for n in g.nodes):
            value = g.op("Identity", value)
        names[value] = plan.GRADIENT + weight
    fetches = [
        helper.make_tensor_value_info(kind + w, TensorProto.FLOAT, model.weights[w].shape)
        for kind, ws in ((plan.GRADIENT, trained), (plan.STATISTIC, statistics))
        for w in ws
    ]
    drawn = [helper.make_tensor_value_info(f.name, kind(f), [plan.BATCH, *f.shape]) for f in noise]
    train = assemble(training, g, names, [*feeds, *drawn], [scalar, *fetches], fed, narrow, repeat)

    g = Builder(model.shapes, model.shapes)
    mean, _ = losses.emit(g, goal, loss, options, gradient=False)
    prediction = g.op("Identity", model.output)
    shape = [plan.BATCH if d == -1 else d if d > 0 else None for d in model.shapes[model.output]]
    fetch = helper.make_tensor_value_info(plan.PREDICTION, TensorProto.FLOAT, shape)
    evaluate = assemble(model, g, {mean: plan.LOSS, prediction: plan.PREDICTION}, feeds, [scalar, fetch], fed)
    return train, evaluate, label


def assemble(
    model: Model,
    g: Builder,
    names: dict[str, str],
    feeds: list[onnx.ValueInfoProto],
    fetches: list[onnx.ValueInfoProto],
    fed: Sequence[str],
    narrow: bool = False,
    repeat: bool = False,
) -> onnx.ModelProto:
    """A model of the forward nodes and those of g that the fetches depend on; `names` renames values of g.

    With `narrow`, activations that only weight gradients read are kept as int8; with `repeat`, cheap ones are computed twice.
    """
    constants: list[onnx.TensorProto] = [
        *(numpy_helper.from_array(v, k) for k, v in model.weights.items() if k not in fed),
        *model.constants,
        *g.constants.values(),
    ]
    graph = simplify(
        Graph(
            nodes=(*g.forward(model.nodes), *(renamed(n, names) for n in g.nodes)),
            constants={t.name: t for t in constants},
            goals=frozenset(f.name for f in fetches),
            shapes=model.shapes,
            known=model.known,
            narrow=narrow,
            repeat=repeat,
        )
    )
    found = helper.make_graph(graph.nodes, "fleetgrad", feeds, fetches, list(graph.constants.values()))
    opsets = [helper.make_opsetid("", OPSET)]
    if any(n.domain == DOMAIN for n in graph.nodes):
        opsets.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    return helper.make_model(found, opset_imports=opsets, ir_version=IR_VERSION, producer_name="fleetgrad")
