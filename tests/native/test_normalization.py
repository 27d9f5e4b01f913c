"""Batch normalization and its gradient: against float64, onnxruntime's standard ops and torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetgrad.native import binding, normalization
from fleetgrad.native.bench.graphs import Graph
from tests.native.every import run_op, same_everywhere

F32 = np.float32
ROUNDING = 1e-6  # relative: sums are float64, a result is rounded a few times


class Case:
    """A tensor with a mean and a scale per channel, and what goes with it."""

    def __init__(self, shape: tuple[int, ...], seed: int, offset: float = 3.0) -> None:
        print(f"seed {seed}")
        rng = np.random.default_rng(seed)
        channels = [1, -1, *[1] * (len(shape) - 2)]

        def draw() -> np.ndarray:
            return np.asarray(rng.standard_normal(shape[1]), F32)

        self.x = (
            rng.standard_normal(shape) * np.exp(draw()).reshape(channels) + offset * draw().reshape(channels)
        ).astype(F32)
        self.dy = rng.standard_normal(shape).astype(F32)
        self.scale, self.bias, self.running_mean = draw(), draw(), draw()
        self.running_var = np.exp(draw())

    def parameters(self) -> tuple[np.ndarray, ...]:
        return self.scale, self.bias, self.running_mean, self.running_var

    def faces(self) -> list[np.ndarray]:
        """The forward's six results, then dx, dscale, dbias in training and frozen."""
        forward = normalization.batch_norm(self.x, *self.parameters())
        saved = self.scale, forward.mean, forward.invstd
        grads = [normalization.batch_norm_grad(self.x, self.dy, *saved, training=t) for t in (True, False)]
        return [*forward, *grads[0], *grads[1]]

    def nodes(self, threads: int) -> list[np.ndarray]:
        g = Graph()
        y = g.own("BatchNorm", "x", "scale", "bias", "mean", "var", outputs=6)
        outs = [f"{y[:-1]}{i}" for i in range(6)]
        for training in (1, 0):
            dx = g.own("BatchNormGrad", "x", "dy", "scale", outs[1], outs[3], outputs=3, training=training)
            outs += [f"{dx[:-1]}{i}" for i in range(3)]
        names = ("x", "scale", "bias", "mean", "var", "dy")
        feeds = dict(zip(names, (self.x, *self.parameters(), self.dy), strict=True))
        return list(g.session(feeds, outs, threads).run(None, feeds))


def check(case: Case, faces: Sequence[np.ndarray]) -> None:
    x, dy = case.x.astype(np.float64), case.dy.astype(np.float64)
    axes = (0, *range(2, x.ndim))
    wide = (1, -1, *[1] * (x.ndim - 2))
    count = x.size // x.shape[1]
    mean, var = x.mean(axes), x.var(axes)
    invstd = 1 / np.sqrt(var + 1e-5)
    centred = x - mean.reshape(wide)
    y = centred * (invstd * case.scale).reshape(wide)
    y_size = abs(y) + abs(case.bias.reshape(wide)) + 1e-3 * abs(mean / np.sqrt(var + 1e-5) * case.scale).reshape(wide)
    assert (abs(faces[0] - y - case.bias.reshape(wide)) <= ROUNDING * y_size).all()
    running = [0.9 * case.running_mean + 0.1 * mean, 0.9 * case.running_var + 0.1 * var * count / (count - 1)]
    sizes = [abs(mean), var, invstd, 0.9 * abs(case.running_mean) + 0.1 * abs(mean), running[1]]
    for got, expected, size in zip(faces[1:6], [mean, var, invstd, *running], sizes, strict=True):
        assert (abs(got - expected) <= ROUNDING * size + 1e-30).all()
    # The gradient's contract takes the saved statistics as given.
    saved_mean, saved_invstd = faces[1].astype(np.float64), faces[3].astype(np.float64)
    centred = x - saved_mean.reshape(wide)
    sums, products = dy.sum(axes), (dy * centred).sum(axes)
    sizes = [abs(dy).sum(axes), abs(dy * centred).sum(axes)]
    k = (case.scale * saved_invstd).reshape(wide)
    parts = [dy * k, -k * sums.reshape(wide) / count, -k * centred * (saved_invstd**2 * products / count).reshape(wide)]
    bound = sum(abs(p) for p in parts)
    assert (abs(faces[6] - sum(parts)) <= ROUNDING * bound).all()
    assert (abs(faces[9] - parts[0]) <= ROUNDING * abs(parts[0])).all()
    for dscale, dbias in ((faces[7], faces[8]), (faces[10], faces[11])):
        assert (abs(dbias - sums) <= ROUNDING * abs(sums) + 1e-13 * sizes[0]).all()
        assert (
            abs(dscale - products * saved_invstd)
            <= ROUNDING * abs(products * saved_invstd) + 1e-13 * sizes[1] * saved_invstd
        ).all()


