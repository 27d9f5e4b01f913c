"""What a device writes, and whether there is room to train: flash cards wear out, and a full disk stops more than a federation.

    written   bytes of this day: a window of 24 hours in which the device is on, since a board has no clock to know midnight by
    floor     no training while less is free

The count goes into the store with each commit, as one more row of it, so a restart loses at most what was written since the last.
"""

from collections.abc import Callable

import msgspec

from fleetgrad.edge.events import Effect, Log
from fleetgrad.edge.link.store import Held, Put, Row, Store
from fleetgrad.wire.files import Files
from fleetgrad.wire.messages import Count
from fleetgrad.wire.sizes import megabytes
from fleetgrad.wire.strict import Strict

WRITTEN = "written"
DAY_SECONDS = 86400.0
COMMIT_BYTES = (
    4608  # what SQLite's log takes for a small commit: a page and its frame, and what syncing it writes beside
)


class Written(Strict, frozen=True, kw_only=True):
    """Bytes, and for how many seconds they have been counted."""

    bytes: Count = 0
    seconds: float = 0.0


class Wear:
    """Counts for one device; `now`, monotonic seconds, is set by the owner. It is a Store itself: its commits carry the count.

    `budget`: bytes a day over which a log line says so. `floor`: bytes that have to be free on the disk for training.
    """

    def __init__(self, files: Files, store: Store, budget: int, floor: int, free: Callable[[], int]) -> None:
        self.files: Files = CountedFiles(files, self)
        self.floor, self._budget, self._free = floor, budget, free
        self._store = store
        self._before = Written()
        self.now = self._since = 0.0
        self._started = False
        self._told = False

    def load(self) -> Held:
        held = self._store.load()
        self._before = held.all(WRITTEN, Written).get("", Written())
        return held

    def commit(self, rows: list[Row]) -> None:
        self.add(COMMIT_BYTES)
        seconds = self._before.seconds + (self.now - self._since)
        self._store.commit([*rows, Put(WRITTEN, "", msgspec.json.encode(Written(bytes=self.written, seconds=seconds)))])

    @property
    def written(self) -> int:
        """Bytes of this day."""
        return self._before.bytes

    def add(self, count: int) -> None:
        """So many bytes have been written."""
        self._before = msgspec.structs.replace(self._before, bytes=self._before.bytes + count)

    def tick(self, now: float) -> list[Effect]:
        """Takes the time; a new day begins with nothing written."""
        if not self._started:
            self._started, self._since = True, now
        self.now = now
        if self._before.seconds + (now - self._since) >= DAY_SECONDS:
            self._before, self._since, self._told = Written(), now, False
        if self._told or self.written <= self._budget:
            return []
        self._told = True
        return [Log("wear_over_budget", {"bytes": self.written, "a_day": self._budget})]

    def no_room(self) -> str:
        """Why nothing can be trained now, or nothing."""
        free = self._free()
        if free >= self.floor:
            return ""
        return f"{megabytes(free)} are free where the spool lies, training needs {megabytes(self.floor)} ([device] free-space)"


class CountedFiles:
    """Files that tell what is written."""

    def __init__(self, files: Files, wear: Wear) -> None:
        self._files, self._wear = files, wear

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self._files.write(name, data)
        self._wear.add(len(data))

    def write_at(self, name: str, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._files.write_at(name, offset, data)
        self._wear.add(len(data))

    def fsync(self, name: str) -> None:
        self._files.fsync(name)

    def rename(self, old: str, new: str) -> None:
        self._files.rename(old, new)

    def fsync_directory(self, name: str) -> None:
        self._files.fsync_directory(name)

    def unlink(self, name: str) -> None:
        self._files.unlink(name)

    def read(self, name: str) -> bytes:
        return self._files.read(name)

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        return self._files.read_at(name, offset, size)

    def names(self, directory: str) -> list[str]:
        return self._files.names(directory)
