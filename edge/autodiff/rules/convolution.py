"""VJP of Conv in one, two or three dimensions, with the lowerings that measured fastest on onnxruntime's CPU kernels.

dX = ConvTranspose(dY, W)                     (1x1: Conv with W transposed)
db = sum of dY over batch and positions
dW, int8:       fleetgrad.ConvWeightGrad, whatever the attributes; in three dimensions rows of windows [N P, taps C] and of
                dY [N P, M] meet in fleetgrad.MatMulWeightGrad, group by group, and with many groups it is fp32
dW, depthwise:  fp32 always, which is several times as fast
dW, fp32, 1x1:  sum over the batch of dY [M, P] X^T [P, C]
dW, fp32, k x k: the same for each tap, without an im2col buffer; with few channels a Conv with a one-hot kernel
                 makes the im2col
dW, groups:     Conv of X with dY as kernel, batch and channels swapped
depthwise:      the C core's DepthwiseConv and its gradients, where the profile has them
"""

from typing import Any

import numpy as np

from fleetgrad.edge.autodiff.errors import Unsupported
from fleetgrad.edge.autodiff.graph import DOMAIN, Builder, Node
from fleetgrad.edge.autodiff.registry import Gradients, vjp
from fleetgrad.edge.autodiff.rules.windows import Windows, windows

FEW_CHANNELS = 8  # below this, one-hot Conv beats slices per tap
THIN_CHANNELS = 16  # up to this, on either side of one tap, quantizing takes longer than the product in fp32
MOST_GROUPS = 8  # of a 3-D convolution whose weight gradient is int8: each is a product of its own


@vjp("Conv")
def conv(g: Builder, node: Node, dy: str) -> Gradients:
    """Cross-correlation with stride, padding, dilation and groups."""
    shape_w = g.shapes[node.x[1]]
    if min(shape_w) < 1:
        raise Unsupported(f"needs a kernel of fixed shape, has {shape_w}")
    w, group = windows(g, node, shape_w[2:]), node.attribute("group", 1)
    depthwise = g.native and len(w.x) <= 2 and is_depthwise(g, node, group)
    if depthwise and node.x[1] in node.weights:
        # onnxruntime's own kernel is fast for constant weights only.
        with g.instead(node) as outputs:
            outputs += [g.op("DepthwiseConv", *node.x, domain=DOMAIN, **_attributes(w))]
    dx = None
    if node.need(0):
        dx = _depthwise_input(g, node, dy, w) if depthwise else _input(g, node, dy, w, group)
    dw = weight_gradient(g, node, node.x[0], dy, w, group) if node.need(1) else None
    db = g.total(dy, 0, *w.axes) if node.need(2) else None
    return [dx, dw, db]


def is_depthwise(g: Builder, node: Node, group: int) -> bool:
    """Whether every input channel is a group."""
    return group > 1 and g.shapes[node.x[0]][1] == group


