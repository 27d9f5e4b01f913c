"""What a device never forgets, but for payloads and objects, which are files: rows by kind and key, each with its CRC32C.

    memory ""  |  head ""  |  update "{round}-{attempt}"  |  carried ""        JSON, or the signed bytes as they came

`commit` is atomic: after a crash all of its rows are there or none, and when it returns they are durable. SQLite keeps that promise in WAL
mode with synchronous=FULL; a simulation passes a store in memory.
"""

import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, TypeVar

import msgspec

from fleetgrad.native import kernels
from fleetgrad.wire.database import Files, Foreign, connect, readable, transaction
from fleetgrad.wire.files import DiskError
from fleetgrad.wire.log import log
from fleetgrad.wire.strict import MALFORMED

FILE = "edge.sqlite"
APPLICATION_ID = 0x464C4745  # "FLGE"
SCHEMA = 1
TABLES = """
CREATE TABLE record (kind TEXT, key TEXT, body BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
"""
BAD = ".bad"
SIDES = ("", "-wal")
COPIES = 5  # that are tried
MEMORY = "memory"  # of a lost file nothing is known, and this row has to be seen as lost: it holds the boot counter

T = TypeVar("T")
Key = tuple[str, str]


class StoreError(ValueError):
    """A store that can't be used, though it is whole; the message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class Put:
    """Makes the row (kind, key) hold `body`."""

    kind: str
    key: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Drop:
    """Removes the row (kind, key), if it is there."""

    kind: str
    key: str


Row = Put | Drop


@dataclass(slots=True)
class Held:
    """What a start finds; `damaged` gives a reason for each row that can't be read."""

    rows: dict[Key, bytes] = field(default_factory=dict)
    damaged: dict[Key, str] = field(default_factory=dict)

    def all(self, kind: str, type: type[T]) -> dict[str, T]:  # noqa: A002
        """The rows of a kind, by key; what isn't a `type` in JSON counts as damaged."""
        found: dict[str, T] = {}
        for (of, key), body in self.rows.items():
            if of == kind:
                try:
                    found[key] = msgspec.json.decode(body, type=type)
                except MALFORMED as e:
                    self.damaged[kind, key] = str(e)
        return found

    def lost(self, kind: str) -> dict[str, str]:
        """Reasons by key, for a kind's damaged rows."""
        return {key: reason for (of, key), reason in self.damaged.items() if of == kind}


class Store(Protocol):
    """`load` once at start; each `commit` is durable when it returns, or raises DiskError and changed nothing."""

    def load(self) -> Held: ...
    def commit(self, rows: list[Row]) -> None: ...


def _crc(kind: str, key: str, body: bytes) -> int:
    return kernels.crc32c(body, kernels.crc32c(f"{kind}\0{key}\0".encode()))


