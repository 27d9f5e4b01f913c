"""The device's store as SQLite keeps its promise: each commit is there as a whole, or not at all, whatever dies; a full disk, or one that fails, refuses it."""

from typing import TYPE_CHECKING

from fleetgrad.edge.link.store import Drop, Held, Key, Put, Row
from fleetgrad.wire.files import DiskError

if TYPE_CHECKING:
    from tests.simulation.device import Device


class SimulatedStore:
    """Implements edge.link.store.Store for one device; the rows outlive its crashes."""

    def __init__(self, owner: "Device") -> None:
        self.owner = owner
        self.rows: dict[Key, bytes] = {}
        self.damaged: dict[Key, str] = {}

    def load(self) -> Held:
        return Held(dict(self.rows), dict(self.damaged))

    def commit(self, rows: list[Row]) -> None:
        self.owner.crash_point("before commit")
        if self.owner.disk.full:
            self.owner.saw("device's commit refused by a full disk")
            raise DiskError("can't write edge.sqlite: database or disk is full")
        self.owner.files.check("write", "edge.sqlite")
        for row in rows:
            self.damaged.pop((row.kind, row.key), None)
            match row:
                case Put(kind, key, body):
                    self.rows[kind, key] = body
                case Drop(kind, key):
                    self.rows.pop((kind, key), None)
        self.owner.crash_point("after commit")

    def damage(self, kind: str, key: str) -> None:
        """A row rots."""
        if self.rows.pop((kind, key), None) is not None:
            self.damaged[kind, key] = "CRC32C doesn't match"
