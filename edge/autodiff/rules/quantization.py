"""Straight-through rules of QuantizeLinear and DequantizeLinear, which front.py lets gradients pass as pairs.

The gradient of an integer value is that of the real number which it stands for, so that scales needn't be multiplied on
the way. Bengio, Leonard and Courville, "Estimating or propagating gradients through stochastic neurons for conditional
computation" (2013, arXiv:1308.3432); cut beyond the range, as in quantization-aware training (arXiv:1712.05877).
"""

import numpy as np
from onnx import TensorProto, helper

from fleetgrad.edge.autodiff.errors import Unsupported
from fleetgrad.edge.autodiff.graph import DOMAIN, Builder, Node
from fleetgrad.edge.autodiff.registry import Gradients, vjp


@vjp("QuantizeLinear", since=10, still=(1, 2))
def quantize(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy where round(x / scale) + zero lies in the integers' range, else 0."""
    if node.attribute("block_size", 0):
        raise Unsupported("quantized in blocks")
    scale = g.fixed(node.x[1], "scales").astype(np.float64)
    if not (scale > 0).all():
        raise Unsupported(f"with a scale of {scale.min():g}: above 0 is needed")
    kind = node.attribute("output_dtype", 0) or TensorProto.UINT8  # where no zero point says it
    unset = np.zeros((), helper.tensor_dtype_to_np_dtype(kind))
    zero = g.fixed(node.x[2], "zero points") if len(node.x) > 2 and node.x[2] else unset
    if zero.dtype.kind not in "iu":
        raise Unsupported(f"quantized to {zero.dtype}")
    whole, (low, high) = zero.astype(np.float64), (float(getattr(np.iinfo(zero.dtype), end)) for end in ("min", "max"))
    bounds = [(edge - whole) * scale for edge in (low - 0.5, high + 0.5)]
    x = node.x[0]
    if max(scale.size, zero.size) > 1:
        shape = [1] * len(g.shapes[x])
        shape[node.attribute("axis", 1)] = -1
        bounds = [b.reshape(shape) for b in bounds]
    elif g.native:
        lower, upper = (g.constant(b.reshape(())) for b in bounds)
        return [g.op("ClipGrad", x, dy, lower, upper, domain=DOMAIN, inclusive=1)]
    inside = g.op("And", g.op("Greater", x, g.constant(bounds[0])), g.op("Less", x, g.constant(bounds[1])))
    return [g.op("Mul", dy, g.as_float(inside))]


@vjp("DequantizeLinear", since=10, still=(1, 2))
def dequantize(g: Builder, node: Node, dy: str) -> Gradients:
    """dx = dy: the integer's gradient is that of what it stands for."""
    return [dy]
