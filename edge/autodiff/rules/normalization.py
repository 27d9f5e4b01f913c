"""VJP rules of normalisation. With xhat = (x - mean) inv, inv = 1 / sqrt(var + epsilon) and dxhat = scale dy:

    dx = inv (dxhat - mean(dxhat) - xhat mean(dxhat xhat))

the means over what was normalised together. The forward node is written anew so that it keeps mean and inv.
"""

import math
from collections.abc import Sequence

import numpy as np

from fleetgrad.edge.autodiff.errors import Unsupported
from fleetgrad.edge.autodiff.graph import DOMAIN, Builder, Node
from fleetgrad.edge.autodiff.registry import Gradients, vjp

TINY = 1e-30  # keeps a quotient finite; float32 has it


def _back(g: Builder, dxhat: str, xhat: str, inv: str, axes: Sequence[int]) -> str:
    along = g.integers(*axes)
    centred = g.op("Sub", dxhat, g.op("ReduceMean", dxhat, along, keepdims=1))
    product = g.op("ReduceMean", g.op("Mul", dxhat, xhat), along, keepdims=1)
    return g.op("Mul", g.op("Sub", centred, g.op("Mul", xhat, product)), inv)


@vjp("LayerNormalization", since=17)
def layer_normalization(g: Builder, node: Node, dy: str, *others: str | None) -> Gradients:
    """Over the axes from `axis` on; scale and bias have their shape, or broadcast to it."""
    if any(others):
        raise Unsupported("whose Mean or InvStdDev is used")
    x, scale = node.x[:2]
    shape = g.shapes[x]
    axis = node.attribute("axis", -1) % len(shape)
    with g.instead(node) as outputs:
        outputs += g.ops("LayerNormalization", *node.x, outputs=3, axis=axis, epsilon=node.attribute("epsilon", 1e-5))
    _, mean, inv = outputs
    xhat = g.op("Mul", g.op("Sub", x, mean), inv)
    dx = _back(g, g.op("Mul", dy, scale), xhat, inv, range(axis, len(shape))) if node.need(0) else None
    dscale = g.sum_to(g.op("Mul", dy, xhat), shape, scale) if node.need(1) else None
    return [dx, dscale, g.sum_to(dy, shape, node.x[2]) if node.need(2) else None]


@vjp("InstanceNormalization", since=6)
def instance_normalization(g: Builder, node: Node, dy: str) -> Gradients:
    """Each channel of a sample by itself."""
    return _in_groups(g, node, dy, g.shapes[node.x[0]][1])


@vjp("GroupNormalization", since=21)
def group_normalization(g: Builder, node: Node, dy: str) -> Gradients:
    """The channels of a sample in groups of equal size."""
    return _in_groups(g, node, dy, node.attribute("num_groups", 1))


def _in_groups(g: Builder, node: Node, dy: str, groups: int) -> Gradients:
    """As LayerNormalization of x [N, groups, size], whose kernel is fast and keeps inv; scale and bias are a channel's."""
    x, scale, bias = node.x
    channels, *spatial = g.shapes[x][1:]
    if min(channels, *spatial, 1) < 1:
        raise Unsupported(f"needs channels and spatial sizes that are fixed, has {(channels, *spatial)}")
    size = channels // groups * math.prod(spatial)
    wide = (channels, *(1 for _ in spatial))
    with g.instead(node) as outputs:
        rows = g.reshape(x, (-1, groups, size))
        ones, epsilon = g.constant(np.ones(size)), node.attribute("epsilon", 1e-5)
        flat, _, inv = g.ops("LayerNormalization", rows, ones, outputs=3, axis=-1, epsilon=epsilon)
        xhat = g.reshape(flat, g.shapes[x])
        scaled = g.op("Mul", xhat, g.reshape(scale, wide))
        outputs += [g.op("Add", scaled, g.reshape(bias, wide))]
    dx = None
    if node.need(0):
        dxhat = g.reshape(g.op("Mul", dy, g.reshape(scale, wide)), (-1, groups, size))
        dx = g.reshape(_back(g, dxhat, flat, inv, [2]), g.shapes[x])
    return [dx, *_affine(g, node, dy, xhat)]


