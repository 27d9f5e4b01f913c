"""Builds ONNX nodes: the one place where names, constants and shapes with a symbolic batch are made.

A shape is a tuple of integers in which -k stands for k times the batch N, as in (-1, 16, 8, 8). So a shape with one
such dimension is at the same time a valid constant for Reshape.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from fleetgrad.edge.autodiff.errors import Unsupported, first_line

OPSET = 21  # of every graph that leaves this room
IR_VERSION = 10  # the first that carries opset 21
DOMAIN, DOMAIN_VERSION = "fleetgrad", 1
MARK = "fleetgrad.prologue"  # begins the names of nodes that compute weights (prologue.py)

Shape = tuple[int, ...]
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Node:
    """A forward node as a rule sees it: names, attributes, which gradients are asked for, and values that hold trained weights."""

    proto: onnx.NodeProto
    needs: tuple[bool, ...]
    weights: frozenset[str]

    @property
    def x(self) -> list[str]:
        """Names of the inputs; '' where an optional one is left out."""
        return list(self.proto.input)

    @property
    def y(self) -> list[str]:
        """Names of the outputs."""
        return list(self.proto.output)

    def need(self, i: int) -> bool:
        """Whether the gradient with respect to input i is asked for."""
        return i < len(self.needs) and self.needs[i]

    def attribute(self, name: str, default: Any) -> Any:
        """The value of an attribute, text decoded; `default` when the node doesn't set it."""
        for a in self.proto.attribute:
            if a.name == name:
                value = helper.get_attribute_value(a)
                return value.decode() if isinstance(value, bytes) else value
        return default


