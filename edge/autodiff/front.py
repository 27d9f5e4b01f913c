"""Reads a user's ONNX model: brings it to one opset, frees its batch and has every shape measured.

A model that was traced with a fixed batch in its Reshapes runs once with that batch, and their first entries become -1.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, inliner, numpy_helper, version_converter

from fleetgrad.edge.autodiff.errors import ModelError, UnsupportedModel, first_line
from fleetgrad.edge.autodiff.graph import OPSET, Array, Shape
from fleetgrad.edge.autodiff.hidden import computed, surface, untie
from fleetgrad.edge.autodiff.loading import load
from fleetgrad.edge.autodiff.measuring import constant, feeds_of, free_batch, measure, pin_squeezes, varying
from fleetgrad.edge.autodiff.quantized import ADVICE, INTEGER_OPS, lift, relax, straight
from fleetgrad.edge.autodiff.registry import downstream
from fleetgrad.edge.autodiff.sequences import unlist
from fleetgrad.wire import plan

SETTINGS = {("Resize", 1), ("Resize", 2), ("Pow", 1), ("QuantizeLinear", 1), ("DequantizeLinear", 1)}  # float inputs
# that say how to compute


@dataclass(frozen=True, slots=True)
class Model:
    """A checked model with one output, whose inputs have the batch as their first dimension.

    `source` is the user's model, `nodes` its computation at OPSET with float32 weights and other `constants` beside it.
    `shapes` covers every value, `floats` names the float32 ones, and those integers that stand for them (quantized.py);
    `known` has the values that no input changes, `dequantized` the constants of quantized.py's Lifted.others. A scalar
    initializer is a constant and no weight: it is an exponent, an epsilon or a bound, which training must not move.
    """

    source: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    weights: Mapping[str, Array]
    constants: tuple[onnx.TensorProto, ...]
    inputs: tuple[plan.Feed, ...]
    output: str
    shapes: Mapping[str, Shape]
    floats: frozenset[str]
    known: Mapping[str, Array]
    dequantized: tuple[str, ...]


def read(
    model: bytes | Path | onnx.ModelProto, dims: Mapping[str, int] | None = None, *, scalar: bool = False
) -> Model:
    """Loads and measures a model, its dynamic dimensions as in `dims`, its output maybe a `scalar`; raises ModelError."""
    source = load(model)
    graph = source.graph
    initialized = {t.name for t in graph.initializer}
    if graph.sparse_initializer:
        raise ModelError(
            f"weight {graph.sparse_initializer[0].values.name!r} is sparse: only dense weights can be trained"
        )
    if len(graph.output) != 1:
        names = ", ".join(repr(v.name) for v in graph.output) or "none"
        raise ModelError(
            f"the model has {len(graph.output)} outputs ({names}), a plan needs exactly one: remove the others"
        )
    feeds, declared = feeds_of([v for v in graph.input if v.name not in initialized], dims or {})
    if unknown := unknown_ops(source):
        raise UnsupportedModel(unknown)
    unlist(source)
    lifted = lift(source)
    surface(source)
    untie(source)

    converted = _convert(source)
    relax(converted, lifted)
    try:
        shapes, values = measure(converted, feeds)
        free = shapes[graph.output[0].name][:1] == (-1,) or (scalar and not shapes[graph.output[0].name])
    except ModelError:
        free = False
    if not free:
        free_batch(converted, feeds, declared or 1)
        shapes, values = measure(converted, feeds)
    if any(n.op_type == "Squeeze" and len(n.input) == 1 for n in converted.graph.node):
        pin_squeezes(converted, shapes)
        shapes, values = measure(converted, feeds)
    output = converted.graph.output[0].name
    if shapes[output][:1] != (-1,) and not (scalar and not shapes[output]):
        raise ModelError(
            f"the first dimension of output {output!r} doesn't follow the batch: its shape is {shapes[output]} at any "
            f"batch size (the first dimension of input {feeds[0].name!r} must be the batch)"
        )
    if values[0][output].dtype != np.float32:
        raise ModelError(f"output {output!r} is {values[0][output].dtype}, a loss needs float32")
    floats = frozenset(name for name, value in values[0].items() if value.dtype == np.float32)
    nodes = tuple(converted.graph.node)
    uses = {name: set[tuple[str, int]]() for node in nodes for name in node.input}
    for node in nodes:
        for i, name in enumerate(node.input):
            uses[name].add((node.op_type, i))
    weights = {
        t.name: numpy_helper.to_array(t)
        for t in graph.initializer
        if t.data_type == TensorProto.FLOAT
        and t.dims
        and 0 not in t.dims
        and not uses.get(t.name, {("", 0)}) <= SETTINGS
        and t.name not in lifted.scales
        and not computed(source, t.name, uses.get(t.name, set()))
    }
    known = constant(nodes, [*(f.name for f in feeds), *weights], values)
    floats |= straight(nodes, known)
    live = downstream(nodes, weights, floats)
    for name in varying(converted, feeds, values[0]):
        if name in live:
            raise ModelError(f"the shape of value {name!r} depends on the data: no gradient can be written for it")
    constants = tuple(t for t in converted.graph.initializer if t.name not in weights)
    return Model(source, nodes, weights, constants, tuple(feeds), output, shapes, floats, known, lifted.others)


def unknown_ops(model: onnx.ModelProto) -> list[tuple[str, str, str]]:
    """Nodes whose op neither the standard nor the model's functions define, as (op, name, reason)."""
    own = {(f.domain, f.name) for f in model.functions}
    return [
        (n.op_type, n.name or n.output[0], f"unknown op of domain {n.domain!r}{_instead(n)}")
        for n in model.graph.node
        if (n.domain, n.op_type) not in own and not onnx.defs.has(n.op_type, "" if n.domain == "ai.onnx" else n.domain)
    ]


