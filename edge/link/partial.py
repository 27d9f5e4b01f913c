"""The part of a download that a restart needn't fetch again: its frames as they came, SEGMENT of them a file, each with its own CRC32C.

    partial/{sha256}.{number} = (u32 length | frame) x SEGMENT

A file is written once, whole; at most one object has any, and they go when it is complete or another one is fetched.
"""

import contextlib
import struct
from collections.abc import Iterator

from fleetgrad.wire import frames
from fleetgrad.wire.files import DiskError, Files, discard, put
from fleetgrad.wire.frames import Header
from fleetgrad.wire.signing import Untrusted

FOLDER = "partial"
SEGMENT = 8  # frames
_LENGTH = struct.Struct("<I")


def store(files: Files, sha256: str, number: int, segment: list[bytes]) -> None:
    """Makes one segment durable; raises DiskError."""
    put(files, f"{FOLDER}/{sha256}.{number}", b"".join(_LENGTH.pack(len(frame)) + frame for frame in segment))


def load(files: Files, sha256: str, header: Header) -> Iterator[tuple[Header, memoryview]]:
    """The chunks that are stored of a body with this header; what is damaged or of another length is left out."""
    for name in files.names(FOLDER):
        if name.partition(".")[0] == sha256:
            with contextlib.suppress(DiskError):
                yield from _frames(files.read(f"{FOLDER}/{name}"), header)


def _frames(raw: bytes, header: Header) -> Iterator[tuple[Header, memoryview]]:
    view = memoryview(raw)
    while len(view) > _LENGTH.size:
        (length,) = _LENGTH.unpack_from(view)
        frame, view = view[_LENGTH.size : _LENGTH.size + length], view[_LENGTH.size + length :]
        try:
            found, chunk = frames.parse(frame, most=header.total_len)
        except Untrusted:
            return
        if found.whole() != header:
            return
        yield found, chunk


def sweep(files: Files, kept: str = "") -> None:
    """Removes the parts of all objects but one."""
    for name in files.names(FOLDER):
        if not kept or name.partition(".")[0] != kept or not name.rpartition(".")[2].isdigit():
            discard(files, f"{FOLDER}/{name}")
