"""The recurrent kernels and embedding gradients against float64, under every capability, and what they refuse."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fleetgrad.native import binding, recurrent
from fleetgrad.native.binding import Floats
from tests.native.every import every_capability

Array = NDArray[Any]
SIZES = [(1, 1, 1), (5, 1, 7), (4, 3, 33), (3, 6, 16), (7, 5, 40)]  # steps, sequences, hidden units
f = np.float32


def normal(seed: int, *shapes: tuple[int, ...], scale: float = 1.0) -> list[Floats]:
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, f) * f(scale) for shape in shapes]


def sig(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


@dataclass
class Case:
    """A layer's inputs; `grads` are dy, dy_h, dy_c."""

    p: Floats
    r: Floats
    h0: Floats | None
    c0: Floats | None
    bias: Floats | None
    lengths: NDArray[np.int32] | None
    reverse: bool
    grads: list[Floats | None]

    def order(self, b: int) -> list[int]:
        steps = list(range(self.p.shape[0] if self.lengths is None else int(self.lengths[b])))
        return steps[::-1] if self.reverse else steps


def case(seed: int, gates: int, size: tuple[int, int, int], states: bool, lengths: bool, reverse: bool) -> Case:
    t, n, h = size
    p, r, h0, c0, bias, dy, dy_h, dy_c = normal(
        seed, (t, n, gates * h), (gates * h, h), (n, h), (n, h), (h,), (t, n, h), (n, h), (n, h)
    )
    given = np.random.default_rng(seed).integers(0, t + 1, n).astype(np.int32) if lengths else None
    grads: list[Floats | None] = [dy, dy_h, dy_c] if states else [dy, None, None]
    r *= f(h**-0.5)
    return Case(p, r, h0 if states else None, c0 if states else None, bias if states else None, given, reverse, grads)


def lstm_oracle(c: Case) -> dict[str, Array]:
    """Forward and backward in float64, one sequence and step at a time."""
    t, n, h = c.p.shape[0], c.p.shape[1], c.r.shape[1]
    out = {k: np.zeros(s) for k, s in (("y", (t, n, h)), ("y_h", (n, h)), ("y_c", (n, h)), ("dp", (t, n, 4 * h)))}
    out |= {"dh0": np.zeros((n, h)), "dc0": np.zeros((n, h)), "previous": np.zeros((t, n, h))}
    r = c.r.astype(float)
    for b in range(n):
        state = np.zeros(h) if c.h0 is None else c.h0[b].astype(float)
        cell = np.zeros(h) if c.c0 is None else c.c0[b].astype(float)
        saved = []
        for k in c.order(b):
            a = c.p[k, b] + r @ state
            i, o, fg, g = sig(a[:h]), sig(a[h : 2 * h]), sig(a[2 * h : 3 * h]), np.tanh(a[3 * h :])
            out["previous"][k, b] = state
            before, cell = cell, fg * cell + i * g
            state = o * np.tanh(cell)
            out["y"][k, b] = state
            saved.append((k, i, o, fg, g, before, cell))
        out["y_h"][b], out["y_c"][b] = state, cell
        dy, dy_h, dy_c = c.grads
        dh = np.zeros(h) if dy_h is None else dy_h[b].astype(float)
        dc = np.zeros(h) if dy_c is None else dy_c[b].astype(float)
        for k, i, o, fg, g, before, cell in reversed(saved):
            dh = dh + (0 if dy is None else dy[k, b])
            tangent = np.tanh(cell)
            dc = dc + dh * o * (1 - tangent**2)
            d = [dc * g * i * (1 - i), dh * tangent * o * (1 - o), dc * before * fg * (1 - fg), dc * i * (1 - g**2)]
            out["dp"][k, b] = np.concatenate(d)
            dh, dc = r.T @ out["dp"][k, b], dc * fg
        out["dh0"][b], out["dc0"][b] = dh, dc
    return out


