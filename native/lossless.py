"""lossless: every finite float32, bit for bit, -0.0 and subnormals too; byte planes, those that repeat themselves entropy-coded.

Format: native/src/codecs/lossless.inc.h. Updates have noise in their mantissas, so this saves a sixth of the bytes, more where zeros are many.
"""

import numpy as np

from fleetgrad.native.binding import (
    Buffer,
    Bytes,
    Floats,
    KernelError,
    check,
    check_output,
    ffi,
    lib,
    pointer,
    read_only,
    text,
    workspace,
)


def encode(values: Floats) -> Bytes:
    """float32[n] as uint8[size], at most 4 n + 4 bytes a chunk of 65,536. Raises KernelError on NaN and infinity, with the index."""
    check("lossless encode", values, np.float32)
    out = np.empty(8 + 4 * values.size + values.size // 4096, np.uint8)
    size, where = ffi.new("size_t *"), ffi.new("size_t *")
    memory = workspace(lib.FG_LOSSLESS_SCRATCH)
    error = lib.fg_lossless_encode(
        pointer("float *", values), values.size, pointer("uint8_t *", out), size, pointer("void *", memory), where
    )
    if error:
        raise KernelError(
            f"lossless encode: value {where[0]} of {values.size}: {text(error)} ({values.ravel()[where[0]]})"
        )
    return out[: size[0]].copy()


def decode(payload: Buffer, out: Floats) -> None:
    """Decodes into float32[n]; raises KernelError on any bytes that aren't exactly one stream of n values."""
    check_output("lossless decode", out, np.float32, None, payload)
    data, size = read_only(payload)
    where = ffi.new("size_t *")
    memory = workspace(lib.FG_LOSSLESS_SCRATCH)
    error = lib.fg_lossless_decode(data, size, pointer("float *", out), out.size, pointer("void *", memory), where)
    if error:
        raise KernelError(
            f"lossless decode: chunk {where[0]} of a stream of {size} bytes for {out.size} values: {text(error)}"
        )
