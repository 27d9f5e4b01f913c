"""The prologue of an inference graph: nodes before the user's own, which compute initializers of his from what a plan keeps.

    plan: base, A, B       prologue: W = base + s A B                user's nodes read W
    plan: v (float32)      prologue: q = QuantizeLinear(v)           user's nodes read q

So the user's nodes stay as he wrote them, infer.onnx predicts with the plan's tensors as they are, and an exported model has
the user's own initializers again: `fold` puts values in the prologue's place.
"""

from collections.abc import Mapping, Sequence

import onnx
import onnxruntime
from onnx import helper, numpy_helper

from fleetgrad.edge.autodiff.graph import IR_VERSION, MARK, Array
from fleetgrad.edge.autodiff.registry import reads, upstream


def node(op: str, inputs: Sequence[str], output: str, **attributes: object) -> onnx.NodeProto:
    """A node of the prologue."""
    return helper.make_node(op, inputs, [output], name=f"{MARK}/{output}", **attributes)


def constant(value: Array, output: str) -> onnx.NodeProto:
    """A constant that the prologue reads."""
    return node("Constant", [], output, value=numpy_helper.from_array(value))


def replace(model: onnx.ModelProto, name: str, tensors: Mapping[str, Array], nodes: Sequence[onnx.NodeProto]) -> None:
    """Takes the initializer `name` out, in place: `nodes` of the prologue compute it from the new initializers `tensors`."""
    _swap(model, name, [numpy_helper.from_array(value, key) for key, value in tensors.items()])
    kept = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *kept])


def fold(model: onnx.ModelProto) -> None:
    """Puts the values that the prologue computes in its place, in place; what only the prologue read goes."""
    graph = model.graph
    prologue = [n for n in graph.node if n.name.startswith(MARK)]
    rest = [n for n in graph.node if not n.name.startswith(MARK)]
    used = {name for n in rest for name in reads(n)}
    made = [name for n in prologue for name in n.output if name in used]
    if not made:
        return
    probe = helper.make_graph(
        prologue, "prologue", [], [onnx.ValueInfoProto(name=n) for n in made], list(graph.initializer)
    )
    raw = helper.make_model(probe, opset_imports=model.opset_import, ir_version=IR_VERSION).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    del graph.node[:]
    graph.node.extend(rest)
    for name, value in zip(made, session.run(made, {}), strict=True):
        first, *more = [t.name for t in graph.initializer if t.name in upstream(prologue, [name]) - used]
        _swap(model, first, [numpy_helper.from_array(value, name)])
        for other in more:
            _swap(model, other, [])


def _swap(model: onnx.ModelProto, name: str, tensors: Sequence[onnx.TensorProto]) -> None:
    """Puts initializers in the place of one, also among the inputs where they are listed there."""
    values = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    for own, new in ((model.graph.initializer, list(tensors)), (model.graph.input, values)):
        found = [x for x in own for x in (new if x.name == name else [x])]
        del own[:]
        own.extend(found)