def gru_oracle(c: Case, after: bool) -> dict[str, Array]:
    """Forward and backward in float64; dr is the gradient of R."""
    t, n, h = c.p.shape[0], c.p.shape[1], c.r.shape[1]
    out = {k: np.zeros(s) for k, s in (("y", (t, n, h)), ("y_h", (n, h)), ("dp", (t, n, 3 * h)), ("dh0", (n, h)))}
    out["dr"] = np.zeros((3 * h, h))
    r = c.r.astype(float)
    bias = np.zeros(h) if c.bias is None else c.bias.astype(float)
    for b in range(n):
        state = np.zeros(h) if c.h0 is None else c.h0[b].astype(float)
        saved = []
        for k in c.order(b):
            z, reset = np.split(sig(c.p[k, b, : 2 * h] + r[: 2 * h] @ state), 2)
            inner = r[2 * h :] @ state + bias if after else r[2 * h :] @ (reset * state)
            new = np.tanh(c.p[k, b, 2 * h :] + (reset * inner if after else inner))
            before, state = state, (1 - z) * new + z * state
            out["y"][k, b] = state
            saved.append((k, z, reset, new, inner, before))
        out["y_h"][b] = state
        dy, dy_h, _ = c.grads
        dh = np.zeros(h) if dy_h is None else dy_h[b].astype(float)
        for k, z, reset, new, inner, before in reversed(saved):
            dh = dh + (0 if dy is None else dy[k, b])
            dn = dh * (1 - z) * (1 - new**2)
            dz = dh * (before - new) * z * (1 - z)
            ds = r[2 * h :].T @ dn  # without reset_after: what reset * before gets
            dreset = (dn * inner if after else ds * before) * reset * (1 - reset)
            out["dp"][k, b] = np.concatenate([dz, dreset, dn])
            zr = np.concatenate([dz, dreset])
            out["dr"][: 2 * h] += np.outer(zr, before)
            out["dr"][2 * h :] += np.outer(dn * reset, before) if after else np.outer(dn, reset * before)
            dh = dh * z + r[: 2 * h].T @ zr + (r[2 * h :].T @ (dn * reset) if after else ds * reset)
        out["dh0"][b] = dh
    return out


def close(found: Floats, expected: Array) -> None:
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * scale)  # sums of up to 160 float32 products


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("states", "lengths", "reverse"), [(False, False, False), (True, True, False), (True, True, True)]
)
def test_lstm_is_the_definition_forward_and_backward(
    isa: str, seed: int, size: tuple[int, int, int], states: bool, lengths: bool, reverse: bool
) -> None:
    c = case(seed, 4, size, states, lengths, reverse)
    expected = lstm_oracle(c)
    how: dict[str, Any] = {"lengths": c.lengths, "reverse": reverse}
    saved = recurrent.lstm_forward(c.p, c.r, h0=c.h0, c0=c.c0, **how)
    dy, dy_h, dy_c = c.grads
    dp, dh0, dc0 = recurrent.lstm_backward(c.r, saved, c0=c.c0, dy=dy, dy_h=dy_h, dy_c=dy_c, **how)
    previous = recurrent.previous_states(saved.y, h0=c.h0, **how)
    found = {"y": saved.y, "y_h": saved.y_h, "y_c": saved.y_c, "dp": dp, "dh0": dh0, "dc0": dc0, "previous": previous}
    for name, value in found.items():
        close(value, expected[name])


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("states", "lengths", "reverse"), [(False, False, False), (True, True, False), (True, True, True)]
)
def test_gru_is_the_definition_forward_and_backward(
    isa: str, seed: int, size: tuple[int, int, int], states: bool, lengths: bool, reverse: bool, after: bool
) -> None:
    c = case(seed, 3, size, states, lengths, reverse)
    expected = gru_oracle(c, after)
    how: dict[str, Any] = {"lengths": c.lengths, "reverse": reverse}
    bias = c.bias if after else None
    saved = recurrent.gru_forward(c.p, c.r, reset_after=after, bias=bias, h0=c.h0, **how)
    dy, dy_h, _ = c.grads
    dp, side, dh0 = recurrent.gru_backward(c.r, saved, h0=c.h0, dy=dy, dy_h=dy_h, **how)
    h = size[2]
    previous = recurrent.previous_states(saved.y, h0=c.h0, **how).reshape(-1, h)
    flat, other = dp.reshape(-1, 3 * h), side.reshape(len(previous), -1)
    if after:
        dr = other.T @ previous
    else:
        dr = np.concatenate([flat[:, : 2 * h].T @ previous, flat[:, 2 * h :].T @ other])
    for name, value in {"y": saved.y, "y_h": saved.y_h, "dp": dp, "dh0": dh0, "dr": dr}.items():
        close(value, expected[name])


