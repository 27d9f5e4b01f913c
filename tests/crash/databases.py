"""The two databases in SQLite, as a crash test needs them; run as a program, it is what is recorded: it commits the rows of a whole
run, and marks each commit that has returned.

python -m tests.crash.databases FOLDER NAME ROWS     ROWS is JSON: a list of commits, each a list of [class, fields]
"""

import base64
import json
import sqlite3
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path
from typing import Any

from fleetgrad.broker import journal
from fleetgrad.edge.link import store
from tests.crash.points import SCENARIOS
from tests.crash.recording import mark
from tests.simulation.world import World

Rows = list[Any]


class Database(ABC):
    """One of them: what a run commits to it, what it then holds, and what a start reads."""

    file: str

    @abstractmethod
    def open(self, folder: Path) -> Any: ...

    @abstractmethod
    def seam(self, world: World) -> Any:
        """What the simulated run has in its place."""

    @abstractmethod
    def after(self, rows: Iterable[Any]) -> Any:
        """What it holds after these rows."""

    @abstractmethod
    def held(self, opened: Any) -> Any:
        """What it holds now."""

    @abstractmethod
    def another(self, held: Any) -> Any:
        """A row that changes it."""

    victim: str

    def commits(self) -> list[Rows]:
        """What the real machine commits in a simulated run."""
        world = World(SCENARIOS[self.victim])
        seam, commits = self.seam(world), []
        commit = seam.commit

        def keep(rows: Rows) -> None:
            commit(rows)
            commits.append(list(rows))

        seam.commit = keep
        world.run()
        return commits

    def read(self, folder: Path) -> Any:
        """What a restart reads; checks that it is sound and can be written to."""
        opened = self.open(folder)
        held = self.held(opened)
        row = self.another(held)
        opened.commit([row])
        assert self.held(opened) != held
        opened.close()
        with sqlite3.connect(folder / self.file) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return held


class Journal(Database):
    """The aggregator's."""

    file, victim = "journal.sqlite", "aggregator"

    def open(self, folder: Path) -> journal.SqliteJournal:
        return journal.SqliteJournal(folder / self.file)

    def seam(self, world: World) -> Any:
        return world.aggregator.journal

    def after(self, rows: Iterable[Any]) -> journal.Memory:
        memory = journal.Memory()
        for row in rows:
            memory.apply(row)
        return memory

    def held(self, opened: journal.SqliteJournal) -> journal.Memory:
        return opened.load()

    def another(self, held: journal.Memory) -> journal.Boot:
        return journal.Boot(held.boot + 1)


class Store(Database):
    """A device's."""

    file, victim = store.FILE, "dev-0"

    def open(self, folder: Path) -> store.SqliteStore:
        return store.SqliteStore(folder)

    def seam(self, world: World) -> Any:
        return next(d for d in world.devices if d.name == self.victim).store

    def after(self, rows: Iterable[Any]) -> dict[store.Key, bytes]:
        held: dict[store.Key, bytes] = {}
        for row in rows:
            if isinstance(row, store.Put):
                held[row.kind, row.key] = row.body
            else:
                held.pop((row.kind, row.key), None)
        return held

    def held(self, opened: store.SqliteStore) -> dict[store.Key, bytes]:
        found = opened.load()
        assert not found.damaged
        return found.rows

    def another(self, held: dict[store.Key, bytes]) -> store.Put:
        return store.Put("memory", "", b"{}" + held.get(("memory", ""), b""))


DATABASES: dict[str, Database] = {"journal": Journal(), "store": Store()}


def packed(commits: list[Rows]) -> str:
    """What ROWS is to hold."""

    def plain(value: Any) -> Any:
        return {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else value

    return json.dumps([[(type(row).__name__, [plain(v) for v in astuple(row)]) for row in rows] for rows in commits])


def unpacked(text: str) -> list[Rows]:
    """The rows again."""

    def value(plain: Any) -> Any:
        return base64.b64decode(plain["bytes"]) if isinstance(plain, dict) else plain

    classes = {**vars(journal), **vars(store)}
    return [[classes[name](*map(value, fields)) for name, fields in rows] for rows in json.loads(text)]


if __name__ == "__main__":
    place, which, path = sys.argv[1:]
    database = DATABASES[which].open(Path(place))
    for number, commit in enumerate(unpacked(Path(path).read_text())):
        database.commit(commit)
        mark(number)
