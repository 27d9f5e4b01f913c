"""SQLite on a real disk, killed at each of its system calls: what was committed is there, what wasn't is there whole or not at all."""

import itertools
import os
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from fleetgrad.broker.journal import Boot, Memory, Row, SqliteJournal
from tests.crash import journal_writer
from tests.crash.points import LOSSES, SCENARIOS, Loss
from tests.crash.recording import Recording, build, record, restore
from tests.simulation.world import World

pytestmark = pytest.mark.needs("gcc")
WRITER = journal_writer.__name__
REAL_DEATHS = 6
TORN_DRAWS = 2


class Written:
    """The rows of a whole run of the aggregator, and the system calls by which SQLite commits them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commits = self._commits()
        self.rows = folder / "rows.json"
        self.rows.write_text(journal_writer.written(self.commits))
        self.library = build(folder)
        self.acts = record(self.library, folder / "whole", WRITER, [str(self.rows)])
        self.memories = [self._after(n) for n in range(len(self.commits) + 1)]

    def _after(self, commits: int) -> Memory:
        memory = Memory()
        for row in itertools.chain(*self.commits[:commits]):
            memory.apply(row)
        return memory

    @staticmethod
    def _commits() -> list[list[Row]]:
        """What the real rounds commit in a simulated run."""
        world = World(SCENARIOS["aggregator"])
        commits: list[list[Row]] = []
        commit = world.aggregator.journal.commit

        def keep(rows: list[Row]) -> None:
            commit(rows)
            commits.append(list(rows))

        world.aggregator.journal.commit = keep  # type: ignore[method-assign]
        world.run()
        return commits


@pytest.fixture(scope="module")
def written() -> Iterator[Written]:
    """In memory where that is possible: what a sync of the real disk takes is no part of this."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Written(Path(folder))


def opened(folder: Path) -> Memory:
    """What a restart reads; it can also be written to."""
    journal = SqliteJournal(folder / "journal.sqlite")
    memory = journal.load()
    journal.commit([Boot(memory.boot + 1)])
    assert journal.load().boot == memory.boot + 1
    journal.close()
    with sqlite3.connect(folder / "journal.sqlite") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return memory


@pytest.mark.parametrize("loss", LOSSES)
def test_a_journal_killed_at_any_system_call_has_what_was_committed(loss: Loss, written: Written, seed: int) -> None:
    rng = random.Random(seed)
    print(f"seed {seed}")
    state, committed, found = Recording(), 0, set()
    for number, act in enumerate(written.acts):
        for draw in range(TORN_DRAWS if loss == "torn" else 1):
            folder = restore(state.left(loss, rng), written.folder / f"{loss}-{number}-{draw}")
            memory = opened(folder)
            allowed = written.memories[committed : committed + 2]
            assert memory in allowed, f"act {number} ({act.act} {act.name} {act.offset}), {loss}"
            found.add(written.memories.index(memory))
        if act.act == "mark":
            committed = act.offset + 1
        state.apply(act)
    assert committed == len(written.commits)
    assert found >= set(range(1, committed)), "some commits were never the last one"


def test_the_recorded_states_are_what_dead_processes_leave(written: Written, seed: int) -> None:
    """A real process that ends at its k-th act leaves the bytes that the recording says."""
    acts = [act for act in written.acts if act.act != "mark"]
    print(f"seed {seed}")
    for at in random.Random(seed).sample(range(1, len(acts)), REAL_DEATHS):
        root = written.folder / f"dead-{at}"
        record(written.library, root, WRITER, [str(written.rows)], die_at=at)
        state = Recording()
        for act in acts[:at]:
            state.apply(act)
        left = state.left("killed", random.Random(0))
        assert {p.name for p in root.iterdir()} == set(left)
        # SQLite salts its log at random: lengths are comparable, and what a restart reads.
        assert {p.name: p.stat().st_size for p in root.iterdir()} == {n: len(data) for n, data in left.items()}
        assert opened(root) == opened(restore(left, written.folder / f"told-{at}"))


def test_a_lost_sync_is_found(written: Written) -> None:
    """The harness notices: with SQLite's syncs taken out, a power cut takes what was committed."""
    state, marks = Recording(), 0
    for number, act in enumerate(written.acts):
        if act.act == "sync" and act.name.endswith("-wal") and number > len(written.acts) // 2:
            continue
        state.apply(act)
        marks += act.act == "mark"
    folder = restore(state.left("cut", random.Random(0)), written.folder / "unsynced")
    assert opened(folder) != written.memories[marks]