NAMED = {
    "image": Case((4, 5, 28, 28), 1),
    "small planes": Case((3, 7, 3, 3), 2),
    "matrix": Case((33, 37), 3),
    "signal": Case((2, 3, 1001), 4),
    "volume": Case((2, 3, 4, 5, 6), 5),
    "mean of a thousand deviations": Case((8, 4, 13, 13), 6, 1000.0),
    "two values": Case((2, 3), 7),
}


@pytest.mark.parametrize("name", NAMED)
def test_results_are_those_of_float64(isa: str, name: str) -> None:
    check(NAMED[name], NAMED[name].faces())


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 20), st.integers(1, 40), st.lists(st.integers(1, 20), max_size=2), st.integers(0, 2**32 - 1))
def test_any_shape_gives_float64s_results_and_the_same_bytes_under_every_capability(
    batch: int, channels: int, spatial: list[int], seed: int
) -> None:
    if batch * int(np.prod(spatial)) < 2:
        batch = 2
    case = Case((batch, channels, *spatial), seed)
    check(case, same_everywhere(case.faces))


@pytest.mark.parametrize("name", NAMED)
def test_nodes_in_a_stock_session_give_the_kernels_bytes_for_any_number_of_threads(isa: str, name: str) -> None:
    faces = [a.tobytes() for a in NAMED[name].faces()]
    for threads in (1, 2):
        assert [a.tobytes() for a in NAMED[name].nodes(threads)] == faces


