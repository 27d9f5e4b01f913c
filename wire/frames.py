"""The 160-byte header before every chunk, all integers little-endian.

    offset  size  field
         0     4  magic "FGRD"
         4     1  protocol version, 1
         5     1  type: 1 update, 2 query, 3 object
         6     2  flags: 1 in an update, whose payload is sealed (wire/seal.py), else 0
         8    16  federation, SHA-256(name)[:16]            (zeros in an object)
        24     4  round                                     (zero in an object)
        28     2  attempt                                   (zero in an object)
        30    16  device, SHA-256(id)[:16]                  (zeros in an object)
        46    32  model: SHA-256 of the params trained from (zeros in an object)
        78    32  config: SHA-256 of the policy             (zeros in an object)
       110     2  seq, index of this chunk
       112     2  nchunks
       114     4  total_len, bytes of the body
       118     4  CRC32C of the header with this field zero, then the chunk
       122    32  SHA-256 of the payload
       154     4  chunk_bytes, length of every chunk but the last
       158     2  zero

A body is cut into chunks of chunk_bytes; the head says which length a federation's broker takes. The body of an update or a query is its payload and then an Ed25519 signature
over CONTEXT and the header with seq = 0 and crc = 0; an object's body is its payload alone, which the signed head names.
"""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from fleetgrad.native import kernels
from fleetgrad.wire.signing import SIGNATURE_BYTES, PrivateKey, PublicKey, Untrusted

MAGIC = b"FGRD"
VERSION = 1
UPDATE, QUERY, OBJECT = 1, 2, 3
SEALED = 1
HEADER_BYTES = 160
DATA_BYTES = 60 * 1024  # of a chunk, where the head says nothing else
LEAST_CHUNK_BYTES, MOST_CHUNK_BYTES = 1024, 120 * 1024
MAX_CHUNKS = 2**16 - 1
CONTEXT = b"fl1-update"

_LAYOUT = struct.Struct("<4sBBH16sIH16s32s32sHHII32sI2x")
CRC = slice(118, 122)  # where it lies in the header
_ZERO16, _ZERO32 = bytes(16), bytes(32)


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of a frame, in the order of the bytes; see the diagram above."""

    type: int
    federation: bytes
    round: int
    attempt: int
    device: bytes
    model: bytes
    config: bytes
    nchunks: int
    total_len: int
    payload_sha256: bytes
    seq: int = 0
    crc: int = 0
    flags: int = 0
    chunk_bytes: int = DATA_BYTES

    def pack(self) -> bytes:
        """The 160 bytes."""
        return self._pack(self.seq, self.crc)

    def bare(self, seq: int = 0) -> bytes:
        """The 160 bytes of chunk `seq` without its CRC: those of chunk 0 tell bodies apart."""
        return self._pack(seq, 0)

    def _pack(self, seq: int, crc: int) -> bytes:
        return _LAYOUT.pack(
            MAGIC, VERSION, self.type, self.flags, self.federation, self.round, self.attempt, self.device, self.model,
            self.config, seq, self.nchunks, self.total_len, crc, self.payload_sha256, self.chunk_bytes,
        )  # fmt: skip

    def signed_bytes(self) -> bytes:
        """What the signature covers: the same for every chunk."""
        return CONTEXT + self.bare()

    def sealed_with(self) -> bytes:
        """What a sealed payload opens with alone: the fields that say whose it is and what for, not how it is cut."""
        bare = replace(self, seq=0, nchunks=0, total_len=0, crc=0, payload_sha256=_ZERO32, chunk_bytes=0)
        return bare.pack()

    def whole(self) -> "Header":
        """The header without what differs between chunks: equal for all chunks of one body."""
        return replace(self, seq=0, crc=0)

    def span(self, seq: int) -> slice:
        """Where chunk `seq` lies in the body."""
        return slice(seq * self.chunk_bytes, min(self.total_len, (seq + 1) * self.chunk_bytes))


def chunks_of(total_len: int, chunk_bytes: int = DATA_BYTES) -> int:
    """Number of chunks that a body of `total_len` bytes is cut into."""
    return -(-total_len // chunk_bytes)


def check_chunks(total_len: int, chunk_bytes: int) -> int:
    """Number of chunks; raises ValueError for more than a header can count."""
    count = chunks_of(total_len, chunk_bytes)
    if count > MAX_CHUNKS:
        raise ValueError(
            f"{total_len:,} bytes in chunks of {chunk_bytes:,} are {count:,} chunks, at most {MAX_CHUNKS:,}: the broker's "
            f"chunk-bytes must be at least {-(-total_len // MAX_CHUNKS):,}"
        )
    return count


def wire_bytes(total_len: int, chunk_bytes: int = DATA_BYTES) -> int:
    """Bytes that a body of `total_len` bytes takes on the wire, headers included."""
    return total_len + HEADER_BYTES * chunks_of(total_len, chunk_bytes)


def update_header(
    type_: int, federation: bytes, round_: int, attempt: int, device: bytes, model: bytes, config: bytes,
    payload_len: int, payload_sha256: bytes, chunk_bytes: int = DATA_BYTES,
) -> Header:  # fmt: skip
    """The header of an update or a query with a (sealed) payload of `payload_len` bytes; raises ValueError for too many chunks."""
    total = payload_len + SIGNATURE_BYTES
    flags = SEALED if type_ == UPDATE else 0
    return Header(
        type_, federation, round_, attempt, device, model, config, check_chunks(total, chunk_bytes), total,
        payload_sha256, flags=flags, chunk_bytes=chunk_bytes,
    )  # fmt: skip


def sealed_with(federation: bytes, round_: int, attempt: int, device: bytes, model: bytes, config: bytes) -> bytes:
    """`Header.sealed_with` of an update that isn't made yet."""
    return update_header(UPDATE, federation, round_, attempt, device, model, config, 0, _ZERO32).sealed_with()


