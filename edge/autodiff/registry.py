"""The table of VJP rules, and the reverse pass that applies it.

A rule turns gradients of a node's outputs into gradients of its inputs:

    @vjp("Identity")
    def identity(g, node, dy):
        return [dy]

`g` emits nodes and knows shapes, `node` has names and attributes, `dy` is the name of dL/dY (one argument per output; None
where nothing flows). The answer has one entry per input: the name of dL/dX in X's own shape, or None where
`node.need(i)` is false. A rule that meets a variant it can't do raises `Unsupported(reason)`.

`flat("Floor")` says that an op's derivative is zero wherever it has one: nothing flows through such a node, as through
one whose output isn't float, and a weight that reaches the loss only so is no trainable weight.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import onnx

from fleetgrad.edge.autodiff.errors import Unsupported
from fleetgrad.edge.autodiff.graph import MARK, Builder, Node

Gradients = Sequence[str | None]
Rule = Callable[..., Gradients]
RULES: dict[str, tuple[int, Rule]] = {}
STILL: dict[str, frozenset[int]] = {}
FLAT: set[str] = set()
MOVING = {
    "Identity",
    "Transpose",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Split",
    "Slice",
    "QuantizeLinear",
    "DequantizeLinear",
}  # entries stay as they are, but for rounding


def flat(*ops: str) -> None:
    """Registers ops of the default domain that are constant wherever they are smooth."""
    FLAT.update(ops)


def vjp(op: str, since: int = 1, still: Iterable[int] = ()) -> Callable[[Rule], Rule]:
    """Registers the rule of an op of the default domain, valid from opset `since` on.

    `still` are inputs that no gradient is for, such as running statistics: a weight there isn't trained.
    """

    def register(rule: Rule) -> Rule:
        if op in RULES:
            raise ValueError(f"{op} has two rules")
        RULES[op] = (since, rule)
        STILL[op] = frozenset(still)
        return rule

    return register


def rule_of(node: onnx.NodeProto, opset: int) -> Rule:
    """The rule for a node; raises Unsupported when there is none."""
    if any(a.HasField("g") or a.graphs for a in node.attribute):
        raise Unsupported("has a subgraph")
    if node.domain not in {"", "ai.onnx"}:
        raise Unsupported(f"op of the foreign domain {node.domain!r}")
    if node.op_type not in RULES:
        raise Unsupported("no gradient rule for this op")
    since, rule = RULES[node.op_type]
    if opset < since:
        raise Unsupported(f"the rule is for opset {since} and later, the model has {opset}")
    return rule


def reads(node: onnx.NodeProto) -> set[str]:
    """Names of the values that a node uses, those included that its subgraphs take from outside."""
    found = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs] if attribute.HasField("g") or attribute.graphs else []:
            for inner in graph.node:
                found |= reads(inner)
            found.update(value.name for value in graph.output)
    return found


def downstream(nodes: Iterable[onnx.NodeProto], sources: Iterable[str], floats: Collection[str]) -> set[str]:
    """The float values that depend on `sources` through float values and ops that aren't flat (and the sources)."""
    found = set(sources)
    for node in nodes:
        if not _is_flat(node) and found & _moving(node):
            found.update(name for name in node.output if name in floats)
    return found


def _still(node: onnx.NodeProto) -> frozenset[int]:
    return STILL.get(node.op_type, frozenset()) if node.domain in {"", "ai.onnx"} else frozenset()


def _moving(node: onnx.NodeProto) -> set[str]:
    """What a node reads without its still inputs."""
    still = _still(node)
    return {name for i, name in enumerate(node.input) if name and i not in still} if still else reads(node)


def _needs(node: onnx.NodeProto, live: Collection[str]) -> tuple[bool, ...]:
    still = _still(node)
    return tuple(name in live and i not in still for i, name in enumerate(node.input))


def _is_flat(node: onnx.NodeProto) -> bool:
    return node.domain in {"", "ai.onnx"} and node.op_type in FLAT


def carrying(nodes: Sequence[onnx.NodeProto], weights: Iterable[str]) -> frozenset[str]:
    """The weights and the values that hold entries of one as they are, such as the transposed weight of a dense layer; and
    kernels that a prologue adds up.
    """
    found = set(weights)
    for node in nodes:
        if node.name.startswith(MARK) and node.op_type in {"Reshape", "Add"}:
            found.update(
                node.output if node.op_type == "Add" else ()
            )  # not the factors: the sum's gradient is int8 already
        elif node.op_type in MOVING and not node.domain and node.input[0] in found:
            found.update(node.output)
    return frozenset(found)


