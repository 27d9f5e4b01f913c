"""Decoders of the entropy-coded streams in plain Python, written from the formats in native/src/codecs/, a symbol at a time: the oracle of the C core.

Each refuses (ValueError) what the page says that no encoder writes, and shares no code with what it checks.
"""

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

CHUNK = 65536
LEAST_STATE = 1 << 15


class Stream:
    """Bytes read from the front; running out of them is an error."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = bytes(data), 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise ValueError("truncated")
        self.at += count
        return self.data[self.at - count : self.at]

    def integer(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def finish(self) -> None:
        if self.at != len(self.data):
            raise ValueError("trailing bytes")


class Table:
    """Frequencies of symbols: they sum to 4096."""

    def __init__(self, stream: Stream) -> None:
        last = stream.integer(1)
        self.frequencies = [0] * 256
        symbol = 0
        while symbol <= last:
            f = stream.integer(1)
            if f == 0:
                symbol += 1 + stream.integer(1)
                if symbol > last:
                    raise ValueError("table ends with zeros")
                continue
            if f >= 128:
                f = (f & 127) | stream.integer(1) << 7
                if f < 128:
                    raise ValueError("table has a long form of a short number")
            self.frequencies[symbol] = f
            symbol += 1
        if sum(self.frequencies) != 4096:
            raise ValueError("table doesn't sum to 4096")
        self.starts = [sum(self.frequencies[:s]) for s in range(256)]
        self.symbols = [s for s in range(256) for _ in range(self.frequencies[s])]


class Lanes:
    """States of a chunk and its words; a section's symbol i is in lane i mod their number."""

    def __init__(self, stream: Stream, log_lanes: int) -> None:
        if log_lanes > 5:
            raise ValueError("more than 32 lanes")
        self.states = [stream.integer(4) for _ in range(1 << log_lanes)]
        if not all(LEAST_STATE <= x < 1 << 31 for x in self.states):
            raise ValueError("state out of range")
        self.words = Stream(b"")

    def symbol(self, index: int, table: Table) -> int:
        lane = index % len(self.states)
        x = self.states[lane]
        slot = x % 4096
        found = table.symbols[slot]
        x = table.frequencies[found] * (x >> 12) + slot - table.starts[found]
        if x < LEAST_STATE:
            x = x << 16 | self.words.integer(2)
        self.states[lane] = x
        return found

    def section(self, count: int, table: Table) -> list[int]:
        return [self.symbol(i, table) for i in range(count)]

    def finish(self) -> None:
        self.words.finish()
        if any(x != LEAST_STATE for x in self.states):
            raise ValueError("state doesn't end where it began")


class Raw:
    """Bits, least significant first."""

    def __init__(self, data: bytes) -> None:
        self.value, self.left, self.size = int.from_bytes(data, "little"), 8 * len(data), len(data)

    def take(self, count: int) -> int:
        if count > self.left:
            raise ValueError("truncated raw bits")
        found = self.value & ((1 << count) - 1)
        self.value >>= count
        self.left -= count
        return found

    def finish(self) -> None:
        if self.left >= 8 or self.value:
            raise ValueError("raw bits left over")


def chunk(stream: Stream) -> tuple[Lanes, Raw]:
    """The next chunk of words and raw bits."""
    field, raw = stream.integer(3), stream.integer(3)
    lanes = Lanes(stream, field >> 20)
    lanes.words = Stream(stream.take(field & 0xFFFFF))
    return lanes, Raw(stream.take(raw))


def counts(total: int) -> Iterator[int]:
    """Sizes of the chunks of `total` things."""
    for start in range(0, total, CHUNK):
        yield min(CHUNK, total - start)


