"""What the aggregator never forgets: boots, policies, attempts at rounds, accepted updates, versions, and which of these were withdrawn.

`commit` takes rows and is atomic: after a crash all of them are there or none. SQLite keeps that promise in WAL mode with
synchronous=FULL; the simulation passes a journal in memory. Each row has its CRC32C: SQLite doesn't notice a bit that flips in a value.
"""

import sqlite3
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from fleetgrad.native import kernels
from fleetgrad.wire.database import Files, Foreign, connect, passing, transaction
from fleetgrad.wire.files import DiskError
from fleetgrad.wire.messages import RoundState

APPLICATION_ID = 0x464C4752  # "FLGR"
SCHEMA = 4
CLOSED_SHOWN = 64
# What a running aggregator has in memory, whatever its age; all else stays on the disk.
KEPT_ATTEMPTS = 2 * CLOSED_SHOWN
KEPT_COUNTED = 2  # the last attempts, with their contributions
KEPT_LINE = 16  # versions that lead to the current one: more than lie on the disk, or are shown to co-signers
ENDED = ("published", "abandoned")


class JournalError(ValueError):
    """A journal that can't be used; the message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class Boot:
    number: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a round, which trains version `version` under the policy with hash `config` (empty: not known any more)."""

    round: int
    attempt: int
    state: RoundState
    version: int
    config: str


@dataclass(frozen=True, slots=True)
class Config:
    """A policy that attempts run under: its hash and its JSON, so that a round is finished by the policy that it was opened with."""

    sha256: str
    policy: str


@dataclass(frozen=True, slots=True)
class Contribution:
    """One accepted update; its key is (round, attempt, device). `rate` is in bits per coordinate."""

    round: int
    attempt: int
    device: str
    payload: str
    size: int
    weight: int
    steps: int
    loss: float
    rate: float


@dataclass(frozen=True, slots=True)
class Version:
    """One release: `record` is its JSON, `sha256` that record's hash, `parent` the previous record's."""

    number: int
    params: str
    size: int
    parent: str
    sha256: str
    record: str


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A version that is taken back, with all that follows from it: what comes next follows from the one before, under a new number."""

    number: int


Row = Boot | Config | Attempt | Contribution | Version | Withdrawn


@dataclass(slots=True)
class Memory:
    """The journal's content, all of it or what is recent. `versions` is the line that leads to the current one, oldest first; `withdrawn` are
    the others, oldest first."""

    boot: int = 0
    configs: dict[str, str] = field(default_factory=dict)
    attempts: dict[tuple[int, int], Attempt] = field(default_factory=dict)
    contributions: dict[tuple[int, int, str], Contribution] = field(default_factory=dict)
    versions: list[Version] = field(default_factory=list)
    withdrawn: list[Version] = field(default_factory=list)

    @property
    def current(self) -> Version:
        """The newest version that wasn't withdrawn; there is one from the first boot on."""
        return self.versions[-1]

    @property
    def highest(self) -> int:
        """The highest number that a version ever had; -1 before the first."""
        return max((v.number for v in (*self.versions[-1:], *self.withdrawn[-1:])), default=-1)

    @property
    def taken_back(self) -> int | None:
        """The highest number above the current version's, if any were withdrawn since there is that one."""
        return self.highest if self.versions and self.highest > self.current.number else None

    def records(self) -> list[str]:
        """What shows where versions come from, the withdrawn ones too: records of all but the one with the highest number, oldest first."""
        return [v.record for v in sorted((*self.versions, *self.withdrawn), key=lambda v: v.number)[:-1]]

    def counted_from(self) -> tuple[int, int]:
        """The first attempt whose contributions are kept."""
        return min(sorted(self.attempts)[-KEPT_COUNTED:], default=(0, 0))

    def keep(self) -> None:
        """Forgets what isn't recent."""
        self.attempts = dict(sorted(self.attempts.items())[-KEPT_ATTEMPTS:])
        first = self.counted_from()
        self.contributions = {key: row for key, row in self.contributions.items() if key[:2] >= first}
        self.versions = self.versions[-KEPT_LINE:]
        self.withdrawn = [v for v in self.withdrawn if v.number > self.versions[0].number]

    def apply(self, row: Row) -> None:
        match row:
            case Boot():
                self.boot = row.number
            case Config():
                self.configs[row.sha256] = row.policy
            case Attempt():
                self.attempts[row.round, row.attempt] = row
            case Contribution():
                self.contributions[row.round, row.attempt, row.device] = row
            case Version():
                self.versions.append(row)
            case Withdrawn():
                gone = [v for v in self.versions if v.number == row.number]
                self.withdrawn = sorted((*self.withdrawn, *gone), key=lambda v: v.number)
                self.versions = [v for v in self.versions if v.number != row.number]


