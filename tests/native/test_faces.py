"""What all typed faces share: no kernel is handed memory that it may not write, that is shared, or that C can't address as its type."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fleetgrad.native import codecs, gradients, kernels, lossless, optimizers, recurrent, rotation, topk
from fleetgrad.native.binding import Bytes, Floats, KernelError

N = 64
ONES = np.ones(N, np.float32)


def coded(size: int, encode: Callable[[Bytes], object]) -> Bytes:
    out = np.empty(size, np.uint8)
    encode(out)
    return out


ROTATED = coded(rotation.rot_size(N, 2), lambda out: rotation.rot_encode(ONES, out, k=2, key=1))
INTEGERS = rotation.ring_encode(ONES, step=1.0, most=1000, shared=1, own=2)
FLOAT, BYTE = np.dtype(np.float32), np.dtype(np.uint8)
# What each face writes: dtype, elements, and the call.
WRITERS: dict[str, tuple[np.dtype[Any], int, Callable[[Any], object]]] = {
    "raw32 encode": (BYTE, 4 * N, lambda out: codecs.raw32_encode(ONES, out)),
    "fp16 decode": (FLOAT, N, lambda out: codecs.fp16_decode(bytes(2 * N), out)),
    "blk8 encode": (BYTE, codecs.blk8_size(N), lambda out: codecs.blk8_encode(ONES, out, 1)),
    "blk4 decode": (FLOAT, N, lambda out: codecs.blk4_decode(bytes(codecs.blk4_size(N)), out)),
    "rot encode": (BYTE, ROTATED.size, lambda out: rotation.rot_encode(ONES, out, k=2, key=1)),
    "rot decode": (FLOAT, N, lambda out: rotation.rot_decode(ROTATED, out, k=2, key=1)),
    "ring decode": (FLOAT, N, lambda out: rotation.ring_decode(INTEGERS, out, r=16, step=1.0, shared=1)),
    "ring pack": (BYTE, 2 * N, lambda out: rotation.ring_pack(INTEGERS, out, r=16)),
    "ring unpack": (np.dtype(np.uint32), N, lambda out: rotation.ring_unpack(bytes(2 * N), out, r=16)),
    "topk decode": (FLOAT, N, lambda out: topk.decode(topk.encode(ONES, 3), out)),
    "lossless decode": (FLOAT, N, lambda out: lossless.decode(lossless.encode(ONES), out)),
    "ring add": (np.dtype(np.int64), N, lambda out: kernels.ring_add(out, ONES, 1)),
    "ring mean": (FLOAT, N, lambda out: kernels.ring_mean(np.zeros(N, np.int64), 1, ONES, out)),
    "optimizer step": (FLOAT, N, lambda out: optimizers.step(optimizers.Optimizer("sgd", 0.1), out, ONES)),
    "weight gradient": (FLOAT, N * N, lambda out: gradients.matmul_weight_grad(ONES[None], ONES[None], out.reshape(N, N))),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_a_face_does_not_write_into_memory_that_is_read_only(name: str) -> None:
    dtype, size, write = WRITERS[name]
    memory = bytes(size * dtype.itemsize)
    with pytest.raises(KernelError, match=f"{name}: the array to write into is read-only"):
        write(np.frombuffer(memory, dtype))
    assert not any(memory)
    write(np.zeros(size, dtype))


@pytest.mark.parametrize("name", [name for name, (dtype, _, _) in WRITERS.items() if dtype.itemsize > 1])
def test_a_face_refuses_memory_that_is_not_aligned(name: str) -> None:
    dtype, size, write = WRITERS[name]
    with pytest.raises(KernelError, match=f"{name}: needs aligned {dtype}, this memory begins at 0x"):
        write(np.frombuffer(bytearray(size * dtype.itemsize + 1), dtype, offset=1))


def halves(memory: Bytes) -> Floats:
    return memory.view(np.float32)


SHARED: dict[str, Callable[[Bytes], object]] = {
    "raw32 encode": lambda m: codecs.raw32_encode(halves(m), m),
    "raw32 decode": lambda m: codecs.raw32_decode(m[:-4], halves(m)[1:]),
    "rot encode": lambda m: rotation.rot_encode(halves(m), m[: rotation.rot_size(N, 2)], k=2, key=1),
    "topk decode": lambda m: topk.decode(m[:6], halves(m)),
    "lossless decode": lambda m: lossless.decode(m, halves(m)),
    "ring add": lambda m: kernels.ring_add(m.view(np.int64), halves(m)[: N // 2], 1),
    "ring mean": lambda m: kernels.ring_mean(m.view(np.int64), 1, np.ones(N // 2, np.float32), halves(m)[: N // 2]),
}


@pytest.mark.parametrize("name", SHARED)
def test_a_face_does_not_write_over_what_it_reads(name: str) -> None:
    with pytest.raises(KernelError, match=f"{name}: the array to write into overlaps an input"):
        SHARED[name](np.zeros(4 * N, np.uint8))


@pytest.mark.parametrize("shape", [(N,), (8, 8), ()])
def test_a_refused_value_is_named_whatever_the_arrays_shape(shape: tuple[int, ...]) -> None:
    bad = np.full(shape, np.nan, np.float32)
    calls: dict[str, Callable[[], object]] = {
        "topk encode": lambda: topk.encode(bad, 1),
        "lossless encode": lambda: lossless.encode(bad),
        "ring add": lambda: kernels.ring_add(np.zeros(bad.size, np.int64), bad, 1),
    }
    for name, encode in calls.items():
        with pytest.raises(KernelError, match=rf"{name}: value 0 of {bad.size}: value is NaN or infinite \(nan\)"):
            encode()


def test_a_gradient_that_is_not_finite_is_found_in_a_matrix() -> None:
    gradient = np.zeros((8, 8), np.float32)
    gradient[7, 7] = np.nan
    parameters = np.zeros((8, 8), np.float32)
    with pytest.raises(optimizers.GradientError, match="gradient 63 of 64 is nan"):
        optimizers.step(optimizers.Optimizer("sgd", 1.0), parameters, gradient, ranges=[(0, 8), (32, 64)])
    optimizers.step(optimizers.Optimizer("sgd", 1.0), parameters, gradient, ranges=[(0, 63)])


def test_a_backward_pass_refuses_to_run_without_what_the_forward_pass_saved() -> None:
    r = np.ones((16, 4), np.float32)
    lstm = recurrent.lstm_forward(np.ones((2, 3, 16), np.float32), r)
    gru = recurrent.gru_forward(np.ones((2, 3, 12), np.float32), r[:12], reset_after=True)
    missing = "what the forward pass saved isn't all there"
    with pytest.raises(KernelError, match=f"LSTM backward: {missing}"):
        recurrent.lstm_backward(r, recurrent.Lstm(lstm.y, lstm.y_h, lstm.y_c, lstm.gates, None))  # type: ignore[arg-type]
    with pytest.raises(KernelError, match=f"GRU backward: {missing}"):
        recurrent.gru_backward(r[:12], recurrent.Gru(None, gru.y_h, gru.gates, gru.hidden))  # type: ignore[arg-type]
    with pytest.raises(KernelError, match=r"LSTM forward: R \(\) and sequences"):
        recurrent.lstm_forward(np.ones((2, 3, 16), np.float32), np.array(1, np.float32))