def object_header(size: int, sha256: bytes, chunk_bytes: int = DATA_BYTES) -> Header:
    """The header of an object's chunks; raises ValueError for too many."""
    count = check_chunks(size, chunk_bytes)
    return Header(
        OBJECT, _ZERO16, 0, 0, _ZERO16, _ZERO32, _ZERO32, count, size, sha256, chunk_bytes=chunk_bytes
    )  # fmt: skip


def sign_body(key: PrivateKey, header: Header) -> bytes:
    """The 64 bytes that end the body of an update or a query."""
    return key.sign(header.signed_bytes())


def signature_holds(key: PublicKey, header: Header, body: bytes | bytearray | memoryview) -> bool:
    """Whether a complete body is its header's payload (SHA-256) and signed by `key`."""
    view = memoryview(body)
    if len(view) != header.total_len or len(view) < SIGNATURE_BYTES:
        return False
    if hashlib.sha256(view[:-SIGNATURE_BYTES]).digest() != header.payload_sha256:
        return False
    return key.verify(bytes(view[-SIGNATURE_BYTES:]), header.signed_bytes())


def checksum(header: Header, seq: int, chunk: bytes | memoryview) -> int:
    """CRC32C of chunk `seq` of a body with its header."""
    return kernels.crc32c(chunk, kernels.crc32c(header.bare(seq)))


def frame(header: Header, seq: int, chunk: bytes | memoryview) -> bytes:
    """Chunk `seq` of a body as a frame: header, then the chunk."""
    return replace(header, seq=seq, crc=checksum(header, seq, chunk)).pack() + bytes(chunk)


def frames(header: Header, body: bytes | memoryview) -> Iterator[bytes]:
    """All frames of a body, in order."""
    view = memoryview(body)
    for seq in range(header.nchunks):
        yield frame(header, seq, view[header.span(seq)])


def unpack(raw: bytes | memoryview, *, most: int) -> Header:
    """The header that bytes start with, if it could be a body's of at most `most` bytes; raises Untrusted.

    The checksum isn't looked at: it says nothing without the chunk.
    """
    if len(raw) < HEADER_BYTES:
        raise Untrusted(f"header of {len(raw)} bytes, expected {HEADER_BYTES}")
    (
        magic,
        version,
        type_,
        flags,
        federation,
        round_,
        attempt,
        device,
        model,
        config,
        seq,
        nchunks,
        total,
        crc,
        sha,
        chunk_bytes,
    ) = _LAYOUT.unpack_from(raw)
    if magic != MAGIC:
        raise Untrusted(f"frame starts with {magic!r}, expected {MAGIC!r}")
    if version != VERSION:
        raise Untrusted(f"frame has protocol version {version}, this side speaks {VERSION}")
    if type_ not in (UPDATE, QUERY, OBJECT) or any(raw[158:HEADER_BYTES]):
        raise Untrusted(f"frame of type {type_}: unknown, or its reserved bytes aren't zero")
    if flags != (SEALED if type_ == UPDATE else 0):
        raise Untrusted(f"frame of type {type_} with flags {flags:#x}: an update is sealed (1), all else has none")
    if not 0 < total <= most:
        raise Untrusted(f"body of {total} bytes, at most {most}")
    if not LEAST_CHUNK_BYTES <= chunk_bytes <= MOST_CHUNK_BYTES:
        raise Untrusted(f"chunks of {chunk_bytes} bytes, expected {LEAST_CHUNK_BYTES} to {MOST_CHUNK_BYTES}")
    if nchunks != chunks_of(total, chunk_bytes) or seq >= nchunks:
        raise Untrusted(
            f"chunk {seq} of {nchunks}, a body of {total} bytes has {chunks_of(total, chunk_bytes)} of {chunk_bytes}"
        )
    return Header(
        type_, federation, round_, attempt, device, model, config, nchunks, total, sha, seq, crc, flags, chunk_bytes
    )


def parse(raw: bytes | memoryview, *, most: int) -> tuple[Header, memoryview]:
    """Header and chunk of one frame; raises Untrusted.

    `most` is the largest body that the reader accepts, in bytes; it comes from the reader's own configuration, and is
    compared before anything else that the sender says is used.
    """
    view = memoryview(raw)
    longest = HEADER_BYTES + MOST_CHUNK_BYTES
    if not HEADER_BYTES < len(view) <= longest:
        raise Untrusted(f"frame of {len(view)} bytes, expected {HEADER_BYTES + 1} to {longest}")
    header, chunk = unpack(view, most=most), view[HEADER_BYTES:]
    span = header.span(header.seq)
    if len(chunk) != span.stop - span.start:
        raise Untrusted(f"chunk {header.seq} has {len(chunk)} bytes, expected {span.stop - span.start}")
    head = bytearray(view[:HEADER_BYTES])
    head[CRC] = bytes(4)
    if kernels.crc32c(chunk, kernels.crc32c(head)) != header.crc:
        raise Untrusted(f"chunk {header.seq}: CRC32C doesn't match")
    return header, chunk