def weight_gradient(g: Builder, node: Node, x: str, dy: str, w: Windows, group: int) -> str:
    """dW [M, C / group, *k] of a convolution from x [N, C, *w.x] to dy [N, M, *w.y], whose weight is node's second input."""
    m, c = g.shapes[node.x[1]][:2]
    thin = w.taps == 1 and group == 1 and min(m, c) <= THIN_CHANNELS
    int8 = g.int8 and node.x[1] in node.weights and not thin
    if g.native and len(w.x) <= 2 and c == 1 and group > 1:
        return g.op("DepthwiseConvWeightGrad", x, dy, domain=DOMAIN, kernel_shape=w.kernel, **_attributes(w))
    if int8 and len(w.x) <= 2:
        return g.op("ConvWeightGrad", x, dy, domain=DOMAIN, group=group, kernel_shape=w.kernel, **_attributes(w))
    if int8 and 1 < group <= MOST_GROUPS:
        xs, dys = (g.ops("Split", v, outputs=group, axis=1, num_outputs=group) for v in (x, dy))
        parts = [_rows(g, node, a, b, (m // group, c), w) for a, b in zip(xs, dys, strict=True)]
        return g.op("Concat", *parts, axis=0)
    if group > 1:
        return _swapped(g, x, dy, (m, c), w, group)
    return _rows(g, node, x, dy, (m, c), w) if int8 else _taps(g, x, dy, (m, c), w)


def input_gradient_as_conv(g: Builder, dy: str, weight: str, w: Windows, group: int) -> str:
    """What Conv makes of dy [N, C, *w.x]: the input gradient of the transposed convolution."""
    if g.native and len(w.x) <= 2 and group > 1 and g.shapes[weight][0] == group and g.shapes[weight][1] == 1:
        return g.op("DepthwiseConv", dy, weight, domain=DOMAIN, **_attributes(w))
    return g.op("Conv", dy, weight, group=group, **_attributes(w))


def _attributes(w: Windows) -> dict[str, Any]:
    return {"strides": w.stride, "dilations": w.dilation, "pads": [*w.before, *w.after]}


def _depthwise_input(g: Builder, node: Node, dy: str, w: Windows) -> str:
    how = {**_attributes(w), "input_shape": w.x, "group": g.shapes[node.x[0]][1]}
    return g.op("DepthwiseConvInputGrad", dy, node.x[1], domain=DOMAIN, **how)


def _input(g: Builder, node: Node, dy: str, w: Windows, group: int) -> str:
    weight = node.x[1]
    if group == 1 and w.taps == 1 and set(w.stride) == {1} and not w.padded:
        return g.op("Conv", dy, g.op("Transpose", weight, perm=[1, 0, *w.axes]))
    # The part of the input that no window reaches lengthens ConvTranspose's output; what windows reach beyond it is cut.
    return g.op(
        "ConvTranspose",
        dy,
        weight,
        strides=w.stride,
        dilations=w.dilation,
        group=group,
        pads=[*w.before, *(max(e, 0) for e in w.ends)],
        output_padding=[max(-e, 0) for e in w.ends],
    )


def _rows(g: Builder, node: Node, x: str, dy: str, channels: tuple[int, int], w: Windows) -> str:
    """dW [M, C, *k] from rows of windows; channels last, so that a row is a concatenation of contiguous pieces."""
    weight, (m, c) = node.x[1], channels
    last, first = [0, *w.axes, 1], [0, len(w.axes) + 1, *range(1, len(w.axes) + 1)]
    dy_rows = g.flatten(g.op("Transpose", dy, perm=last), m)
    if c < FEW_CHANNELS and w.taps > 1:
        rows = g.op("Transpose", _one_hot(g, x, c, w), perm=last)
        return g.reshape(
            g.op("Transpose", g.weight_gradient(rows_of(g, rows, c * w.taps), dy_rows, weight, node), perm=[1, 0]),
            (m, c, *w.kernel),
        )
    axes = [a - 1 for a in w.axes]
    image = w.fit(g, g.op("Transpose", x, perm=last), axes=axes)
    taps = [w.tap(g, image, offset, axes) for offset in w.each()]
    rows = taps[0] if len(taps) == 1 else g.op("Concat", *taps, axis=-1)
    # dY^T rows is [M, taps C]: the transposition to channels first touches only the weight's size.
    dw = g.reshape(g.weight_gradient(dy_rows, rows_of(g, rows, c * w.taps), weight, node), (m, *w.kernel, c))
    return g.op("Transpose", dw, perm=first) if w.taps > 1 else g.reshape(dw, (m, c, *w.kernel))


def rows_of(g: Builder, x: str, columns: int) -> str:
    """A channels-last tensor as rows."""
    return g.flatten(x, columns)


def _one_hot(g: Builder, x: str, c: int, w: Windows) -> str:
    """im2col [N, C taps, *y] as a Conv whose kernel has a single one per output channel."""
    kernel = np.eye(c * w.taps).reshape(c * w.taps, c, *w.kernel)
    # Where windows end before the input does, Conv's own rounding drops the rest.
    return g.op(
        "Conv",
        x,
        g.constant(kernel),
        strides=w.stride,
        dilations=w.dilation,
        pads=[*w.before, *(max(e, 0) for e in w.ends)],
    )


def _taps(g: Builder, x: str, dy: str, channels: tuple[int, int], w: Windows) -> str:
    m, c = channels
    dy3 = _positions(g, dy, m, w)
    if c < FEW_CHANNELS and w.taps > 1:
        columns = _positions(g, _one_hot(g, x, c, w), c * w.taps, w)
        return g.reshape(_product(g, dy3, columns), (m, c, *w.kernel))
    image = w.fit(g, x)
    pieces = []
    for offset in w.each():
        seen = w.tap(g, image, offset) if w.taps > 1 or set(w.stride) != {1} else image
        pieces.append(g.op("Unsqueeze", _product(g, dy3, _positions(g, seen, c, w)), g.integers(2)))
    dw = pieces[0] if len(pieces) == 1 else g.op("Concat", *pieces, axis=2)
    return g.reshape(dw, (m, c, *w.kernel))


def _positions(g: Builder, x: str, channels: int, w: Windows) -> str:
    """x as [N, channels, positions]."""
    return g.reshape(x, (-1, channels, int(np.prod(w.y))))


def _product(g: Builder, dy: str, x: str) -> str:
    """Sum over the batch of dY [N, M, P] times X [N, C, P] transposed: [M, C]."""
    return g.total(g.op("MatMul", dy, g.op("Transpose", x, perm=[0, 2, 1])), 0)


def _swapped(g: Builder, x: str, dy: str, channels: tuple[int, int], w: Windows, group: int) -> str:
    _, c = channels
    spatial, rank = list(range(3, 3 + len(w.x))), len(w.x)
    image = w.fit(g, x)
    image = g.op("Transpose", g.reshape(image, (-1, group, c, *w.covered)), perm=[2, 1, 0, *spatial])
    image = g.reshape(image, (c, -group, *w.covered))
    kernel = g.op("Transpose", dy, perm=[1, 0, *w.axes])
    dw = g.op("Conv", image, kernel, strides=w.dilation, dilations=w.stride, group=group)
    return g.op("Transpose", dw, perm=[1, 0, *range(2, 2 + rank)])
