"""Builds the C core as the cffi API-mode module `fleetgrad.native._core`, one stable-ABI shared object for any Python >= 3.11.

Every ISA's file is compiled into it; each switches its own target on by a pragma and is empty on the other architecture.
The same shared object exports RegisterCustomOps for onnxruntime (src/ort_ops.c).
"""

from pathlib import Path

from cffi import FFI

FAMILIES = ("serial", "avx2", "avx512vnni", "neon", "neondotprod")
SOURCES = [f"native/src/{name}.c" for name in (*FAMILIES, "crc", "dispatch", "ort_ops")]
HEADERS = sorted(f"native/{path.parent.name}/{path.name}" for path in Path("native").glob("*/*.h"))

ffibuilder = FFI()
ffibuilder.cdef(
    """
    int fg_blk8_encode(const float *values, size_t n, const uint64_t *key, uint8_t *out, size_t *where);
    int fg_blk8_decode(const uint8_t *payload, size_t n, float *out, size_t *where);
    int fg_ring_add(int64_t *sum, const float *values, size_t n, int64_t weight, size_t *where);
    void fg_ring_mean(const int64_t *sum, size_t n, int64_t total, const float *base, float *out);
    void fg_sgd_momentum(float *parameters, const float *gradients, float *velocity, size_t n,
                         float rate, float momentum, float decay);
    uint32_t fg_crc32c(uint32_t crc, const uint8_t *data, size_t n);
    size_t fg_find_nonfinite(const float *values, size_t n);
    int fg_weight_grad(const float *x, const float *dy, size_t k, size_t m, size_t n, float *out, void *scratch,
                       size_t *where);
    size_t fg_weight_grad_scratch(size_t k, size_t m, size_t n);
    int fg_has_capability(int capability);
    int fg_use_capability(int capability);
    int fg_capability(void);
    const char *fg_error_text(int error);
    """
)
ffibuilder.set_source(
    "fleetgrad.native._core",
    '#include "fleetgrad.h"',
    sources=SOURCES,
    include_dirs=["native/include"],
    depends=HEADERS,
    extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off", "-fvisibility=hidden"],
    py_limited_api=True,
)
