"""How near the int8 products come to what their instructions reach in registers: products.c, built here, once for each instruction set.

The wheel has neither that file nor the core's sources: they are read from the repository, at whose root the benches run.
"""

import ctypes
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fleetgrad.native import binding, gradients
from fleetgrad.native.bench.kernels import row
from fleetgrad.native.bench.results import skipped

SOURCE = Path("native/bench/products.c")
FLAGS = (  # as build_kernels.py has them
    "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-fPIC",
    "-shared", "-Inative/include",
)  # fmt: skip
ROUNDS = 25
TURNS = 20_000  # of a peak's loop: under a millisecond


@dataclass(frozen=True, slots=True)
class Family:
    """An instruction set that the promise names, with the loops of products.c: what each does -> its function."""

    name: str
    bound: float
    peaks: dict[str, str]


FAMILIES = {
    "avx512vnni": Family("VNNI", 0.75, {"vpdpbusd": "fg_bench_peak"}),
    "avx2": Family(
        "AVX2", 0.75, {"vpaddw twice, vpmaddwd, vpaddd": "fg_bench_peak", "vpmaddwd, vpaddd": "fg_bench_plain_peak"}
    ),
    "neondotprod": Family("NEON dot product", 0.7, {"sdot": "fg_bench_peak"}),
}


def product_rows(shapes: Sequence[tuple[int, int, int]], bounded_from: int) -> list[dict[str, Any]]:
    """Operations a second of each family's product, over its peak; shapes are (positions, rows, columns) of dW's product."""
    return [found for isa in FAMILIES for found in _family_rows(isa, shapes, bounded_from)]


def _family_rows(isa: str, shapes: Sequence[tuple[int, int, int]], bounded_from: int) -> list[dict[str, Any]]:
    family = FAMILIES[isa]
    figure = f"int8 dW product / peak in registers ({isa})"
    if isa not in binding.capabilities():
        return [skipped(figure, f"this CPU has no {family.name}", family.bound)]
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not SOURCE.is_file():
        return [skipped(figure, "needs a C compiler, and the repository as the working directory", family.bound)]
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/products.so"
        subprocess.run([compiler, *FLAGS, f"-DFG_BENCH_{isa.upper()}", str(SOURCE), "-o", library], check=True)
        core = ctypes.CDLL(library)
    core.fg_bench_product.restype = ctypes.c_double
    for function in (core.fg_bench_scratch, *(getattr(core, name) for name in family.peaks.values())):
        function.restype = ctypes.c_size_t
    products = {shape: _product(core, *shape) for shape in shapes}
    rates = dict.fromkeys((*family.peaks, *shapes), 0.0)
    for _ in range(ROUNDS):  # in turns, so that all meet the machine in the same moods
        for does, name in family.peaks.items():
            start = time.perf_counter()
            each = getattr(core, name)(ctypes.c_size_t(TURNS))
            rates[does] = max(rates[does], 2 * each * TURNS / (time.perf_counter() - start))
        for shape, product in products.items():
            rates[shape] = max(rates[shape], 2 * math.prod(shape) / product())
    peak = max(rates[does] for does in family.peaks)
    beside = "; ".join(f"{does}: {rates[does] / 1e9:.0f} GOP/s" for does in family.peaks)
    return [
        row(
            f"int8 dW product / peak in registers, {'x'.join(map(str, shape))} ({isa})", rates[shape] / peak, "ratio", beside,
            family.bound if shape[0] >= bounded_from else None,
        )
        for shape in shapes
    ]  # fmt: skip


def _product(core: ctypes.CDLL, k: int, m: int, n: int) -> Callable[[], float]:
    """The job once; what the function returns is the seconds in its products."""
    rng = np.random.default_rng(0)
    x, scale = gradients.quantize_columns(rng.standard_normal((k, m), np.float32))
    dy = rng.standard_normal((k, n), np.float32)
    out, expected = np.empty((m, n), np.float32), np.empty((m, n), np.float32)
    gradients.matmul_weight_grad(x, dy, expected, scale=scale)
    job = binding.ffi.new("fg_matmul_grad *", {"k": k, "m": m, "n": n})
    job.codes, job.scale = binding.pointer("int8_t *", x), binding.pointer("float *", scale)
    job.dy, job.out = binding.pointer("float *", dy), binding.pointer("float *", out)
    address = ctypes.c_void_p(int(binding.ffi.cast("uintptr_t", job)))
    scratch = binding.workspace(core.fg_bench_scratch(address))
    job.scratch = binding.pointer("void *", scratch)
    core.fg_bench_product(address)
    assert np.array_equal(out, expected), (k, m, n)
    arrays = x, scale, dy, out, scratch, job

    def seconds(_: Any = arrays) -> float:  # which stay as long as this does
        return float(core.fg_bench_product(address))

    return seconds