def plane(stream: Stream, count: int) -> list[int]:
    """A plane of `count` bytes."""
    mode = stream.integer(1)
    if mode == 0:
        return list(stream.take(count))
    if mode == 1:
        return list(stream.take(1)) * count
    if mode != 2:
        raise ValueError("no such mode of a plane")
    table, found = Table(stream), []
    for size in counts(count):
        field = stream.integer(3)
        lanes = Lanes(stream, field >> 20)
        lanes.words = Stream(stream.take(field & 0xFFFFF))
        found += lanes.section(size, table)
        lanes.finish()
    return found


def lossless(data: bytes, count: int) -> NDArray[np.float32]:
    stream, found = Stream(data), []
    for size in counts(count):
        for exponent, high, middle, low in zip(*(plane(stream, size) for _ in range(4)), strict=True):
            if exponent == 255:
                raise ValueError("not finite")
            found.append((low & 1) << 31 | exponent << 23 | high << 15 | middle << 7 | low >> 1)
    stream.finish()
    return np.array(found, np.uint32).view(np.float32)


def topk(data: bytes, count: int) -> NDArray[np.float32]:
    stream = Stream(data)
    kept, top = struct.unpack("<IH", stream.take(6))
    out = np.zeros(count, np.uint32)
    if kept > count or (not 148 <= top <= 868 if kept else top != 0):
        raise ValueError("header")
    if kept:
        gaps, magnitudes = Table(stream), Table(stream)
        if not magnitudes.frequencies[0]:
            raise ValueError("no value is the largest")
    place = -1
    for size in counts(kept):
        lanes, raw = chunk(stream)
        symbols = lanes.section(size, gaps), lanes.section(size, magnitudes)
        for symbol, code in zip(*symbols, strict=True):
            gap = symbol
            if symbol >= 8:
                octave, quarter = divmod(symbol - 8, 4)
                if octave > 28:
                    raise ValueError("gap over 2^32")
                gap = (4 + quarter << octave + 1) + raw.take(octave + 1)
            place += 1 + gap
            if place >= count or top - code < 148:
                raise ValueError("beyond the range")
            out[place] = raw.take(1) << 31 | top - code << 21
        raw.finish()
        lanes.finish()
    stream.finish()
    return out.view(np.float32)


def philox(key: int, group: int, stream: int, purpose: int) -> NDArray[np.uint32]:
    """Words [4, 16] of Philox4x32-10: word w of counter (16 group + c, stream, purpose) at [w, c]."""
    counters = group * 16 + np.arange(16, dtype=np.uint64)
    low = np.uint64(0xFFFFFFFF)
    a, b = counters & low, counters >> np.uint64(32)
    c, d = np.full(16, stream, np.uint64), np.full(16, purpose, np.uint64)
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = (
            second >> np.uint64(32) ^ b ^ np.uint64(k0), second & low, first >> np.uint64(32) ^ d ^ np.uint64(k1), first & low
        )  # fmt: skip
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.array([a, b, c, d]).astype(np.uint32)