@pytest.mark.parametrize("kind", ["lstm", "gru after", "gru before"])
def test_the_oracles_gradients_are_finite_differences(seed: int, kind: str) -> None:
    c = case(seed, 4 if kind == "lstm" else 3, (3, 2, 2), True, True, True)
    c.p = c.p.astype(float)
    c.h0 = c.h0.astype(float)  # type: ignore[union-attr]

    def run() -> dict[str, Array]:
        return lstm_oracle(c) if kind == "lstm" else gru_oracle(c, kind == "gru after")

    def loss() -> float:
        out = run()
        pairs = zip(("y", "y_h", "y_c"), c.grads, strict=True)
        return sum(float((out[name] * g).sum()) for name, g in pairs if name in out and g is not None)

    gradient = run()
    for array, found in ((c.p, gradient["dp"]), (c.h0, gradient["dh0"])):
        assert array is not None
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + 1e-5
            up = loss()
            array[index] = kept - 1e-5
            down = loss()
            array[index] = kept
            assert abs((up - down) / 2e-5 - found[index]) < 1e-7


def test_every_capability_gives_the_same_bytes(seed: int) -> None:
    c, d = case(seed, 4, (4, 7, 37), True, True, False), case(seed, 3, (4, 7, 37), True, True, True)
    seen = set()
    for _ in every_capability():
        saved = recurrent.lstm_forward(c.p, c.r, h0=c.h0, c0=c.c0, lengths=c.lengths)
        arrays = [saved.y, saved.cells, *recurrent.lstm_backward(c.r, saved, c0=c.c0, dy=c.grads[0], lengths=c.lengths)]
        for after in (True, False):
            gru = recurrent.gru_forward(d.p, d.r, reset_after=after, h0=d.h0, lengths=d.lengths, reverse=True)
            back = recurrent.gru_backward(d.r, gru, h0=d.h0, dy=d.grads[0], lengths=d.lengths, reverse=True)
            arrays += [gru.y, gru.gates, *back]
        seen.add(b"".join(a.tobytes() for a in arrays))
    assert len(seen) == 1


def units(found: Floats, exact: Array) -> float:
    """Largest error in units in the last place."""
    return float((np.abs(found - exact) / np.spacing(np.abs(exact).astype(f)).astype(float)).max())


def test_sigmoid_and_tanh_are_right_to_three_units_in_the_last_place(isa: str) -> None:
    small = f(10.0) ** np.linspace(-37, 0, 20001).astype(f)
    x = np.concatenate([np.linspace(-86, 86, 300001).astype(f), small, -small, np.array([0, -0.0], f)])
    wide = x.astype(float)
    assert units(recurrent.sigmoid(x), 1 / (1 + np.exp(-wide))) <= 3
    assert units(recurrent.tanh(x), np.tanh(wide)) <= 3
    ends = np.array([1000, np.inf, -1000, -np.inf], f)
    assert recurrent.tanh(ends).tolist() == [1, 1, -1, -1]
    assert recurrent.sigmoid(ends[:2]).tolist() == [1, 1]
    assert (recurrent.sigmoid(ends[2:]) <= 2e-38).all()
    assert np.signbit(recurrent.tanh(np.array([-0.0], f))).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_with_their_place(isa: str, seed: int, bad: float) -> None:
    c, d = case(seed, 4, (5, 3, 9), True, False, False), case(seed, 3, (5, 3, 9), True, False, False)
    saved = recurrent.lstm_forward(c.p, c.r)
    gru = {after: recurrent.gru_forward(d.p, d.r, reset_after=after) for after in (True, False)}
    dy = np.zeros((5, 3, 9), f)
    c.p[3, 1, 5] = d.p[3, 1, 20] = dy[3, 1, 4] = bad
    with pytest.raises(binding.KernelError, match="LSTM forward: step 3 of sequence 1: value is NaN"):
        recurrent.lstm_forward(c.p, c.r)
    with pytest.raises(binding.KernelError, match="LSTM backward: step 3 of sequence 1: value is NaN"):
        recurrent.lstm_backward(c.r, saved, dy=dy)
    for after in (True, False):
        with pytest.raises(binding.KernelError, match="GRU forward: step 3 of sequence 1: value is NaN"):
            recurrent.gru_forward(d.p, d.r, reset_after=after)
        with pytest.raises(binding.KernelError, match="GRU backward: step 3 of sequence 1: value is NaN"):
            recurrent.gru_backward(d.r, gru[after], dy=dy)


