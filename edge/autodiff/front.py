"""Reads a user's ONNX model: checks it, brings it to one opset, frees its batch and measures every shape.

Shapes are measured, not inferred: the model runs with batches of 2 and 3 (zeros), and a dimension that grew from 2k to
3k is k times the batch. So whatever arithmetic an exporter wrote around Reshape, its result is known. A model that was
traced with a fixed batch in its Reshapes runs once with that batch, and their first entries become -1.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, external_data_helper, helper, inliner, numpy_helper, version_converter

from fleetgrad.edge.autodiff.errors import ModelError, UnsupportedModel
from fleetgrad.edge.autodiff.graph import OPSET, Array, Shape

BATCHES = (2, 3)  # coprime, so that a dimension that holds the batch can't look fixed
RANDOM = ("Random", "Bernoulli", "Multinomial")


@dataclass(frozen=True, slots=True)
class Model:
    """A checked model with one float32 input whose first dimension is the batch, and one output.

    `source` is the user's model, `nodes` its computation at OPSET with float32 weights and other `constants` beside it.
    `shapes` covers every value, `floats` names the float32 ones, `known` has the values that no input changes. A scalar
    initializer is a constant and no weight: it is an exponent, an epsilon or a bound, which training must not move.
    """

    source: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    weights: Mapping[str, Array]
    constants: tuple[onnx.TensorProto, ...]
    input: str
    output: str
    shapes: Mapping[str, Shape]
    floats: frozenset[str]
    known: Mapping[str, Array]


def load(model: bytes | Path | onnx.ModelProto) -> onnx.ModelProto:
    """The model with all its weights in memory; raises ModelError for whatever isn't a whole ONNX file."""
    if isinstance(model, onnx.ModelProto):
        found = onnx.ModelProto()
        found.CopyFrom(model)
        where = "model"
    else:
        where = str(model) if isinstance(model, Path) else "model"
        try:
            raw = model.read_bytes() if isinstance(model, Path) else model
        except OSError as e:
            raise ModelError(f"can't read {where}: {e.strerror}") from e
        try:
            found = onnx.ModelProto.FromString(raw)
        except Exception as e:
            raise ModelError(f"{where} isn't an ONNX file, or is cut short ({len(raw):,} bytes)") from e
    if not found.graph.node:
        raise ModelError(f"{where} isn't an ONNX model with a graph: it has no nodes")
    outside = [
        t.name for t in external_data_helper._get_all_tensors(found) if external_data_helper.uses_external_data(t)
    ]
    if outside:
        if not isinstance(model, Path):
            raise ModelError(f"weights {outside[0]!r} ... lie in another file: give the model's path, not its bytes")
        try:
            external_data_helper.load_external_data_for_model(found, str(model.parent))
        except Exception as e:
            raise ModelError(
                f"{where}: weights {outside[0]!r} ... lie in a file that can't be read: {first_line(e)}"
            ) from e
    _settle(found)
    try:
        onnx.checker.check_model(found)
    except Exception as e:
        raise ModelError(f"{where} isn't a valid ONNX model: {first_line(e)}") from e
    return found


