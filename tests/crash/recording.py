"""What a real process did to its files, record by record, and every state of them that a crash could have left.

`record` runs a program under recorder.c; a `Recording` then makes the folder as it is after its first k acts, if everything was
written that was to be ("killed"), or if the power went and of what wasn't synced nothing was kept ("cut"), or any part ("torn":
each write alone is there, isn't, or is in part, by sectors).
"""

import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.points import Loss

SECTOR = 512  # bytes that a disk writes whole or not at all
EXIT_DIED = 99
INDEX = "-shm"
SOURCE = Path(__file__).with_name("recorder.c")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Act:
    """One record: create, truncate, write, sync, unlink, rename (data: the new name) or mark (offset: its number)."""

    act: str
    name: str
    offset: int
    data: bytes


@dataclass(eq=False, slots=True)
class Inode:
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    since: list[Act] = field(default_factory=list)  # what was done to it since it was synced


def build(folder: Path) -> Path:
    """Compiles the recorder."""
    library = folder / "recorder.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(library), str(SOURCE), "-ldl"],
        check=True,
    )
    return library


def record(library: Path, root: Path, module: str, arguments: Sequence[str], die_at: int | None = None) -> list[Act]:
    """Runs `python -m module root arguments...` and returns what it did under `root`; with `die_at`, up to there."""
    root.mkdir()
    log = root.with_suffix(".log")
    with log.open("wb") as file:
        environment = {
            **os.environ, "LD_PRELOAD": str(library), "RECORD_ROOT": str(root), "RECORD_FD": str(file.fileno()),
        }  # fmt: skip
        if die_at is not None:
            environment["RECORD_DIE_AT"] = str(die_at)
        done = subprocess.run(
            [sys.executable, "-m", module, str(root), *arguments],
            cwd=ROOT, env=environment, pass_fds=[file.fileno()], check=False,
        )  # fmt: skip
    if done.returncode != (0 if die_at is None else EXIT_DIED):
        raise AssertionError(f"{module} ended with code {done.returncode}")
    return parse(log.read_bytes())


def mark(number: int) -> None:
    """Called by the recorded program: what comes before is done."""
    os.write(int(os.environ["RECORD_FD"]), b"mark - %d 0\n" % number)


def parse(raw: bytes) -> list[Act]:
    acts = []
    at = 0
    while at < len(raw):
        end = raw.index(b"\n", at)
        act, name, offset, length = raw[at:end].decode().split()
        at = end + 1 + int(length)
        acts.append(Act(act, name, int(offset), raw[end + 1 : at]))
    return acts


class Recording:
    """The folder's state, act by act."""

    def __init__(self) -> None:
        self.seen: dict[str, Inode] = {}
        self.durable: dict[str, Inode] = {}
        self.pending: list[tuple[str, Inode | None]] = []  # entries since the folder was synced

    def apply(self, act: Act) -> None:
        match act.act:
            case "create":
                self._enter(act.name, Inode())
            case "unlink":
                if self.seen.pop(act.name, None):
                    self.pending.append((act.name, None))
            case "rename":
                self._enter(act.data.decode(), self.seen.pop(act.name))
                self.pending.append((act.name, None))
            case "sync" if act.name == ".":
                _settle(self.durable, self.pending)
                self.pending = []
            case "sync":
                inode = self.seen[act.name]
                inode.synced, inode.since = bytes(inode.data), []
            case "write" | "truncate":
                inode = self.seen[act.name]
                _change(inode.data, act)
                inode.since.append(act)

    def _enter(self, name: str, inode: Inode) -> None:
        self.seen[name] = inode
        self.pending.append((name, inode))

    def left(self, loss: Loss, rng: random.Random) -> dict[str, bytes]:
        """Name and bytes of each file after a crash now."""
        if loss == "killed":
            return {name: bytes(inode.data) for name, inode in self.seen.items()}
        entries = dict(self.durable)
        if loss == "torn":
            _settle(entries, self.pending[: rng.randint(0, len(self.pending))])
        return {name: self._kept(inode, loss, rng) for name, inode in entries.items()}

    @staticmethod
    def _kept(inode: Inode, loss: Loss, rng: random.Random) -> bytes:
        data = bytearray(inode.synced)
        for act in inode.since if loss == "torn" else ():
            if rng.random() < 0.5:
                continue
            part = act.data
            if len(part) > SECTOR and rng.random() < 0.3:
                part = part[: SECTOR * rng.randrange(1, -(-len(part) // SECTOR))]
            _change(data, Act(act.act, act.name, act.offset, part))
        return bytes(data)


def _settle(entries: dict[str, Inode], pending: Sequence[tuple[str, Inode | None]]) -> None:
    for name, inode in pending:
        if inode is None:
            entries.pop(name, None)
        else:
            entries[name] = inode


def _change(data: bytearray, act: Act) -> None:
    end = act.offset + len(act.data)
    if len(data) < end:
        data.extend(bytes(end - len(data)))
    if act.act == "truncate":
        del data[act.offset :]
    else:
        data[act.offset : end] = act.data


def restore(files: dict[str, bytes], folder: Path) -> Path:
    """Writes a state into a new folder, but for SQLite's index of its log: it is made anew by whoever opens the database first."""
    folder.mkdir()
    for name, data in files.items():
        if not name.endswith(INDEX):
            (folder / name).write_bytes(data)
    return folder
