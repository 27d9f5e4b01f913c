"""Quantized models in QDQ form: float32 weights in the place of integer ones, and pairs that gradients pass straight through.

    q (int8) -> DequantizeLinear -> op           the user's weight, as tools for quantization write it
    v (float32) -> QuantizeLinear -> q           what the plan trains: q is computed from v, in the prologue

So training sees the weight as it will be in use, rounded and cut, while v keeps what single steps are too small to change in q,
and an exported model has integers again, by the scales that it came with. A bias of 32 bits is too fine for its
rounding to matter and goes into its op as it is; only the exported one is rounded.

Gradients go straight through a pair (arXiv:1308.3432): 1 where the value lies in the integers' range, 0 beyond it (rules/quantization.py).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fleetgrad.edge.autodiff import prologue
from fleetgrad.edge.autodiff.errors import ModelError
from fleetgrad.edge.autodiff.graph import MARK, Array, Node
from fleetgrad.edge.autodiff.registry import reads

FLOAT = ".float"  # follows the integer weight's name, without the quantizer's ending
ENDINGS = ("_quantized", "_q")
ROUNDED = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16}  # QuantizeLinear gives them
INTEGER_OPS = {"QLinearConv", "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearGlobalAveragePool",
               "QLinearAveragePool", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "QAttention", "ConvInteger",
               "MatMulInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat",
               "ConvIntegerToFloat"}  # fmt: skip
ADVICE = "quantize the model statically in QDQ form (quantize_static with QuantFormat.QDQ)"


@dataclass(frozen=True, slots=True)
class Lifted:
    """Names of a model's integer weights with those of the float32 ones in their place, those of 32 bits apart, and of scales.

    `others` are values dequantized from constants in another form: of 4 bits, in blocks, in Constant nodes, or moved as integers.
    """

    weights: Mapping[str, str]
    biases: Mapping[str, str]
    scales: frozenset[str]
    others: tuple[str, ...]


def lift(model: onnx.ModelProto) -> Lifted:
    """Puts float32 initializers in the place of integer ones that only DequantizeLinear nodes of one kind read, in place.

    Raises ModelError where a scale isn't above 0.
    """
    tensors = {t.name: t for t in model.graph.initializer}
    readers = dict[str, list[onnx.NodeProto]]()
    for node in model.graph.node:
        for name in reads(node):
            readers.setdefault(name, []).append(node)
    weights, biases, scales = dict[str, str](), dict[str, str](), set[str]()
    taken = {*tensors, *(name for node in model.graph.node for name in node.output)}
    for name, nodes in readers.items():
        if name not in tensors or not (settings := _settings(name, nodes)) or not all(s in tensors for s in settings):
            continue
        q, (scale, *zero) = tensors[name], [numpy_helper.to_array(tensors[s]) for s in settings]
        axis = Node(nodes[0], (), frozenset()).attribute("axis", 1)
        value = _dequantized(numpy_helper.to_array(q), scale, zero[0] if zero else None, axis)
        if value is None or not value.ndim or not value.size:
            continue
        if wrong := [float(s) for s in scale.flat if not 0 < s < np.inf][:1]:
            raise ModelError(f"{name!r} is quantized by a scale of {wrong[0]:g}: above 0 and finite is needed")
        stem = next((name.removesuffix(e) for e in ENDINGS if name.endswith(e)), name)
        own = f"{stem}{FLOAT}"
        while own in taken:
            own += FLOAT
        if q.data_type in ROUNDED:
            steps = _rounding(own, name, settings, q.data_type, scale.shape, {"axis": axis} if scale.size > 1 else {})
            weights[name] = own
        elif q.data_type == TensorProto.INT32 and scale.ndim <= value.ndim == 1 and not any(np.any(z) for z in zero):
            steps = [
                prologue.node("Div", [own, settings[0]], f"{name}.divided"),
                prologue.node("Round", [f"{name}.divided"], f"{name}.rounded"),
                prologue.node("Cast", [f"{name}.rounded"], name, to=TensorProto.INT32),
            ]
            biases[name] = own
        else:
            continue
        scales.update(settings[:1])
        taken.add(own)
        prologue.replace(model, name, {own: value}, steps)
    return Lifted(weights, biases, frozenset(scales), tuple(_others(model)))


def _others(model: onnx.ModelProto) -> Iterable[str]:
    fixed = {t.name: bool(t.dims) for t in model.graph.initializer if t.data_type != TensorProto.FLOAT}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            if fixed.get(node.input[0]):  # a scalar is a constant and no weight
                yield node.output[0]
        elif node.op_type == "Constant":
            fixed[node.output[0]] = bool(node.attribute[0].t.dims)
        elif reads(node) and reads(node) <= fixed.keys():
            fixed |= dict.fromkeys(node.output, True)


def _settings(name: str, nodes: Iterable[onnx.NodeProto]) -> tuple[str, ...]:
    """The scale and zero point by which all nodes dequantize a value; nothing where one does something else with it."""
    found = set()
    for node in nodes:
        view = Node(node, (), frozenset())
        if (
            node.op_type != "DequantizeLinear"
            or view.x[0] != name
            or name in view.x[1:]
            or view.attribute("block_size", 0)
        ):
            return ()
        found.add((tuple(x for x in view.x[1:] if x), view.attribute("axis", 1)))
    return found.pop()[0] if len(found) == 1 else ()


def _rounding(
    own: str, name: str, settings: tuple[str, ...], kind: int, shape: tuple[int, ...], axis: Mapping[str, int]
) -> list[onnx.NodeProto]:
    """The nodes that make the integers; where no zero point is given, one of the scale's shape, as the operator wants it."""
    if len(settings) == 2:
        return [prologue.node("QuantizeLinear", [own, *settings], name, **axis)]
    zero = np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind))
    return [
        prologue.constant(zero, f"{name}.zero"),
        prologue.node("QuantizeLinear", [own, settings[0], f"{name}.zero"], name, **axis),
    ]