p, r = np.zeros((2, 3, 8), f), np.zeros((8, 2), f)
REFUSED: list[tuple[str, Callable[[], object]]] = [
    ("don't fit", lambda: recurrent.lstm_forward(p, np.zeros((8, 3), f))),
    ("don't fit", lambda: recurrent.lstm_forward(np.zeros((2, 3, 6), f), r)),
    ("don't fit", lambda: recurrent.lstm_forward(np.zeros((0, 3, 8), f), r)),
    ("don't fit", lambda: recurrent.gru_forward(p, r, reset_after=True)),
    (r"an array is \(2, 2\)", lambda: recurrent.lstm_forward(p, r, h0=np.zeros((2, 2), f))),
    (r"lengths \[0, 3, 1\] of 2 steps", lambda: recurrent.lstm_forward(p, r, lengths=np.array([0, 3, 1], np.int32))),
    (r"lengths \[0, -1, 1\]", lambda: recurrent.lstm_forward(p, r, lengths=np.array([0, -1, 1], np.int32))),
    ("needs contiguous float32", lambda: recurrent.lstm_forward(p.astype(float), r)),
    (
        "index 5 at position 2, the vocabulary has 5 rows",
        lambda: recurrent.embedding_grad(np.array([0, -5, 5]), np.zeros((3, 2), f), 5),
    ),
    (
        "index -6 at position 0",
        lambda: recurrent.sparse_embedding_grad(np.array([-6], np.int32), np.zeros((1, 2), f), 5),
    ),
    ("don't fit", lambda: recurrent.embedding_grad(np.array([0]), np.zeros((3, 2), f), 5)),
    ("needs contiguous int64", lambda: recurrent.embedding_grad(np.array([0.0]), np.zeros((1, 2), f), 5)),
]


@pytest.mark.parametrize(("match", "act"), REFUSED, ids=range(len(REFUSED)))
def test_what_a_caller_gets_wrong_is_refused_in_words(match: str, act: Callable[[], object]) -> None:
    with pytest.raises(binding.KernelError, match=match):
        act()


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize(
    ("count", "width", "vocabulary"), [(0, 3, 4), (1, 1, 1), (100, 7, 13), (5, 33, 1000), (64, 16, 20)]
)
def test_embedding_gradients_add_rows_in_the_order_of_positions(
    isa: str, seed: int, dtype: Any, count: int, width: int, vocabulary: int
) -> None:
    rng = np.random.default_rng(seed)
    indices = rng.integers(-vocabulary, vocabulary, count).astype(dtype)
    (dy,) = normal(seed, (count, width))
    expected = np.zeros((vocabulary, width), f)
    for index, row in zip(indices, dy, strict=True):
        expected[index] += row
    assert recurrent.embedding_grad(indices, dy, vocabulary).tobytes() == expected.tobytes()
    rows, values = recurrent.sparse_embedding_grad(indices, dy, vocabulary)
    assert rows.tolist() == sorted({int(i) % vocabulary for i in indices})
    assert values.tobytes() == expected[rows].tobytes()