def dither(key: int, stream: int, count: int) -> NDArray[np.int32]:
    """r of each coordinate: u = (2 r + 1) / 2^17, r in [-2^15, 2^15)."""
    found = []
    for group in range(-(-count // 128)):
        words = philox(key, group, stream, 1)
        halves = np.stack([words & np.uint32(0xFFFF), words >> np.uint32(16)], axis=1)  # [word, half, counter]
        found.append(halves.astype(np.int32).ravel() - 32768)
    return np.concatenate(found)[:count] if found else np.empty(0, np.int32)


def column_offsets(stream: Stream, shapes: list[tuple[int, int]]) -> list[int]:
    """Offset of each coordinate: of matrices (rows, columns) with 2 columns and 16 rows at least, that the plane has; else 3."""
    coded = [columns if columns > 1 and size // columns >= 16 else 0 for size, columns in shapes]
    if not sum(coded):
        raise ValueError("offsets of no columns")
    told = plane(stream, sum(coded))
    if max(told) > 6:
        raise ValueError("offset out of range")
    found, at = [], 0
    for (size, _), columns in zip(shapes, coded, strict=True):
        found += (told[at : at + columns] * -(-size // columns))[:size] if columns else [3] * size
        at += columns
    return found


def entropy(
    data: bytes, count: int, *, dead_zone: bool, key: int, number: int, shapes: list[tuple[int, int]]
) -> NDArray[np.float32]:
    """A stream of ec-dither or ec-dz; shapes are (values, columns) of the vector's matrices."""
    stream = Stream(data)
    head, log_bins, tables = stream.take(3)
    (step,) = struct.unpack("<f", stream.take(4))
    if head & 15 != int(dead_zone) or head > 17 or log_bins > (0 if dead_zone else 2) or tables > 32:
        raise ValueError("header")
    if struct.pack("<f", step) == bytes(4):
        if tables or log_bins or head > 15:
            raise ValueError("header of zeros")
        stream.finish()
        return np.zeros(count, np.float32)
    if not 2.0**-90 <= step <= 2.0**90:
        raise ValueError("step")
    points = struct.unpack("<3f", stream.take(12)) if dead_zone else (0.0, 0.0, 0.0)
    if not all(0 <= p <= 4 * step for p in points[:2]) or not -step <= points[2] <= step:
        raise ValueError("points")
    table_of, level = [0] * 32, 0
    by_bin: list[list[Table]] = []
    for number_of_table in range(tables):
        last = stream.integer(1)
        if not level <= last < 32:
            raise ValueError("levels out of order")
        table_of[level : last + 1] = [number_of_table] * (last + 1 - level)
        level = last + 1
        by_bin.append([Table(stream) for _ in range(1 << log_bins)])
    classes = Table(stream)
    if any(classes.frequencies[30 if tables else 2 :]):
        raise ValueError("class out of range")
    offsets = column_offsets(stream, shapes) if head & 16 else [3] * count
    r = np.zeros(count, np.int32) if dead_zone else dither(key, number, count)
    magnitude = np.where(r < 0, ~r, r)
    out, start = np.zeros(count, np.float32), 0
    for size in counts(count):
        lanes, raw = chunk(stream)
        kinds = lanes.section(-(-size // 64), classes)
        for block, kind in enumerate(kinds):
            here = range(start + 64 * block, min(start + size, start + 64 * block + 64))
            q = np.zeros(len(here), np.int32)
            if kind >= 2:
                levels = [min(kind - 2 + offsets[i], 31) for i in here]
                symbols = [
                    lanes.symbol(at, by_bin[table_of[levels[at]]][int(magnitude[i]) >> (15 - log_bins)])
                    for at, i in enumerate(here)
                ]
                for at, symbol in enumerate(symbols):
                    shift = max(levels[at] - 12, 0)
                    if symbol == 255:
                        z = raw.take(24)
                        q[at] = z >> 1 ^ -(z & 1)
                        if -128 < q[at] >> shift < 128:
                            raise ValueError("escape of what needs none")
                    else:
                        q[at] = (symbol >> 1 ^ -(symbol & 1)) << shift | raw.take(shift)
            if kind == 0:
                continue
            part = slice(here.start, here.stop)
            if dead_zone:
                out[part] = reconstruct(q, np.float32(step), points)
            else:
                signed = np.where(r[part] < 0, -q, q).astype(np.float32)
                u = (2 * r[part] + 1).astype(np.float32) * np.float32(2.0**-17)
                out[part] = (signed - u) * np.float32(step)
        raw.finish()
        lanes.finish()
        start += size
    stream.finish()
    return out


def reconstruct(q: NDArray[np.int32], step: np.float32, points: tuple[float, ...]) -> NDArray[np.float32]:
    """What ec-dz's numbers stand for."""
    magnitude = np.abs(q)
    far = magnitude.astype(np.float32) * step + np.float32(points[2])
    found = np.where(magnitude == 1, np.float32(points[0]), np.where(magnitude == 2, np.float32(points[1]), far))
    found = np.where(magnitude == 0, np.float32(0), found)
    return np.where(q < 0, -found, found).astype(np.float32)
