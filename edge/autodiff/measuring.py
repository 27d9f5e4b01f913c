"""Runs a model to learn what can't be read off it: the shape of every value, and which values never change.

The model runs with batches of 2 and 3, on zeros (integer inputs on ones), and a dimension that grew from 2k to 3k is k
times the batch. So whatever arithmetic an exporter wrote around Reshape, its result is known.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from fleetgrad.edge.autodiff.errors import ModelError, first_line
from fleetgrad.edge.autodiff.graph import IR_VERSION, Array, Shape
from fleetgrad.edge.autodiff.registry import reads
from fleetgrad.wire import plan

BATCHES = (2, 3)  # coprime, so that a dimension that holds the batch can't look fixed
CHOOSING = {"NonZero", "Compress", "Unique", "NonMaxSuppression"}  # ops whose output's shape depends on the data
RANDOM = ("Random", "Bernoulli", "Multinomial", "Dropout")  # ops whose output isn't the same twice


def feeds_of(inputs: Sequence[onnx.ValueInfoProto], dims: Mapping[str, int]) -> tuple[list[plan.Feed], int | None]:
    """The inputs as the plan feeds them, and the batch that the model declares, if it is fixed; raises ModelError."""
    if not inputs:
        raise ModelError("the model has no inputs, a plan needs at least one")
    free = {name for value in inputs for name in _free(value).values()}
    if unused := sorted(dims.keys() - free):
        raise ModelError(
            f"no input has a dynamic dimension {unused[0]!r} beside the batch (there are: {', '.join(sorted(free)) or 'none'})"
        )
    found = [_feed(value, dims) for value in inputs]
    declared = {n for v in inputs if (n := v.type.tensor_type.shape.dim[0].dim_value) > 0}
    if len(declared) > 1:
        shown = ", ".join(f"{v.name!r} has {v.type.tensor_type.shape.dim[0].dim_value or 'any'}" for v in inputs)
        raise ModelError(f"the first dimension of every input must be the batch, here they differ: {shown}")
    return found, next(iter(declared), None)


def _free(value: onnx.ValueInfoProto) -> dict[int, str]:
    """Dynamic dimensions but the batch, with the names under which --dim sets them."""
    sizes = list(value.type.tensor_type.shape.dim)
    return {i: d.dim_param or f"{value.name}.{i}" for i, d in enumerate(sizes) if i and not d.dim_value > 0}


def _feed(value: onnx.ValueInfoProto, dims: Mapping[str, int]) -> plan.Feed:
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape") or not tensor.shape.dim:
        raise ModelError(
            f"input {value.name!r} has no shape: export the model with a shape whose first dimension is the batch"
        )
    if tensor.elem_type not in helper.get_all_tensor_dtypes():
        raise ModelError(f"input {value.name!r} has an element type that ONNX doesn't know: {tensor.elem_type}")
    dtype = str(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
    if dtype not in get_args(plan.Dtype) or dtype == "float64":
        kind = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise ModelError(
            f"input {value.name!r} is {kind}: float32, integers or bool can be fed, move the cast into the data"
        )
    free = _free(value)
    unknown = {i: name for i, name in free.items() if name not in dims}
    if unknown:
        names = ", ".join(f"dimension {i} ({name})" for i, name in unknown.items())
        raise ModelError(
            f"input {value.name!r} has dynamic sizes that can't be resolved: {names}; only the first dimension, the batch, "
            f"may be dynamic: give the others a size, as in --dim {next(iter(unknown.values()))}=64"
        )
    size = tuple(dims[free[i]] if i in free else d.dim_value for i, d in enumerate(tensor.shape.dim))
    if len(size) > plan.MAX_RANK + 1 or math.prod((max(1, size[0]), *size[1:])) > plan.MAX_FLOATS:
        raise ModelError(
            f"input {value.name!r} has shape {list(size)}: {plan.MAX_RANK} dimensions and the batch, and {plan.MAX_FLOATS:,} values are the most"
        )
    return plan.Feed(name=value.name, shape=size[1:], dtype=dtype)  # type: ignore[arg-type]


def kind(feed: plan.Feed) -> int:
    """The feed's type as onnx numbers it."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(feed.dtype)))


