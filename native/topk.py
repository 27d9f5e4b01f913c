"""topk: the k largest magnitudes of a float32 vector, their places and values entropy-coded. Biased; made for error feedback.

Format and the choice of 8-bit floats: native/src/codecs/topk.inc.h. At equal bytes ec-dz has less error; topk is what others know, and what is
sparse by nature (embeddings) needs.
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

MOST_VALUES = 2**32 - 1


def encode(values: Floats, k: int) -> Bytes:
    """The k largest magnitudes of float32[n] as uint8[size]: about log2(n / k) + 6 bits each.

    Ties go to the lower index. Values under 2^-90, or 2^-64 of the largest, are never kept. Raises KernelError on NaN, infinity and magnitudes
    over 2^90, with the index.
    """
    check("topk encode", values, np.float32)
    if not 0 <= k <= values.size or values.size > MOST_VALUES:
        raise KernelError(
            f"topk encode: k is {k}, expected 0 to the vector's {values.size} values (at most {MOST_VALUES})"
        )
    out = np.empty(2000 + 9 * k, np.uint8)
    size, where = ffi.new("size_t *"), ffi.new("size_t *")
    memory = workspace(lib.FG_TOPK_SCRATCH)
    error = lib.fg_topk_encode(
        pointer("float *", values), values.size, k, pointer("uint8_t *", out), size, pointer("void *", memory), where
    )
    if error:
        raise KernelError(f"topk encode: value {where[0]} of {values.size}: {text(error)} ({values.ravel()[where[0]]})")
    return out[: size[0]].copy()


def decode(payload: Buffer, out: Floats) -> None:
    """Decodes into float32[n], zero where nothing was kept; raises KernelError on any bytes that aren't exactly one stream of n values."""
    check_output("topk decode", out, np.float32, None, payload)
    data, size = read_only(payload)
    where = ffi.new("size_t *")
    memory = workspace(lib.FG_TOPK_SCRATCH)
    error = lib.fg_topk_decode(data, size, pointer("float *", out), out.size, pointer("void *", memory), where)
    if error:
        raise KernelError(
            f"topk decode: chunk {where[0]} of a stream of {size} bytes for {out.size} values: {text(error)}"
        )
