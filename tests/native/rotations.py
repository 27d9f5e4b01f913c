"""An oracle for the codecs behind a rotation, in NumPy and from the definitions: Philox4x32-10 by the published algorithm, the randomized Hadamard
rotation of overlapping windows, Lloyd-Max levels, and a decoder of rot-k's bytes."""

import math
import struct
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
WINDOW = 4096
DITHER, SIGNS, ROUNDING = 1, 2, 3  # purposes
SIZES = [0, 1, 2, 15, 16, 17, 63, 64, 65, 1000, 4095, 4096, 4097, 10000, 2**20 + 1]


def philox(key: int, counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Words [n, 4] of Philox4x32-10 for counters [n, 4] (Salmon et al. 2011, section 4.3)."""
    mask = np.uint64(0xFFFFFFFF)
    x = [counters[:, i].astype(np.uint64) for i in range(4)]
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * x[0], np.uint64(0xCD9E8D57) * x[2]
        high, low = np.uint64(32), mask
        x = [(b >> high) ^ x[1] ^ np.uint64(k0), b & low, (a >> high) ^ x[3] ^ np.uint64(k1), a & low]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(x, 1)


def group(key: int, number: int, stream: int, purpose: int) -> NDArray[np.uint64]:
    """Words [4, 16] of the sixteen counters of a group."""
    low = np.arange(16, dtype=np.uint64) + np.uint64(16 * number)
    counters = np.zeros((16, 4), np.uint64)
    counters[:, 0], counters[:, 1] = low & np.uint64(0xFFFFFFFF), low >> np.uint64(32)
    counters[:, 2], counters[:, 3] = stream, purpose
    return philox(key, counters).T


def signs(key: int, stream: int, window: int, count: int) -> Floats:
    """+-1 for each value of a window."""
    words = np.stack([group(key, 2 * window + half, stream, SIGNS) for half in range(2)]).reshape(8, 1, 16)
    bits = words >> np.arange(32, dtype=np.uint64)[None, :, None] & np.uint64(1)  # word, bit, lane
    return (1 - 2 * bits.astype(np.float32)).ravel()[:count]


def uniform16(key: int, stream: int, count: int, purpose: int = ROUNDING) -> NDArray[np.uint64]:
    """16 bits for each of `count` coordinates: 128 of a group of sixteen counters, by word, half and counter."""
    groups = -(-count // 128)
    counters = np.zeros((16 * groups, 4), np.uint64)
    counters[:, 0], counters[:, 2], counters[:, 3] = np.arange(16 * groups), stream, purpose
    words = philox(key, counters).reshape(groups, 16, 4).transpose(0, 2, 1)
    halves = np.stack([words & np.uint64(0xFFFF), words >> np.uint64(16)], 2)
    return halves.ravel()[:count]


def hadamard(x: Floats) -> Floats:
    """Unscaled, levels 1, 2, 4, ...: sums of pairs above their differences."""
    h = 1
    x = x.copy()
    while h < x.size:
        pairs = x.reshape(-1, 2, h)
        x = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).ravel()
        h *= 2
    return x


def windows(count: int) -> list[tuple[int, int]]:
    """(first value, number) of each window, in the order of rotating; the last overlaps where values are left over."""
    if count == 0:
        return []
    size = min(WINDOW, 2 ** (count.bit_length() - 1))
    found = [(size * i, i) for i in range(count // size)]
    return [*found, (count - size, len(found))] if count % size else found


def window_size(count: int) -> int:
    return min(WINDOW, 1 << (count.bit_length() - 1))


def rotated(values: Floats, key: int, stream: int) -> Floats:
    """The whole vector's rotation, in float32."""
    y, size = values.copy(), window_size(values.size)
    factor = np.float32(2.0 ** -(int(math.log2(size)) // 2))
    for start, number in windows(values.size):
        part = y[start : start + size]
        y[start : start + size] = hadamard(part * factor * signs(key, stream, number, size))
    return y


def rotated_back(y: Floats, key: int, stream: int) -> Floats:
    x, size = y.copy(), window_size(y.size)
    factor = np.float32(2.0 ** (int(math.log2(size)) // 2) / size)
    order = windows(y.size)
    for start, number in [order[-1], *order[:-1]] if y.size % size else order:
        part = x[start : start + size]
        x[start : start + size] = hadamard(part) * factor * signs(key, stream, number, size)
    return x


def parts(count: int) -> list[int]:
    """Values that each window codes: the last full one only what its overlap leaves."""
    if count == 0:
        return []
    size, left = window_size(count), count % window_size(count)
    full = [size] * (count // size)
    return [*full[:-1], left, size] if left else full


def planes(k: int) -> list[int]:
    return [width for width in (8, 4, 2, 1) if k & width]


def unpacked(data: bytes, count: int, k: int) -> NDArray[np.int64]:
    """Codes from their planes."""
    codes, low, at = np.zeros(count, np.int64), 0, 0
    for width in planes(k):
        size = -(-count * width // 8)
        plane = np.frombuffer(data, np.uint8, size, at).astype(np.int64)
        values = np.concatenate([plane >> part * width & ((1 << width) - 1) for part in range(8 // width)])
        codes |= values[:count] << low
        low, at = low + width, at + size
    return codes


def read(payload: bytes, count: int, k: int) -> list[tuple[np.float32, NDArray[np.int64]]]:
    """(scale, codes) of each part of a rot-k payload."""
    found, at = [], 0
    for size in parts(count):
        (scale,) = struct.unpack_from("<f", payload, at)
        length = sum(-(-size * width // 8) for width in planes(k))
        found.append((np.float32(scale), unpacked(payload[at + 4 : at + 4 + length], size, k)))
        at += 4 + length
    assert at == len(payload)
    return found


@lru_cache
def lloyd_max(k: int) -> NDArray[np.float64]:
    """The non-negative levels for N(0, 1), by fixed-point iteration with over-relaxation."""
    half = 2 ** (k - 1)
    level: NDArray[np.float64] = (np.arange(half) + 0.5) * 4.2 / half
    error = np.vectorize(math.erf)
    for _ in range(40000):
        cut = np.concatenate([[0.0], (level[1:] + level[:-1]) / 2, [np.inf]])
        density = np.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi)
        mass = np.diff(np.append(0.5 * error(cut[:-1] / math.sqrt(2)), 0.5))
        moved = (density[:-1] - density[1:]) / mass
        change, level = np.abs(moved - level).max(), moved
        if change < 1e-9:
            break
    return level