def measure(model: onnx.ModelProto, feeds: Sequence[plan.Feed]) -> tuple[dict[str, Shape], list[dict[str, Array]]]:
    """The shape of every value, and its values at both batches; raises ModelError."""
    values = [run(model, feeds, n) for n in BATCHES]
    return _shapes(*values), values


def varying(model: onnx.ModelProto, feeds: Sequence[plan.Feed], values: Mapping[str, Array]) -> list[str]:
    """The values whose shape isn't the batch's alone: it differs on other data from `values`, those of the first batch."""
    if not any(node.op_type in CHOOSING for node in model.graph.node):
        return []
    random = np.random.Generator(np.random.PCG64(0))
    fed = {
        f.name: random.standard_normal((BATCHES[0], *f.shape)).astype(f.dtype) for f in feeds if f.dtype == "float32"
    }
    fed |= {
        f.name: random.integers(0, 2, (BATCHES[0], *f.shape)).astype(f.dtype) for f in feeds if f.dtype != "float32"
    }
    try:
        other = run(model, feeds, BATCHES[0], fed)
    except ModelError:  # an index out of range, as random data may give
        return []
    return [name for name, value in values.items() if name in other and other[name].shape != value.shape]


def run(
    model: onnx.ModelProto, feeds: Sequence[plan.Feed], batch: int, fed: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """Every value of the model for trivial inputs, or those in `fed`; raises ModelError when onnxruntime can't run it."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.ir_version = IR_VERSION
    names = [name for node in probe.graph.node for name in node.output if name]
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    del probe.graph.input[:]
    probe.graph.input.extend(helper.make_tensor_value_info(f.name, kind(f), (batch, *f.shape)) for f in feeds)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    if fed is None:
        like = {"float32": np.zeros}
        fed = {f.name: like.get(f.dtype, np.ones)((batch, *f.shape), np.dtype(f.dtype)) for f in feeds}
    try:
        session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = dict(zip(names, session.run(names, dict(fed)), strict=True))
    except Exception as e:
        shown = ", ".join(str([batch, *f.shape]) for f in feeds)
        raise ModelError(f"the model doesn't run on an input {shown} (batch {batch}): {first_line(e)}") from e
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return {**fed, **constants, **{k: v for k, v in values.items() if isinstance(v, np.ndarray)}}


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


def constant(
    nodes: Iterable[onnx.NodeProto], sources: Iterable[str], values: Sequence[dict[str, Array]]
) -> dict[str, Array]:
    """The values that are the same whatever `sources` (inputs and weights) hold, and whatever the batch is."""
    moving = set(sources)
    for node in nodes:
        if node.op_type.startswith(RANDOM) or (node.op_type not in {"Shape", "Size"} and moving & reads(node)):
            moving.update(node.output)
    one, other = values
    return {name: v for name, v in one.items() if name not in moving and np.array_equal(v, other[name])}


def free_batch(model: onnx.ModelProto, feeds: Sequence[plan.Feed], batch: int) -> None:
    """Makes Reshapes to a fixed batch follow the batch, given what they produce at that batch."""
    values = run(model, feeds, batch)
    fixed = {t.name for t in model.graph.initializer} | {
        name for n in model.graph.node if n.op_type == "Constant" for name in n.output
    }
    depends = {f.name for f in feeds}
    for node in model.graph.node:
        if not depends.intersection(node.input):
            continue
        depends.update(node.output)
        if node.op_type == "Reshape" and node.input[1] in fixed and values[node.input[1]].tolist()[:1] == [batch]:
            shape = np.array([-1, *values[node.output[0]].shape[1:]], np.int64)
            name = f"{node.output[0]}.shape"
            model.graph.initializer.append(numpy_helper.from_array(shape, name))
            node.input[1] = name


def pin_squeezes(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> None:
    """Gives Squeeze its axes where it has none: it would take a batch of one away as well."""
    for node in model.graph.node:
        if node.op_type == "Squeeze" and len([name for name in node.input if name]) == 1:
            axes = [i for i, d in enumerate(shapes[node.input[0]]) if d == 1]
            name = f"{node.output[0]}.axes"
            model.graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), name))
            node.input[:] = [node.input[0], name]
