"""Sliding windows, as convolution and pooling share them: padding and output sizes known at compile time.

Along one axis an input of size x, padded by (before, after), gives windows of `kernel` taps that are `dilation` apart
and start every `stride`: y = floor((x + before + after - span) / stride) + 1, with span = (kernel - 1) dilation + 1.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from fleetgrad.edge.autodiff.errors import Unsupported
from fleetgrad.edge.autodiff.graph import Builder, Node, Shape


@dataclass(frozen=True, slots=True)
class Windows:
    """Geometry of all spatial axes; every tuple has one entry per axis."""

    x: Shape
    y: Shape
    kernel: Shape
    stride: Shape
    dilation: Shape
    before: Shape
    after: Shape

    @property
    def axes(self) -> list[int]:
        """The spatial axes of a channels-first tensor."""
        return list(range(2, 2 + len(self.x)))

    @property
    def taps(self) -> int:
        """Positions in a window."""
        return math.prod(self.kernel)

    @property
    def covered(self) -> Shape:
        """Size of the padded input that windows reach, from its start."""
        each = zip(self.y, self.stride, self.kernel, self.dilation, strict=True)
        return tuple((y - 1) * s + (k - 1) * d + 1 for y, s, k, d in each)

    @property
    def ends(self) -> list[int]:
        """What windows reach beyond the input's end (negative: inputs at the end that none reaches)."""
        return [c - b - n for c, b, n in zip(self.covered, self.before, self.x, strict=True)]

    @property
    def padded(self) -> bool:
        """Whether windows reach beyond the input."""
        return any(self.before) or any(e > 0 for e in self.ends)

    @property
    def tiles(self) -> bool:
        """Whether windows lie side by side without overlap, gaps or padding."""
        return self.kernel == self.stride and not self.padded and set(self.dilation) == {1}

    def each(self) -> Iterator[Shape]:
        """Where each tap of the first window lies in the padded input, last axis fastest."""
        return itertools.product(*(range(0, k * d, d) for k, d in zip(self.kernel, self.dilation, strict=True)))

    def tap(self, g: Builder, x: str, offset: Shape, axes: list[int] | None = None) -> str:
        """The values that one tap sees in all windows, from an input brought to `covered` by `fit`."""
        stops = [o + (y - 1) * s + 1 for o, y, s in zip(offset, self.y, self.stride, strict=True)]
        return g.slice(x, list(offset), stops, axes or self.axes, list(self.stride))

    def fit(self, g: Builder, x: str, value: float = 0.0, axes: list[int] | None = None) -> str:
        """x padded with `value`, or cropped, to the part that windows reach."""
        axes = axes or self.axes
        if any(e < 0 for e in self.ends):
            stops = [n + min(e, 0) for n, e in zip(self.x, self.ends, strict=True)]
            x = g.slice(x, [0] * len(axes), stops, axes, [1] * len(axes))
        return g.pad(x, len(axes) + 2, self.before, [max(e, 0) for e in self.ends], axes, value)

    def unfit(self, g: Builder, dx: str) -> str:
        """The gradient of `fit`: crops what was padded, pads what was cropped with zeros."""
        if self.padded:
            stops = [b + n + min(e, 0) for b, n, e in zip(self.before, self.x, self.ends, strict=True)]
            dx = g.slice(dx, list(self.before), stops, self.axes, [1] * len(self.axes))
        return g.pad(dx, len(self.axes) + 2, [0] * len(self.axes), [max(-e, 0) for e in self.ends], self.axes)


def windows(g: Builder, node: Node, kernel: Shape) -> Windows:
    """The geometry of a Conv or pooling node; raises Unsupported where a size depends on the batch."""
    x, y = g.shapes[node.x[0]][2:], g.shapes[node.y[0]][2:]
    if not x or min(*x, *y, 1) < 1:
        raise Unsupported(f"needs a spatial size that is fixed, has {x}")
    rank = len(x)
    stride = tuple(node.attribute("strides", [1] * rank))
    dilation = tuple(node.attribute("dilations", [1] * rank))
    pads = tuple(node.attribute("pads", [0] * 2 * rank))
    before, after = pads[:rank], pads[rank:]
    auto = node.attribute("auto_pad", "NOTSET")
    if auto in {"SAME_UPPER", "SAME_LOWER"}:
        each = zip(x, y, stride, kernel, dilation, strict=True)
        missing = [max((o - 1) * s + (k - 1) * d + 1 - n, 0) for n, o, s, k, d in each]
        small, large = tuple(m // 2 for m in missing), tuple(m - m // 2 for m in missing)
        before, after = (small, large) if auto == "SAME_UPPER" else (large, small)
    elif auto == "VALID":
        before = after = (0,) * rank
    return Windows(x, y, kernel, stride, dilation, before, after)
