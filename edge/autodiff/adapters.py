"""Low-rank adapters (LoRA): two small factors that train beside a weight that doesn't.

    y = x W + s (x A) B        MatMul, Gemm: W [in, out], A [in, r], B [r, out], or all of them transposed
    y = W * x + s B * (A * x)  Conv: A has W's kernel, stride and padding and r channels, B is of 1 x 1

with s = alpha / r; for kernels of more than one tap computed as the same (W + s B A) * x, which is faster. A is normal with variance 1 / (3 in), B zero, so that the model starts as it was. Hu et al., "LoRA: low-rank
adaptation of large language models" (2021, arXiv:2106.09685); for convolutions as in the authors' loralib. In use W + s A B is
one weight again (prologue.py).
"""

import dataclasses
import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fleetgrad.edge.autodiff import prologue
from fleetgrad.edge.autodiff.errors import ModelError
from fleetgrad.edge.autodiff.front import Model
from fleetgrad.edge.autodiff.graph import Array, Node, Shape
from fleetgrad.edge.autodiff.registry import reads
from fleetgrad.wire.choice import Lora, matches
from fleetgrad.wire.plan import Adapter

BASE, A, B = ".base", ".lora_A", ".lora_B"  # follow the weight's name in those of the plan's tensors
PARTS = ".lora_"  # follows the names of all other values that an adapter brings
MOST_RANK = 1024
SHOWN = 4  # names in a message


@dataclass(frozen=True, slots=True)
class Place:
    """Where an adapter stands: the node beside it, how the weight lies, and whether it comes through a Transpose."""

    node: onnx.NodeProto
    order: Literal["ab", "ba"]
    turned: bool


def insert(
    model: Model, lora: Lora, possible: Collection[str], apart: Collection[str]
) -> tuple[Model, tuple[Adapter, ...], list[str]]:
    """The model with an adapter beside each weight that `lora` names, the adapters, and notes of weights that take none.

    `possible` are the weights that the loss depends on, `apart` those that are to get none whatever their names. Raises
    ModelError for settings out of bounds, and where a glob names no weight that takes one, with the reasons.
    """
    if not 1 <= lora.rank <= MOST_RANK:
        raise ModelError(f"LoRA rank {lora.rank}: from 1 to {MOST_RANK} is possible")
    if lora.alpha is not None and not 0 < lora.alpha < math.inf:
        raise ModelError(f"LoRA alpha {lora.alpha:g}: above 0 and finite is possible")
    places, refused = dict[str, Place](), dict[str, str]()
    for name in model.weights:
        if name in apart or not matches(name, lora.globs):
            continue
        found = _place(model, name, lora.rank) if name in possible else "no gradient of the loss comes to it"
        if isinstance(found, Place):
            places[name] = found
        else:
            refused[name] = found
    for glob in lora.globs:
        if not any(matches(name, [glob]) for name in [*places, *apart]):
            reasons = "".join(f"\n  {name!r}: {why}" for name, why in refused.items() if matches(name, [glob]))
            known = f"(it has: {', '.join(sorted(model.weights)) or 'none'})"
            raise ModelError(f"--lora {glob!r}: no weight of the model takes an adapter {reasons or known}")
    if not places:
        raise ModelError("--lora: every weight that it names is trained as a whole or left alone")
    _refuse_taken(model, places)
    for name, place in places.items():
        model = _adapted(model, name, place, lora)
    adapters = tuple(
        Adapter(base=n + BASE, a=n + A, b=n + B, scale=lora.scale, order=p.order) for n, p in places.items()
    )
    return model, adapters, _notes(refused)


def _refuse_taken(model: Model, places: Mapping[str, Place]) -> None:
    """Raises ModelError where a value of the model has a name that a part of an adapter would have."""
    taken = {t.name for t in (*model.source.graph.initializer, *model.constants)} | model.shapes.keys()
    for name, place in places.items():
        for own in (name, place.node.output[0]):
            if found := next((x for x in sorted(taken) if x == own + BASE or x.startswith(own + PARTS)), None):
                raise ModelError(
                    f"--lora: the adapter beside {name!r} needs the name {found!r}, which is taken: rename it"
                )


def _notes(refused: Mapping[str, str]) -> list[str]:
    found = []
    for why in dict.fromkeys(refused.values()):
        names = [repr(name) for name, other in refused.items() if other == why]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        found.append(f"no adapter beside {', '.join(names[:SHOWN])}{more}: {why}")
    return found


