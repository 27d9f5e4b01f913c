"""A device's disk while it fails: a file system that has become read-only, or one that gives errors now and then.

read-only   whatever changes something is refused, commits too
errors      each act may fail, reads and commits too; bytes whose fsync has failed are no longer the cache's to sync, so that a second
            fsync says yes and nothing is durable, until they are written again (as Linux does)
"""

import errno
import os
import random
from dataclasses import dataclass, field
from typing import Literal

from fleetgrad.wire.files import DiskError, Files

CHANCE = 0.15  # of an act
Fault = Literal["", "read-only", "errors"]


@dataclass
class FailingFiles:
    """Implements wire.files.Files over another one; `check` is asked before each act and raises DiskError."""

    files: Files
    random: random.Random
    fault: Fault = ""
    refused: int = 0
    _unsynced: set[str] = field(default_factory=set)

    def check(self, act: str, name: str, *, changes: bool = True) -> None:
        code = errno.EROFS if self.fault == "read-only" and changes else 0
        if self.fault == "errors" and self.random.random() < CHANCE:
            code = errno.EIO
        if code:
            self.refused += 1
            raise DiskError(code, f"can't {act} {name}: {os.strerror(code)}")

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self.check("write", name)
        self._unsynced.discard(name)
        self.files.write(name, data)

    def write_at(self, name: str, offset: int, data: bytes | bytearray | memoryview) -> None:
        self.check("write", name)
        self.files.write_at(name, offset, data)

    def fsync(self, name: str) -> None:
        try:
            self.check("sync", name)
        except DiskError:
            self._unsynced.add(name)
            raise
        if name not in self._unsynced:
            self.files.fsync(name)

    def rename(self, old: str, new: str) -> None:
        self.check("rename", old)
        self.files.rename(old, new)

    def fsync_directory(self, name: str) -> None:
        self.check("sync folder", name)
        self.files.fsync_directory(name)

    def unlink(self, name: str) -> None:
        self.check("remove", name)
        self.files.unlink(name)

    def read(self, name: str) -> bytes:
        self.check("read", name, changes=False)
        return self.files.read(name)

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        self.check("read", name, changes=False)
        return self.files.read_at(name, offset, size)

    def names(self, directory: str) -> list[str]:
        self.check("list", directory, changes=False)
        return self.files.names(directory)