class Journal(Protocol):
    """`load` gives all of it, or as much as Memory.keep leaves; each `commit` is durable when it returns, or raises and changed nothing."""

    def load(self, *, recent: bool = False) -> Memory: ...
    def commit(self, rows: list[Row]) -> None: ...
    def attempt(self, round_: int, attempt: int) -> Attempt | None: ...
    def counted(self, round_: int, attempt: int, device: str) -> Contribution | None: ...


class Ledger:
    """A journal with its recent content in memory, kept the same; older attempts and contributions are looked up."""

    def __init__(self, journal: Journal) -> None:
        self._journal, self.memory = journal, journal.load(recent=True)

    def commit(self, rows: list[Row]) -> None:
        """Durable and remembered when it returns; raises DiskError and changes nothing."""
        self._journal.commit(rows)
        for row in rows:
            self.memory.apply(row)
        if any(isinstance(row, Attempt) and row.state in ENDED for row in rows):
            self.memory.keep()

    def attempt(self, round_: int, attempt: int) -> Attempt | None:
        """An attempt, if it ever began; raises DiskError."""
        attempts = self.memory.attempts
        if (round_, attempt) >= min(attempts, default=(0, 0)):
            return attempts.get((round_, attempt))
        return self._journal.attempt(round_, attempt)

    def counted(self, round_: int, attempt: int, device: str) -> Contribution | None:
        """A device's contribution to an attempt; raises DiskError."""
        if (round_, attempt) >= self.memory.counted_from():
            return self.memory.contributions.get((round_, attempt, device))
        return self._journal.counted(round_, attempt, device)


TABLES = """
CREATE TABLE boot (number INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE config (sha256 TEXT PRIMARY KEY, policy TEXT NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE attempt (round INTEGER, attempt INTEGER, state TEXT NOT NULL, version INTEGER NOT NULL,
                      config TEXT NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (round, attempt)) WITHOUT ROWID;
CREATE TABLE contribution (round INTEGER, attempt INTEGER, device TEXT, payload TEXT NOT NULL, size INTEGER NOT NULL,
                           weight INTEGER NOT NULL, steps INTEGER NOT NULL, loss REAL NOT NULL,
                           rate REAL NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY (round, attempt, device)) WITHOUT ROWID;
CREATE TABLE version (number INTEGER PRIMARY KEY, params TEXT NOT NULL, size INTEGER NOT NULL, parent TEXT NOT NULL,
                      sha256 TEXT NOT NULL, record TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE withdrawn (number INTEGER PRIMARY KEY, crc INTEGER NOT NULL);
"""
TABLE: dict[type, str] = {  # columns are a row's fields, in order, and its CRC32C
    Boot: "boot",
    Config: "config",
    Attempt: "attempt",
    Contribution: "contribution",
    Version: "version",
    Withdrawn: "withdrawn",
}
VERB: dict[type, str] = {Config: "INSERT OR IGNORE", Attempt: "INSERT OR REPLACE"}
INSERT = {
    of: f"{VERB.get(of, 'INSERT')} INTO {table} VALUES ({','.join('?' * (len(fields(of)) + 1))})"
    for of, table in TABLE.items()
}

T = TypeVar("T", Boot, Config, Attempt, Contribution, Version, Withdrawn)


def _crc(table: str, values: tuple[object, ...]) -> int:
    """Of a row's values; numbers count as floats, since SQLite may give 1.0 for a 1."""
    plain = [float(v) if isinstance(v, int) else v for v in values]
    return kernels.crc32c(msgspec.json.encode((table, plain)))


