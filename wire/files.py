"""The disk, as the few calls that durability hangs on; a simulation passes another one in.

Names are relative to a root, with '/' between parts. `write` alone promises nothing after a power cut; `put` does, since
it syncs the file, renames it into place and syncs the directory:

    write NAME.tmp -> fsync NAME.tmp -> rename NAME.tmp NAME -> fsync directory
"""

import contextlib
import fcntl
import glob
import os
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TextIO

TEMPORARY = ".tmp"
HANDLES = 64  # kept open at most
PUBLIC, PRIVATE = 0o644, 0o600  # modes of files; a umask may take more away


class DiskError(OSError):
    """A file operation that failed; the message names the act, the file and the reason (disk full, no permission)."""

    def __str__(self) -> str:
        return self.strerror or super().__str__()


class Files(Protocol):
    """The operations; each raises DiskError, and FileNotFoundError where a file to read, sync or rename is missing."""

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None: ...
    def fsync(self, name: str) -> None: ...
    def rename(self, old: str, new: str) -> None: ...
    def fsync_directory(self, name: str) -> None: ...
    def unlink(self, name: str) -> None: ...
    def read(self, name: str) -> bytes: ...
    def write_at(self, name: str, offset: int, data: bytes | bytearray | memoryview) -> None: ...
    def read_at(self, name: str, offset: int, size: int) -> bytes: ...
    def names(self, directory: str) -> list[str]: ...


def put(files: Files, name: str, data: bytes | bytearray | memoryview) -> None:
    """Makes `name` hold `data`, durably: after a crash the file is the old one or the new one, whole."""
    temporary = name + TEMPORARY
    files.write(temporary, data)
    files.fsync(temporary)
    files.rename(temporary, name)
    files.fsync_directory(name.rpartition("/")[0])


def discard(files: Files, name: str) -> None:
    """Removes what nothing names any more. Where the disk refuses, it stays, for whoever looks next for what nothing names."""
    with contextlib.suppress(DiskError):
        files.unlink(name)


def sync(path: Path) -> None:
    """Makes what was written to a file last, or the renames and removals in a folder. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def aside(path: Path) -> Path:
    """Where what appears as `path`, whole or not at all, is written first: beside it, under this process's number.

    What processes that were killed left there for `path`, keys maybe, is removed where it can be.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY}"):
        number = left.name.removesuffix(TEMPORARY).rpartition(".")[2]
        if number.isdecimal() and (int(number) == os.getpid() or not Path("/proc", number).exists()):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    left.unlink()
    return path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")


def replace_file(path: Path, raw: bytes, mode: int = PUBLIC) -> None:
    """Makes `path`, anywhere, hold `raw` with that mode at most: after a crash it is the old file or the new one, whole. Raises OSError."""
    temporary = aside(path)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def lock(path: Path) -> TextIO:
    """Holds the file for this process alone, until it is closed or the process ends.

    Raises BlockingIOError where another process holds it, and DiskError where there can be no lock.
    """
    try:
        handle = path.open("w")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise
    except OSError as e:
        raise DiskError(e.errno, f"can't lock {path}: {e.strerror}") from e
    return handle


class PosixFiles:
    """The real disk, under one root folder that is made when it is missing."""

    def __init__(self, root: Path) -> None:
        self.root, self._prefix = root, str(root)  # joining paths by pathlib takes longer than writing a chunk
        self._handles: dict[str, int] = {}  # of files that are written in parts
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._handles)
        self._act("create folder", "", lambda: _make_folder(root))

    def path(self, name: str) -> Path:
        """Where `name` lies; refuses names that lead out of the root."""
        return Path(self._place(name))

    def _place(self, name: str) -> str:
        if name.startswith("/") or (".." in name and ".." in name.split("/")):
            raise DiskError(f"file name {name!r} leads out of {self.root}")
        return f"{self._prefix}/{name}"

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        path = self.path(name)

        def act() -> None:
            _make_folder(path.parent)
            path.write_bytes(data)

        self._act("write", name, act)

    def write_at(self, name: str, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Writes into a file, which is made if it is missing; what lies between its end and `offset` reads as zeros."""
        self._act("write", name, lambda: self._write_at(name, offset, data))

    def _write_at(self, name: str, offset: int, data: bytes | bytearray | memoryview) -> None:
        with self._lock:
            handle = self._handle(name)
            while (done := os.pwrite(handle, data, offset)) < len(data):
                data, offset = memoryview(data)[done:], offset + done

    def _handle(self, name: str) -> int:
        """Of a file that is written in parts: opening it for each takes longer than writing."""
        if name in self._handles:
            return self._handles[name]
        path = self._place(name)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        except FileNotFoundError:
            _make_folder(Path(path).parent)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        if len(self._handles) >= HANDLES:
            os.close(self._handles.pop(next(iter(self._handles))))
        self._handles[name] = handle
        return handle

    def _let_go(self, name: str) -> None:
        """The name will be another file's, or no one's."""
        with self._lock:
            handle = self._handles.pop(name, None)
        if handle is not None:
            os.close(handle)

    def fsync(self, name: str) -> None:
        self._act("sync", name, lambda: sync(self.path(name)))

    def rename(self, old: str, new: str) -> None:
        for name in (old, new):
            self._let_go(name)
        self._act("rename", old, lambda: self.path(old).replace(self.path(new)))

    def fsync_directory(self, name: str) -> None:
        self._act("sync folder", name, lambda: sync(self.path(name)), may_miss=False)

    def unlink(self, name: str) -> None:
        """Removes a file; one that isn't there is fine."""
        self._let_go(name)
        self._act("remove", name, lambda: self.path(name).unlink(missing_ok=True))

    def read(self, name: str) -> bytes:
        found: list[bytes] = []
        self._act("read", name, lambda: found.append(self.path(name).read_bytes()))
        return found[0]

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset` on; fewer where the file ends."""
        found: list[bytes] = []

        def act() -> None:
            handle = os.open(self._place(name), os.O_RDONLY)
            try:
                found.append(os.pread(handle, size, offset))
            finally:
                os.close(handle)

        self._act("read", name, act)
        return found[0]

    def names(self, directory: str) -> list[str]:
        """Names of the files (not folders) in a directory, sorted; none if there is no such directory."""
        found: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            self._act(
                "list", directory, lambda: found.extend(p.name for p in self.path(directory).iterdir() if p.is_file())
            )
        return sorted(found)

    def free(self) -> int:
        """Bytes that are free where the root lies."""
        found: list[int] = []
        self._act("look at", "", lambda: found.append(shutil.disk_usage(self.root).free), may_miss=False)
        return found[0]

    def _act(self, verb: str, name: str, act: Callable[[], object], may_miss: bool = True) -> None:
        """Does it; `may_miss`: that the file isn't there is the caller's to judge, and no fault of the disk."""
        try:
            act()
        except DiskError:
            raise
        except OSError as e:
            if may_miss and isinstance(e, FileNotFoundError):
                raise
            raise DiskError(e.errno, f"can't {verb} {self.root / name}: {e.strerror}") from e


def _make_folder(path: Path) -> None:
    """Makes a folder and those above it; each new one is synced into its parent, or a power cut takes the files in it."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def _close(handles: dict[str, int]) -> None:
    while handles:
        os.close(handles.popitem()[1])