def _place(model: Model, weight: str, rank: int) -> Place | str:
    """Where the weight's adapter stands, or why there is none."""
    shape = model.weights[weight].shape
    if len(shape) < 2:
        return "a vector has no factors"
    value, turned = weight, False
    node = _reader(model, value)
    if node is not None and node.op_type == "Transpose" and _attribute(node, "perm", [1, 0]) == [1, 0]:
        value, turned = node.output[0], True
        node = _reader(model, value)
    if node is None:
        return "it is tied: several places read it, and no one adapter can stand beside them all"
    right = list(node.input).index(value) == 1 if value in node.input else False
    order: Literal["ab", "ba"]
    if node.op_type in {"MatMul", "Gemm"} and right and len(shape) == 2:
        order = "ba" if turned != bool(_attribute(node, "transB", 0)) else "ab"
    elif node.op_type == "Conv" and right and not turned:
        if (groups := _attribute(node, "group", 1)) != 1:
            return f"its convolution has {groups} groups, and factors would join them"
        order = "ba"
    else:
        return f"{node.op_type} reads it: an adapter stands beside the right matrix of a MatMul or Gemm, or the kernel of a Conv"
    size = math.prod(shape)
    if (low := rank * (shape[0] + size // shape[0])) >= size:
        return f"factors of rank {rank} would have no fewer numbers than it has ({low:,} and {size:,})"
    return Place(node, order, turned)


def _reader(model: Model, value: str) -> onnx.NodeProto | None:
    """The one node that reads a value, once; None where there are more. torch's newer exporter also asks for weights' shapes."""
    found = [node for node in model.nodes if value in reads(node) and node.op_type not in {"Shape", "Size"}]
    return found[0] if len(found) == 1 and list(found[0].input).count(value) == 1 else None


def _adapted(model: Model, weight: str, place: Place, lora: Lora) -> Model:
    """The model with one adapter, and its base under another name."""
    base, shape = model.weights[weight], model.weights[weight].shape
    inputs = shape[0] if place.order == "ab" else math.prod(shape[1:])
    # Each weight has a stream of its own, so that an adapter is the same whichever others there are.
    random = np.random.Generator(np.random.PCG64([lora.seed, zlib.crc32(weight.encode())]))
    sizes = {
        "ab": ((shape[0], lora.rank), (lora.rank, shape[-1])),
        "ba": ((lora.rank, *shape[1:]), (shape[0], lora.rank, *(1 for _ in shape[2:]))),
    }
    a_size, b_size = sizes[place.order]
    a = (random.standard_normal(a_size) / math.sqrt(3 * inputs)).astype(np.float32)
    tensors = {weight + BASE: base, weight + A: a, weight + B: np.zeros(b_size, np.float32)}
    source = onnx.ModelProto()
    source.CopyFrom(model.source)
    prologue.replace(source, weight, tensors, _merging(weight, shape, place.order, lora))

    weights = dict[str, Array]()
    for name, value in model.weights.items():
        weights |= tensors if name == weight else {name: value}
    nodes, constants = list[onnx.NodeProto](), list(model.constants)
    if place.node.op_type == "Conv" and math.prod(shape[2:]) > 1:
        # Two windows would pass over x, each for few channels; the sum's gradient comes from one.
        nodes, shapes = (
            [*_merging(weight, shape, place.order, lora), *model.nodes],
            _merging_shapes(weight, shape, lora),
        )
    else:
        extra, shapes = _beside(model, place, weight, lora)
        constants.append(numpy_helper.from_array(_scale(lora), weight + ".lora_scale"))
        for node in model.nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [weight + BASE if name == weight else name for name in node.input]
            nodes.append(copy)
            if node.output[0] == place.node.output[0]:
                copy.output[0] += BASE
                nodes += extra
    shapes |= {name: value.shape for name, value in tensors.items()}
    return dataclasses.replace(
        model,
        source=source,
        nodes=tuple(nodes),
        weights=weights,
        constants=tuple(constants),
        shapes={**model.shapes, **shapes},
        floats=model.floats | shapes.keys(),
    )


def _beside(model: Model, place: Place, weight: str, lora: Lora) -> tuple[list[onnx.NodeProto], dict[str, Shape]]:
    """The nodes of an adapter, which end in the output of the node that it stands beside, and the shapes of their values."""
    node, y = place.node, str(place.node.output[0])
    x, a, b, base = node.input[0], weight + A, weight + B, y + BASE
    low, scaled, high = (f"{y}.lora_{part}" for part in ("low", "scaled", "high"))
    full = model.shapes[y]
    if node.op_type == "Gemm":
        flipped = int(place.order == "ba")
        scale = lora.scale * _attribute(node, "alpha", 1.0)
        nodes = [
            helper.make_node("Gemm", [x, a], [low], name=low, transA=_attribute(node, "transA", 0), transB=flipped),
            helper.make_node("Gemm", [low, b, base], [y], name=f"{y}.lora", alpha=scale, transB=flipped),
        ]
        return nodes, {low: (full[0], lora.rank), base: full}
    thin: Shape
    nodes, shapes = [], dict[str, Shape]()
    if node.op_type == "Conv":
        thin = (full[0], lora.rank, *full[2:])
        first = onnx.NodeProto()
        first.CopyFrom(node)
        first.name, first.input[:], first.output[:] = low, [x, a], [low]
        second = helper.make_node("Conv", [scaled, b], [high], name=high, kernel_shape=[1 for _ in full[2:]])
    else:
        thin = (*full[:-1], lora.rank)
        if place.turned:
            for name in (a, b):
                nodes.append(helper.make_node("Transpose", [name], [f"{name}.T"], name=f"{name}.T", perm=[1, 0]))
            shapes = {f"{a}.T": (*model.weights[weight].shape[1:], lora.rank), f"{b}.T": (lora.rank, full[-1])}
            a, b = f"{a}.T", f"{b}.T"
        first = helper.make_node("MatMul", [x, a], [low], name=low)
        second = helper.make_node("MatMul", [scaled, b], [high], name=high)
    nodes += [
        first,
        helper.make_node("Mul", [low, weight + ".lora_scale"], [scaled], name=scaled),
        second,
        helper.make_node("Add", [base, high], [y], name=f"{y}.lora"),
    ]
    return nodes, {**shapes, low: thin, scaled: thin, high: full, base: full}


def _merging(weight: str, shape: Shape, order: str, lora: Lora) -> Sequence[onnx.NodeProto]:
    """The prologue that computes the weight: base + s A B, or base + s B A."""
    left, right = (weight + A, weight + B) if order == "ab" else (weight + B, weight + A)
    nodes, product = [], f"{weight}.lora_product"
    if len(shape) > 2:
        for name, size in ((left, (shape[0], lora.rank)), (right, (lora.rank, -1))):
            nodes.append(prologue.constant(np.array(size), f"{name}.size"))
            nodes.append(prologue.node("Reshape", [name, f"{name}.size"], f"{name}.matrix"))
        left, right = f"{left}.matrix", f"{right}.matrix"
    nodes.append(prologue.node("MatMul", [left, right], product))
    if len(shape) > 2:
        nodes.append(prologue.constant(np.array(shape), f"{product}.size"))
        nodes.append(prologue.node("Reshape", [product, f"{product}.size"], f"{product}.kernel"))
        product = f"{product}.kernel"
    nodes.append(prologue.constant(_scale(lora), f"{weight}.lora_scale"))
    nodes.append(prologue.node("Mul", [product, f"{weight}.lora_scale"], f"{weight}.lora_change"))
    nodes.append(prologue.node("Add", [weight + BASE, f"{weight}.lora_change"], weight))
    return nodes


def _merging_shapes(weight: str, shape: Shape, lora: Lora) -> dict[str, Shape]:
    """The shapes of what a kernel's prologue computes, its constants but for float32 ones left out."""
    inputs = math.prod(shape[1:])
    return {
        f"{weight}{B}.matrix": (shape[0], lora.rank), f"{weight}{A}.matrix": (lora.rank, inputs),
        f"{weight}.lora_product": (shape[0], inputs), f"{weight}.lora_product.kernel": shape,
        f"{weight}.lora_scale": (), f"{weight}.lora_change": shape, weight: shape,
    }  # fmt: skip


def _scale(lora: Lora) -> Array:
    return np.array(lora.scale, np.float32)


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return Node(node, (), frozenset()).attribute(name, default)