class SqliteJournal:
    """The real journal; one process holds it at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = connect(path, APPLICATION_ID, SCHEMA, TABLES)
        except sqlite3.Error as e:
            raise self._error(e) from e
        except Foreign as e:
            raise JournalError(f"journal {path}: not a journal of this version of fleetgrad") from e
        self._files = Files(path)

    def _error(self, e: sqlite3.Error) -> Exception:
        if "locked" in str(e):
            return JournalError(
                f"journal {self._path}: another 'fleetgrad serve' is running on this directory: stop it first"
            )
        if passing(e):
            return DiskError(f"can't write the journal {self._path}: {e}")
        return self._damaged(str(e))

    def _damaged(self, reason: str) -> JournalError:
        return JournalError(
            f"journal {self._path} is damaged ({reason}): what was counted isn't known any more. "
            "Put the newest backup of the whole folder in its place, or make another federation with 'fleetgrad new'"
        )

    def _rows(self, of: type[T], where: str = "", values: tuple[object, ...] = ()) -> Iterator[T]:
        """Those that are whole; raises JournalError at one that isn't, sqlite3.Error."""
        columns = ", ".join(f.name for f in fields(of))
        statement = f"SELECT {columns}, crc FROM {TABLE[of]} {where}"  # noqa: S608  (names and conditions of this file)
        for *found, crc in self._db.execute(statement, values):
            if _crc(TABLE[of], tuple(found)) != crc:
                raise self._damaged(f"CRC32C of a row of '{TABLE[of]}' doesn't match")
            yield of(*found)

    def load(self, *, recent: bool = False) -> Memory:
        """All rows are proven that are read, and SQLite's own structure is as a whole."""
        memory = Memory()
        try:
            (sound,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if sound != "ok":
                raise self._damaged(sound)
            last = f"ORDER BY round DESC, attempt DESC LIMIT {KEPT_ATTEMPTS if recent else -1}"
            rows: list[Row] = [*self._rows(Boot, "ORDER BY number"), *self._rows(Config), *self._rows(Attempt, last)]
            for row in rows:
                memory.apply(row)
            first = memory.counted_from() if recent else (0, 0)
            for counted in self._rows(Contribution, "WHERE (round, attempt) >= (?, ?)", first):
                memory.apply(counted)
            gone = {row.number for row in self._rows(Withdrawn)}
            for version in self._rows(Version, "ORDER BY number DESC"):
                (memory.withdrawn if version.number in gone else memory.versions).append(version)
                if recent and len(memory.versions) == KEPT_LINE:
                    break
            memory.versions.reverse()
            memory.withdrawn.reverse()
        except sqlite3.Error as e:
            raise self._error(e) from e
        return memory

    def attempt(self, round_: int, attempt: int) -> Attempt | None:
        try:
            return next(self._rows(Attempt, "WHERE round = ? AND attempt = ?", (round_, attempt)), None)
        except sqlite3.Error as e:
            raise self._error(e) from e

    def line(self) -> list[int]:
        """The numbers of the versions that weren't withdrawn, oldest first."""
        try:
            left = "SELECT number FROM version WHERE number NOT IN (SELECT number FROM withdrawn) ORDER BY number"
            return [number for (number,) in self._db.execute(left)]
        except sqlite3.Error as e:
            raise self._error(e) from e

    def origin(self, number: int) -> tuple[Version, str | None, list[Contribution]]:
        """A version, the policy of its round, if that is known, and what was counted in it, by devices' names."""
        try:
            version = next(self._rows(Version, "WHERE number = ?", (number,)))
            round_ = msgspec.json.decode(version.record)["round"]
            ran = next(self._rows(Attempt, "WHERE round = ? ORDER BY attempt DESC LIMIT 1", (round_,)))
            policy = next((row.policy for row in self._rows(Config, "WHERE sha256 = ?", (ran.config,))), None)
            key = (ran.round, ran.attempt)
            counted = self._rows(Contribution, "WHERE round = ? AND attempt = ? ORDER BY device", key)
            return version, policy, list(counted)
        except sqlite3.Error as e:
            raise self._error(e) from e

    def counted(self, round_: int, attempt: int, device: str) -> Contribution | None:
        try:
            key = (round_, attempt, device)
            return next(self._rows(Contribution, "WHERE round = ? AND attempt = ? AND device = ?", key), None)
        except sqlite3.Error as e:
            raise self._error(e) from e

    def commit(self, rows: list[Row]) -> None:
        if not self._files.untouched():
            raise JournalError(
                f"journal {self._path} was removed, replaced or cut while it is in use: nothing can be promised any more. Stop, and put the folder "
                "in order before 'fleetgrad serve' is started again"
            )
        try:
            with transaction(self._db):
                for row in rows:
                    values = astuple(row)
                    self._db.execute(INSERT[type(row)], (*values, _crc(TABLE[type(row)], values)))
        except sqlite3.Error as e:
            raise self._error(e) from e
        finally:
            self._files.written()

    def close(self) -> None:
        self._db.close()