class SqliteStore:
    """The real store, in one file of the spool. A damaged file is set aside as edge.sqlite.bad: at the start it is
    begun anew, later written anew from what is in memory, as it is when it was removed, replaced or cut."""

    def __init__(self, folder: Path) -> None:
        """Raises StoreError for a file of someone else's or in use, DiskError where it can't be written."""
        self._path = folder / FILE
        self._rows: dict[Key, bytes] = {}  # what is committed, should the file be lost while it is in use
        try:
            try:
                self._db = self._open()
            except sqlite3.DatabaseError as e:
                if not _damaged(e):
                    raise
                self._set_aside()
                self._db = self._open()
        except sqlite3.Error as e:
            raise self._error(e) from e
        self._files, self._whole = Files(self._path), True

    def _set_aside(self) -> None:
        try:
            for side in SIDES:
                side_file = self._path.with_name(self._path.name + side)
                if side_file.exists():
                    side_file.replace(self._path.with_name(self._path.name + BAD + side))
        except OSError as e:
            raise DiskError(e.errno, f"can't set {self._path} aside: {e.strerror}") from e

    def _open(self) -> sqlite3.Connection:
        try:
            db = connect(self._path, APPLICATION_ID, SCHEMA, TABLES)
        except Foreign as e:
            if e.schema is None:
                raise StoreError(
                    f"{self._path} isn't a device's store: is [device] spool another program's folder?"
                ) from e
            raise StoreError(
                f"{self._path} has schema {e.schema}, this fleetgrad reads {SCHEMA}: install a newer one"
            ) from e
        try:
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(f"malformed: {found}")
        except sqlite3.Error:
            db.close()
            raise
        return db

    def _error(self, e: sqlite3.Error) -> Exception:
        if "locked" in str(e):
            return StoreError(f"{self._path} is in use by another process")
        return DiskError(f"can't write {self._path}: {e}")

    def load(self) -> Held:
        try:
            held = _read(self._db)
        except sqlite3.Error as e:
            raise self._error(e) from e
        bad = self._path.with_name(self._path.name + BAD)
        if (MEMORY, "") not in held.rows and bad.exists():
            held.damaged[MEMORY, ""] = f"{self._path} was damaged, it is set aside as {bad.name}"
        self._rows = dict(held.rows)
        return held

    def commit(self, rows: list[Row]) -> None:
        try:
            if not (self._whole and self._files.untouched()):
                self._write_anew(rows, "it was removed, replaced or cut")
            else:
                try:
                    self._write(rows)
                except sqlite3.DatabaseError as e:
                    if not _damaged(e):
                        raise
                    self._write_anew(rows, str(e))
        except sqlite3.Error as e:
            raise DiskError(f"can't write {self._path}: {e}") from e
        for row in rows:
            if isinstance(row, Put):
                self._rows[row.kind, row.key] = row.body
            else:
                self._rows.pop((row.kind, row.key), None)

    def _write_anew(self, rows: list[Row], reason: str) -> None:
        log("store_written_anew", file=self._path, reason=reason)
        self._whole = False  # until all of it is written: what is there now is less than was committed
        self._set_aside()
        self._db.close()
        self._db = self._open()
        self._files = Files(self._path)
        self._write([*(Put(kind, key, body) for (kind, key), body in self._rows.items()), *rows])
        self._whole = True

    def _write(self, rows: list[Row]) -> None:
        try:
            with transaction(self._db):
                for row in rows:
                    match row:
                        case Put(kind, key, body):
                            values = (kind, key, body, _crc(kind, key, body))
                            self._db.execute("INSERT OR REPLACE INTO record VALUES (?,?,?,?)", values)
                        case Drop(kind, key):
                            self._db.execute("DELETE FROM record WHERE kind=? AND key=?", (kind, key))
        finally:
            self._files.written()

    def close(self) -> None:
        self._db.close()


def look(folder: Path) -> Held:
    """What the store of a spool holds, read beside a daemon that may be running, and has it for itself: from a copy. Raises StoreError."""
    path = folder / FILE
    if not path.exists():
        raise StoreError(f"{path} isn't there: no daemon has run with this spool yet")
    try:
        with TemporaryDirectory() as place:
            copy = _copied(path, Path(place))
            with closing(sqlite3.connect(copy)) as db, readable():
                return _read(db)
    except (sqlite3.Error, OSError) as e:
        raise StoreError(f"can't read {path}: {e}") from e


def _copied(path: Path, place: Path) -> Path:
    """A store's files, copied while nobody wrote to them, unless someone always does."""
    for _ in range(COPIES):
        before = _stamps(path)
        for side in before:
            shutil.copyfile(side, place / side.name)
        if _stamps(path) == before:
            break
    return place / path.name


def _stamps(path: Path) -> dict[Path, tuple[int, int]]:
    found = ((side, side.stat()) for side in (path.with_name(path.name + s) for s in SIDES) if side.exists())
    return {side: (at.st_mtime_ns, at.st_size) for side, at in found}


def _read(db: sqlite3.Connection) -> Held:
    held = Held()
    for kind, key, body, crc in db.execute("SELECT kind, key, body, crc FROM record ORDER BY kind, key"):
        if isinstance(body, bytes) and _crc(kind, key, body) == crc:
            held.rows[kind, key] = body
        else:
            held.damaged[kind, key] = "CRC32C doesn't match"
    return held


def _damaged(e: sqlite3.DatabaseError) -> bool:
    return "malformed" in str(e) or "not a database" in str(e)
