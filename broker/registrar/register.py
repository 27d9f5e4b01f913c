"""The registrar's memory, registrar.sqlite: devices, the certificates they were given, and one-time codes.

Each call is one transaction; several processes may use it (the commands beside `registrar serve`).
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from fleetgrad.wire.database import passing, readable, transaction
from fleetgrad.wire.files import DiskError

FILE = "registrar.sqlite"
SCHEMA = """
CREATE TABLE IF NOT EXISTS devices (
    name TEXT PRIMARY KEY, key TEXT NOT NULL, serial INTEGER NOT NULL, not_after INTEGER NOT NULL, revoked INTEGER NOT NULL,
    reason TEXT NOT NULL, nonce TEXT NOT NULL, instance TEXT NOT NULL, count INTEGER NOT NULL, statement BLOB NOT NULL,
    former TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS certificates (
    serial TEXT PRIMARY KEY, device TEXT NOT NULL, not_after INTEGER NOT NULL, pem TEXT NOT NULL, request TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS certificates_of ON certificates (device);
CREATE TABLE IF NOT EXISTS codes (
    id TEXT PRIMARY KEY, key BLOB NOT NULL, expires INTEGER NOT NULL, auto INTEGER NOT NULL, wrong INTEGER NOT NULL,
    state TEXT NOT NULL, request TEXT NOT NULL, device TEXT NOT NULL, reason TEXT NOT NULL, data TEXT NOT NULL
);
PRAGMA user_version = 1;
"""
BUSY_SECONDS = 10.0


class RegisterError(ValueError):
    """The register can't be used, or has no such device or code."""


@dataclass(frozen=True, slots=True)
class Device:
    """A member, or one that was. `serial` grows with its statements, `count` with its requests; `not_after` in Unix seconds. `former` is
    the key before `key`, until the device has signed by `key` alone."""

    name: str
    key: str
    serial: int
    not_after: int
    revoked: bool = False
    reason: str = ""
    nonce: str = ""
    instance: str = ""
    count: int = 0
    statement: bytes = b""
    former: str = ""


@dataclass(frozen=True, slots=True)
class Code:
    """A one-time code: its id and key (never the code), when it ends, and what was asked with it.

    `state`: open -> asked -> approved | refused; locked after too many wrong proofs. `request` is the ask that was proven, as JSON;
    `data` the settings of the board's data.
    """

    id: str
    key: bytes
    expires: int
    auto: bool
    wrong: int = 0
    state: str = "open"
    request: str = ""
    device: str = ""
    reason: str = ""
    data: str = "{}"


T = TypeVar("T", Device, Code)


class Register:
    """The database; made when it is missing. Raises RegisterError, and DiskError where it is the disk's fault or another process's turn."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        try:
            self._db = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
            self._path.chmod(0o600)
            with readable():
                self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(SCHEMA)
            (sound,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if sound != "ok":
                raise sqlite3.DatabaseError(f"malformed: {sound}")
        except sqlite3.Error as e:
            raise self._error(e) from e
        except OSError as e:
            raise DiskError(e.errno, f"register {self._path}: {e.strerror}") from e

    def _error(self, e: sqlite3.Error) -> Exception:
        if "locked" in str(e):
            return DiskError(f"register {self._path}: another command is at work on it; try again")
        return (DiskError if passing(e) else RegisterError)(f"register {self._path}: {e}")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is done within is done wholly or not at all, and by one process at a time."""
        try:
            with transaction(self._db):
                yield
        except sqlite3.Error as e:
            raise self._error(e) from e

    def _rows(self, sql: str, args: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            with readable():
                return self._db.execute(sql, args).fetchall()
        except sqlite3.Error as e:
            raise self._error(e) from e

    def device(self, name: str) -> Device | None:
        return next(self._whole(Device, self._rows("SELECT * FROM devices WHERE name = ?", (name,))), None)

    def devices(self) -> list[Device]:
        return [*self._whole(Device, self._rows("SELECT * FROM devices ORDER BY name"))]

    def put(self, d: Device) -> None:
        """Writes a device whole."""
        self._rows(
            "INSERT OR REPLACE INTO devices VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            (
                d.name, d.key, d.serial, d.not_after, int(d.revoked), d.reason, d.nonce, d.instance, d.count, d.statement,
                d.former,
            ),
        )  # fmt: skip

    def living(self, device: str, now: int) -> int:
        """How many certificates of a device haven't ended; those that have are forgotten (within a transaction)."""
        self._rows("DELETE FROM certificates WHERE device = ? AND not_after < ?", (device, now))
        return int(self._rows("SELECT COUNT(*) FROM certificates WHERE device = ?", (device,))[0][0])

    def add_certificate(self, serial: int, device: str, not_after: int, pem: str, request: str) -> None:
        row = (f"{serial:x}", device, not_after, pem, request)
        self._rows("INSERT INTO certificates VALUES (?,?,?,?,?)", row)

    def certificate(self, device: str, request: str) -> str | None:
        """The certificate that was made for this very request."""
        found = self._rows("SELECT pem FROM certificates WHERE device = ? AND request = ?", (device, request))
        return str(found[0][0]) if found else None

    def newest_certificate(self, device: str) -> str | None:
        """The one that was made last."""
        found = self._rows("SELECT pem FROM certificates WHERE device = ? ORDER BY rowid DESC LIMIT 1", (device,))
        return str(found[0][0]) if found else None

    def revoked_serials(self) -> list[int]:
        """Serial numbers of the certificates of revoked devices."""
        rows = self._rows("SELECT c.serial FROM certificates c JOIN devices d ON c.device = d.name WHERE d.revoked")
        try:
            return [int(serial, 16) for (serial,) in rows]
        except (TypeError, ValueError) as e:
            raise RegisterError(f"register {self._path} is damaged: a certificate's serial number is {e}") from e

    def code(self, id_: str) -> Code | None:
        return next(self._whole(Code, self._rows("SELECT * FROM codes WHERE id = ?", (id_,))), None)

    def codes(self) -> list[Code]:
        return [*self._whole(Code, self._rows("SELECT * FROM codes ORDER BY expires, id"))]

    def put_code(self, c: Code) -> None:
        row = (c.id, c.key, c.expires, int(c.auto), c.wrong, c.state, c.request, c.device, c.reason, c.data)
        self._rows("INSERT OR REPLACE INTO codes VALUES (?,?,?,?,?,?,?,?,?,?)", row)

    def _whole(self, of: type[T], rows: list[tuple[Any, ...]]) -> Iterator[T]:
        """The rows of a table; raises RegisterError at one with a value that is never written there."""
        for row in rows:
            if [type(value) for value in row] != [int if f.type is bool else f.type for f in fields(of)]:
                raise RegisterError(
                    f"register {self._path} is damaged: a row of its {of.__name__.lower()}s holds {row!r:.200}"
                )
            yield of(*(f.type(v) for f, v in zip(fields(of), row, strict=True)))  # type: ignore[operator]
