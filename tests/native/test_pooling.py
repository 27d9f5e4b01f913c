"""Pooling and its gradients: against windows walked one by one, onnxruntime's standard ops and torch."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetgrad.native import binding, pooling
from fleetgrad.native.bench.graphs import Graph
from tests.native.every import run_op, same_everywhere

F32 = np.float32
Axis = tuple[int, int, int, int, int, int]  # size, taps, stride, dilation, before, after


class Case:
    """One pooling: attributes, and inputs with many ties from a seed."""

    def __init__(self, planes: tuple[int, int], axes: list[Axis], ceil: bool, seed: int, spread: int = 3) -> None:
        self.axes, self.kernel = axes, [a[1] for a in axes]
        self.attributes: dict[str, Any] = {
            "strides": [a[2] for a in axes],
            "dilations": [a[3] for a in axes],
            "pads": [a[4] for a in axes] + [a[5] for a in axes],
            "ceil_mode": int(ceil),
        }
        self.out = []
        for n, k, s, d, before, after in axes:
            room = n + before + after - (k - 1) * d - 1
            count = room // s + 1
            if ceil and room % s and count * s < n + before:
                count += 1
            self.out.append(count)
        rng = np.random.default_rng(seed)
        self.x = rng.integers(-spread, spread, (*planes, *(a[0] for a in axes))).astype(F32)
        self.dy = rng.standard_normal((*planes, *self.out), F32)

    def windows(self) -> Iterator[tuple[tuple[int, ...], list[tuple[int, tuple[int, ...]]], int]]:
        """Each window: where its output is, its taps inside the plane as (tap, position), and those inside the padded plane."""
        for at in itertools.product(*(range(o) for o in self.out)):
            inside, padded = [], 0
            for tap, offset in enumerate(itertools.product(*(range(k) for k in self.kernel))):
                position = [i * a[2] + k * a[3] - a[4] for i, k, a in zip(at, offset, self.axes, strict=True)]
                padded += all(p < a[0] + a[5] for p, a in zip(position, self.axes, strict=True))
                if all(0 <= p < a[0] for p, a in zip(position, self.axes, strict=True)):
                    inside.append((tap, tuple(position)))
            yield at, inside, padded

    def maxima(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """y, argmax and dx (float64) of the maximum."""
        y = np.full(self.dy.shape, -np.inf, F32)
        argmax, dx = np.zeros(self.dy.shape, np.uint8), np.zeros(self.x.shape)
        for at, inside, _ in self.windows():
            for plane in np.ndindex(*self.x.shape[:2]):
                best = None
                for tap, position in inside:
                    value = self.x[plane + position]
                    if best is None or value > y[plane + at] or np.isnan(value):
                        best, y[plane + at], argmax[plane + at] = position, value, tap
                if best is not None:
                    dx[plane + best] += self.dy[plane + at]
        return y, argmax, dx

    def averages(self, include: bool) -> Any:
        """dx (float64) of the average."""
        dx: Any = np.zeros(self.x.shape)
        for at, inside, padded in self.windows():
            for _, position in inside:
                to: Any = (..., *position)
                of: Any = (..., *at)
                dx[to] += self.dy[of] / (padded if include else len(inside))
        return dx

    def faces(self) -> list[np.ndarray]:
        """y, argmax, dx from x, dx from argmax, dx of the average without and with padding."""
        y, argmax = pooling.max_pool(self.x, self.kernel, **self.attributes)
        shape = self.x.shape
        return [
            y,
            argmax,
            pooling.max_pool_grad(self.x, self.dy, self.kernel, **self.attributes),
            pooling.max_pool_argmax_grad(argmax, self.dy, shape, self.kernel, **self.attributes),
            *(
                pooling.average_pool_grad(self.dy, shape, self.kernel, count_include_pad=p, **self.attributes)
                for p in (False, True)
            ),
        ]

    def nodes(self, threads: int) -> list[np.ndarray]:
        """The same from the custom ops in a session."""
        g = Graph()
        common = {"kernel_shape": self.kernel, **self.attributes}
        y = g.own("MaxPool", "x", outputs=2, **common)
        argmax = y[:-1] + "1"
        dx = g.own("MaxPoolGrad", "x", "dy", **common)
        by_argmax = g.own("MaxPoolArgmaxGrad", argmax, "dy", g("Shape", "x"), **common)
        size = list(self.x.shape[2:])
        average = g.own("AveragePoolGrad", "dy", input_shape=size, **common)
        padded = g.own("AveragePoolGrad", "dy", g("Shape", "x"), count_include_pad=1, **common)
        feeds = {"x": self.x, "dy": self.dy}
        return list(g.session(feeds, [y, argmax, dx, by_argmax, average, padded], threads).run(None, feeds))


def check(case: Case, faces: Sequence[np.ndarray]) -> None:
    y, argmax, dx = case.maxima()
    assert (faces[0] == y).all() and (faces[1] == argmax).all()
    scale = 1e-6 * abs(case.dy).max(initial=0) * np.prod(case.kernel)  # a rounding per window that shares an input
    assert abs(faces[2] - dx).max(initial=0) <= scale
    assert faces[3].tobytes() == faces[2].tobytes()
    for got, include in ((faces[4], False), (faces[5], True)):
        assert abs(got - case.averages(include)).max(initial=0) <= scale


@st.composite
def cases(draw: st.DrawFn) -> Case:
    axes = []
    for _ in range(draw(st.integers(1, 2))):
        taps, stride, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
        before, after = (draw(st.integers(0, taps - 1)) for _ in range(2))
        least = max(1, (taps - 1) * dilation + 1 - before - after)
        axes.append((draw(st.integers(least, least + 12)), taps, stride, dilation, before, after))
    planes = (draw(st.integers(0, 2)), draw(st.integers(1, 2)))
    return Case(planes, axes, draw(st.booleans()), draw(st.integers(0, 2**32 - 1)))


def square(size: int, taps: int, stride: int, pad: int = 0) -> list[Axis]:
    return [(size, taps, stride, 1, pad, pad)] * 2


NAMED = {
    "2x2 s2": Case((2, 5), square(28, 2, 2), False, 1),
    "2x2 s2, odd": Case((2, 2), [(13, 2, 2, 1, 0, 0), (35, 2, 2, 1, 0, 0)], False, 8),
    "2x2 s2, padded at the end": Case((2, 2), [(40, 2, 2, 1, 0, 1)] * 2, False, 9),
    "2x2 s2, odd, ceil": Case((2, 2), square(15, 2, 2), True, 2),
    "3x3 s2, overlapping": Case((2, 3), square(23, 3, 2, 1), False, 3),
    "3x3 s1": Case((1, 2), square(12, 3, 1, 1), False, 4),
    "3x3 s2, ceil": Case((1, 2), square(14, 3, 2), True, 5),
    "dilation 2": Case((1, 2), [(21, 3, 2, 2, 1, 1)] * 2, False, 6),
    "1-D": Case((2, 3), [(1001, 4, 3, 1, 1, 2)], False, 7),
}


@pytest.mark.parametrize("name", NAMED)
def test_results_are_those_of_windows_walked_one_by_one(isa: str, name: str) -> None:
    check(NAMED[name], NAMED[name].faces())


@settings(max_examples=60, deadline=None)
@given(cases())
def test_any_window_gives_what_walking_gives_and_the_same_bytes_under_every_capability(case: Case) -> None:
    check(case, same_everywhere(case.faces))


@pytest.mark.parametrize("name", NAMED)
def test_nodes_in_a_stock_session_give_the_kernels_bytes_for_any_number_of_threads(isa: str, name: str) -> None:
    faces = [a.tobytes() for a in NAMED[name].faces()]
    for threads in (1, 2):
        assert [a.tobytes() for a in NAMED[name].nodes(threads)] == faces


@pytest.mark.parametrize("name", NAMED)
def test_the_forward_node_is_onnxruntimes_max_pool(name: str) -> None:
    case = NAMED[name]
    g = Graph()
    y = g("MaxPool", "x", kernel_shape=case.kernel, **case.attributes)
    assert (g.session({"x": case.x}, [y]).run(None, {"x": case.x})[0] == case.faces()[0]).all()


def test_the_gradient_of_tiling_windows_equals_its_standard_op_twin(seed: int) -> None:
    case = Case((2, 5), square(28, 2, 2), False, seed)
    every = np.random.default_rng(seed).permutation(case.x.size)  # no ties: the twin gives each of them the gradient
    case.x = every.astype(F32).reshape(case.x.shape)
    g = Graph()
    spread = {
        name: g(
            "Resize", name, "", g.constant([1, 1, 2, 2], F32),
            mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric",
        )
        for name in ("y", "dy")
    }  # fmt: skip
    dx = g("Mul", g("Cast", g("Equal", "x", spread["y"]), to=1), spread["dy"])
    feeds = {"x": case.x, "y": case.faces()[0], "dy": case.dy}
    assert (g.session(feeds, [dx]).run(None, feeds)[0] == case.faces()[2]).all()


@pytest.mark.needs("torch")
@pytest.mark.parametrize("name", [n for n in NAMED if n != "1-D"])
def test_gradients_are_those_of_torch_ties_included(name: str) -> None:
    import torch

    case = NAMED[name]
    pads, stride, ceil = [a[4] for a in case.axes], case.attributes["strides"], bool(case.attributes["ceil_mode"])
    x = torch.tensor(case.x, requires_grad=True)
    torch.nn.functional.max_pool2d(x, case.kernel, stride, pads, case.attributes["dilations"], ceil_mode=ceil).backward(
        torch.tensor(case.dy)
    )
    faces = case.faces()
    assert x.grad is not None
    assert np.allclose(faces[2], x.grad.numpy(), rtol=1e-6, atol=1e-6)
    if case.attributes["dilations"] != [1, 1]:
        return
    for include in (False, True):
        x = torch.tensor(case.x, requires_grad=True)
        torch.nn.functional.avg_pool2d(x, case.kernel, stride, pads, ceil, include).backward(torch.tensor(case.dy))
        assert x.grad is not None
        assert np.allclose(faces[4 + include], x.grad.numpy(), rtol=1e-6, atol=1e-6)


def test_nan_wins_over_numbers_and_minus_infinity_gives_the_first_tap_inside(isa: str) -> None:
    x = np.full((1, 1, 3, 3), -np.inf, F32)
    y, argmax = pooling.max_pool(x, [2, 2], pads=[1, 1, 0, 0])
    assert (y == -np.inf).all()
    assert argmax[0, 0].tolist() == [[3, 2, 2], [1, 0, 0], [1, 0, 0]]
    x[0, 0, 1] = [5, np.nan, 7]
    y, argmax = pooling.max_pool(x, [1, 3])
    assert np.isnan(y[0, 0, 1, 0]) and argmax[0, 0, 1, 0] == 1


def test_side_by_side_windows_treat_nan_and_infinities_alike(isa: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.choice(np.array([np.nan, -np.inf, np.inf, 0, 1], F32), (2, 3, 12, 70))
    dy = rng.standard_normal((2, 3, 6, 35), F32)
    wide, same = {"strides": [2, 2]}, {"strides": [2, 2], "pads": [1, 0, 0, 0]}  # padding leads to the general body
    y, argmax = pooling.max_pool(x, [2, 2], **wide)
    below = np.concatenate([x[:, :, 1:], x[:, :, :1]], axis=2)
    expected, index = pooling.max_pool(below, [2, 2], **same)  # windows of rows (pad, 1), (2, 3), ...
    assert np.array_equal(y[:, :, 1:], expected[:, :, 1:6], equal_nan=True)
    assert (argmax[:, :, 1:] == index[:, :, 1:6]).all()
    dx = pooling.max_pool_grad(x, dy, [2, 2], **wide)
    assert dx.tobytes() == pooling.max_pool_argmax_grad(argmax, dy, x.shape, [2, 2], **wide).tobytes()


def test_a_window_of_more_taps_than_argmax_holds_still_has_a_gradient(isa: str) -> None:
    x, dy = np.zeros((1, 1, 20, 20), F32), np.ones((1, 1, 1, 1), F32)
    x[0, 0, 19, 18] = 1
    dx = pooling.max_pool_grad(x, dy, [20, 20])
    assert dx[0, 0, 19, 18] == 1 and dx.sum() == 1
    with pytest.raises(binding.KernelError, match="argmax of 400 taps, at most 256"):
        pooling.max_pool(x, [20, 20])


def test_an_argmax_that_names_no_tap_moves_nothing(isa: str) -> None:
    argmax, dy = np.full((1, 1, 4, 4), 255, np.uint8), np.ones((1, 1, 4, 4), F32)
    assert not pooling.max_pool_argmax_grad(argmax, dy, (1, 1, 8, 8), [2, 2], strides=[2, 2]).any()


X, DY = np.ones((2, 3, 8, 8), F32), np.ones((2, 3, 4, 4), F32)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: pooling.max_pool(X[0, 0], [2, 2]), "shape"),
        (lambda: pooling.max_pool(X, [9, 2]), "spans 9 on spatial axis 0, the padded input has 8"),
        (lambda: pooling.max_pool(X, [2]), "kernel"),
        (lambda: pooling.max_pool_grad(X, DY[:, :2].copy(), [2, 2], strides=[2, 2]), "don't fit"),
        (lambda: pooling.max_pool_grad(X, DY, [2, 2]), "the windows give"),
        (lambda: pooling.max_pool_argmax_grad(DY, DY, X.shape, [2, 2]), "needs contiguous uint8"),  # type: ignore[arg-type]
        (lambda: pooling.average_pool_grad(DY, (2, 3, 9), [2, 2]), "don't fit"),
    ],
)
def test_faces_refuse_what_does_not_fit_in_words(call: Any, match: str) -> None:
    with pytest.raises(binding.KernelError, match=match):
        call()


@pytest.mark.parametrize(
    ("op", "feeds", "attributes", "match"),
    [
        ("MaxPool", {"x": X}, {}, "kernel_shape is missing"),
        ("MaxPool", {"x": X}, {"kernel_shape": [2, 2], "auto_pad": "VALID"}, "auto_pad"),
        ("MaxPool", {"x": X.astype(np.uint8)}, {"kernel_shape": [2, 2]}, "isn't of floats"),
        ("MaxPoolGrad", {"x": X, "dy": DY}, {"kernel_shape": [2, 2]}, "the windows give"),
        ("MaxPoolGrad", {"x": X[:1].copy(), "dy": DY}, {"kernel_shape": [2, 2]}, "they differ in batch"),
        ("MaxPoolArgmaxGrad", {"a": DY, "dy": DY}, {"kernel_shape": [2, 2], "strides": [2, 2], "input_shape": [8, 8]}, "isn't uint8"),
        ("AveragePoolGrad", {"dy": DY}, {"kernel_shape": [2, 2]}, "needs attribute input_shape"),
        ("AveragePoolGrad", {"dy": DY}, {"kernel_shape": [9, 2], "input_shape": [8, 8]}, "spans 9"),
    ],
)  # fmt: skip
def test_nodes_fail_the_run_in_words_on_what_does_not_fit(op: str, feeds: Any, attributes: Any, match: str) -> None:
    with pytest.raises(Exception, match=match):
        run_op(op, feeds, **attributes)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_nodes_survive_any_shapes(data: st.DataObject) -> None:
    shapes = [data.draw(st.lists(st.integers(0, 5), max_size=5)) for _ in range(2)]
    a, b = (np.ones(s, F32) for s in shapes)
    names = ["strides", "dilations", "pads", "kernel_shape", "input_shape", "kernel_shape"]
    attributes: dict[str, Any] = {
        name: data.draw(st.lists(st.sampled_from([-1, 0, 1, 2, 3, 2**40]), min_size=1, max_size=4))
        for name in data.draw(st.lists(st.sampled_from(names), max_size=4))
    }
    for op, feeds in (("MaxPool", {"a": a}), ("MaxPoolGrad", {"a": a, "b": b}), ("AveragePoolGrad", {"b": b})):
        try:
            out = run_op(op, feeds, **attributes)[0]
        except Exception as error:  # noqa: BLE001 - the runtime's exceptions share no base
            assert op in str(error) or "attribute" in str(error), error
        else:
            assert not np.isnan(out).any()
