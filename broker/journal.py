"""What the aggregator never forgets: boots, policies, attempts at rounds, accepted updates, versions, and which of these were withdrawn.

`commit` takes rows and is atomic: after a crash all of them are there or none. SQLite keeps that promise in WAL mode with
synchronous=FULL; the simulation passes a journal in memory.
"""

import sqlite3
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Protocol

from fleetgrad.wire.database import Foreign, connect, transaction
from fleetgrad.wire.files import DiskError
from fleetgrad.wire.messages import RoundState

APPLICATION_ID = 0x464C4752  # "FLGR"
SCHEMA = 3
CLOSED_SHOWN = 64
KEPT_ROUNDS = 2  # whose contributions are kept in memory


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
class Withdrawal:
    """All versions above `back_to` are taken back: what comes next follows from that one, under a number that none of them had."""

    back_to: int


Row = Boot | Config | Attempt | Contribution | Version | Withdrawal


@dataclass(slots=True)
class Memory:
    """The journal's content as the round machine reads it at start. `versions` is the line that leads to the current one, oldest first;
    `withdrawn` are the others, oldest first."""

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

    def first_of(self, rounds: int) -> int:
        """The oldest of the last `rounds` rounds."""
        return max(self.attempts, default=(1, 1))[0] - rounds + 1

    def keep(self, rounds: int) -> None:
        """Forgets contributions to older rounds than the last `rounds`."""
        first = self.first_of(rounds)
        self.contributions = {key: row for key, row in self.contributions.items() if row.round >= first}

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
            case Withdrawal():
                gone = [v for v in self.versions if v.number > row.back_to]
                self.withdrawn = sorted((*self.withdrawn, *gone), key=lambda v: v.number)
                self.versions = [v for v in self.versions if v.number <= row.back_to]


class Journal(Protocol):
    """`load` at start, with the contributions of the last `rounds` rounds; each `commit` is durable when it returns, or raises and
    changed nothing."""

    def load(self, rounds: int | None = None) -> Memory: ...
    def commit(self, rows: list[Row]) -> None: ...
    def counted(self, round_: int, attempt: int, device: str) -> Contribution | None: ...


class Ledger:
    """A journal with its content in memory, kept the same; but for contributions to older rounds, which are looked up."""

    def __init__(self, journal: Journal) -> None:
        self._journal, self.memory = journal, journal.load(KEPT_ROUNDS)

    def commit(self, rows: list[Row]) -> None:
        """Durable and remembered when it returns; raises DiskError and changes nothing."""
        self._journal.commit(rows)
        for row in rows:
            self.memory.apply(row)
        if any(isinstance(row, Version) for row in rows):
            self.memory.keep(KEPT_ROUNDS)

    def counted(self, round_: int, attempt: int, device: str) -> Contribution | None:
        """A device's contribution to an attempt; raises DiskError."""
        if (round_, attempt) not in self.memory.attempts or round_ >= self.memory.first_of(KEPT_ROUNDS):
            return self.memory.contributions.get((round_, attempt, device))
        return self._journal.counted(round_, attempt, device)


TABLES = """
CREATE TABLE boot (number INTEGER NOT NULL);
CREATE TABLE config (sha256 TEXT PRIMARY KEY, policy TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE attempt (round INTEGER, attempt INTEGER, state TEXT NOT NULL, version INTEGER NOT NULL,
                      config TEXT NOT NULL DEFAULT '', PRIMARY KEY (round, attempt)) WITHOUT ROWID;
CREATE TABLE contribution (round INTEGER, attempt INTEGER, device TEXT, payload TEXT NOT NULL, size INTEGER NOT NULL,
                           weight INTEGER NOT NULL, steps INTEGER NOT NULL, loss REAL NOT NULL,
                           rate REAL NOT NULL DEFAULT 0, PRIMARY KEY (round, attempt, device)) WITHOUT ROWID;
CREATE TABLE version (number INTEGER PRIMARY KEY, params TEXT NOT NULL, size INTEGER NOT NULL, parent TEXT NOT NULL,
                      sha256 TEXT NOT NULL, record TEXT NOT NULL, withdrawn INTEGER NOT NULL DEFAULT 0);
"""
INSERT: dict[type, str] = {  # columns are a row's fields, in order
    Boot: "INSERT INTO boot VALUES (?)",
    Config: "INSERT OR IGNORE INTO config VALUES (?,?)",
    Attempt: "INSERT OR REPLACE INTO attempt VALUES (?,?,?,?,?)",
    Contribution: "INSERT INTO contribution VALUES (?,?,?,?,?,?,?,?,?)",
    Version: "INSERT INTO version (number, params, size, parent, sha256, record) VALUES (?,?,?,?,?,?)",
    Withdrawal: "UPDATE version SET withdrawn = 1 WHERE number > ?",
}
CONTRIBUTIONS = "SELECT round, attempt, device, payload, size, weight, steps, loss, rate FROM contribution"


class SqliteJournal:
    """The real journal; one process holds it at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = connect(path, APPLICATION_ID, SCHEMA, TABLES, exclusive=True)
        except sqlite3.Error as e:
            raise self._error(e) from e
        except Foreign as e:
            raise JournalError(f"journal {path}: not a journal of this version of fleetgrad") from e

    def _error(self, e: sqlite3.Error) -> Exception:
        if "full" in str(e) or "disk I/O" in str(e):
            return DiskError(f"can't write the journal {self._path}: {e}")
        locked = (
            "another 'fleetgrad serve' is running on this directory: stop it first" if "locked" in str(e) else str(e)
        )
        return JournalError(f"journal {self._path}: {locked}")

    def load(self, rounds: int | None = None) -> Memory:
        memory = Memory()
        try:
            memory.boot = self._db.execute("SELECT coalesce(max(number), 0) FROM boot").fetchone()[0]
            for row in self._db.execute("SELECT sha256, policy FROM config"):
                memory.apply(Config(*row))
            for row in self._db.execute("SELECT round, attempt, state, version, config FROM attempt"):
                memory.apply(Attempt(*row))
            first = 0 if rounds is None else memory.first_of(rounds)
            for row in self._db.execute(f"{CONTRIBUTIONS} WHERE round >= ?", (first,)):
                memory.apply(Contribution(*row))
            for *row, withdrawn in self._db.execute(
                "SELECT number, params, size, parent, sha256, record, withdrawn FROM version ORDER BY number"
            ):
                (memory.withdrawn if withdrawn else memory.versions).append(Version(*row))
        except sqlite3.Error as e:
            raise self._error(e) from e
        return memory

    def counted(self, round_: int, attempt: int, device: str) -> Contribution | None:
        try:
            key = (round_, attempt, device)
            row = self._db.execute(f"{CONTRIBUTIONS} WHERE round = ? AND attempt = ? AND device = ?", key).fetchone()
        except sqlite3.Error as e:
            raise self._error(e) from e
        return Contribution(*row) if row else None

    def commit(self, rows: list[Row]) -> None:
        try:
            with transaction(self._db):
                for row in rows:
                    self._db.execute(INSERT[type(row)], astuple(row))
        except sqlite3.Error as e:
            raise self._error(e) from e

    def close(self) -> None:
        self._db.close()
