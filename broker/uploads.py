"""Uploads under way, on disk: memory doesn't grow with devices, and a restart of the aggregator costs a device nothing that it has sent.

    spool/{round}-{attempt}-{device}.update = header (160, seq and CRC zero) | body | CRC32C of each chunk's frame, u32 little-endian

A chunk and its CRC are written where they belong, unsynced. After a crash a chunk has come if the CRC is that of what lies in the file,
so a page that was lost is a chunk that is asked for again. When the body is whole and proven, this file, synced, is the accepted update.
"""

import struct

from fleetgrad.broker.attempt import SPOOL, Open
from fleetgrad.wire import frames
from fleetgrad.wire.chunks import Arrivals, has
from fleetgrad.wire.files import Files
from fleetgrad.wire.frames import HEADER_BYTES, Header
from fleetgrad.wire.pace import Parallel
from fleetgrad.wire.signing import SIGNATURE_BYTES, Untrusted
from fleetgrad.wire.topics import name_hash

UPLOAD_SECONDS = 600.0  # one that rests longer is forgotten; the device asks, and sends again
MAX_UPLOADS = 4096
MAX_BYTES = 2**32  # of all uploads under way
_CRC = struct.Struct("<I")


class NoRoom(Exception):
    """As many uploads are under way as may be; the device may come again later."""


class Upload(Arrivals):
    """One device's; `seen_at` is when its last chunk came (monotonic, seconds)."""

    def __init__(self, header: Header, name: str, now: float) -> None:
        super().__init__(header)
        self.name, self.seen_at, self._bare = name, now, header.bare()

    def takes(self, header: Header) -> bool:
        """Whether a frame is of this body."""
        return header.bare() == self._bare

    @property
    def size(self) -> int:
        """Bytes of its file."""
        return HEADER_BYTES + self.header.total_len + _CRC.size * self.header.nchunks


class Uploads:
    """Those of the open attempt, at most one a device."""

    def __init__(self, files: Files, parallel: Parallel) -> None:
        self._files, self._parallel = files, parallel
        self.held: dict[str, Upload] = {}
        self._bytes = 0

    def begin(self, attempt: Open | None, most: int, now: float) -> None:
        """Another attempt begins, or after a start goes on: removes files of others, takes up what lies there of this one.

        `most` is the largest body that this attempt accepts.
        """
        self.held, self._bytes = {}, 0
        names = self._files.names(SPOOL)
        devices = [attempt.device_of(name) if attempt else None for name in names]
        foreign = [f"{SPOOL}/{name}" for name, device in zip(names, devices, strict=True) if device is None]
        list(self._parallel(self._files.unlink, foreign))
        for device in devices:
            if attempt and device and device not in attempt.members:
                self._resume(attempt, device, most, now)

    def _resume(self, attempt: Open, device: str, most: int, now: float) -> None:
        name = attempt.file_of(device)
        try:
            header = frames.unpack(self._files.read_at(name, 0, HEADER_BYTES), most=most)
            if header.type != frames.UPDATE or header.device != name_hash(device) or attempt.mismatch(header):
                raise Untrusted("another update's")
        except Untrusted:
            self._files.unlink(name)
            return
        upload = Upload(header, name, now)
        table = self._files.read_at(name, HEADER_BYTES + header.total_len, _CRC.size * header.nchunks)
        for seq in range(len(table) // _CRC.size):
            span = header.span(seq)
            chunk = self._files.read_at(name, HEADER_BYTES + span.start, span.stop - span.start)
            expected = _CRC.unpack_from(table, _CRC.size * seq)[0]
            if len(chunk) == span.stop - span.start and frames.checksum(header, seq, chunk) == expected:
                upload.mark(seq)
        self._hold(device, upload)

    def _hold(self, device: str, upload: Upload) -> None:
        self.held[device] = upload
        self._bytes += upload.size

    def get(self, device: str) -> Upload | None:
        """The device's upload under way."""
        return self.held.get(device)

    def only(self, devices: int) -> bool:
        """Whether no more than this many uploads are under way."""
        return len(self.held) <= devices

    def take(self, attempt: Open, device: str, header: Header, chunk: memoryview, now: float) -> tuple[Upload, bool]:
        """Stores a chunk; (upload, whether it was new). Raises NoRoom, and DiskError with nothing marked."""
        upload = self.held.get(device)
        if upload is None or not upload.takes(header):
            if upload is not None:
                self.forget(device)
            upload = Upload(header, attempt.file_of(device), now)
            self._make_room(upload.size, now)
            self._files.write_at(upload.name, 0, upload.header.pack())
            self._hold(device, upload)
        upload.seen_at = now
        if has(upload.received, header.seq):
            return upload, False
        self._files.write_at(upload.name, HEADER_BYTES + header.span(header.seq).start, chunk)
        at = HEADER_BYTES + header.total_len + _CRC.size * header.seq
        self._files.write_at(upload.name, at, _CRC.pack(header.crc))
        upload.mark(header.seq)
        return upload, True

    def _make_room(self, size: int, now: float) -> None:
        if len(self.held) < MAX_UPLOADS and self._bytes + size <= MAX_BYTES:
            return
        for device in [d for d, u in self.held.items() if now - u.seen_at > UPLOAD_SECONDS]:
            self.forget(device)
        if len(self.held) >= MAX_UPLOADS or self._bytes + size > MAX_BYTES:
            raise NoRoom(f"{len(self.held)} uploads of {self._bytes:,} bytes are under way")

    def body(self, upload: Upload) -> memoryview:
        """The whole body of a complete upload."""
        return memoryview(self._files.read_at(upload.name, HEADER_BYTES, upload.header.total_len))

    def received(self, device: str, header: Header) -> bytes:
        """Bitmap of the device's upload under way, empty if there is none of this payload in chunks of this length."""
        upload = self.held.get(device)
        if upload is None:
            return b""
        same = (upload.header.payload_sha256, upload.header.chunk_bytes) == (header.payload_sha256, header.chunk_bytes)
        return bytes(upload.received) if same else b""

    def settle(self, device: str) -> None:
        """The device's upload is counted: its file stays, until the attempt ends."""
        self._bytes -= self.held.pop(device).size

    def forget(self, device: str) -> None:
        """Removes a device's upload, if there is one."""
        upload = self.held.pop(device, None)
        if upload is not None:
            self._bytes -= upload.size
            self._files.unlink(upload.name)


def stored_payload(files: Files, name: str) -> tuple[Header, bytes]:
    """Header and sealed payload of an accepted update; raises ValueError where the file isn't what was accepted.

    The payload's SHA-256 is for the caller to compare.
    """
    raw = files.read(name)
    try:
        header = frames.unpack(raw[:HEADER_BYTES], most=len(raw))
    except Untrusted as e:
        raise ValueError(f"{name}: {e}") from e
    return header, raw[HEADER_BYTES : HEADER_BYTES + header.total_len - SIGNATURE_BYTES]
