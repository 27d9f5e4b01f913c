"""Activations that nothing but weight gradients read in the backward pass are kept as int8: a quarter of the memory.

    forward   rows of X -> QuantizeColumns -> codes, scale      X is free when the next layers have read it
    backward  MatMulWeightGrad(codes, dY, scale)

The op would round X in the same way when it comes to it. Such are inputs of dense layers after a normalisation, GELU or attention;
after ReLU the activation's own gradient reads them too, and they stay float32.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import onnx
from onnx import helper

from fleetgrad.edge.autodiff.graph import DOMAIN
from fleetgrad.edge.autodiff.passes.graph import Graph
from fleetgrad.edge.autodiff.registry import reads

VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}  # their outputs lie where their inputs do
MOVES = VIEWS | {"Transpose"}
TAKERS = {"MatMulWeightGrad", "ConvWeightGrad"}


def narrow(graph: Graph) -> Graph:
    """Rounds what is kept for weight gradients alone, where the graph is to be so."""
    if not graph.narrow:
        return graph
    nodes, backward = graph.nodes, graph.backward
    late = [bool(backward.intersection(node.output)) for node in nodes]
    moves = _moves(graph, late)
    makers = {name: i for i, node in enumerate(nodes) for name in node.output}
    roots = dict[str, str]()
    for node in nodes:
        if not node.domain and node.op_type in VIEWS:
            roots[node.output[0]] = roots.get(node.input[0], node.input[0])
    whole = set(graph.goals)  # what is kept in any case
    for i, node in enumerate(nodes):
        if late[i] and i not in moves:
            others = reads(node) - ({node.input[0]} if _takes(node) else set())
            whole.update(roots.get(name, name) for name in others)

    found, inserted, rounded = list(nodes), defaultdict[int, list[onnx.NodeProto]](list), set[str]()
    moved = set[int]()
    for i, node in enumerate(nodes):
        if not (late[i] and _takes(node)):
            continue
        x = source = node.input[0]
        chain = list[int]()
        while (at := makers.get(source)) in moves:
            chain.insert(0, at)
            source = nodes[at].input[0]
        root = roots.get(source, source)
        if root in whole or root not in makers or late[makers[root]]:
            continue
        codes, scale = f"{x}.codes", f"{x}.scale"
        if x not in rounded:
            rounded.add(x)
            inserted[makers[source]] += [nodes[at] for at in chain if at not in moved]
            inserted[makers[source]].append(
                helper.make_node("QuantizeColumns", [x], [codes, scale], codes, domain=DOMAIN)
            )
            moved.update(chain)
        found[i] = onnx.NodeProto()
        found[i].CopyFrom(node)
        found[i].input[:] = [codes, node.input[1], scale]
    there = ([] if i in moved else [node] for i, node in enumerate(found))
    return replace(graph, nodes=tuple(n for i, own in enumerate(there) for n in (*own, *inserted[i])))


def _takes(node: onnx.NodeProto) -> bool:
    return node.domain == DOMAIN and node.op_type in TAKERS and len(node.input) == 2 and len(node.output) == 1


def _moves(graph: Graph, late: Sequence[bool]) -> set[int]:
    """The backward nodes that do nothing but bring X to the form that a weight gradient takes it in."""
    users = defaultdict[str, list[tuple[int, int]]](list)
    for i, node in enumerate(graph.nodes):
        for k, name in enumerate(node.input):
            users[name].append((i, k))
    found, held = set[int](), graph.held
    for i, node in reversed(list(enumerate(graph.nodes))):
        movable = late[i] and not node.domain and node.op_type in MOVES and node.output[0] not in held
        taken = (k == 0 and (user in found or _takes(graph.nodes[user])) for user, k in users[node.output[0]])
        if movable and all(name in graph.constants for name in node.input[1:]) and all(taken):
            found.add(i)
    return found
