"""Finds weights that a model holds as something else than initializers, and makes them initializers.

Exporters write weights as Constant nodes or compute them from constants, and the models that ship with onnx have a
ConstantOfShape in each weight's place. Such a value is a weight when it is float32, has dimensions and goes into a place
where only weights go (SLOTS); an elementwise constant isn't, it may be a mask or the mean of the data. Nor are the ones and
zeros of a normalisation without scale and bias.

torch's exporter also merges parameters that are equal, as fresh biases and running means are: they would be trained as
one. And it multiplies batch normalisation into convolutions unless it is told not to, which nothing can undo; the newer
one (dynamo) does so in training mode as well, and makes initializers of the constants that it computes.
"""

import re
from collections.abc import Collection, Iterable

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from fleetgrad.edge.autodiff.errors import ModelError, first_line
from fleetgrad.edge.autodiff.graph import IR_VERSION, Array
from fleetgrad.edge.autodiff.measuring import RANDOM
from fleetgrad.edge.autodiff.registry import reads

SLOTS = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (0, 1, 2), "MatMul": (0, 1), "Gather": (0,), "PRelu": (1,),
    "LSTM": (1, 2, 3, 7), "GRU": (1, 2, 3), "RNN": (1, 2, 3),
}  # fmt: skip
NORMS = {"BatchNormalization": (1, 2, 3, 4), "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2),
         "GroupNormalization": (1, 2)}  # fmt: skip
BATCH_NORM = ("scale", "bias", "mean", "var")
FOLDED = re.compile(r"onnx::Conv_\d+")  # what torch calls a convolution's weight, and its bias, after it was multiplied
FOLDED_NOTE, FOLDED_FROM = (
    "pkg.torch.onnx.class_hierarchy",
    re.compile(r"aten\.\w*batch_norm"),
)  # where the newer exporter says it
COMPUTED = re.compile(r"val_\d+")  # what the newer exporter calls values that no parameter is
STRIPPED = "__SHAPE"  # onnx's script that strips weights names the shape of weight w so


def surface(model: onnx.ModelProto) -> None:
    """Makes hidden weights initializers of the same name, in place; leaves the model as it is where there are none."""
    graph = model.graph
    settled = {t.name for t in graph.initializer if t.data_type != TensorProto.FLOAT or not t.dims}
    made: dict[str, onnx.NodeProto] = {}
    names: list[str] = []
    scales, stripped = set[str](), set[str]()
    for node in graph.node:
        whole = not any(a.HasField("g") or a.graphs for a in node.attribute)
        if whole and not node.op_type.startswith(RANDOM) and reads(node) <= (settled | made.keys()) - stripped:
            made.update((name, node) for name in node.output if name)
            if node.op_type == "ConstantOfShape" and node.input[0] == node.output[0] + STRIPPED:
                names.append(node.output[0])
                stripped.add(node.output[0])
        else:
            slots = SLOTS.get(node.op_type, ())
            names += [name for i, name in enumerate(node.input) if i in slots and name in made]
            norms = NORMS.get(node.op_type, ())
            scales.update(name for i, name in enumerate(node.input) if i in norms and name in made)
    if not names and not scales:
        return
    for name, value in _values(model, made, {*names, *scales}).items():
        if name not in names and np.all((value == 0) | (value == 1)):
            continue
        if value.dtype == np.float32 and value.ndim and value.size and len(made[name].output) == 1:
            graph.node.remove(made[name])
            _add(model, value, name)


def untie(model: onnx.ModelProto) -> None:
    """Gives each parameter that was merged with an equal one its own initializer, in place.

    torch writes such a one as an Identity with the parameter's name (older versions let batch normalisation share one
    initializer); what is tied on purpose, such as an embedding that is also the last layer, has one name.
    """
    graph = model.graph
    values = {t.name: t for t in graph.initializer if t.data_type == TensorProto.FLOAT and t.dims and 0 not in t.dims}
    for node in [n for n in graph.node if _merged(model, n) and n.input[0] in values]:
        graph.node.remove(node)
        _add(model, numpy_helper.to_array(values[node.input[0]]), node.output[0])
    norms = [n for n in graph.node if n.op_type == "BatchNormalization"]
    shared = {name for n in norms for name in n.input[1:5] if name in values}
    uniform = {name for name in shared if np.ptp(numpy_helper.to_array(values[name])) == 0}
    taken: dict[str, tuple[str, ...]] = {}
    for node in norms:
        own = tuple(node.input[1:5])  # the same four again are the same layer, used twice
        for i, name in enumerate(own):
            if name in uniform and (own.index(name) < i or taken.setdefault(name, own) != own):
                node.input[1 + i] = f"{node.output[0]}.{BATCH_NORM[i]}"
                _add(model, numpy_helper.to_array(values[name]), node.input[1 + i])


def _merged(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether torch's exporter wrote the node for a parameter; other values' names begin with a slash, or are numbers."""
    name = node.output[0]
    named = not name.startswith(("/", "onnx::")) and not name.isdecimal() and name != model.graph.output[0].name
    return model.producer_name == "pytorch" and node.op_type == "Identity" and named


def computed(model: onnx.ModelProto, name: str, places: Collection[tuple[str, int]]) -> bool:
    """Whether torch's exporter made the initializer of constants, such as attention's scale; in a weight's place it is one, transposed."""
    made = model.producer_name == "pytorch" and COMPUTED.fullmatch(name)
    return bool(made) and not any(i in SLOTS.get(op, ()) for op, i in places)


def folded(model: onnx.ModelProto) -> list[str]:
    """The layers that torch multiplied batch normalisation into: both parameters lose their names then, and only then, or (from
    the newer exporter) the layer says that it was batch normalisation."""
    return [
        n.name or n.output[0] for n in model.graph.node
        if (n.op_type == "Conv" and len(n.input) == 3 and all(FOLDED.fullmatch(name) for name in n.input[1:]))
        or (n.op_type in {"Conv", "ConvTranspose", "Gemm"}
            and any(p.key == FOLDED_NOTE and FOLDED_FROM.search(p.value) for p in n.metadata_props))
    ]  # fmt: skip


def _add(model: onnx.ModelProto, value: Array, name: str) -> None:
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    if model.ir_version < 4:  # where initializers are inputs as well
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape))


def _values(model: onnx.ModelProto, made: dict[str, onnx.NodeProto], names: Iterable[str]) -> dict[str, Array]:
    """What the named values are; raises ModelError when onnxruntime can't tell."""
    names = sorted(set(names))
    goals, nodes = set(names), []
    for node in reversed(list({id(n): n for n in made.values()}.values())):
        if goals.intersection(node.output):
            nodes.append(node)
            goals |= reads(node)
    graph = helper.make_graph(
        nodes[::-1], "constants", [], [onnx.ValueInfoProto(name=n) for n in names],
        [t for t in model.graph.initializer if t.name in goals],
    )  # fmt: skip
    probe = helper.make_model(graph, opset_imports=model.opset_import, ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return dict(zip(names, session.run(names, {}), strict=True))
    except Exception as e:
        raise ModelError(f"constants of the model, {names[0]!r} ..., can't be computed: {first_line(e)}") from e
