"""Common subexpressions: of nodes that do the same with the same inputs one is kept, and one of constants that are equal."""

from dataclasses import replace

import onnx

from fleetgrad.edge.autodiff.passes.graph import Graph, plain, renamed

MOST_BYTES = 1 << 12  # of constants that are compared: larger ones are weights, each kept by its name


def share(graph: Graph) -> Graph:
    """Lets readers of a value read an equal one that was there before."""
    held, names = graph.held, dict[str, str]()
    constants, first = dict[str, onnx.TensorProto](), dict[bytes, str]()
    for name, tensor in graph.constants.items():
        if name not in held and tensor.ByteSize() <= MOST_BYTES:
            unnamed = onnx.TensorProto()
            unnamed.CopyFrom(tensor)
            unnamed.name = ""
            same = first.setdefault(unnamed.SerializeToString(deterministic=True), name)
            if same != name:
                names[name] = same
                continue
        constants[name] = tensor
    kept, made = list[onnx.NodeProto](), dict[tuple[object, ...], onnx.NodeProto]()
    for original in graph.nodes:
        node = renamed(original, names)
        if plain(node):
            attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
            key = (node.domain, node.op_type, *node.input, *attributes, *(bool(name) for name in node.output))
            twin = made.setdefault(key, node)
            if twin is not node and not held.intersection(node.output):
                names.update((a, b) for a, b in zip(node.output, twin.output, strict=True) if a)
                continue
        kept.append(node)
    return replace(graph, nodes=tuple(kept), constants=constants)
