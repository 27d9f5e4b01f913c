"""int8 weight gradients: the product against its peak, and whole, float32 in and out, against torch, NumPy and onnxruntime; one thread.

Measured in a process of its own, whose OpenBLAS has one thread and is otherwise as it came: it reads its environment when NumPy is
imported. The instruction set in use is measured, and AVX2 beside a better one: most x86 boards have no more.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from fleetgrad.native import binding
from fleetgrad.native.bench.eden import NO_TORCH
from fleetgrad.native.bench.graphs import Feeds, Graph
from fleetgrad.native.bench.kernels import in_turns, row
from fleetgrad.native.bench.layers import compare
from fleetgrad.native.bench.products import product_rows
from fleetgrad.native.bench.results import skipped
from fleetgrad.native.bench.theory import nmse
from fleetgrad.native.gradients import conv_weight_grad, matmul_weight_grad, quantize_columns

DENSE = [(32, 784, 256), (256, 784, 256), (4608, 288, 64)]  # positions, rows and columns: dW is rows x columns
IMAGES, SIZE, KERNEL, OUTPUTS = 32, 28, 5, 32  # of one channel
WINDOWS = SIZE - KERNEL + 1
CONVOLUTION = (IMAGES * WINDOWS**2, KERNEL**2, OUTPUTS)  # 18432, 25, 32
MANY = 256  # positions from which the stricter promises hold
IN_SESSIONS = [(256, 784, 256), (3136, 800, 64), (32, 784, 256), (16384, 144, 16)]
ERROR = 2e-4  # NMSE that rounding both operands of normal values leaves at most; 9e-5 is usual
MOST_ERROR = 0.02  # of an entry, as a part of the largest

Act = Callable[[], object]


def against(
    figure: str, ours: dict[str, tuple[Act, float]], peers: dict[str, Act], promised: str
) -> list[dict[str, Any]]:
    """Rows of each way of ours (with its bound) beside each peer; the bound is of those whose name starts with `promised`."""
    best = in_turns({**{name: act for name, (act, _) in ours.items()}, **peers})
    table = []
    for name, (_, bound) in ours.items():
        for peer in peers:
            beside = f"{peer}, {best[peer] * 1e6:.0f} us to {best[name] * 1e6:.0f}"
            kept = bound if peer.startswith(promised) else None
            table.append(
                row(f"{figure}, {name} ({binding.capability()})", best[peer] / best[name], "x as fast", beside, kept)
            )
        if not any(peer.startswith(promised) for peer in peers):
            table.append(skipped(f"{figure}, {name} ({binding.capability()})", NO_TORCH, bound))
    return table


def matmul(k: int, m: int, n: int) -> list[dict[str, Any]]:
    """X^T dY of matrices."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((k, m), np.float32), rng.standard_normal((k, n), np.float32)
    codes, scale = quantize_columns(x)
    out, exact = np.empty((m, n), np.float32), np.empty((m, n), np.float32)
    ours: dict[str, tuple[Act, float]] = {
        "int8 X": (lambda: matmul_weight_grad(codes, dy, out, scale=scale), 2.0 if k >= MANY else 1.0),
        "fp32 X": (lambda: matmul_weight_grad(x, dy, out), 1.0),
    }
    for act, _ in ours.values():
        act()
        assert nmse(x.T @ dy, out) < ERROR
    return against(f"int8 dW {k}x{m}x{n}", ours, matmul_peers(x, dy, exact), "torch")


def matmul_peers(x: np.ndarray, dy: np.ndarray, out: np.ndarray, of: str = "") -> dict[str, Act]:
    """fp32 X^T dY in torch, if it is there, and in NumPy."""
    peers: dict[str, Act] = {}
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
        tensors = torch.from_numpy(x).T, torch.from_numpy(dy), torch.from_numpy(np.empty_like(out))
        peers[f"torch matmul{of}"] = lambda: torch.matmul(*tensors[:2], out=tensors[2])
    peers[f"NumPy matmul{of}"] = lambda: np.matmul(x.T, dy, out=out)
    return peers