class Builder:
    """Collects nodes and constants of a gradient graph.

    `shapes` are the forward values' shapes, `taken` names that exist already, `dtype` the float type of constants, `int8`
    whether weight gradients go through the custom ops of the domain `fleetgrad`, `native` whether its other ops may be
    used, `elementary` whether batch normalisation in training is written out, and `known` has the forward values that are the same for any input: constants, and what is computed from them.
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        taken: Iterable[str],
        dtype: type = np.float32,
        int8: bool = False,
        known: Mapping[str, Array] = MappingProxyType({}),
        native: bool = False,
        elementary: bool = False,
    ) -> None:
        self.shapes = shapes
        self.known = known
        self.dtype = dtype
        self.int8 = int8
        self.native = native
        self.elementary = elementary
        self.replaced: dict[tuple[str, ...], list[onnx.NodeProto]] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[str, Shape, bytes], onnx.TensorProto] = {}
        self._taken = set(taken)

    def name(self, stem: str) -> str:
        """A name that nothing else in the graph has."""
        number = len(self._taken)
        while (found := f"fleetgrad.{stem}.{number}") in self._taken:
            number += 1
        self._taken.add(found)
        return found

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Emits a node with one output and returns the output's name."""
        return self.ops(kind, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any) -> list[str]:
        """Emits a node with several outputs and returns their names."""
        names = [self.name(kind) for _ in range(outputs)]
        try:
            node = helper.make_node(kind, list(inputs), names, name=names[0], domain=domain, **attributes)
        except ValueError as e:  # a rule has added to an attribute that is about 2^63
            raise Unsupported(f"its gradient has an attribute that ONNX can't hold: {first_line(e)}") from e
        self.nodes.append(node)
        return names

    def constant(self, value: Any, dtype: type | None = None) -> str:
        """An initializer of the graph's float type (or `dtype`); equal ones are shared."""
        array = np.ascontiguousarray(np.asarray(value, dtype or self.dtype)).reshape(np.shape(value))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, self.name("constant"))
        return str(self.constants[key].name)

    def integers(self, *values: int) -> str:
        """A one-dimensional int64 constant."""
        return self.constant(list(values), np.int64)

    # --- forward nodes that keep what the backward pass needs ---

    @contextmanager
    def instead(self, node: Node) -> Iterator[list[str]]:
        """What is emitted inside takes the forward node's place; the list is to be filled with the values of its outputs."""
        backward, self.nodes = self.nodes, []
        outputs: list[str] = []
        try:
            yield outputs
            for value, name in zip(outputs, node.y, strict=False):
                if name:
                    self.nodes.append(helper.make_node("Identity", [value], [name], name=name))
            self.replaced[tuple(node.y)] = self.nodes
        finally:
            self.nodes = backward

    def forward(self, nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """The forward nodes, with those that rules put in their place."""
        return [own for node in nodes for own in self.replaced.get(tuple(node.output), [node])]

    # --- the few idioms that many rules share ---

    def fixed(self, x: str, what: str) -> Array:
        """The value of an input that must be known when the plan is compiled, such as pads; raises Unsupported."""
        if x not in self.known:
            raise Unsupported(f"its {what} depend on data, weights or the batch")
        return self.known[x]

    def zeros(self, like: str) -> str:
        """Zeros in the shape of a value."""
        return self.filled(self.op("Shape", like))

    def filled(self, shape: str) -> str:
        """Zeros in a shape that is a value."""
        return self.op("ConstantOfShape", shape, value=numpy_helper.from_array(np.zeros(1, self.dtype)))

    def reshape(self, x: str, shape: Shape, like: str = "") -> str:
        """x in another shape; with more than one batch dimension the shape is taken from the value `like`."""
        if sum(d < 0 for d in shape) > 1:
            return self.op("Reshape", x, self.op("Shape", like))
        return self.op("Reshape", x, self.integers(*(-1 if d < 0 else d for d in shape)))

    def flatten(self, x: str, columns: int) -> str:
        """x as a matrix [-1, columns]."""
        return self.reshape(x, (-1, columns))

    def as_float(self, x: str) -> str:
        """x, a boolean as a rule, in the graph's float type: a mask to multiply by, which Where takes 20 times as long as."""
        return self.op("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)))

    def total(self, x: str, *axes: int, keep: bool = False) -> str:
        """The sum over axes, which go unless `keep`."""
        return self.op("ReduceSum", x, self.integers(*axes), keepdims=int(keep))

    def sum_to(self, x: str, shape: Shape, like: str) -> str:
        """Undoes broadcasting: sums x, which has shape `shape`, to the shape of the forward value `like`."""
        goal = self.shapes[like]
        lead = len(shape) - len(goal)
        axes = [i for i in range(len(shape)) if i < lead or (goal[i - lead] == 1 and shape[i] != 1)]
        if not axes:
            return x
        if axes == list(range(lead)):
            return self.total(x, *axes)
        x = self.total(x, *axes, keep=True)
        return self.reshape(x, goal, like) if lead else x

    def slice(self, x: str, starts: list[int], stops: list[int], axes: list[int], steps: list[int]) -> str:
        """x[start:stop:step] along axes."""
        return self.op(
            "Slice", x, self.integers(*starts), self.integers(*stops), self.integers(*axes), self.integers(*steps)
        )

    def pad(
        self, x: str, rank: int, before: Sequence[int], after: Sequence[int], axes: Sequence[int], value: float = 0.0
    ) -> str:
        """x [of `rank` dimensions] with a value around it along axes; negative numbers cut.

        Pads of all axes are written: moving a transpose past a Pad, onnxruntime 1.32 forgets that it has a list of axes.
        """
        pads = [0] * (2 * rank)
        for axis, first, last in zip(axes, before, after, strict=True):
            pads[axis], pads[rank + axis] = first, last
        return self.op("Pad", x, self.integers(*pads), self.constant(value)) if any(pads) else x

    def weight_gradient(self, x: str, dy: str, of: str, node: Node) -> str:
        """x^T dy for matrices x [K, M] and dy [K, N]; in int8 when `of` is a weight and the plan says so."""
        if self.int8 and of in node.weights:
            return self.op("MatMulWeightGrad", x, dy, domain=DOMAIN)
        return self.op("Gemm", x, dy, transA=1)
