"""Depthwise convolution and its gradients: against sums written out in float64, onnxruntime's standard ops and torch."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetgrad.native import binding, layers
from fleetgrad.native.bench.graphs import Graph
from tests.native.every import run_op, same_everywhere

F32 = np.float32
TOLERANCE = 2e-6  # of the sum of magnitudes: a few float32 roundings of a sum of up to 25 products


class Case:
    """One convolution: attributes, and inputs whose values are drawn from a seed."""

    def __init__(self, batch: int, channels: int, multiplier: int, axes: Sequence[tuple[int, ...]], seed: int) -> None:
        self.axes = axes  # (size, taps, stride, dilation, before, after) each
        self.attributes: dict[str, Any] = {
            "strides": [a[2] for a in axes],
            "dilations": [a[3] for a in axes],
            "pads": [a[4] for a in axes] + [a[5] for a in axes],
        }
        self.channels, self.multiplier, self.kernel = channels, multiplier, [a[1] for a in axes]
        self.out = [(n + b + a - (k - 1) * d - 1) // s + 1 for n, k, s, d, b, a in axes]
        rng = np.random.default_rng(seed)
        self.x = rng.standard_normal((batch, channels, *(a[0] for a in axes)), F32)
        self.w = rng.standard_normal((channels * multiplier, 1, *self.kernel), F32)
        self.bias = rng.standard_normal(channels * multiplier, F32)
        self.dy = rng.standard_normal((batch, channels * multiplier, *self.out), F32)

    def oracle(self, x: Any, w: Any, dy: Any, bias: Any) -> list[Any]:
        """y, dx and dw, tap by tap over a padded copy, in float64."""
        x, w, dy = (np.asarray(v, np.float64) for v in (x, w, dy))
        padded = np.pad(x, [(0, 0), (0, 0), *((a[4], a[5]) for a in self.axes)]).repeat(self.multiplier, axis=1)
        y = np.broadcast_to(bias.reshape(-1, *[1] * len(self.axes)), dy.shape).astype(np.float64)
        dx: Any = np.zeros_like(padded)
        dw: Any = np.zeros_like(w)
        spatial = tuple(range(2, 2 + len(self.axes)))
        for tap in itertools.product(*(range(k) for k in self.kernel)):
            positions = zip(tap, self.axes, self.out, strict=True)
            at: Any = (..., *(slice(t * a[3], t * a[3] + (o - 1) * a[2] + 1, a[2]) for t, a, o in positions))
            of: Any = (slice(None), 0, *tap)
            weight = w[of].reshape(-1, *[1] * len(self.axes))
            y = y + weight * padded[at]
            dx[at] += weight * dy
            dw[of] = (dy * padded[at]).sum((0, *spatial))
        inside = tuple(slice(a[4], a[4] + a[0]) for a in self.axes)
        dx = dx.reshape(x.shape[0], self.channels, self.multiplier, *padded.shape[2:]).sum(2)
        return [y, dx[(slice(None), slice(None), *inside)], dw]

    def exact(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each result with the sum of magnitudes that bounds its rounding."""
        values = self.oracle(self.x, self.w, self.dy, self.bias)
        sizes = self.oracle(abs(self.x), abs(self.w), abs(self.dy), abs(self.bias))
        return list(zip(values, sizes, strict=True))

    def faces(self) -> list[np.ndarray]:
        """y, dx and dw of the Python face."""
        return [
            layers.depthwise_conv(self.x, self.w, self.bias, **self.attributes),
            layers.depthwise_conv_input_grad(self.dy, self.w, self.x.shape, **self.attributes),
            layers.depthwise_conv_weight_grad(self.x, self.dy, self.kernel, **self.attributes),
        ]

    def nodes(self, threads: int, *, by_input: bool = False) -> list[np.ndarray]:
        """y, dx and dw of the custom ops in a session; by_input: the input's shape comes from Shape(x)."""
        g = Graph()
        spatial = list(self.x.shape[2:])
        y = g.own("DepthwiseConv", "x", "w", "b", **self.attributes)
        shape = [g("Shape", "x")] if by_input else []
        more: dict[str, Any] = {} if by_input else {"input_shape": spatial, "group": self.channels}
        dx = g.own("DepthwiseConvInputGrad", "dy", "w", *shape, **more, **self.attributes)
        dw = g.own("DepthwiseConvWeightGrad", "x", "dy", kernel_shape=self.kernel, **self.attributes)
        feeds = {"x": self.x, "w": self.w, "b": self.bias, "dy": self.dy}
        return list(g.session(feeds, [y, dx, dw], threads).run(None, feeds))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    axes = []
    for _ in range(draw(st.integers(1, 2))):
        taps, stride, dilation = draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
        before, after = draw(st.integers(0, 5)), draw(st.integers(0, 5))
        span = (taps - 1) * dilation + 1
        least = max(1, span - before - after)
        axes.append((draw(st.integers(least, least + 40)), taps, stride, dilation, before, after))
    batch, channels, multiplier = draw(st.integers(0, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    return Case(batch, channels, multiplier, axes, draw(st.integers(0, 2**32 - 1)))


def square(size: int, taps: int, stride: int, pad: int) -> list[tuple[int, ...]]:
    return [(size, taps, stride, 1, pad, pad)] * 2


NAMED = {
    "3x3 s1": Case(2, 5, 1, square(14, 3, 1, 1), 1),
    "3x3 s2": Case(2, 5, 1, square(28, 3, 2, 1), 2),
    "3x3 s2, odd, pads of tensorflow": Case(1, 3, 1, [(25, 3, 2, 1, 0, 1)] * 2, 3),
    "5x5 s1": Case(2, 3, 1, square(17, 5, 1, 2), 4),
    "3x3 s1, wide": Case(1, 2, 1, [(30, 3, 1, 1, 1, 1), (150, 3, 1, 1, 1, 1)], 5),
    "multiplier 2, dilation 2": Case(2, 3, 2, [(20, 3, 1, 2, 2, 2)] * 2, 6),
    "1-D, stride 4": Case(2, 3, 2, [(16000, 9, 4, 1, 4, 4)], 7),
    "stride larger than the window": Case(2, 2, 1, [(23, 2, 5, 1, 0, 0), (9, 1, 3, 1, 0, 0)], 8),
}


@pytest.mark.parametrize("name", NAMED)
def test_each_result_is_the_sum_written_out(isa: str, name: str) -> None:
    case = NAMED[name]
    for got, (value, size) in zip(case.faces(), case.exact(), strict=True):
        assert got.shape == value.shape
        assert (abs(got - value) <= TOLERANCE * size).all()


@settings(max_examples=150, deadline=None)
@given(cases())
def test_any_window_gives_the_sum_written_out_and_the_same_bytes_under_every_capability(case: Case) -> None:
    for got, (value, size) in zip(same_everywhere(case.faces), case.exact(), strict=True):
        assert got.shape == value.shape
        assert (abs(got - value) <= TOLERANCE * size).all()


@pytest.mark.parametrize("name", NAMED)
def test_nodes_in_a_stock_session_give_the_kernels_bytes_for_any_number_of_threads(isa: str, name: str) -> None:
    case = NAMED[name]
    faces = [a.tobytes() for a in case.faces()]
    for threads, by_input in ((1, False), (2, True)):
        assert [a.tobytes() for a in case.nodes(threads, by_input=by_input)] == faces


@pytest.mark.parametrize("name", [n for n in NAMED if "1-D" not in n])
def test_nodes_equal_their_standard_op_twins(name: str) -> None:
    case = NAMED[name]
    g = Graph()
    group = case.channels
    y = g("Conv", "x", "w", "b", group=group, **case.attributes)
    ends = [
        n + b - (o - 1) * s - (k - 1) * d - 1 for (n, k, s, d, b, _), o in zip(case.axes, case.out, strict=True)
    ]  # what no window sees at the end
    dx = g(
        "ConvTranspose", "dy", "w", group=group, strides=case.attributes["strides"], dilations=case.attributes["dilations"],
        pads=[a[4] for a in case.axes] + [max(-e, 0) for e in ends], output_padding=[max(e, 0) for e in ends],
    ) if max(e - a[2] for e, a in zip(ends, case.axes, strict=True)) < 0 else ""  # fmt: skip
    begins = [a[4] for a in case.axes]
    image = g("Pad", "x", g.constant([0, 0, *begins, 0, 0, *(-e for e in ends)]))
    covered = [(o - 1) * a[2] + (a[1] - 1) * a[3] + 1 for o, a in zip(case.out, case.axes, strict=True)]
    swapped = g("Reshape", g("Transpose", image, perm=[1, 0, 2, 3]), g.constant([1, -1, *covered]))
    kernel = g("Transpose", "dy", perm=[1, 0, 2, 3])
    dw = g(
        "Conv", swapped, kernel, group=group, strides=case.attributes["dilations"], dilations=case.attributes["strides"]
    )
    dw = g("Transpose", dw, perm=[1, 0, 2, 3])
    feeds = {"x": case.x, "w": case.w, "b": case.bias, "dy": case.dy}
    wanted = [i for i, out in enumerate([y, dx, dw]) if out]
    results = g.session(feeds, [[y, dx, dw][i] for i in wanted]).run(None, feeds)
    exact, faces = case.exact(), case.faces()
    for i, twin in zip(wanted, results, strict=True):
        assert (abs(twin - faces[i]) <= 2 * TOLERANCE * exact[i][1] + 1e-6).all()


@pytest.mark.needs("torch")
@pytest.mark.parametrize(
    "name", ["3x3 s1", "3x3 s2", "5x5 s1", "multiplier 2, dilation 2", "stride larger than the window"]
)
def test_gradients_are_those_of_torch(name: str) -> None:
    import torch

    case = NAMED[name]
    x, w, bias = (torch.tensor(a, requires_grad=True) for a in (case.x, case.w, case.bias))
    pads = [a[4] for a in case.axes]
    y = torch.nn.functional.conv2d(
        x, w, bias, case.attributes["strides"], pads, case.attributes["dilations"], groups=case.channels
    )
    y.backward(torch.tensor(case.dy))
    for got, twin, (_, size) in zip(case.faces(), (y.detach(), x.grad, w.grad), case.exact(), strict=True):
        assert (abs(got - twin.numpy()) <= 2 * TOLERANCE * size + 1e-7).all()


def test_a_channels_result_does_not_depend_on_its_neighbours(isa: str, seed: int) -> None:
    case = Case(3, 4, 1, square(15, 3, 1, 1), seed)
    alone = Case(3, 4, 1, square(15, 3, 1, 1), seed)
    alone.x[:, :3] = np.nan
    for got, other in zip(case.faces()[::2], alone.faces()[::2], strict=True):
        picked = (np.s_[:, 3], np.s_[:, 3]) if got.ndim == 4 and got.shape[0] == 3 else (np.s_[3], np.s_[3])
        assert (got[picked[0]] == other[picked[1]]).all()


X, W, DY = (np.ones(s, F32) for s in ((2, 3, 8, 8), (3, 1, 3, 3), (2, 3, 6, 6)))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: layers.depthwise_conv(X[0, 0], W), "shape"),
        (lambda: layers.depthwise_conv(X.astype(np.float64), W), "needs contiguous float32"),
        (lambda: layers.depthwise_conv(X[:, :0].copy(), W), "expected"),
        (lambda: layers.depthwise_conv(X, np.ones((4, 1, 3, 3), F32)), "4 output channels aren't a multiple of 3"),
        (lambda: layers.depthwise_conv(X, np.ones((3, 2, 3, 3), F32)), "weight has shape"),
        (
            lambda: layers.depthwise_conv(X, np.ones((3, 1, 9, 3), F32)),
            "spans 9 on spatial axis 0, the padded input has 8",
        ),
        (lambda: layers.depthwise_conv(X, W, np.ones(4, F32)), "4 elements, expected 3"),
        (lambda: layers.depthwise_conv(X, W, strides=[0, 1]), "strides"),
        (lambda: layers.depthwise_conv(X, W, pads=[1, 1]), "pads"),
        (lambda: layers.depthwise_conv(X, W, dilations=[1, 2**25]), "dilations"),
        (lambda: layers.depthwise_conv_input_grad(DY, W, (2, 3, 9, 8)), "the windows give"),
        (lambda: layers.depthwise_conv_input_grad(DY, W, (1, 3, 8, 8)), "don't fit"),
        (lambda: layers.depthwise_conv_weight_grad(X, DY, [4, 3]), "the windows give"),
        (lambda: layers.depthwise_conv_weight_grad(X[:1].copy(), DY, [3, 3]), "don't fit"),
    ],
)
def test_faces_refuse_what_does_not_fit_in_words(call: Any, match: str) -> None:
    with pytest.raises(binding.KernelError, match=match):
        call()


