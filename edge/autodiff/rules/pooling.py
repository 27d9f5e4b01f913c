"""VJP rules of pooling. Windows that tile the input are undone by Resize; others go tap by tap through Col2Im.

Equal maxima of a window share its gradient in equal parts, so that its sum is kept (a constant background patch has
several). Indices of MaxPool are never used: that form of the op takes seven times as long.
"""

import math

import numpy as np

from fleetgrad.edge.autodiff.errors import Unsupported
from fleetgrad.edge.autodiff.graph import Builder, Node
from fleetgrad.edge.autodiff.registry import Gradients, vjp
from fleetgrad.edge.autodiff.rules.windows import Windows, windows

LOWEST = -3.0e38  # pads a maximum: below any activation, and finite


@vjp("MaxPool", since=8)
def max_pool(g: Builder, node: Node, dy: str, *indices: str | None) -> Gradients:
    """The gradient goes to the maximum of each window."""
    if indices and node.y[1:] != [""]:
        raise Unsupported("with its second output (Indices)")
    w = windows(g, node, tuple(node.attribute("kernel_shape", [])))
    x, y = node.x[0], node.y[0]
    image = w.fit(g, x, LOWEST)
    if w.tiles:
        mask = _cast(g, g.op("Equal", image, _spread(g, y, w)))
        count = g.op(
            "Mul", g.op("AveragePool", mask, kernel_shape=w.kernel, strides=w.stride), g.constant(float(w.taps))
        )
        return [w.unfit(g, g.op("Mul", mask, _spread(g, g.op("Div", dy, count), w)))]
    masks = [_cast(g, g.op("Equal", w.tap(g, image, offset), y)) for offset in w.each()]
    share = g.op("Div", dy, g.op("Sum", *masks))
    return [_scatter(g, node, [g.op("Mul", mask, share) for mask in masks], w)]


@vjp("AveragePool", since=7)
def average_pool(g: Builder, node: Node, dy: str) -> Gradients:
    """Each input of a window gets the gradient divided by the number of inputs that were averaged."""
    w = windows(g, node, tuple(node.attribute("kernel_shape", [])))
    reach = [n + b + a for n, b, a in zip(w.x, w.before, w.after, strict=True)]
    if any(c > r for c, r in zip(w.covered, reach, strict=True)) and node.attribute("count_include_pad", 0):
        raise Unsupported("with ceil_mode and count_include_pad, a window reaches beyond the padding")
    if w.padded and (not node.attribute("count_include_pad", 0)):
        share = g.op("Div", dy, g.constant(_counts(w)))
    else:
        share = g.op("Mul", dy, g.constant(1.0 / w.taps))
    if w.tiles:
        return [w.unfit(g, _spread(g, share, w))]
    return [_scatter(g, node, [share] * w.taps, w)]


@vjp("GlobalAveragePool")
def global_average_pool(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy / positions, everywhere."""
    size = g.shapes[node.x[0]][2:]
    if min(size, default=1) < 1:
        raise Unsupported(f"needs a spatial size that is fixed, has {size}")
    return [g.op("Mul", dy, g.constant(np.full((1, 1, *size), 1.0 / math.prod(size))))]


def _cast(g: Builder, x: str) -> str:
    return g.op("Cast", x, to=11 if g.dtype is np.float64 else 1)


def _spread(g: Builder, x: str, w: Windows) -> str:
    """x with every value repeated over its window."""
    scales = g.constant([1.0, 1.0, *w.stride], np.float32)
    return g.op(
        "Resize", x, "", scales, mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"
    )


def _counts(w: Windows) -> np.ndarray:
    """How many real inputs each window sees, shape [1, 1, *y]."""
    counts = np.ones((1, 1, *(1 for _ in w.y)))
    for axis, (n, y, k, s, d, b) in enumerate(zip(w.x, w.y, w.kernel, w.stride, w.dilation, w.before, strict=True)):
        at = np.arange(y)[:, None] * s + np.arange(k)[None, :] * d - b
        line = ((at >= 0) & (at < n)).sum(1)
        counts = counts * line.reshape([-1 if a == axis + 2 else 1 for a in range(counts.ndim)])
    return counts


def _scatter(g: Builder, node: Node, taps: list[str], w: Windows) -> str:
    """Adds what each tap gives to where it was taken from."""
    channels = g.shapes[node.x[0]][1]
    positions = math.prod(w.y)
    parts = [g.reshape(tap, (-1, channels, 1, positions)) for tap in taps]
    columns = g.reshape(g.op("Concat", *parts, axis=2), (-1, channels * w.taps, positions))
    image = g.op(
        "Col2Im", columns, g.integers(*w.covered), g.integers(*w.kernel), strides=w.stride, dilations=w.dilation
    )
    return w.unfit(g, image)