def test_the_nodes_equal_their_standard_op_twins(seed: int) -> None:
    case = Case((6, 9, 11, 7), seed)
    g = Graph()
    y = g("BatchNormalization", "x", "scale", "bias", "mean", "var", outputs=3, training_mode=1, momentum=0.0)
    mean, var = f"{y[:-1]}1", f"{y[:-1]}2"
    wide, axes = g.constant([1, -1, 1, 1]), g.constant([0, 2, 3])
    invstd = g("Reciprocal", g("Sqrt", g("Add", var, g.constant(1e-5, F32))))
    centred = g("Sub", "x", g("Reshape", mean, wide))
    dbias = g("ReduceSum", "dy", axes, keepdims=0)
    product = g("ReduceSum", g("Mul", "dy", centred), axes, keepdims=0)
    dscale = g("Mul", product, invstd)
    count = g.constant(case.x.size // 9, F32)
    k = g("Mul", "scale", invstd)
    slope = g("Div", g("Mul", g("Mul", invstd, invstd), product), count)
    inner = g(
        "Sub", g("Sub", "dy", g("Reshape", g("Div", dbias, count), wide)), g("Mul", centred, g("Reshape", slope, wide))
    )
    dx = g("Mul", inner, g("Reshape", k, wide))
    feeds = dict(zip(("x", "scale", "bias", "mean", "var", "dy"), (case.x, *case.parameters(), case.dy), strict=True))
    twins = g.session(feeds, [y, mean, var, invstd, dx, dscale, dbias]).run(None, feeds)
    nodes = case.nodes(1)
    for twin, node in zip(twins, [*nodes[:4], *nodes[6:9]], strict=True):
        assert np.allclose(twin, node, rtol=1e-4, atol=1e-4)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("name", ["image", "matrix", "signal"])
def test_training_is_torchs(name: str) -> None:
    import torch

    case = NAMED[name]
    x, scale, bias = (torch.tensor(a, requires_grad=True) for a in (case.x, case.scale, case.bias))
    mean, var = torch.tensor(case.running_mean), torch.tensor(case.running_var)
    y = torch.nn.functional.batch_norm(x, mean, var, scale, bias, True, 0.1, 1e-5)
    y.backward(torch.tensor(case.dy))
    faces = case.faces()
    theirs: list[Any] = [y.detach(), mean, var, x.grad, scale.grad, bias.grad]
    for got, twin in zip([faces[i] for i in (0, 4, 5, 6, 7, 8)], theirs, strict=True):
        assert np.allclose(got, twin.numpy(), rtol=1e-4, atol=1e-5)


def test_a_constant_channel_has_no_variance_and_no_gradient(isa: str) -> None:
    x, one = np.full((3, 2, 5), 1234.567, F32), np.ones(2, F32)
    forward = normalization.batch_norm(x, one, one, one, one)
    assert not forward.var.any() and (forward.y == 1).all()


X, C = np.ones((2, 3, 4), F32), np.ones(3, F32)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: normalization.batch_norm(X[0, 0], C, C, C, C), "shape"),
        (lambda: normalization.batch_norm(X[:1, :, :1].copy(), C, C, C, C), "1 value a channel"),
        (lambda: normalization.batch_norm(X, C[:2], C, C, C), "2 elements, expected 3"),
        (lambda: normalization.batch_norm(X, C, C, C, C, momentum=1.5), "momentum 1.5"),
        (lambda: normalization.batch_norm_grad(X, X[:1], C, C, C), "expected the same shape"),
    ],
)
def test_faces_refuse_what_does_not_fit_in_words(call: Any, match: str) -> None:
    with pytest.raises(binding.KernelError, match=match):
        call()


@pytest.mark.parametrize(
    ("op", "feeds", "outputs", "match"),
    [
        ("BatchNorm", {"x": X[0, 0], "s": C, "b": C}, 1, "expected floats"),
        ("BatchNorm", {"x": X[:0], "s": C, "b": C}, 1, "at least one value"),
        ("BatchNorm", {"x": X[:1, :, :1].copy(), "s": C, "b": C}, 1, "1 value a channel"),
        ("BatchNorm", {"x": X, "s": C[:2], "b": C}, 1, r"scale has shape \[2\], expected floats \[3\]"),
        ("BatchNorm", {"x": X, "s": C, "b": C}, 6, "whose input isn't given"),
        ("BatchNormGrad", {"x": X, "dy": X[:1], "s": C, "m": C, "i": C}, 3, "expected floats of one shape"),
        ("BatchNormGrad", {"x": X, "dy": X, "s": C, "m": C, "i": C[:1]}, 3, "invstd has shape"),
    ],
)
def test_nodes_fail_the_run_in_words_on_what_does_not_fit(op: str, feeds: Any, outputs: int, match: str) -> None:
    with pytest.raises(Exception, match=match):
        run_op(op, feeds, outputs)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=5), st.lists(st.integers(0, 4), max_size=2))
def test_nodes_survive_any_shapes(shape: list[int], other: list[int]) -> None:
    a, b = np.ones(shape, F32), np.ones(other, F32)
    for op, feeds in (
        ("BatchNorm", {"x": a, "s": b, "b": b}),
        ("BatchNormGrad", {"x": a, "dy": a, "s": b, "m": b, "i": b}),
    ):
        try:
            out = run_op(op, feeds)[0]
        except Exception as error:  # noqa: BLE001 - the runtime's exceptions share no base
            assert op in str(error), error
        else:
            assert np.isfinite(out).all()
