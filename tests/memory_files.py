"""A disk in memory, for tests of the machines that write to one."""

from fleetgrad.wire.files import DiskError


class MemoryFiles:
    """Files in a dictionary, durable at once; `full` makes every write fail."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.full = False

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self._need_room(name)
        self.held[name] = bytes(data)

    def write_at(self, name: str, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._need_room(name)
        old = self.held.get(name, b"").ljust(offset, b"\0")
        self.held[name] = old[:offset] + bytes(data) + old[offset + len(data) :]

    def read_at(self, name: str, offset: int, size: int) -> bytes:
        return self.read(name)[offset : offset + size]

    def fsync(self, name: str) -> None:
        assert name in self.held

    def rename(self, old: str, new: str) -> None:
        self.held[new] = self.read(old)
        del self.held[old]

    def fsync_directory(self, name: str) -> None:
        pass

    def unlink(self, name: str) -> None:
        self.held.pop(name, None)

    def read(self, name: str) -> bytes:
        try:
            return self.held[name]
        except KeyError:
            raise FileNotFoundError(name) from None

    def names(self, directory: str) -> list[str]:
        return sorted(n.rpartition("/")[2] for n in self.held if n.rpartition("/")[0] == directory)

    def _need_room(self, name: str) -> None:
        if self.full:
            raise DiskError(28, f"can't write {name}: No space left on device")