@pytest.mark.parametrize(
    ("op", "feeds", "attributes", "match"),
    [
        ("DepthwiseConv", {"x": X, "w": W[:, 0]}, {}, "W has shape"),
        ("DepthwiseConv", {"x": X.astype(np.int32), "w": W}, {}, "X isn't of floats"),
        ("DepthwiseConv", {"x": X, "w": W}, {"group": 1}, "not depthwise"),
        ("DepthwiseConv", {"x": X, "w": W}, {"auto_pad": "SAME_UPPER"}, "auto_pad"),
        ("DepthwiseConv", {"x": X, "w": W}, {"strides": [-1, 1]}, "strides holds -1"),
        ("DepthwiseConv", {"x": X, "w": W}, {"strides": [1, 1, 1]}, "strides has 3 values"),
        ("DepthwiseConv", {"x": X, "w": W}, {"kernel_shape": [5, 5]}, "kernel_shape says 5"),
        ("DepthwiseConv", {"x": X, "w": W, "b": np.ones(2, F32)}, {}, "B has 2 values"),
        ("DepthwiseConv", {"x": X[:, :, :2].copy(), "w": W}, {}, "spans 3 on spatial axis 0, the padded input has 2"),
        ("DepthwiseConvInputGrad", {"dy": DY, "w": W}, {}, "needs attribute input_shape"),
        ("DepthwiseConvInputGrad", {"dy": DY, "w": W}, {"input_shape": [9, 9]}, "the windows give"),
        ("DepthwiseConvInputGrad", {"dy": DY, "w": W, "s": np.array([3, 3, 8, 8])}, {}, "begins 3"),
        ("DepthwiseConvInputGrad", {"dy": DY, "w": W, "s": np.array([2, 2, 8, 8])}, {}, "aren't a multiple"),
        ("DepthwiseConvInputGrad", {"dy": DY, "w": W, "s": np.array([2, 3, -8, 8])}, {}, "holds -8"),
        ("DepthwiseConvWeightGrad", {"x": X, "dy": DY}, {}, "kernel_shape is missing"),
        ("DepthwiseConvWeightGrad", {"x": X[:1].copy(), "dy": DY}, {"kernel_shape": [3, 3]}, "they differ in batch"),
    ],
)
def test_nodes_fail_the_run_in_words_on_what_does_not_fit(op: str, feeds: Any, attributes: Any, match: str) -> None:
    with pytest.raises(Exception, match=match):
        run_op(op, feeds, **attributes)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_nodes_survive_any_shapes(data: st.DataObject) -> None:
    shapes = [data.draw(st.lists(st.integers(0, 5), max_size=5)) for _ in range(2)]
    a, b = (np.ones(s, F32) for s in shapes)
    names = ["strides", "dilations", "pads", "kernel_shape", "input_shape"]
    attributes: dict[str, Any] = {
        name: data.draw(st.lists(st.sampled_from([-1, 0, 1, 2, 3, 2**40]), min_size=1, max_size=4))
        for name in data.draw(st.lists(st.sampled_from(names), max_size=3, unique=True))
    }
    for op in ("DepthwiseConv", "DepthwiseConvInputGrad", "DepthwiseConvWeightGrad"):
        try:
            out = run_op(op, {"a": a, "b": b}, **attributes)[0]
        except Exception as error:  # noqa: BLE001 - the runtime's exceptions share no base
            assert op in str(error) or "attribute" in str(error), error
        else:
            assert np.isfinite(out).all()