def _affine(g: Builder, node: Node, dy: str, xhat: str) -> list[str | None]:
    """Gradients of a scale and a bias per channel."""
    axes = [0, *range(2, len(g.shapes[node.x[0]]))]
    dscale = g.total(g.op("Mul", dy, xhat), *axes) if node.need(1) else None
    return [dscale, g.total(dy, *axes) if node.need(2) else None]


@vjp("BatchNormalization", since=15, still=(3, 4))
def batch_normalization(g: Builder, node: Node, dy: str | None, *others: str | None) -> Gradients:
    """Frozen: an affine map per channel. In training mode (which compiling sets): by the batch's statistics.

    The running variance takes the sample's variance (count - 1), as torch's does, where ONNX says the population's.
    """
    if any(others) or dy is None:
        raise Unsupported("whose running statistics are used by the model")
    if node.attribute("training_mode", 0):
        return _batch(g, node, dy)
    x, scale, _, mean, var = node.x
    epsilon = g.constant(node.attribute("epsilon", 1e-5))
    inv = g.op("Reciprocal", g.op("Sqrt", g.op("Add", var, epsilon)))
    if g.native:
        return _native(g, node, dy, mean, inv, training=0)
    dx = g.op("Mul", dy, _across(g, node, g.op("Mul", scale, inv))) if node.need(0) else None
    dscale = None
    if node.need(1):
        (total, _) = _affine(g, node, dy, g.op("Sub", x, _across(g, node, mean)))
        dscale = g.op("Mul", str(total), inv)
    return [dx, dscale, _affine(g, node, dy, x)[1] if node.need(2) else None, None, None]


def _across(g: Builder, node: Node, value: str) -> str:
    """A value per channel, to broadcast over [N, C, ...]."""
    return g.reshape(value, (g.shapes[node.x[1]][0], *(1 for _ in g.shapes[node.x[0]][2:])))


def _native(g: Builder, node: Node, dy: str, mean: str, inv: str, training: int) -> Gradients:
    count = 3 if node.need(1) or node.need(2) else 1
    found = g.ops("BatchNormGrad", node.x[0], dy, node.x[1], mean, inv, outputs=count, domain=DOMAIN, training=training)
    return [*found, None, None]


def _batch(g: Builder, node: Node, dy: str) -> Gradients:
    x, scale, _, mean, var = node.x
    epsilon, momentum = node.attribute("epsilon", 1e-5), node.attribute("momentum", 0.9)
    if g.native:
        with g.instead(node) as outputs:
            y, mean, _, inv, *running = g.ops(
                "BatchNorm", *node.x, outputs=6, domain=DOMAIN, epsilon=epsilon, momentum=1 - momentum
            )
            outputs += [y, *running]
        return _native(g, node, dy, mean, inv, training=1)
    with g.instead(node) as outputs:
        y, mean, var = (_elementary if g.elementary else _standard)(g, node, epsilon)
        channels = g.constant(float(g.shapes[scale][0]))
        count = g.op("Div", g.as_float(g.op("Size", x)), channels)
        one = g.constant(1.0)
        sample = g.op("Mul", var, g.op("Div", count, g.op("Max", g.op("Sub", count, one), one)))
        outputs += [y, *(_mixed(g, old, new, momentum) for old, new in ((node.x[3], mean), (node.x[4], sample)))]
    inv = g.op("Reciprocal", g.op("Sqrt", g.op("Add", var, g.constant(epsilon))))
    centred = g.op("Sub", x, _across(g, node, mean))
    axes = [0, *range(2, len(g.shapes[x]))]
    dbias, product = g.total(dy, *axes), g.total(g.op("Mul", dy, centred), *axes)
    dx = None
    if node.need(0):
        slope = g.op("Div", g.op("Mul", g.op("Mul", inv, inv), product), count)
        inner = g.op("Sub", dy, _across(g, node, g.op("Div", dbias, count)))
        inner = g.op("Sub", inner, g.op("Mul", centred, _across(g, node, slope)))
        dx = g.op("Mul", inner, _across(g, node, g.op("Mul", scale, inv)))
    return [dx, g.op("Mul", product, inv), dbias, None, None]


def _standard(g: Builder, node: Node, epsilon: float) -> list[str]:
    """y and the batch's mean and variance, by the op.

    Without momentum the running statistics that come out are the batch's. onnxruntime writes them over those that go in,
    hence the copies.
    """
    copies = [g.op("Neg", name) for name in node.x[3:]]
    return g.ops("BatchNormalization", *node.x[:3], *copies, outputs=3, training_mode=1, momentum=0.0, epsilon=epsilon)


