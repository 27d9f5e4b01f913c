"""Decoders of the entropy-coded streams in plain Python, written from docs/codecs.md, a symbol at a time: the oracle of the C core.

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
