"""Recurrent layers, one direction at a time, and gradients of embeddings: what the custom ops LSTMTrain, LSTMGrad, GRUTrain, GRUGrad,
EmbeddingGrad and SparseEmbeddingGrad compute.

A layer's products with whole sequences (X W^T + bias before, dX, dW and dR after) are no business of these kernels: they take `projected`
and give its gradient. Gates are in ONNX's order: i, o, f, c for LSTM, z, r, h for GRU. Arrays are [steps, batch, ...]; T steps, B sequences,
H hidden units. `lengths` is int32[B], the steps of each sequence; what lies behind them is zero. `reverse` runs from the last step to the first.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native.binding import Floats, KernelError, check, ffi, lib, pointer, text

Indices = NDArray[np.int32] | NDArray[np.int64]
Lengths = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Lstm:
    """What the forward pass of an LSTM leaves: y [T, B, H], last states [B, H], activated gates [T, B, 4H], cells [T, B, H]."""

    y: Floats
    y_h: Floats
    y_c: Floats
    gates: Floats
    cells: Floats


@dataclass(frozen=True, slots=True)
class Gru:
    """What the forward pass of a GRU leaves: y [T, B, H], last state [B, H], activated gates [T, B, 3H].

    `hidden` is h R_h^T + bias [T, B, H] where the reset gate comes after it (`reset_after`), None elsewhere.
    """

    y: Floats
    y_h: Floats
    gates: Floats
    hidden: Floats | None


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), to 3 units in the last place; at least sigmoid(-87)."""
    check("sigmoid", x, np.float32)
    out = np.empty_like(x)
    lib.fg_sigmoid(pointer("float *", x), x.size, pointer("float *", out))
    return out


def tanh(x: Floats) -> Floats:
    """tanh(x), to 3 units in the last place."""
    check("tanh", x, np.float32)
    out = np.empty_like(x)
    lib.fg_hyperbolic_tangent(pointer("float *", x), x.size, pointer("float *", out))
    return out


def lstm_forward(
    projected: Floats,
    weights: Floats,
    *,
    h0: Floats | None = None,
    c0: Floats | None = None,
    lengths: Lengths | None = None,
    reverse: bool = False,
) -> Lstm:
    """LSTM over projected = X W^T + bias, float32[T, B, 4H], with R = weights [4H, H] (Hochreiter & Schmidhuber 1997).

    Raises KernelError on shapes that don't fit and, with step and sequence, where a gate or cell isn't finite.
    """
    act = "LSTM forward"
    call = _Call(act, projected, weights, 4, lengths, reverse)
    y, cells, y_h, y_c = call.new(3), call.new(3), call.new(2), call.new(2)
    gates = np.empty_like(projected)
    call.pack(weights, True)
    call.run(
        lib.fg_lstm_forward, call.of(projected), call.of(h0, 2), call.of(c0, 2), call.of(gates), call.of(cells), call.of(y),
        call.of(y_h), call.of(y_c),
    )  # fmt: skip
    return Lstm(y, y_h, y_c, gates, cells)


def lstm_backward(
    weights: Floats,
    saved: Lstm,
    *,
    c0: Floats | None = None,
    dy: Floats | None = None,
    dy_h: Floats | None = None,
    dy_c: Floats | None = None,
    lengths: Lengths | None = None,
    reverse: bool = False,
) -> tuple[Floats, Floats, Floats]:
    """Gradients of projected, h0 and c0 from those of y, y_h and y_c (None: zeros)."""
    call = _Call("LSTM backward", saved.gates, weights, 4, lengths, reverse)
    dprojected, dh0, dc0 = np.empty_like(saved.gates), call.new(2), call.new(2)
    call.pack(weights, False)
    call.run(
        lib.fg_lstm_backward, call.of(saved.gates), call.given(saved.cells, 3), call.of(c0, 2), call.of(dy, 3), call.of(dy_h, 2),
        call.of(dy_c, 2), call.of(dprojected), call.of(dh0), call.of(dc0),
    )  # fmt: skip
    return dprojected, dh0, dc0


