"""Putting a body together again from frames that come late, twice and in any order.

The first header is the body's identity; a frame that differs in anything but seq and crc is another body's. `Arrivals` knows which
chunks have come; an `Assembly` holds them in memory too, in a buffer as large as the header says, which `frames.parse` has bounded before.
"""

from fleetgrad.wire.frames import Header
from fleetgrad.wire.signing import Untrusted


class Arrivals:
    """Which chunks of a body have come; `received` is a bitmap, bit i of byte i // 8, least significant first."""

    def __init__(self, header: Header) -> None:
        self.header = header.whole()
        self.received = bytearray(-(-header.nchunks // 8))
        self.missing = header.nchunks

    def mark(self, seq: int) -> None:
        """Chunk `seq` has come, which hadn't."""
        self.received[seq // 8] |= 1 << seq % 8
        self.missing -= 1

    @property
    def complete(self) -> bool:
        return self.missing == 0


class Assembly(Arrivals):
    """One body on its way in, in memory."""

    def __init__(self, header: Header) -> None:
        super().__init__(header)
        self.body = bytearray(header.total_len)

    def add(self, header: Header, chunk: bytes | memoryview) -> bool:
        """Takes one parsed frame; whether it was new. Raises Untrusted if it belongs to another body."""
        if header.whole() != self.header:
            raise Untrusted("frame belongs to another body than the one under way")
        if has(self.received, header.seq):
            return False
        self.body[header.span(header.seq)] = chunk
        self.mark(header.seq)
        return True


def has(bitmap: bytes | bytearray, index: int) -> bool:
    """Whether chunk `index` is marked; a bitmap that is too short marks nothing beyond its end."""
    return index // 8 < len(bitmap) and bool(bitmap[index // 8] >> index % 8 & 1)


def absent(bitmap: bytes | bytearray, nchunks: int) -> list[int]:
    """Indices of the chunks that a bitmap doesn't mark."""
    return [i for i in range(nchunks) if not has(bitmap, i)]
