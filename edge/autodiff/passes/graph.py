"""The graph that passes change: nodes in topological order, constants beside them, and what must come out under its name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import onnx

from fleetgrad.edge.autodiff.graph import Array, Shape
from fleetgrad.edge.autodiff.measuring import RANDOM
from fleetgrad.edge.autodiff.registry import reads, upstream
from fleetgrad.wire import plan


@dataclass(frozen=True, slots=True)
class Graph:
    """`shapes` and `known` say of some values what they are for any input: their shape (-k is k times the batch), their value.

    `narrow` and `repeat` say what the passes of these names may do for memory.
    """

    nodes: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, onnx.TensorProto]
    goals: frozenset[str]
    shapes: Mapping[str, Shape]
    known: Mapping[str, Array]
    narrow: bool = False
    repeat: bool = False

    @property
    def held(self) -> set[str]:
        """Values that keep their names: goals, and what subgraphs read."""
        return set(self.goals).union(*(reads(n) - set(n.input) for n in self.nodes))

    @property
    def backward(self) -> set[str]:
        """Values of the backward pass: what the loss isn't made of."""
        early = upstream(self.nodes, [plan.LOSS])
        return {name for n in self.nodes if not early.intersection(n.output) for name in n.output if name}


Pass = Callable[[Graph], Graph]


def alive(graph: Graph) -> Graph:
    """Without the nodes and constants that no goal depends on."""
    used = upstream(graph.nodes, graph.goals)
    return replace(
        graph,
        nodes=tuple(n for n in graph.nodes if used.intersection(n.output)),
        constants={name: t for name, t in graph.constants.items() if name in used},
    )


def plain(node: onnx.NodeProto) -> bool:
    """Whether a node makes the same of the same inputs, and says all that it does by its inputs and attributes."""
    inner = any(a.HasField("g") or a.graphs for a in node.attribute)
    return not inner and not node.op_type.startswith(RANDOM)


def renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """The node with other names for values that it reads or makes."""
    if not any(name in names for name in (*node.input, *node.output)):
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    return copy
