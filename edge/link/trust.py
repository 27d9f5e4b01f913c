"""What a device accepts as current: the root that it follows, the head that root's keys signed, and for how long that holds.

The rules are wire/release.py's; here is what is remembered of them:

    root ""    the last root that was followed to, as JSON       head ""    the last head that was accepted, as it came
"""

import msgspec

from fleetgrad.edge.events import Effect, Log
from fleetgrad.edge.link.store import Drop, Held, Put, Row, Store
from fleetgrad.wire import release
from fleetgrad.wire.messages import Head
from fleetgrad.wire.release import Root
from fleetgrad.wire.signing import PublicKey, Untrusted

HEAD_ROW, ROOT_ROW = "head", "root"


def followed_root(held: Held, begins: Root) -> Root:
    """The last root that was followed to from `begins`, which wins where it is newer; raises Untrusted for a row that is lost."""
    if reason := held.lost(ROOT_ROW).get(""):
        raise Untrusted(reason)
    raw = held.rows.get((ROOT_ROW, ""))
    found = release.pinned(raw, begins.federation) if raw else begins
    return found if found.version > begins.version else begins


def held_head(held: Held, root: Root) -> Head | None:
    """The head that was accepted last; raises Untrusted for a row that is lost, or that the root doesn't vouch for."""
    if reason := held.lost(HEAD_ROW).get(""):
        raise Untrusted(reason)
    raw = held.rows.get((HEAD_ROW, ""))
    return release.read_head(root, raw) if raw else None


class Trust:
    """One device's; `stale` is as of the last `look`."""

    def __init__(self, store: Store, held: Held, federation: str, aggregator: PublicKey, pinned: Root | None) -> None:
        self._store = store
        self.notes: list[Effect] = []
        self.root = pinned or release.implied(federation, aggregator)
        try:
            self.root = followed_root(held, self.root)  # or, where that row is lost, from the beginning again
        except Untrusted as e:
            self.notes.append(Log("root_dropped", {"reason": str(e)}))
        self._raw = held.rows.get((HEAD_ROW, ""), b"")
        self.head: Head | None = None
        try:
            self.head = held_head(held, self.root)
        except Untrusted as e:
            self.notes.append(Log("head_dropped", {"reason": str(e)}))
        self._until: float | None = None
        self.stale = False

    def look(self, now: float) -> None:
        """Counts the time; at a start from the start, since a board can't tell how old a head is that it finds."""
        if self.head and self._until is None:
            self._until = now + self.head.expires
        self.stale = self._until is not None and now >= self._until

    def wake_at(self) -> float | None:
        """When the head goes stale."""
        return None if self.stale else self._until

    def take_head(self, raw: bytes, now: float) -> Head | None:
        """The head, remembered, if it is new; raises Untrusted."""
        head = release.read_head(self.root, raw)
        if self.head:
            release.check_follows(head, self.head)
            if head == self.head:
                return None
        self._store.commit([Put(HEAD_ROW, "", raw)])
        self.head, self._raw, self._until, self.stale = head, raw, now + head.expires, False
        return head

    def take_root(self, raw: bytes) -> Root:
        """The next root, remembered; a head that it doesn't vouch for is forgotten. Raises Untrusted."""
        root = release.succeed(self.root, raw)
        rows: list[Row] = [Put(ROOT_ROW, "", msgspec.json.encode(root))]
        head = self.head
        try:
            head = release.read_head(root, self._raw) if self.head else None
        except Untrusted:
            head = None
            rows.append(Drop(HEAD_ROW, ""))
        self._store.commit(rows)
        self.root, self.head = root, head
        if head is None:
            self._raw, self._until, self.stale = b"", None, False
        return root