def _elementary(g: Builder, node: Node, epsilon: float) -> list[str]:
    """The same of ops that every execution provider has: CUDA's knows the op without training mode."""
    x, scale, bias = node.x[:3]
    axes = g.integers(0, *range(2, len(g.shapes[x])))
    mean = g.op("ReduceMean", x, axes, keepdims=0)
    centred = g.op("Sub", x, _across(g, node, mean))
    var = g.op("ReduceMean", g.op("Mul", centred, centred), axes, keepdims=0)
    inv = g.op("Reciprocal", g.op("Sqrt", g.op("Add", var, g.constant(epsilon))))
    scaled = g.op("Mul", centred, _across(g, node, g.op("Mul", scale, inv)))
    return [g.op("Add", scaled, _across(g, node, bias)), mean, var]


def _mixed(g: Builder, old: str, new: str, momentum: float) -> str:
    return g.op("Add", g.op("Mul", old, g.constant(momentum)), g.op("Mul", new, g.constant(1 - momentum)))


@vjp("MeanVarianceNormalization", since=13)
def mean_variance_normalization(g: Builder, node: Node, dy: str) -> Gradients:
    """xhat is y. (Of equal values onnxruntime makes NaN in the forward pass already.)"""
    x, axes = node.x[0], node.attribute("axes", [0, 2, 3])
    along = g.integers(*axes)
    centred = g.op("Sub", x, g.op("ReduceMean", x, along, keepdims=1))
    var = g.op("ReduceMean", g.op("Mul", centred, centred), along, keepdims=1)
    return [_back(g, dy, node.y[0], g.op("Reciprocal", g.op("Sqrt", var)), axes)]


@vjp("LpNormalization")
def lp_normalization(g: Builder, node: Node, dy: str) -> Gradients:
    """y = x / n, n = sum(|x|^p)^(1/p): dx = (dy - s sum(dy y)) / n with s = y for p = 2 and sign(x) for p = 1.

    Where all x are 0 the gradient is 0, as y is.
    """
    x, y, p = node.x[0], node.y[0], node.attribute("p", 2)
    along = g.integers(node.attribute("axis", -1))
    n = g.op("ReduceL2" if p == 2 else "ReduceL1", x, along, keepdims=1)
    some = g.as_float(g.op("Greater", n, g.constant(0.0)))
    inv = g.op("Div", some, g.op("Max", n, g.constant(TINY)))
    product = g.op("ReduceSum", g.op("Mul", dy, y), along, keepdims=1)
    inner = g.op("Mul", y if p == 2 else g.op("Sign", x), product)
    return [g.op("Mul", g.op("Sub", dy, inner), inv)]


@vjp("LRN")
def lrn(g: Builder, node: Node, dy: str) -> Gradients:
    """y = x s^-beta with s = bias + alpha mean(x^2) over `size` channels around each, zeros beyond the ends:

    dx = dy s^-beta - 2 alpha beta x mean(dy y / s), this mean over the mirrored window.
    """
    x, y, size = node.x[0], node.y[0], node.attribute("size", 1)
    alpha, beta, bias = node.attribute("alpha", 1e-4), node.attribute("beta", 0.75), node.attribute("bias", 1.0)
    channels, *spatial = g.shapes[x][1:]
    if min(channels, *spatial, 1) < 1:
        raise Unsupported(f"needs channels and spatial sizes that are fixed, has {(channels, *spatial)}")
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2

    def mean(value: str, first: int, last: int) -> str:
        plane = g.reshape(value, (-1, 1, channels, math.prod(spatial)))
        pads = [first, 0, last, 0]
        found = g.op("AveragePool", plane, kernel_shape=[size, 1], pads=pads, count_include_pad=1)
        return g.reshape(found, g.shapes[x])

    s = g.op("Add", g.op("Mul", mean(g.op("Mul", x, x), before, after), g.constant(alpha)), g.constant(bias))
    direct = g.op("Mul", dy, g.op("Pow", s, g.constant(-beta)))
    spread = mean(g.op("Div", g.op("Mul", dy, y), s), after, before)
    return [g.op("Sub", direct, g.op("Mul", g.op("Mul", x, spread), g.constant(2 * alpha * beta)))]