def read(model: bytes | Path | onnx.ModelProto, *, scalar: bool = False) -> Model:
    """Loads and measures a model, whose output may be a `scalar`; raises ModelError with what is wrong and what to do."""
    source = load(model)
    graph = source.graph
    initialized = {t.name for t in graph.initializer}
    if graph.sparse_initializer:
        raise ModelError(
            f"weight {graph.sparse_initializer[0].values.name!r} is sparse: only dense weights can be trained"
        )
    inputs = [v for v in graph.input if v.name not in initialized]
    if len(inputs) != 1:
        names = ", ".join(repr(v.name) for v in inputs) or "none"
        raise ModelError(f"the model has {len(inputs)} inputs ({names}), a plan needs exactly one")
    if len(graph.output) != 1:
        names = ", ".join(repr(v.name) for v in graph.output) or "none"
        raise ModelError(
            f"the model has {len(graph.output)} outputs ({names}), a plan needs exactly one: remove the others"
        )
    feed = inputs[0]
    size, declared = _input_size(feed)
    if unknown := unknown_ops(source):
        raise UnsupportedModel(unknown)

    converted = _convert(source)
    values: list[dict[str, Array]] = []
    try:
        values = [run(converted, feed.name, (n, *size)) for n in BATCHES]
        shapes = _shapes(values[0], values[1])
        free = shapes[graph.output[0].name][:1] == (-1,) or (scalar and not shapes[graph.output[0].name])
    except ModelError:
        free = False
    if not free:
        _free_batch(converted, feed.name, size, declared or 1)
        values = [run(converted, feed.name, (n, *size)) for n in BATCHES]
        shapes = _shapes(values[0], values[1])
    output = converted.graph.output[0].name
    if shapes[output][:1] != (-1,) and not (scalar and not shapes[output]):
        raise ModelError(
            f"the first dimension of output {output!r} doesn't follow the batch: its shape is {shapes[output]} at any "
            f"batch size (the first dimension of input {feed.name!r} must be the batch)"
        )
    if values[0][output].dtype != np.float32:
        raise ModelError(f"output {output!r} is {values[0][output].dtype}, a loss needs float32")
    floats = frozenset(name for name, value in values[0].items() if value.dtype == np.float32)
    own = {t.name: t for t in graph.initializer}
    weights = {
        t.name: numpy_helper.to_array(own[t.name])
        for t in graph.initializer
        if t.data_type == TensorProto.FLOAT and t.dims and 0 not in t.dims
    }
    constants = tuple(t for t in converted.graph.initializer if t.name not in weights)
    nodes = tuple(converted.graph.node)
    known = _known(nodes, [t.name for t in constants], values)
    return Model(source, nodes, weights, constants, feed.name, output, shapes, floats, known)


def _known(
    nodes: Sequence[onnx.NodeProto], constants: Iterable[str], values: Sequence[Mapping[str, Array]]
) -> dict[str, Array]:
    """Constants, sizes that don't follow the batch, and whatever is computed from these alone."""
    one, other = values
    found = {name: one[name] for name in constants}
    for node in nodes:
        fixed = node.op_type == "Shape" and np.array_equal(one[node.output[0]], other[node.output[0]])
        if fixed or (not node.op_type.startswith(RANDOM) and all(name in found for name in node.input if name)):
            found.update((name, one[name]) for name in node.output if name in one)
    return found


def _settle(model: onnx.ModelProto) -> None:
    """Batch normalisation that was exported in training mode, as it is in use: the plan says how it is trained."""
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            for attribute in node.attribute:
                if attribute.name == "training_mode":
                    attribute.i = 0
            used = {name for other in model.graph.node for name in other.input} | {o.name for o in model.graph.output}
            if not used.intersection(node.output[1:]):
                del node.output[1:]


def first_line(error: BaseException) -> str:
    """The first line of a library's error, for a message of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _input_size(feed: onnx.ValueInfoProto) -> tuple[Shape, int | None]:
    """The input's shape without the batch, and the batch that the model declares, if it is fixed."""
    tensor = feed.type.tensor_type
    if not feed.type.HasField("tensor_type") or not tensor.HasField("shape") or not tensor.shape.dim:
        raise ModelError(
            f"input {feed.name!r} has no shape: export the model with a shape whose first dimension is the batch"
        )
    if tensor.elem_type != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise ModelError(
            f"input {feed.name!r} is {kind}, only float32 inputs can be trained on: move the cast into the data"
        )
    batch, *rest = tensor.shape.dim
    dynamic = [(i + 1, d.dim_param or "?") for i, d in enumerate(rest) if not d.dim_value > 0]
    if dynamic:
        names = ", ".join(f"dimension {i} ({name})" for i, name in dynamic)
        raise ModelError(
            f"input {feed.name!r} has dynamic sizes that can't be resolved: {names}; only the first dimension, the batch, "
            "may be dynamic: export the model with fixed sizes for the others"
        )
    return tuple(d.dim_value for d in rest), batch.dim_value or None


