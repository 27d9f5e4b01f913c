"""VJP of ConvTranspose: it is the input gradient of a convolution from Y to X, so its own gradients are that convolution's.

dX = Conv(dY, W), and dW is that convolution's weight gradient, with dY as its input and X in the place of its output's gradient.
"""

from fleetgrad.edge.autodiff.errors import Unsupported
from fleetgrad.edge.autodiff.graph import Builder, Node
from fleetgrad.edge.autodiff.registry import Gradients, vjp
from fleetgrad.edge.autodiff.rules.convolution import input_gradient_as_conv, weight_gradient
from fleetgrad.edge.autodiff.rules.windows import Windows


@vjp("ConvTranspose", since=11)
def conv_transpose(g: Builder, node: Node, dy: str) -> Gradients:
    """With stride, padding, dilation, groups, output_padding and output_shape."""
    shape_w = g.shapes[node.x[1]]
    if min(shape_w) < 1:
        raise Unsupported(f"needs a kernel of fixed shape, has {shape_w}")
    w, group = windows_back(g, node), node.attribute("group", 1)
    db = g.total(dy, 0, *w.axes) if node.need(2) else None
    dx = input_gradient_as_conv(g, dy, node.x[1], w, group) if node.need(0) else None
    dw = weight_gradient(g, node, dy, node.x[0], w, group) if node.need(1) else None
    return [dx, dw, db]


def windows_back(g: Builder, node: Node) -> Windows:
    """The geometry of the convolution from Y to X."""
    x, y, kernel = g.shapes[node.x[0]][2:], g.shapes[node.y[0]][2:], g.shapes[node.x[1]][2:]
    if not x or min(*x, *y, 1) < 1:
        raise Unsupported(f"needs a spatial size that is fixed, has {x}")
    rank = len(x)
    stride = tuple(node.attribute("strides", [1] * rank))
    dilation = tuple(node.attribute("dilations", [1] * rank))
    more = node.attribute("output_padding", [0] * rank)
    auto = node.attribute("auto_pad", "NOTSET")
    if auto == "NOTSET" and not node.attribute("output_shape", []):
        pads = tuple(node.attribute("pads", [0] * 2 * rank))
        return Windows(y, x, kernel, stride, dilation, pads[:rank], pads[rank:])
    each = zip(x, y, kernel, stride, dilation, more, strict=True)
    total = [s * (n - 1) + p + (k - 1) * d + 1 - o for n, o, k, s, d, p in each]
    if min(total) < 0:
        raise Unsupported("whose output_shape is larger than its windows reach")
    small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    before, after = (small, large) if auto == "SAME_UPPER" else (large, small)
    return Windows(y, x, kernel, stride, dilation, before, after)
