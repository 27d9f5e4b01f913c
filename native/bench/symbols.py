"""The symbols that an ec-dither stream codes, from its step and the format's definition, and the least bits that they could take.

An ideal coder of the same format: each block's class at the entropy of all classes, each symbol at the entropy of those that share its level
and its bin of the dither (native/src/codecs/entropy.h), the columns' offsets at their entropy, raw bits as they are. Its tables cost nothing,
are not rounded to 12 bits and not shared by levels; so a stream that is near it wastes nothing on header, tables, lanes or chunks.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native.bench.theory import entropy
from fleetgrad.native.binding import Bytes, ffi, lib, pointer
from fleetgrad.native.entropy import Layout

GROUP, BLOCK, ROWS = 128, 64, 16  # coordinates a Philox group and a block have; fewest rows of a matrix with offsets
NEUTRAL, LAST_OFFSET, LAST_LEVEL, LAST_CLASS = 3, 6, 31, 29
ESCAPE, ESCAPE_BITS, UNSHIFTED = 255, 24, 12
PURPOSE = 1  # of Philox: dither

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


def ideal_bits(coded: Bytes, values: Floats, key: int, layout: Layout) -> float:
    """Least bits of the vector of which `coded` is the ec-dither stream; the whole stream, but for its header and tables."""
    (step,) = struct.unpack_from("<f", coded.tobytes(), 3)
    halves = dither(key, values.size)
    noise = (2 * halves + 1).astype(np.float32) * np.float32(2.0**-17)
    quantized = np.rint(values * (np.float32(1) / np.float32(step)) + noise).astype(np.int64)
    quantized = np.where(halves < 0, -quantized, quantized)
    magnitude = np.where(halves < 0, ~halves, halves)
    offsets, told = (
        column_offsets(values, layout) if coded[0] >> 4 else (np.full(values.size, NEUTRAL), np.empty(0, np.int64))
    )

    classes = block_classes(values, quantized, offsets)
    level = np.minimum(np.repeat(classes, BLOCK)[: values.size] - 2 + offsets, LAST_LEVEL)
    coded_ = np.repeat(classes >= 2, BLOCK)[: values.size]
    shift = np.maximum(level - UNSHIFTED, 0)
    value = quantized >> np.where(coded_, shift, 0)
    symbol = np.where(np.abs(value) > 127, ESCAPE, np.where(value < 0, -2 * value - 1, 2 * value))
    context = (level << 2 | magnitude >> (15 - int(coded[1])))[coded_]
    symbol, shift = symbol[coded_], shift[coded_]
    bits = conditional(context, symbol) + entropy(classes) + (entropy(told) if told.size else 0.0)
    return bits + float(np.where(symbol == ESCAPE, ESCAPE_BITS, shift).sum())


def conditional(context: Integers, symbol: Integers) -> float:
    """Bits of the symbols under a table of their own for each context."""
    return entropy(context << 8 | symbol) - entropy(context)


def dither(key: int, count: int, stream: int = 0) -> Integers:
    """16 bits a coordinate, less 2^15: coordinate 32 w + 16 h + c of a group has half h of word w of counter c."""
    groups = -(-count // GROUP)
    words = np.empty((groups, 4, 16), np.uint32)
    for group in range(groups):
        lib.fg_philox(key, group, stream, PURPOSE, pointer("uint32_t *", words[group].reshape(-1)))
    halves = np.stack([words & 0xFFFF, words >> 16], axis=2)
    return halves.reshape(-1)[:count].astype(np.int64) - 32768


def column_offsets(values: Floats, layout: Layout) -> tuple[Integers, Integers]:
    """Each coordinate's offset, and the offsets that a stream tells: one a column of each matrix with rows enough."""
    each, told, start = np.full(values.size, NEUTRAL), [], 0
    for size, columns in zip(layout.sizes.tolist(), layout.columns.tolist(), strict=True):
        if columns > 1 and size // columns >= ROWS:
            found = _offsets_of(values[start : start + size], columns)
            told.append(found)
            each[start : start + size] = np.resize(found, size)
        start += size
    return each, np.concatenate(told) if told else np.empty(0, np.int64)


def _offsets_of(matrix: Floats, columns: int) -> Integers:
    """The C core's own choice, for one matrix."""
    sizes, widths = np.array([matrix.size], np.uintp), np.array([columns], np.uintp)
    found, work = np.empty(columns, np.uint8), np.empty(columns, np.float32)
    request = ffi.new("fg_ec *")
    request.matrices, request.sizes, request.columns = 1, pointer("size_t *", sizes), pointer("size_t *", widths)
    request.offsets = pointer("uint8_t *", found)
    lib.fg_ec_columns(pointer("float *", matrix), request, pointer("float *", work))
    return found.astype(np.int64)


def block_classes(values: Floats, quantized: Integers, offsets: Integers) -> Integers:
    """0: all inputs are zero; 1: all quantized values are; 2 + k: 2^k <= sum of |q|, weighted by the columns, < 2^(k + 1)."""
    whole = -(-values.size // BLOCK) * BLOCK

    def blocks(a: NDArray, fill: int) -> NDArray:  # type: ignore[type-arg]
        return np.concatenate([a, np.full(whole - a.size, fill, a.dtype)]).reshape(-1, BLOCK)

    total = blocks(np.abs(quantized), 0).sum(1)
    weight = blocks(1 << offsets, 1 << NEUTRAL).sum(1)
    used = blocks(values != 0, 0).any(1)
    normal = (total * 512 + weight // 2) // weight
    octave = np.frexp(np.maximum(normal, 1).astype(np.float64))[1] - 1
    return np.where(total > 0, np.minimum(2 + octave, LAST_CLASS), used.astype(np.int64))