def unknown_ops(model: onnx.ModelProto) -> list[tuple[str, str, str]]:
    """Nodes whose op neither the standard nor the model's functions define, as (op, name, reason)."""
    own = {(f.domain, f.name) for f in model.functions}
    return [
        (n.op_type, n.name or n.output[0], f"unknown op of domain {n.domain!r}")
        for n in model.graph.node
        if (n.domain, n.op_type) not in own and not onnx.defs.has(n.op_type, "" if n.domain == "ai.onnx" else n.domain)
    ]


def _convert(source: onnx.ModelProto) -> onnx.ModelProto:
    """The model at OPSET, functions inlined, initializers not listed as inputs, without recorded shapes."""
    have = max((o.version for o in source.opset_import if o.domain in {"", "ai.onnx"}), default=1)
    model = onnx.ModelProto()
    model.CopyFrom(source)
    newer = sorted({n.op_type for n in model.graph.node if _too_new(n)})
    try:
        if model.functions:
            model = inliner.inline_local_functions(model)
        if have > OPSET and newer:  # such as RMSNormalization: the standard says what they are made of
            model = inliner.inline_selected_functions(model, [("", op) for op in newer], inline_schema_functions=True)
        if have != OPSET:
            model = version_converter.convert_version(model, OPSET)
    except Exception as e:
        raise ModelError(
            f"the model has opset {have} and can't be converted to {OPSET}: {first_line(e)}; export it with opset {OPSET}"
        ) from e
    del model.graph.value_info[:]
    initialized = {t.name for t in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in initialized]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model


def _too_new(node: onnx.NodeProto) -> bool:
    return node.domain in {"", "ai.onnx"} and not onnx.defs.has(node.op_type, OPSET)


def run(model: onnx.ModelProto, feed: str, shape: Shape) -> dict[str, Array]:
    """Every value of the model for an input of zeros; raises ModelError when onnxruntime can't run it."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.ir_version = min(probe.ir_version, 10)
    names = [name for node in probe.graph.node for name in node.output if name]
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    del probe.graph.input[:]
    probe.graph.input.append(helper.make_tensor_value_info(feed, TensorProto.FLOAT, shape))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    x = np.zeros(shape, np.float32)
    try:
        session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = dict(zip(names, session.run(names, {feed: x}), strict=True))
    except Exception as e:
        raise ModelError(f"the model doesn't run on an input {list(shape)} (batch {shape[0]}): {first_line(e)}") from e
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {feed: x, **constants, **{k: v for k, v in values.items() if isinstance(v, np.ndarray)}}


def _shapes(one: Mapping[str, Array], other: Mapping[str, Array]) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for name, value in one.items():
        dims = []
        for i, (a, b) in enumerate(zip(value.shape, other[name].shape, strict=False)):
            if a != b and (a % BATCHES[0] or a * BATCHES[1] != b * BATCHES[0]):
                raise ModelError(
                    f"value {name!r}: dimension {i} is {a} at batch {BATCHES[0]} and {b} at batch {BATCHES[1]}, which is "
                    "no multiple of the batch: export the model so that the batch is the first dimension throughout"
                )
            dims.append(a if a == b else -(a // BATCHES[0]))
        found[name] = tuple(dims)
    return found


def _free_batch(model: onnx.ModelProto, feed: str, size: Shape, batch: int) -> None:
    """Makes Reshapes to a fixed batch follow the batch, given what they produce at that batch."""
    values = run(model, feed, (batch, *size))
    fixed = {t.name for t in model.graph.initializer} | {
        name for n in model.graph.node if n.op_type == "Constant" for name in n.output
    }
    depends = {feed}
    for node in model.graph.node:
        if not depends.intersection(node.input):
            continue
        depends.update(node.output)
        if node.op_type == "Reshape" and node.input[1] in fixed and values[node.input[1]].tolist()[:1] == [batch]:
            shape = np.array([-1, *values[node.output[0]].shape[1:]], np.int64)
            name = f"{node.output[0]}.shape"
            model.graph.initializer.append(numpy_helper.from_array(shape, name))
            node.input[1] = name
