"""SQLite for what must not be lost: write-ahead log, synced at every commit, in files that are marked as a program's own.

The mark is SQLite's application_id, the schema its user_version.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Foreign(Exception):
    """A database of another program (`schema` None), or of another version of this one."""

    def __init__(self, schema: int | None) -> None:
        super().__init__(schema)
        self.schema = schema


def connect(path: Path, application: int, schema: int, tables: str, *, exclusive: bool = False) -> sqlite3.Connection:
    """Opens a database; one that is empty gets `tables`, statements that end with ';'. Raises Foreign, sqlite3.Error.

    `exclusive`: no other process may even read it meanwhile.
    """
    db = sqlite3.connect(path, timeout=1.0, isolation_level=None)
    try:
        if exclusive:
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


def files_of(path: Path) -> list[tuple[int, int] | None]:
    """What lies at a database's path and beside it now, by device and inode; None where nothing does.

    Commits into a file that has been removed or replaced succeed, and are gone when the process ends.
    """
    found: list[tuple[int, int] | None] = []
    for side in (path, path.with_name(path.name + "-wal")):
        try:
            at = side.stat()
        except OSError:
            found.append(None)
        else:
            found.append((at.st_dev, at.st_ino))
    return found


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