def _dequantized(q: Array, scale: Array, zero: Array | None, axis: int) -> Array | None:
    """(q - zero) scale in float32; None where the scale is of another type, or fits no axis."""
    if scale.dtype != np.float32 or scale.ndim > 1 or q.dtype.kind not in "iu":
        return None
    shape = [1] * q.ndim
    if scale.size > 1:
        if not -q.ndim <= axis < q.ndim or q.shape[axis] != scale.size:
            return None
        shape[axis] = -1
    wide = q.astype(np.int64)
    if zero is not None:
        wide = wide - zero.astype(np.int64).reshape(shape if zero.size > 1 else [1] * q.ndim)
    return (wide.astype(np.float32) * scale.reshape(shape if scale.size > 1 else [1] * q.ndim)).astype(np.float32)


def relax(model: onnx.ModelProto, lifted: Lifted) -> None:
    """Lets ops read the biases of 32 bits as float32, in place: what rounded them goes. Zero points are written out."""
    given = dict[str, str]()
    kept = []
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in lifted.biases:
            given[node.output[0]] = lifted.biases[node.input[0]]
            continue
        if node.name.startswith(MARK) and _of_bias(node, lifted):
            continue
        if node.op_type == "DequantizeLinear" and node.input[0] in lifted.weights and len(node.input) < 3:
            node.input.append(f"{node.input[0]}.zero")
        kept.append(node)
    for node in kept:
        node.input[:] = [given.get(name, name) for name in node.input]
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _of_bias(node: onnx.NodeProto, lifted: Lifted) -> bool:
    return any(name.removesuffix(".divided").removesuffix(".rounded") in lifted.biases for name in node.output)


def straight(nodes: Iterable[onnx.NodeProto], known: Mapping[str, Array]) -> set[str]:
    """The integer values that a gradient passes: those that come from a QuantizeLinear and go to DequantizeLinear alone, by equal
    scales and zero points. It is the gradient of the real numbers that they stand for."""
    makers, readers = dict[str, onnx.NodeProto](), dict[str, list[onnx.NodeProto]]()
    for node in nodes:
        if node.op_type == "QuantizeLinear":
            makers[node.output[0]] = node
        for name in reads(node) & makers.keys():
            readers.setdefault(name, []).append(node)
    return {
        name
        for name, maker in makers.items()
        if name in readers and all(_inverse(maker, node, known) for node in readers[name])
    }


def _inverse(maker: onnx.NodeProto, reader: onnx.NodeProto, known: Mapping[str, Array]) -> bool:
    if reader.op_type != "DequantizeLinear" or reader.input[0] != maker.output[0]:
        return False
    own, other = ([name for name in node.input[1:] if name] for node in (maker, reader))
    views = [Node(node, (), frozenset()) for node in (maker, reader)]
    same = all(
        a == b or (a in known and b in known and np.array_equal(known[a], known[b]))
        for a, b in zip(own, other, strict=False)
    )
    axes = {v.attribute("axis", 1) for v in views}
    per_axis = any(known[name].size > 1 for name in own if name in known)
    return same and len(own) == len(other) and (len(axes) == 1 or not per_axis)


def integer_ops(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that compute in integers, through which nothing trains."""
    return [n.name or n.output[0] for n in model.graph.node if n.op_type in INTEGER_OPS]