def _instead(node: onnx.NodeProto) -> str:
    return f" that computes in integers: {ADVICE}" if node.op_type in INTEGER_OPS else ""


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
            _write_defaults(model, have, newer)
            typed = {v.name for v in [*model.graph.input, *model.graph.value_info]}
            model.graph.value_info.extend(
                onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
                for t in model.graph.initializer
                if t.name not in typed
            )
            model = onnx.shape_inference.infer_shapes(model)
            model = inliner.inline_selected_functions(model, [("", op) for op in newer], inline_schema_functions=True)
        if have > OPSET and _written_alike(model, have):
            opset = next(o for o in model.opset_import if o.domain in {"", "ai.onnx"})
            opset.version = OPSET
        elif have != OPSET:
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


def _written_alike(model: onnx.ModelProto, opset: int) -> bool:
    """Whether all nodes are as they would be at OPSET. Newer versions mostly widen types; the converter knows not all."""
    for node in model.graph.node:
        if node.domain not in {"", "ai.onnx"}:
            continue
        if not onnx.defs.has(node.op_type, OPSET) or any(a.HasField("g") for a in node.attribute):
            return False
        new, old = (onnx.defs.get_schema(node.op_type, version, "") for version in (opset, OPSET))
        same = all(
            [x.name for x in getattr(new, part)] == [x.name for x in getattr(old, part)]
            for part in ("inputs", "outputs")
        )
        if not same or not {a.name for a in node.attribute} <= old.attributes.keys():
            return False
    return True


def _write_defaults(model: onnx.ModelProto, opset: int, ops: Collection[str]) -> None:
    """Sets attributes that nodes leave out: the inliner makes a Constant without a value of those."""
    for node in model.graph.node:
        if node.op_type in ops:
            own = {a.name for a in node.attribute}
            every = onnx.defs.get_schema(node.op_type, opset, "").attributes.values()
            node.attribute.extend(a.default_value for a in every if a.default_value.name and a.name not in own)


def _too_new(node: onnx.NodeProto) -> bool:
    return node.domain in {"", "ai.onnx"} and not onnx.defs.has(node.op_type, OPSET)
