"""SQLite for what must not be lost: write-ahead log, synced at every commit, in files that are marked as a program's own.

The mark is SQLite's application_id, the schema its user_version.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PASSING = ("full", "disk I/O", "readonly", "unable to open")  # what SQLite says of faults of a disk


def passing(error: sqlite3.Error) -> bool:
    """Whether it is the disk's fault and may pass, as when it is full, and not the database's."""
    return isinstance(error, sqlite3.OperationalError) and any(reason in str(error) for reason in PASSING)


class Foreign(Exception):
    """A database of another program (`schema` None), or of another version of this one."""

    def __init__(self, schema: int | None) -> None:
        super().__init__(schema)
        self.schema = schema


def connect(path: Path, application: int, schema: int, tables: str) -> sqlite3.Connection:
    """Opens a database for this process alone; one that is empty gets `tables`, statements that end with ';'. Raises Foreign, sqlite3.Error.

    No other process may even read it meanwhile: readers would share an index in mapped memory, and who cuts that file kills all of them.
    """
    db = sqlite3.connect(path, timeout=1.0, isolation_level=None)
    try:
        with readable():
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        with transaction(db):
            (theirs,), (found,) = (
                db.execute(f"PRAGMA {mark}").fetchone() for mark in ("application_id", "user_version")
            )
            if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in tables.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id={application}")
                db.execute(f"PRAGMA user_version={schema}")
            elif (theirs, found) != (application, schema):
                raise Foreign(found if theirs == application else None)
    except BaseException:
        db.close()
        raise
    return db


class Files:
    """A database's files, its own and the log beside it, as this process has left them.

    Commits into a file that was removed or replaced succeed, and are gone when the process ends; so may those into one that was cut.
    """

    def __init__(self, path: Path) -> None:
        self._paths = (path, path.with_name(path.name + "-wal"))
        self._left = self._now()

    def untouched(self) -> bool:
        """Whether nobody else has removed, replaced or cut one of them."""
        return self._now() == self._left

    def written(self) -> None:
        """They have other sizes now, by what this process did."""
        now = self._now()
        if [found[:2] for found in now] == [found[:2] for found in self._left]:
            self._left = now

    def _now(self) -> list[tuple[int, ...]]:
        """Device, inode and size of each; nothing of one that isn't there."""
        found: list[tuple[int, ...]] = []
        for path in self._paths:
            try:
                at = path.stat()
            except OSError:
                found.append(())
            else:
                found.append((at.st_dev, at.st_ino, at.st_size))
        return found


@contextmanager
def readable() -> Iterator[None]:
    """For the first statement on a database: what SQLite says of a damaged schema quotes it, and may be no text. Raises sqlite3.Error."""
    try:
        yield
    except UnicodeDecodeError as e:
        raise sqlite3.DatabaseError("malformed database schema") from e


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """What is done within is done wholly, and durable at the end, or not at all; one process at a time. Raises sqlite3.Error."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # a full disk ends it by itself
            db.execute("ROLLBACK")
        raise