def sums(nodes: Sequence[onnx.NodeProto], goal: str) -> frozenset[str]:
    """The values that make up `goal`, but for biases, factors and the order of entries: what the last layers give."""
    found = {goal}
    for node in reversed(nodes):
        if found.intersection(node.output) and not node.domain and node.op_type in {*MOVING, "Add", "Mul", "Div"}:
            found.update(node.input)
    return frozenset(found)


def upstream(nodes: Sequence[onnx.NodeProto], goals: Iterable[str]) -> set[str]:
    """All values that `goals` depend on (and the goals)."""
    found = set(goals)
    for node in reversed(nodes):
        if found.intersection(node.output):
            found |= reads(node)
    return found


def path(
    nodes: Sequence[onnx.NodeProto], sources: Iterable[str], goals: Iterable[str], floats: Collection[str]
) -> list[onnx.NodeProto]:
    """The nodes between sources and goals: those whose gradient is needed."""
    live, wanted = downstream(nodes, sources, floats), set(goals)
    for node in reversed(nodes):
        if wanted.intersection(node.output) and not _is_flat(node):
            wanted.update(name for name in _moving(node) if name in floats)
    return [n for n in nodes if live & _moving(n) and live.intersection(n.output) & wanted]


def barrier(nodes: Sequence[onnx.NodeProto], source: str, goal: str, floats: Collection[str]) -> onnx.NodeProto | None:
    """The first node from source to goal that no gradient passes; None when the goal doesn't depend on the source."""
    live, wanted = downstream(nodes, [source], floats), upstream(nodes, [goal])
    return next((n for n in nodes if live & reads(n) and wanted.intersection(n.output) - live), None)


def differentiate(
    nodes: Sequence[onnx.NodeProto],
    seeds: Mapping[str, str],
    wanted: Sequence[str],
    floats: Collection[str],
    g: Builder,
    opset: int,
    exact: Collection[str] = (),
) -> dict[str, str]:
    """Emits the gradients of `wanted` into g, given the gradients `seeds` of some values.

    `nodes` are in topological order. Weights whose node gives a value of `exact` get no int8 gradients. Nothing is computed for values that don't depend on `wanted`. A wanted value that
    no seed depends on is missing from the answer.
    """
    live, weights = downstream(nodes, wanted, floats), carrying(nodes, wanted)
    parts: dict[str, list[str]] = {name: [seed] for name, seed in seeds.items()}

    def gathered(name: str) -> str | None:
        found = parts.get(name, [])
        if len(found) > 1:
            parts[name] = [g.op("Sum", *found)]
        return parts[name][0] if found else None

    for proto in reversed(nodes):
        needs = _needs(proto, live)
        if not any(needs) or _is_flat(proto) or not any(name in parts for name in proto.output):
            continue
        dys = [gathered(name) for name in proto.output]
        rounded = frozenset() if set(exact).intersection(proto.output) else weights
        gradients = rule_of(proto, opset)(g, Node(proto, needs, rounded), *dys)
        for name, gradient in zip(proto.input, gradients, strict=False):
            if gradient is not None and name in live:
                parts.setdefault(name, []).append(gradient)
    return {name: found for name in wanted if (found := gathered(name)) is not None}


def reached(
    nodes: Sequence[onnx.NodeProto],
    goal: str,
    wanted: Sequence[str],
    floats: Collection[str],
    g: Builder,
    opset: int,
) -> list[str]:
    """Those of `wanted` that a gradient of `goal` comes to, past every rule that gives None; g is for throwing away."""
    found = differentiate(nodes, {goal: "dy"}, wanted, floats, g, opset)
    return [name for name in wanted if name in found]


def objections(
    nodes: Sequence[onnx.NodeProto],
    sources: Collection[str],
    g: Callable[[], Builder],
    floats: Collection[str],
    opset: int,
) -> list[tuple[onnx.NodeProto, str]]:
    """The nodes that can't be differentiated, with the reason: each rule is tried on a builder that is thrown away."""
    weights = carrying(nodes, sources)
    live = downstream(nodes, sources, floats)
    used = {name for proto in nodes for name in reads(proto)}
    found = []
    for proto in nodes:
        dys = ["dy" if name in used else None for name in proto.output]
        try:
            rule = rule_of(proto, opset)
            rule(g(), Node(proto, _needs(proto, live), weights), *(dys if any(dys) else ("dy" for _ in dys)))
        except Unsupported as e:
            found.append((proto, str(e)))
    return found