def gru_forward(
    projected: Floats,
    weights: Floats,
    *,
    reset_after: bool,
    bias: Floats | None = None,
    h0: Floats | None = None,
    lengths: Lengths | None = None,
    reverse: bool = False,
) -> Gru:
    """GRU over projected = X W^T + bias, float32[T, B, 3H], with R = weights [3H, H] (Cho et al. 2014).

    `reset_after` is ONNX's linear_before_reset, and torch's form; `bias` [H], used there, is added to h R_h^T.
    """
    call = _Call("GRU forward", projected, weights, 3, lengths, reverse, reset_after)
    y, y_h, gates = call.new(3), call.new(2), np.empty_like(projected)
    hidden = call.new(3) if reset_after else None
    call.pack(weights[: 2 * call.hidden], True)
    call.pack(weights[2 * call.hidden :], True, "more")
    if bias is not None:
        check("GRU forward", bias, np.float32, call.hidden)
    call.run(
        lib.fg_gru_forward, call.of(projected), call.of(h0, 2), call.of(bias), call.of(gates), call.of(hidden), call.of(y),
        call.of(y_h),
    )  # fmt: skip
    return Gru(y, y_h, gates, hidden)


def gru_backward(
    weights: Floats,
    saved: Gru,
    *,
    h0: Floats | None = None,
    dy: Floats | None = None,
    dy_h: Floats | None = None,
    lengths: Lengths | None = None,
    reverse: bool = False,
) -> tuple[Floats, Floats, Floats]:
    """Gradients of projected and of h0, and between them what dR is made of.

    With reset_after that is the gradient of h R^T + bias, float32[T, B, 3H]; without, it is r * h, float32[T, B, H], the operand of R_h.
    """
    call = _Call("GRU backward", saved.gates, weights, 3, lengths, reverse, saved.hidden is not None)
    dprojected, dh0 = np.empty_like(saved.gates), call.new(2)
    recurrent = call.new(3) if saved.hidden is None else np.empty_like(saved.gates)
    if saved.hidden is None:
        call.pack(weights[: 2 * call.hidden], False)
        call.pack(weights[2 * call.hidden :], False, "more")
    else:
        call.pack(weights, False)
    call.run(
        lib.fg_gru_backward, call.of(saved.gates), call.of(saved.hidden, 3), call.given(saved.y, 3), call.of(h0, 2), call.of(dy, 3),
        call.of(dy_h, 2), call.of(dprojected), call.of(recurrent), call.of(dh0),
    )  # fmt: skip
    return dprojected, recurrent, dh0


def previous_states(
    y: Floats, *, h0: Floats | None = None, lengths: Lengths | None = None, reverse: bool = False
) -> Floats:
    """The h that each step began with, float32[T, B, H]: the other operand of dR."""
    call = _Call("previous states", y, np.zeros((y.shape[-1], y.shape[-1]), np.float32), 1, lengths, reverse)
    out = np.empty_like(y)
    lib.fg_previous_states(call.sequence, call.of(y), call.of(h0, 2), call.of(out))
    return out


def embedding_grad(indices: Indices, dy: Floats, vocabulary: int) -> Floats:
    """float32[vocabulary, width]: rows of dy [count, width] added up by index, in the order of their positions.

    Negative indices count from the end, as in ONNX Gather; one out of range raises KernelError with its position.
    """
    slots, width = _slots(indices, dy, vocabulary)
    out = np.empty((vocabulary, width), np.float32)
    lib.fg_embedding_sum(
        pointer("uint32_t *", slots), slots.size, pointer("float *", dy), width, 0, vocabulary, pointer("float *", out)
    )
    return out


def sparse_embedding_grad(indices: Indices, dy: Floats, vocabulary: int) -> tuple[NDArray[np.int64], Floats]:
    """The rows of embedding_grad that occur: their numbers, ascending, int64[n], and their values, float32[n, width]."""
    slots, width = _slots(indices, dy, vocabulary)
    rows, seen = np.empty(min(slots.size, vocabulary), np.int64), np.empty(vocabulary, np.uint32)
    found = int(
        lib.fg_embedding_rows(
            pointer("uint32_t *", slots),
            slots.size,
            vocabulary,
            pointer("uint32_t *", seen),
            pointer("int64_t *", rows),
        )
    )
    out = np.empty((found, width), np.float32)
    lib.fg_embedding_sum(
        pointer("uint32_t *", slots), slots.size, pointer("float *", dy), width, 0, found, pointer("float *", out)
    )
    return rows[:found], out


