"""VJP rules of the ops that only move numbers: the gradient is moved back.

What an op cut off gets zeros (Slice, Split), what it repeated is summed (Expand, Tile, Pad).
"""

import itertools

import numpy as np

from fleetgrad.edge.autodiff.errors import Unsupported
from fleetgrad.edge.autodiff.graph import Array, Builder, Node, Shape
from fleetgrad.edge.autodiff.registry import Gradients, vjp
from fleetgrad.edge.autodiff.rules.indexing import scatter_axis


@vjp("Identity")
def identity(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy."""
    return [dy]


def reshaped(g: Builder, node: Node, dy: str) -> Gradients:
    """dx is dy in x's shape."""
    return [g.reshape(dy, g.shapes[node.x[0]], node.x[0])]


for _op, _since in (("Reshape", 5), ("Flatten", 1), ("Squeeze", 1), ("Unsqueeze", 1)):
    vjp(_op, since=_since)(reshaped)


@vjp("Transpose")
def transpose(g: Builder, node: Node, dy: str) -> Gradients:
    """dx is dy under the inverse permutation; the default permutation reverses the axes."""
    rank = len(g.shapes[node.x[0]])
    order = node.attribute("perm", list(range(rank))[::-1])
    return [g.op("Transpose", dy, perm=[int(i) for i in np.argsort(order)])]


@vjp("DepthToSpace", since=11)
def depth_to_space(g: Builder, node: Node, dy: str) -> Gradients:
    """dx is SpaceToDepth of dy, the inverse of mode DCR; in CRD the channel comes before the place in the block."""
    size = node.attribute("blocksize", 1)
    if node.attribute("mode", "DCR") == "DCR":
        return [g.op("SpaceToDepth", dy, blocksize=size)]
    _, c, h, w = g.shapes[node.x[0]]
    if min(c, h, w) < 1:
        raise Unsupported(f"in mode CRD it needs sizes that are fixed, has {(c, h, w)}")
    blocks = g.reshape(g.op("SpaceToDepth", dy, blocksize=size), (-1, size * size, c // size**2, h, w))
    return [g.reshape(g.op("Transpose", blocks, perm=[0, 2, 1, 3, 4]), (-1, c, h, w))]


@vjp("SpaceToDepth")
def space_to_depth(g: Builder, node: Node, dy: str) -> Gradients:
    """dx is DepthToSpace of dy."""
    return [g.op("DepthToSpace", dy, blocksize=node.attribute("blocksize", 1), mode="DCR")]


@vjp("Trilu", since=14)
def trilu(g: Builder, node: Node, dy: str) -> Gradients:
    """dx is the same triangle of dy."""
    return [g.op("Trilu", dy, *node.x[1:], upper=node.attribute("upper", 1)), None]


@vjp("ReverseSequence", since=10)
def reverse_sequence(g: Builder, node: Node, dy: str) -> Gradients:
    """The op is its own inverse."""
    how = {k: node.attribute(k, default) for k, default in (("batch_axis", 1), ("time_axis", 0))}
    return [g.op("ReverseSequence", dy, node.x[1], **how), None]


@vjp("Expand", since=8)
def expand(g: Builder, node: Node, dy: str) -> Gradients:
    """dx is the sum over what was repeated."""
    return [g.sum_to(dy, g.shapes[node.y[0]], node.x[0]), None]


@vjp("Tile", since=6)
def tile(g: Builder, node: Node, dy: str) -> Gradients:
    """dx is the sum over copies: an axis [r n] seen as [r, n]."""
    before, after = g.shapes[node.x[0]], g.shapes[node.y[0]]
    split: list[int] = []
    copies: list[int] = []
    for n, m in zip(before, after, strict=True):
        if n != m:
            copies.append(len(split))
            split.append(m if n == 1 else m // n if n * m > 0 else -1)
        if n != 1 or m == 1:
            split.append(n)
    if not copies:
        return [dy, None]
    # An axis of one that was repeated has become the axis of its copies.
    return [g.reshape(g.total(_seen(g, dy, tuple(split)), *copies), before, node.x[0]), None]


def _seen(g: Builder, x: str, shape: Shape) -> str:
    if sum(d < 0 for d in shape) > 1:
        raise Unsupported("the batch is in more than one of its dimensions")
    return g.reshape(x, shape)


@vjp("Concat", since=4)
def concat(g: Builder, node: Node, dy: str) -> Gradients:
    """dx_i is its part of dy."""
    axis = node.attribute("axis", 0) % len(g.shapes[node.y[0]])
    parts = g.ops("Split", dy, _sizes(g, node.x, axis), outputs=len(node.x), axis=axis)
    return [part if node.need(i) else None for i, part in enumerate(parts)]


def _sizes(g: Builder, names: list[str], axis: int) -> str:
    sizes = [g.shapes[name][axis] for name in names]
    if min(sizes) >= 0:
        return g.integers(*sizes)
    return g.op("Concat", *(g.op("Shape", name, start=axis, end=axis + 1) for name in names), axis=0)


@vjp("Split", since=2)
def split(g: Builder, node: Node, *dys: str | None) -> Gradients:
    """dx is the parts' gradients in a row, with zeros for parts that have none."""
    axis = node.attribute("axis", 0) % len(g.shapes[node.x[0]])
    sizes = [g.shapes[name][axis] for name in node.y]
    there = [i for i, dy in enumerate(dys) if dy is not None]
    first, last = (there[0], there[-1]) if min(sizes) >= 0 else (0, len(dys) - 1)
    parts = [dys[i] or g.zeros(node.y[i]) for i in range(first, last + 1)]
    dx = parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis=axis)
    return [g.pad(dx, len(g.shapes[node.x[0]]), [sum(sizes[:first])], [sum(sizes[last + 1 :])], [axis]), None]


@vjp("Slice", since=10)
def slice_(g: Builder, node: Node, dy: str) -> Gradients:
    """dx is dy where it was taken from, zeros elsewhere."""
    x, rest = g.shapes[node.x[0]], [None] * (len(node.x) - 1)
    bounds = [name for name in node.x[1:] if name]
    if any(name not in g.known for name in bounds):
        return [_scattered(g, node, dy), *rest]
    starts, stops = (g.known[name].tolist() for name in node.x[1:3])
    optional = [g.known[name].tolist() if name else None for name in [*node.x[3:], "", ""][:2]]
    axes = optional[0] or list(range(len(starts)))
    rank, size = len(x), g.shapes[node.y[0]]
    strides, places, plain = [1] * rank, [0] * rank, list[int]()
    for axis, start, stop, step in zip(axes, starts, stops, optional[1] or [1] * len(starts), strict=True):
        axis %= rank
        if x[axis] < 0:
            if start or stop < np.iinfo(np.int32).max or step != 1:
                return [_scattered(g, node, dy), *rest]
            continue
        taken = sliced(x[axis], start, stop, step)
        if not taken:
            return [g.zeros(node.x[0]), *rest]
        if len(taken) > 1:
            strides[axis] = abs(step)
            dy = _reversed(g, dy, axis) if step < 0 else dy
        places[axis] = min(taken[0], taken[-1])
        plain.append(axis)
    if max(strides) > 1:
        dy = _spread(g, dy, size, strides)
    pads = [places[a] for a in plain], [x[a] - places[a] - size[a] * strides[a] for a in plain]
    dy = g.pad(dy, len(x), *pads, plain)
    return [dy, *rest]


def sliced(n: int, start: int, stop: int, step: int) -> range:
    """The entries of an axis of n that Slice takes. A start before the first one is the first; Python's slices differ."""
    start, stop = (bound + n if bound < 0 else bound for bound in (start, stop))
    least, most = (0, n) if step > 0 else (-1, n - 1)
    return range(min(max(start, 0), most), min(max(stop, least), most), step)


def _spread(g: Builder, x: str, size: Shape, strides: list[int]) -> str:
    """x with strides - 1 zeros behind each entry: repeated and masked, as padding an axis of one takes ten times as long."""
    scales = g.constant(strides, np.float32)
    x = g.op("Resize", x, "", scales, mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric")
    mask = np.ones([1] * len(size))
    for axis, stride in enumerate(strides):
        if stride > 1:
            line = np.arange(size[axis] * stride) % stride == 0
            mask = mask * line.reshape([-1 if a == axis else 1 for a in range(len(size))])
    return g.op("Mul", x, g.constant(mask))


def _reversed(g: Builder, x: str, axis: int) -> str:
    return g.slice(x, [-1], [np.iinfo(np.int64).min], [axis], [-1])


def _scattered(g: Builder, node: Node, dy: str) -> str:
    """Slice for bounds that are computed when the graph runs, or along the batch: axis by axis, by the indices taken."""
    if len(node.x) > 3 and node.x[3]:
        axes = [int(a) for a in g.fixed(node.x[3], "axes")]
    else:
        axes = list(range(g.shapes[node.x[1]][0]))
    rank = len(g.shapes[node.x[0]])
    zero, one = g.constant(0, np.int64), g.constant(1, np.int64)
    sizes = g.op("Shape", node.x[0])
    for i, axis in enumerate(a % rank for a in axes):
        at = g.integers(i)
        every = g.op("Range", zero, g.op("Gather", sizes, g.constant(axis, np.int64)), one)
        bounds = [g.op("Cast", g.op("Gather", b, at), to=7) for b in node.x[1:3]]
        step = [g.op("Cast", g.op("Gather", node.x[4], at), to=7)] if len(node.x) > 4 and node.x[4] else []
        taken = g.op("Slice", every, *bounds, g.integers(0), *step)
        # The axes behind this one are whole again, those before it are still cut.
        goal = g.op("Shape", dy)
        goal = g.op("ScatterElements", goal, g.integers(axis), g.op("Gather", sizes, g.integers(axis)))
        dy = scatter_axis(g, goal, axis, 1, taken, dy, rank)
    return dy


@vjp("Pad", since=11)
def pad(g: Builder, node: Node, dy: str) -> Gradients:
    """Zeros: dx is cut out of dy. Other modes: each run of copies is added where it was copied from."""
    x, rank = g.shapes[node.x[0]], len(g.shapes[node.x[0]])
    mode = node.attribute("mode", "constant")
    rest: list[str | None] = [None] * (len(node.x) - 1)
    axes_name = node.x[3] if len(node.x) > 3 else ""
    if mode == "constant":
        if node.x[1] in g.known and (not axes_name or axes_name in g.known):  # negative pads cut
            axes = [int(a) % rank for a in g.known[axes_name]] if axes_name else list(range(rank))
            inverse = (-g.known[node.x[1]]).tolist()
            dx = g.pad(dy, rank, inverse[: len(axes)], inverse[len(axes) :], axes)
        else:
            dx = g.op("Pad", dy, g.op("Neg", node.x[1]), g.constant(0.0), *([axes_name] if axes_name else []))
        if node.need(2):
            own = g.op("Sub", g.op("ReduceSum", dy, keepdims=0), g.op("ReduceSum", dx, keepdims=0))
            rest[1] = g.reshape(own, g.shapes[node.x[2]])
        return [dx if node.need(0) else None, *rest]
    pads = g.fixed(node.x[1], "pads").tolist()
    axes = [int(a) % rank for a in g.fixed(axes_name, "axes")] if axes_name else list(range(rank))
    for axis, before, after in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        if not before and not after:
            continue
        if x[axis] < 1:
            raise Unsupported(f"pads the batch in mode {mode!r}")
        dy = _runs(g, dy, axis, x, _sources(x[axis], before, after, mode))
    return [dy, *rest]


def _sources(n: int, before: int, after: int, mode: str) -> Array:
    """Which entry of [n] each entry of the padded axis is; what negative pads cut is cut first."""
    kept = np.arange(n)[max(-before, 0) : n - max(-after, 0)]
    return np.pad(kept, (max(before, 0), max(after, 0)), mode)  # type: ignore[call-overload,no-any-return]


def _runs(g: Builder, dy: str, axis: int, x: Shape, sources: Array) -> str:
    """Sums dy over copies. Runs of neighbours whose sources go up or down by one, or stay, cut x into pieces; each piece is
    the sum of what the runs over it give, so that only edges are added and the middle is copied."""
    runs, start = [], 0
    while start < len(sources):
        stop, step = start + 1, 0
        if stop < len(sources) and abs(sources[stop] - sources[start]) <= 1:
            step = int(sources[stop] - sources[start])
            while stop < len(sources) and sources[stop] - sources[stop - 1] == step:
                stop += 1
        low, high = sorted((int(sources[start]), int(sources[stop - 1])))
        runs.append((start, stop, step, low, high + 1))
        start = stop
    edges = sorted({edge for run in runs for edge in run[3:]})
    pieces = []
    for left, right in itertools.pairwise(edges):
        parts = []
        for start, stop, step, low, high in runs:
            if not low <= left < high:
                continue
            if step < 0:
                last = start + high - 1 - right
                bounds = start + high - 1 - left, last if last >= 0 else np.iinfo(np.int64).min
                parts.append(g.slice(dy, [bounds[0]], [bounds[1]], [axis], [-1]))
            elif step > 0 or stop - start == 1:
                parts.append(g.slice(dy, [start + left - low], [start + right - low], [axis], [1]))
            else:
                parts.append(g.total(g.slice(dy, [start], [stop], [axis], [1]), axis, keep=True))
        pieces.append(parts[0] if len(parts) == 1 else g.op("Sum", *parts))
    dx = pieces[0] if len(pieces) == 1 else g.op("Concat", *pieces, axis=axis)
    return g.pad(dx, len(x), [edges[0]], [x[axis] - edges[-1]], [axis])
