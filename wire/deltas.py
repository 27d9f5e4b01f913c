"""An object that turns one version's params into another's, bit for bit: for a device that holds the one, smaller than the other.

delta = u32 count | count x (u32 index, u32 bits) | the others' changes, coded as lossless float32 (native/src/codecs/lossless.inc.h)

order(x) = bits of x as int32, with the negative ones mirrored so that it grows with x      d = order(new) - order(base) mod 2^32
zigzag(d) has zeros in its upper bytes for small changes of either sign; it is coded as if it were a float32 itself. Where it would
be an infinity or NaN, which the codec hasn't got, the new bits stand in the list, and the change counts as 0. Little-endian throughout.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native import binding, lossless

_COUNT = struct.Struct("<I")


class DeltaError(ValueError):
    """A delta that doesn't fit the params it is applied to."""


def _order(bits: NDArray[np.int32]) -> NDArray[np.int32]:
    """Its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def make(base: bytes, new: bytes) -> bytes | None:
    """The delta from `base` to `new`, or None where there is none that is smaller than `new`."""
    if len(base) != len(new) or not new or len(new) % 4:
        return None
    bits = np.frombuffer(new, "<i4")
    changed = _order(bits) - _order(np.frombuffer(base, "<i4"))
    zigzag = ((changed << 1) ^ (changed >> 31)).view(np.float32)
    (listed,) = np.nonzero(~np.isfinite(zigzag))
    if 8 * listed.size >= len(new):
        return None
    zigzag[listed] = 0.0
    pairs = np.stack([listed.astype("<u4"), bits[listed].view("<u4")], axis=1)
    delta = _COUNT.pack(listed.size) + pairs.tobytes() + lossless.encode(zigzag).tobytes()
    return delta if len(delta) < len(new) else None


def apply(base: bytes, delta: bytes) -> bytes:
    """The params that `delta` was made to; raises DeltaError. Whether they are the right ones, their hash tells."""
    what = f"delta of {len(delta)} bytes to params of {len(base)}"
    if len(base) % 4 or len(delta) < _COUNT.size:
        raise DeltaError(f"{what}: one of them is cut short")
    (count,) = _COUNT.unpack_from(delta)
    start = _COUNT.size + 8 * count
    if start > len(delta) or 4 * count > len(base):
        raise DeltaError(f"{what}: it lists {count} values")
    zigzag = np.empty(len(base) // 4, np.float32)
    try:
        lossless.decode(delta[start:], zigzag)
    except binding.KernelError as e:
        raise DeltaError(f"{what}: {e}") from e
    bits = zigzag.view(np.uint32)
    changed = (bits >> 1).view(np.int32) ^ -(bits & 1).view(np.int32)
    out = _order(_order(np.frombuffer(base, "<i4")) + changed)
    pairs = np.frombuffer(delta, "<u4", 2 * count, _COUNT.size).reshape(-1, 2)
    if count and pairs[:, 0].max() >= out.size:
        raise DeltaError(f"{what}: it lists value {pairs[:, 0].max()} of {out.size}")
    out[pairs[:, 0]] = pairs[:, 1].view(np.int32)
    return out.astype("<i4").tobytes()
