"""VJP rules of the ops that take or put entries by index: a gather's gradient is a scatter that adds, and the reverse.

Rows of a table (Gather along its first axis, an embedding) are added by fleetgrad.EmbeddingGrad in an int8 plan, otherwise
by ScatterND, which takes a fortieth of ScatterElements' time. Indices are never differentiated.
"""

import numpy as np

from fleetgrad.edge.autodiff.errors import Unsupported
from fleetgrad.edge.autodiff.graph import DOMAIN, Builder, Node
from fleetgrad.edge.autodiff.registry import Gradients, flat, vjp

INT64 = 7

flat("OneHot", "EyeLike", "RandomNormalLike", "RandomUniformLike")


@vjp("Gather")
def gather(g: Builder, node: Node, dy: str) -> Gradients:
    """dx is zero but for what was taken, which is added up where an index occurs twice."""
    (x, indices), shape = node.x, g.shapes[node.x[0]]
    rank, count = len(shape), len(g.shapes[indices])
    axis = node.attribute("axis", 0) % rank
    n = shape[axis]
    if count == 0 and n > 0 and indices in g.known:
        at = int(g.known[indices]) % n
        dy = g.op("Unsqueeze", dy, g.integers(axis))
        return [g.pad(dy, rank, [at], [n - 1 - at], [axis]), None]
    if axis == 0 and n > 0 and count > 0 and g.native:
        return [g.op("EmbeddingGrad", indices, dy, domain=DOMAIN, vocabulary=n), None]
    return [scatter_axis(g, g.op("Shape", x), axis, count, indices, dy, rank), None]


@vjp("Range", since=11)
def range_(g: Builder, node: Node, dy: str) -> Gradients:
    """y_i = start + i step; the limit only says how many there are."""
    dstart = g.op("ReduceSum", dy, keepdims=0) if node.need(0) else None
    if not node.need(2):
        return [dstart, None, None]
    count = g.op("CastLike", g.op("Size", dy), dy)
    steps = g.op("Range", g.constant(0.0), count, g.constant(1.0))
    return [dstart, None, g.op("ReduceSum", g.op("Mul", dy, steps), keepdims=0)]


def scatter_axis(g: Builder, shape: str, axis: int, count: int, indices: str, dy: str, rank: int) -> str:
    """Zeros of a shape (a value) plus dy, whose `count` dimensions from `axis` on are `indices` of that axis."""
    lead = [*range(axis), *range(axis + 1, rank)]
    if axis:
        taken = range(axis, axis + count)
        others = [i for i in range(rank - 1 + count) if i not in taken]
        dy = g.op("Transpose", dy, perm=[*taken, *others])
        shape = g.op("Gather", shape, g.integers(axis, *lead))
    at = g.op("Unsqueeze", g.op("Cast", indices, to=INT64), g.integers(-1))
    dx = g.op("ScatterND", g.filled(shape), at, dy, reduction="add")
    return g.op("Transpose", dx, perm=[*range(1, axis + 1), 0, *range(axis + 1, rank)]) if axis else dx


@vjp("GatherElements", since=11)
def gather_elements(g: Builder, node: Node, dy: str) -> Gradients:
    """dx is zero but for what was taken, added up."""
    axis = node.attribute("axis", 0) % len(g.shapes[node.x[0]])
    return [g.op("ScatterElements", g.zeros(node.x[0]), node.x[1], dy, axis=axis, reduction="add"), None]


@vjp("GatherND", since=12)
def gather_nd(g: Builder, node: Node, dy: str) -> Gradients:
    """dx is zero but for what was taken, added up; the batch dimensions become indices like the others."""
    x, indices = node.x
    rank = len(g.shapes[indices])
    sizes = g.op("Shape", indices, start=0, end=rank - 1)
    goal = g.op("Concat", sizes, g.integers(1), axis=0)
    parts = []
    for i in range(node.attribute("batch_dims", 0)):
        count = g.op("Gather", sizes, g.constant(i, np.int64))
        own = g.op("Range", g.constant(0, np.int64), count, g.constant(1, np.int64))
        parts.append(g.op("Expand", g.reshape(own, (-1, *[1] * (rank - 1 - i))), goal))
    at = g.op("Concat", *parts, indices, axis=-1) if parts else indices
    return [g.op("ScatterND", g.zeros(x), at, dy, reduction="add"), None]


def _reduction(node: Node) -> str:
    found = str(node.attribute("reduction", "none"))
    if found not in {"none", "add"}:
        raise Unsupported(f"with reduction {found!r} (none and add can be differentiated)")
    return found


@vjp("ScatterElements", since=11)
def scatter_elements(g: Builder, node: Node, dy: str) -> Gradients:
    """The updates' gradient is taken from where they went; under them the data has none, unless they are added."""
    x, indices, updates = node.x
    axis, dx = node.attribute("axis", 0) % len(g.shapes[x]), dy
    if _reduction(node) == "none" and node.need(0):
        dx = g.op("ScatterElements", dy, indices, g.zeros(updates), axis=axis)
    return [
        dx if node.need(0) else None,
        None,
        g.op("GatherElements", dy, indices, axis=axis) if node.need(2) else None,
    ]


@vjp("ScatterND", since=11)
def scatter_nd(g: Builder, node: Node, dy: str) -> Gradients:
    """As ScatterElements."""
    _, indices, updates = node.x
    dx = dy
    if _reduction(node) == "none" and node.need(0):
        dx = g.op("ScatterND", dy, indices, g.zeros(updates))
    return [dx if node.need(0) else None, None, g.op("GatherND", dy, indices) if node.need(2) else None]
