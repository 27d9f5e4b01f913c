"""Reads protocol buffers without the onnx package, which a board hasn't got, and trusts nothing of them.

A message is a row of fields, each a tag and a value:

    tag = field number << 3 | wire type      0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes

`fields` gives one message's fields by name, as its table names them; what lies inside another message is read when it is asked for, so
depth is the caller's to bound. Values are views of the input, nothing is allocated by a length that the input says. Stricter than
the format: a field that the table lacks, a single field that is there twice, and another wire type than the table's are refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["varint", "fixed32", "fixed64", "bytes"]
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
WIRE: dict[Kind, int] = {"varint": VARINT, "fixed32": FIXED32, "fixed64": FIXED64, "bytes": BYTES}
WIDTH = {FIXED32: 4, FIXED64: 8}
MOST_VARINT = 10  # bytes


class Malformed(ValueError):
    """Bytes that aren't the message that they should be."""


@dataclass(frozen=True, slots=True)
class Field:
    """One row of a message's table. A repeated number may come packed: many of them as one value of bytes."""

    name: str
    kind: Kind = "bytes"
    repeated: bool = False


Table = Mapping[int, Field]


@dataclass(slots=True)
class Message:
    """One message's fields. A single field has one entry; of packed numbers, `counts` has how many there were."""

    numbers: dict[str, list[int]] = field(default_factory=dict)
    blobs: dict[str, list[memoryview]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def number(self, name: str, default: int = 0) -> int:
        """A single varint."""
        found = self.numbers.get(name)
        return found[0] if found else default

    def all(self, name: str) -> list[memoryview]:
        """Values of a field of bytes, in order."""
        return self.blobs.get(name, [])

    def text(self, name: str) -> str:
        """A single text; raises Malformed where it isn't UTF-8."""
        found = self.blobs.get(name)
        return utf8(found[0]) if found else ""

    def has(self, name: str) -> bool:
        return bool(self.counts.get(name))


def utf8(raw: memoryview) -> str:
    """A text; raises Malformed."""
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError as e:
        raise Malformed("a name isn't UTF-8") from e


def signed(number: int) -> int:
    """An int64 as protobuf writes it: two's complement in 64 bits."""
    return number - (1 << 64) if number >> 63 else number


def varint(raw: memoryview, at: int) -> tuple[int, int]:
    """A varint and where the next thing begins; raises Malformed where it is cut or has more than 64 bits."""
    value = shift = 0
    for end in range(at, min(at + MOST_VARINT, len(raw))):
        byte = raw[end]
        value |= (byte & 127) << shift
        if byte < 128:
            if value >> 64:
                break
            return value, end + 1
        shift += 7
    raise Malformed(f"a number at byte {at} is cut short, or has more than 64 bits")


def fields(raw: memoryview, table: Table) -> Message:
    """One message's fields; raises Malformed."""
    found, at = Message(), 0
    while at < len(raw):
        start = at
        tag, at = varint(raw, at)
        row = table.get(tag >> 3)
        if row is None:
            raise Malformed(f"unknown field {tag >> 3} at byte {start}")
        wire = tag & 7
        packed = wire == BYTES and row.repeated and row.kind != "bytes"
        if wire != WIRE[row.kind] and not packed:
            raise Malformed(f"field '{row.name}' at byte {start} has wire type {wire}, expected {WIRE[row.kind]}")
        if row.name in found.counts and not row.repeated:
            raise Malformed(f"field '{row.name}' is there twice")
        if wire == VARINT:
            value, at = varint(raw, at)
            found.numbers.setdefault(row.name, []).append(value)
            count = 1
        else:
            size, at = varint(raw, at) if wire == BYTES else (WIDTH[wire], at)
            if size > len(raw) - at:
                raise Malformed(f"field '{row.name}' at byte {start} says {size} bytes, {len(raw) - at} are left")
            value_view = raw[at : at + size]
            at += size
            count = _unpack(row, value_view, found) if packed else 1
            if not packed and wire == BYTES:
                found.blobs.setdefault(row.name, []).append(value_view)
        found.counts[row.name] = found.counts.get(row.name, 0) + count
    return found


def _unpack(row: Field, raw: memoryview, found: Message) -> int:
    """How many numbers a packed field holds; varints are kept."""
    if row.kind != "varint":
        width = WIDTH[WIRE[row.kind]]
        if len(raw) % width:
            raise Malformed(f"field '{row.name}' holds {len(raw)} bytes, no whole number of {width}")
        return len(raw) // width
    values, at = found.numbers.setdefault(row.name, []), 0
    before = len(values)
    while at < len(raw):
        value, at = varint(raw, at)
        values.append(value)
    return len(values) - before
