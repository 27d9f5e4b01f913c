"""A simulated disk that keeps after a power cut exactly what was promised, and of the rest whatever it likes.

    write      page cache only                    power cut: old bytes, no bytes, a torn prefix of the new ones, or some pages of each
    write_at   the same
    fsync      the file's bytes are durable
    rename     directory entry in memory only     power cut: entries of a directory go in order, cut off anywhere
    unlink     the same
    fsync_directory   all entries of that directory are durable

A crash may be injected into any operation: before it, after it, and in the middle of a write. `Crashed` isn't an
Exception, so that no machine can catch it.
"""

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from fleetgrad.wire.files import DiskError

PAGE = 512  # bytes that are lost or kept together
Entry = tuple[str, "Inode | None"]


class Crashed(BaseException):
    """The process that was running is dead from here on."""


@dataclass(eq=False, slots=True)
class Inode:
    """A file's bytes as processes see them, and as they were when last synced (None: never)."""

    data: bytes = b""
    durable: bytes | None = None


@dataclass
class Disk:
    """Implements wire.files.Files. `before` is asked before and after each operation and may raise Crashed."""

    random: random.Random
    before: Callable[[str], None] = lambda act: None
    full: bool = False
    most_bytes: int = 0
    operations: int = 0
    torn: int = 0  # files that a power cut left neither old nor new
    _seen: dict[str, Inode] = field(default_factory=dict)
    _durable: dict[str, Inode] = field(default_factory=dict)
    _pending: list[Entry] = field(default_factory=list)

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self._start(f"write {name}")
        inode = self._seen.get(name)
        if inode is None:
            inode = self._seen[name] = Inode()
            self._pending.append((name, inode))
        whole = bytes(data)
        if self.full:
            inode.data = whole[: self.random.randrange(len(whole) + 1)]
            raise DiskError(errno.ENOSPC, f"can't write {name}: No space left on device")
        inode.data = whole[: self.random.randrange(len(whole) + 1)]
        self.before(f"inside write {name}")
        inode.data = whole
        self.most_bytes = max(self.most_bytes, self.used())
        self._end(f"write {name}")

    def write_at(self, name: str, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._start(f"write_at {name}")
        inode = self._seen.get(name)
        if inode is None:
            inode = self._seen[name] = Inode()
            self._pending.append((name, inode))
        part = bytes(data)

        def with_part(length: int) -> bytes:
            """The file with `length` bytes of the part in it."""
            old = inode.data.ljust(offset, b"\0") if length else inode.data
            return old[:offset] + part[:length] + old[offset + length :]

        torn = with_part(self.random.randrange(len(part) + 1))
        if self.full:
            inode.data = torn
            raise DiskError(errno.ENOSPC, f"can't write {name}: No space left on device")
        whole, inode.data = with_part(len(part)), torn
        self.before(f"inside write_at {name}")
        inode.data = whole
        self.most_bytes = max(self.most_bytes, self.used())
        self._end(f"write_at {name}")

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        return self._find(name).data[offset : offset + size]

    def fsync(self, name: str) -> None:
        self._start(f"fsync {name}")
        inode = self._find(name)
        inode.durable = inode.data
        self._end(f"fsync {name}")

    def rename(self, old: str, new: str) -> None:
        self._start(f"rename {old}")
        inode = self._find(old)
        del self._seen[old]
        self._seen[new] = inode
        self._pending += [(new, inode), (old, None)]
        self._end(f"rename {old}")

    def fsync_directory(self, name: str) -> None:
        self._start(f"fsync_directory {name}")
        here = [entry for entry in self._pending if folder(entry[0]) == name]
        self._pending = [entry for entry in self._pending if folder(entry[0]) != name]
        self._apply(here)
        self._end(f"fsync_directory {name}")

    def unlink(self, name: str) -> None:
        self._start(f"unlink {name}")
        if self._seen.pop(name, None) is not None:
            self._pending.append((name, None))
        self._end(f"unlink {name}")

    def read(self, name: str) -> bytes:
        return self._find(name).data

    def names(self, directory: str) -> list[str]:
        return sorted(name.rpartition("/")[2] for name in self._seen if folder(name) == directory)

    def install(self, name: str, data: bytes) -> None:
        """Puts a file there, durably, before the run begins."""
        self._seen[name] = self._durable[name] = Inode(data, data)

    def flip(self, name: str) -> None:
        """One bit of a file rots, in the cache and for good."""
        inode = self._find(name)
        raw = bytearray(inode.data)
        bit = self.random.randrange(8 * len(raw))
        raw[bit // 8] ^= 1 << bit % 8
        inode.data = inode.durable = bytes(raw)

    def durable(self, name: str) -> bytes | None:
        """What a power cut now would certainly leave under `name`; None if that isn't certain."""
        inode = self._durable.get(name)
        if inode is None or inode is not self._seen.get(name) or inode.durable != inode.data:
            return None
        return inode.durable

    def used(self) -> int:
        """Bytes of all files."""
        return sum(len(inode.data) for inode in self._seen.values())

    def power_cut(self, *, keeps_none: bool = False) -> None:
        """Forgets what was never synced, or keeps some of it: the disk chooses, unless it is to keep none."""
        by_folder: dict[str, list[Entry]] = {}
        for entry in self._pending:
            by_folder.setdefault(folder(entry[0]), []).append(entry)
        for entries in by_folder.values():
            kept = 0 if keeps_none else self.random.randrange(len(entries) + 1)
            # A rename is one act: it isn't cut between its two entries.
            if 0 < kept < len(entries) and entries[kept][1] is None and entries[kept - 1][1] is not None:
                kept += 1
            self._apply(entries[:kept])
        self._pending = []
        for inode in dict.fromkeys(self._durable.values()):
            if inode.durable != inode.data:
                whole = inode.data
                torn = inode.data[: self.random.randrange(len(inode.data) + 1)]
                left = [inode.durable or b"", b"", torn, inode.data, self._patchy(inode.durable or b"", inode.data)]
                inode.data = left[0] if keeps_none else self.random.choice(left)
                self.torn += inode.data not in (left[0], whole)
            inode.durable = inode.data
        self._seen = dict(self._durable)

    def _patchy(self, old: bytes, new: bytes) -> bytes:
        """Some pages of the new bytes, the others as they were, or zeros where there was nothing."""
        old = old[: len(new)].ljust(len(new), b"\0")
        pages = (self.random.choice((old, new))[at : at + PAGE] for at in range(0, len(new), PAGE))
        return b"".join(pages)

    def _apply(self, entries: list[Entry]) -> None:
        for name, inode in entries:
            if inode is None:
                self._durable.pop(name, None)
            else:
                self._durable[name] = inode

    def _find(self, name: str) -> Inode:
        if name not in self._seen:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", name)
        return self._seen[name]

    def _start(self, act: str) -> None:
        self.operations += 1
        self.before(f"before {act}")

    def _end(self, act: str) -> None:
        self.before(f"after {act}")


def folder(name: str) -> str:
    """The directory part of a name, '' for the root."""
    return name.rpartition("/")[0]