def _slots(indices: Indices, dy: Floats, vocabulary: int) -> tuple[NDArray[np.uint32], int]:
    act = "embedding gradient"
    check(act, dy, np.float32)
    if indices.dtype != np.int32:
        check(act, indices, np.int64)
    check(act, indices, indices.dtype.type)
    if dy.ndim != 2 or dy.shape[0] != indices.size or not 1 <= vocabulary < 2**32:
        raise KernelError(f"{act}: {indices.size} indices, dy {dy.shape} and a vocabulary of {vocabulary} don't fit")
    slots, where = np.empty(indices.size, np.uint32), ffi.new("size_t *")
    if lib.fg_embedding_slots(
        pointer("void *", indices),
        indices.dtype == np.int64,
        indices.size,
        vocabulary,
        pointer("uint32_t *", slots),
        where,
    ):
        value = indices.ravel()[where[0]]
        raise KernelError(f"{act}: index {value} at position {where[0]}, the vocabulary has {vocabulary} rows")
    return slots, dy.shape[1]


class _Call:
    """One C call of a layer: the checked shapes, the struct, and what must live until it returns."""

    def __init__(
        self,
        act: str,
        wide: Floats,
        weights: Floats,
        gates: int,
        lengths: Lengths | None,
        reverse: bool,
        after: bool = False,
    ) -> None:
        check(act, wide, np.float32)
        check(act, weights, np.float32)
        hidden = weights.shape[-1] if weights.ndim else 0
        if (
            wide.ndim != 3
            or weights.shape != (gates * hidden, hidden)
            or wide.shape[2] != gates * hidden
            or not wide.size
        ):
            raise KernelError(f"{act}: R {weights.shape} and sequences {wide.shape} don't fit")
        self.act, self.hidden = act, hidden
        self.steps, self.batch = wide.shape[:2]
        if lengths is not None:
            check(act, lengths, np.int32, self.batch)
            if not ((lengths >= 0) & (lengths <= self.steps)).all():
                raise KernelError(f"{act}: lengths {lengths.tolist()} of {self.steps} steps")
        self._lengths, self._alive = lengths, [wide, weights]
        self.sequence = ffi.new(
            "fg_sequence *",
            {
                "steps": self.steps, "batch": self.batch, "hidden": hidden, "first": 0, "last": self.batch,
                "stride": self.batch * hidden, "reverse": reverse, "reset_after": after, "lengths": self.of(lengths),
            },
        )  # fmt: skip
        scratch = np.empty(lib.fg_recurrent_scratch(self.sequence), np.float32)
        self.sequence.scratch = self.of(scratch)

    def new(self, rank: int) -> Floats:
        """[T, B, H] or [B, H]."""
        return np.empty((self.steps, self.batch, self.hidden)[3 - rank :], np.float32)

    def of(self, array: NDArray[Any] | None, rank: int | None = None) -> Any:
        """A pointer to the array (NULL for None), which must be a state of that rank where one is given."""
        if array is None:
            return ffi.NULL
        if rank is not None:
            check(self.act, array, np.float32)
            if array.shape != (self.steps, self.batch, self.hidden)[3 - rank :]:
                raise KernelError(
                    f"{self.act}: an array is {array.shape} with {self.steps} steps, {self.batch} sequences, {self.hidden} units"
                )
        self._alive.append(array)
        return pointer("int32_t *" if array.dtype == np.int32 else "float *", array)

    def given(self, array: Floats, rank: int) -> Any:
        """As `of`, for an array that must be there."""
        if array is None:
            raise KernelError(f"{self.act}: what the forward pass saved isn't all there")
        return self.of(array, rank)

    def pack(self, matrix: Floats, transposed: bool, field: str = "weights") -> None:
        """Packs [k, n], or the transpose of [n, k]."""
        k, n = matrix.shape[::-1] if transposed else matrix.shape
        packed = np.empty(lib.fg_packed(k, n), np.float32)
        lib.fg_recurrent_pack(self.of(np.ascontiguousarray(matrix)), k, n, transposed, self.of(packed))
        setattr(self.sequence, field, self.of(packed))

    def run(self, kernel: Any, *arguments: Any) -> None:
        """Calls the kernel; what it refuses raises KernelError."""
        where = ffi.new("size_t *")
        if error := kernel(self.sequence, *arguments, where):
            step, sequence = divmod(where[0], self.batch)
            raise KernelError(f"{self.act}: step {step} of sequence {sequence}: {text(error)}")
