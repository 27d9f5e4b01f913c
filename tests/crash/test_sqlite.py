"""SQLite on a real disk, killed at each of its system calls: what was committed is there, what wasn't is there whole or not at all."""

import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.crash import databases
from tests.crash.databases import DATABASES
from tests.crash.points import LOSSES, Loss
from tests.crash.recording import Act, Recording, build, record, restore

pytestmark = pytest.mark.needs("gcc")
PROGRAM = databases.__name__
REAL_DEATHS = 4


class Written:
    """The rows of a whole run, and the system calls by which SQLite commits them."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.database = name, folder, DATABASES[name]
        self.commits = self.database.commits()
        self.rows = folder / "rows.json"
        self.rows.write_text(databases.packed(self.commits))
        self.library = build(folder)
        self.acts = self.run(folder / "whole")
        self.states = [
            self.database.after(itertools.chain(*self.commits[:done])) for done in range(len(self.commits) + 1)
        ]

    def run(self, root: Path, die_at: int | None = None) -> list[Act]:
        return record(self.library, root, PROGRAM, [self.name, str(self.rows)], die_at)


@pytest.fixture(scope="module", params=DATABASES)
def written(request: pytest.FixtureRequest) -> Iterator[Written]:
    """In memory where that is possible: what a sync of the real disk takes is no part of this."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Written(request.param, Path(folder))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_database_killed_at_any_system_call_has_what_was_committed(loss: Loss, written: Written, seed: int) -> None:
    rng = random.Random(seed)
    print(f"seed {seed}")
    state, committed, found = Recording(), 0, set()
    for number, act in enumerate(written.acts):
        held = written.database.read(restore(state.left(loss, rng), written.folder / f"{loss}-{number}"))
        assert held in written.states[committed : committed + 2], (
            f"act {number} ({act.act} {act.name} {act.offset}), {loss}"
        )
        found.add(committed if held == written.states[committed] else committed + 1)
        if act.act == "mark":
            committed = act.offset + 1
        state.apply(act)
    assert committed == len(written.commits)
    assert found >= set(range(1, committed)), "some commits were never the last one"


def test_the_recorded_states_are_what_dead_processes_leave(written: Written, seed: int) -> None:
    """A real process that ends at its k-th act leaves the files that the recording says."""
    acts = [act for act in written.acts if act.act != "mark"]
    print(f"seed {seed}")
    for at in random.Random(seed).sample(range(1, len(acts)), REAL_DEATHS):
        root = written.folder / f"dead-{at}"
        written.run(root, at)
        state = Recording()
        for act in acts[:at]:
            state.apply(act)
        left = restore(state.left("killed", random.Random(0)), written.folder / f"told-{at}")
        # SQLite salts its log at random: lengths are comparable, and what a restart reads.
        assert sizes(root) == sizes(left)
        assert written.database.read(root) == written.database.read(left)


def sizes(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in folder.iterdir() if not p.name.endswith("-shm")}


def test_a_lost_sync_is_found(written: Written) -> None:
    """The harness notices: with SQLite's later syncs taken out, a power cut takes what was committed."""
    state, marks = Recording(), 0
    for number, act in enumerate(written.acts):
        if act.act == "sync" and act.name.endswith("-wal") and number > len(written.acts) // 2:
            continue
        state.apply(act)
        marks += act.act == "mark"
    folder = restore(state.left("cut", random.Random(0)), written.folder / "unsynced")
    assert written.database.read(folder) != written.states[marks]
