"""rounds.jsonl: a row for each version, appended when it has been evaluated.

A row is written once, whatever is killed: half a row that a crash left is cut off, and a version without a row is reported again.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from fleetgrad.broker.journal import Memory
from fleetgrad.wire.files import DiskError, sync
from fleetgrad.wire.log import log
from fleetgrad.wire.messages import Metrics
from fleetgrad.wire.strict import MALFORMED

ROUNDS = "rounds.jsonl"


class Results:
    """The file of one aggregator's folder; what is in it isn't held in memory, but for its length and the newest version."""

    def __init__(self, directory: Path) -> None:
        """Raises ValueError where the file holds anything but rows."""
        self.directory, self._path = directory, directory / ROUNDS
        self._end = self.newest = 0
        for row, size in _rows(self._path):
            self.newest, self._end = max(self.newest, row.version), self._end + size

    def versions(self) -> set[int]:
        """The numbers of those that have a row."""
        return {row.version for row, _ in _rows(self._path)}

    def check(self, memory: Memory) -> None:
        """Raises ValueError where a version was reported that the journal doesn't know: devices that hold it would take nothing from here."""
        if memory.highest > 0 and not self._path.exists():
            log(
                "reports_missing",
                file=self._path,
                so="whether the journal is older than what was published can't be told",
            )
        if self.newest > max(memory.highest, 0):
            raise ValueError(
                f"the journal in {self.directory} knows versions up to {max(memory.highest, 0)}, and {ROUNDS} tells of version {self.newest}: the journal was "
                "lost, or is older than the rest of the folder. Put the newest one back, or make another federation with 'fleetgrad new'"
            )

    def add(self, row: Metrics) -> None:
        """Appends a row, durably; raises DiskError, and then the file ends with a whole row once more is added."""
        raw = msgspec.json.encode(row) + b"\n"
        try:
            with self._path.open("ab") as file:
                new = file.tell() == 0
                self._end = min(self._end, file.tell())  # less where someone has removed it
                file.truncate(self._end)
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            if new:
                sync(self.directory)
        except OSError as e:
            raise DiskError(e.errno, f"can't write {self._path}: {e.strerror}") from e
        self._end += len(raw)


def read_rounds(path: Path) -> list[Metrics]:
    """The rows of a rounds.jsonl; none if there is no such file. Raises ValueError if it holds anything else."""
    return [row for row, _ in _rows(path)]


def _rows(path: Path) -> Iterator[tuple[Metrics, int]]:
    """Each row, with its bytes in the file; what isn't ended by a newline is being written, or was when its writer died."""
    try:
        with path.open("rb") as file:
            whole = False
            for line in file:
                if not line.endswith(b"\n") and (whole or line.startswith(b"{")):
                    return
                yield msgspec.json.decode(line, type=Metrics), len(line)
                whole = True
    except FileNotFoundError:
        return
    except MALFORMED as e:
        raise ValueError(
            f"{path} isn't a list of rounds: {e}. Put it back from a copy, or remove it: it is written anew from the journal"
        ) from e