def convolution() -> list[dict[str, Any]]:
    """A convolution's weight gradient from its image; a matmul gets the image's columns (im2col) ready made."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((IMAGES, 1, SIZE, SIZE), np.float32)
    dy = rng.standard_normal((IMAGES, OUTPUTS, WINDOWS, WINDOWS), np.float32)
    codes, scale = quantize_columns(x)
    out = np.empty((OUTPUTS, 1, KERNEL, KERNEL), np.float32)
    ours: dict[str, tuple[Act, float]] = {
        "int8 X": (lambda: conv_weight_grad(codes, dy, out, scale=scale), 1.0),
        "fp32 X": (lambda: conv_weight_grad(x, dy, out), 1.0),
    }
    windows = np.lib.stride_tricks.sliding_window_view(x[:, 0], (KERNEL, KERNEL), (1, 2))
    columns = np.ascontiguousarray(windows.reshape(CONVOLUTION[:2]))
    rows_of_dy = np.ascontiguousarray(dy.transpose(0, 2, 3, 1).reshape(CONVOLUTION[0], OUTPUTS))
    exact = (columns.T @ rows_of_dy).T.reshape(out.shape)
    for act, _ in ours.values():
        act()
        assert nmse(exact, out) < ERROR
    peers: dict[str, Act] = {}
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)
        tensors = torch.from_numpy(dy), torch.from_numpy(x), torch.from_numpy(out.copy())
        plain = None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
        peers["torch convolution_backward of the weight"] = lambda: torch.ops.aten.convolution_backward(
            *tensors, *plain
        )
        found = torch.ops.aten.convolution_backward(*tensors, *plain)[1]
        assert np.allclose(found.numpy(), exact, atol=1e-2)
    peers |= matmul_peers(columns, rows_of_dy, np.empty(CONVOLUTION[1:], np.float32), " of ready columns")
    return against(f"int8 dW of a convolution, {'x'.join(map(str, CONVOLUTION))}", ours, peers, "torch")


def in_session(k: int, m: int, n: int) -> list[dict[str, Any]]:
    """The custom op in a session, against onnxruntime's MatMul, into which its Transpose is fused."""
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((k, m), np.float32), rng.standard_normal((k, n), np.float32)
    codes, scale = quantize_columns(x)
    feeds: Feeds = {"x": x, "dy": dy, "codes": codes, "scale": scale}
    forms = {"Transpose, MatMul": lambda g: g("MatMul", g("Transpose", "x"), "dy")}

    def with_codes(g: Graph) -> str:
        return g.own("MatMulWeightGrad", "codes", "dy", "scale")

    def with_floats(g: Graph) -> str:
        return g.own("MatMulWeightGrad", "x", "dy")

    figure = f"MatMulWeightGrad {k}x{m}x{n}"
    return [
        compare(f"{figure}, int8 X", feeds, with_codes, forms, None, MOST_ERROR),
        compare(f"{figure}, fp32 X", feeds, with_floats, forms, None, MOST_ERROR),
    ]


def measured() -> list[dict[str, Any]]:
    """All of it, in this process."""
    table = product_rows([*DENSE, CONVOLUTION], MANY)
    used = binding.capability()
    for isa in dict.fromkeys((used, "avx2")):
        if isa not in binding.capabilities():
            continue
        binding.use_capability(isa)
        for shape in DENSE:
            table += matmul(*shape)
        table += convolution()
        for shape in IN_SESSIONS:
            table += in_session(*shape)
    binding.use_capability(used)
    return table


def rows() -> list[dict[str, Any]]:
    """All of it, from a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    environment["OPENBLAS_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "fleetgrad.native.bench.gradients"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    json.dump(measured(), sys.stdout)
