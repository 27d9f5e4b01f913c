"""The updates from when each is stored until its end is known: at most one is sent, older ones wait for word of what became of them.

    begin --> upload --receipt--> gone
                 \\--its round went on without a word--> waiting: asked about (QUERY), never in the way of a newer one --receipt--> gone
                                                            \\--over the spool's cap--> expired, with a log line

An update with a residual isn't left behind so: what becomes of it decides what is carried, and the next one isn't made before (fate.py).
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from fleetgrad.edge.events import Effect, Log
from fleetgrad.edge.link.fate import Fates, fate_of
from fleetgrad.edge.link.outbox import PayloadLost, Record, Upload
from fleetgrad.edge.link.store import Held, Row, Store
from fleetgrad.edge.reporting import Identity
from fleetgrad.wire.files import Files
from fleetgrad.wire.frames import DATA_BYTES
from fleetgrad.wire.messages import Bitmap, Head, Verdict
from fleetgrad.wire.topics import Topics


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the spool: how many updates that nothing has ended it may hold, and how many bytes. The newest is always kept."""

    updates: int = 3
    bytes: int = 64_000_000


LIMITS = Limits()


class Delivery:
    """`upload` is the last attempt's update, `waiting` older ones, oldest first; `bytes_up` counts this life's, headers included."""

    def __init__(
        self, identity: Identity, files: Files, store: Store, random: random.Random, limits: Limits = LIMITS
    ) -> None:
        self._id, self._files, self._store, self._random, self._limits = identity, files, store, random, limits
        self.fates = Fates(files, store)
        self.upload: Upload | None = None
        self.waiting: list[Upload] = []
        self.lost = False  # an upload was given up for its payload; the owner resets it
        self._ended_bytes = self._ended_resent = 0

    def load(self, held: Held, head: Head | None, attempt: tuple[int, int], ended: bool) -> list[Effect]:
        """Takes up what a restart finds; `attempt` is the last one that was taken up. Each is asked about first: never assume."""
        records, notes = self.fates.load(held)
        for record in records:
            upload = self._make(record, head, window=1, start_at=0.0, ask_first=True)
            if (record.round, record.attempt) == attempt and (record.residual or not ended):
                self.upload = upload
            else:
                self.waiting.append(upload)
        return notes

    def _all(self) -> Iterator[Upload]:
        if self.upload:
            yield self.upload
        yield from reversed(self.waiting)

    @property
    def bytes_up(self) -> int:
        return self._ended_bytes + sum(u.bytes_up for u in self._all())

    @property
    def resent(self) -> int:
        """Chunks of this life that were sent more than once."""
        return self._ended_resent + sum(u.resent for u in self._all())

    @property
    def waiting_records(self) -> list[Record]:
        return [u.record for u in self.waiting]

    @property
    def spooled(self) -> tuple[int, int]:
        """Updates on their way, and their bytes on the disk."""
        sizes = [u.record.size for u in self._all()]
        return len(sizes), sum(sizes)

    def find(self, round_: int, attempt: int, payload: str) -> Upload | None:
        """The update that a command speaks of."""
        return next((u for u in self._all() if u.matches(round_, attempt, payload)), None)

    def undecided(self, round_: int) -> Upload | None:
        """An update of an earlier round whose fate has to be known before one of `round_` is made."""
        return next((u for u in self._all() if u.record.residual and u.record.round < round_), None)

    # --- what begins and ends -----------------------------------------------------------------------------------------
    def begin(self, record: Record, head: Head | None, window: int, start_at: float) -> Upload:
        """Sends a stored update."""
        self.upload = self._make(record, head, window=window, start_at=start_at, ask_first=False)
        return self.upload

    def _make(self, record: Record, head: Head | None, *, window: int, start_at: float, ask_first: bool) -> Upload:
        topic = Topics(self._id.federation).update(self._id.device, head.shards if head else 1)
        return Upload(
            record, topic, self._id.federation, self._id.device, self._id.key, self._files, self._random, window,
            start_at, ask_first, head.link.chunk_bytes if head else DATA_BYTES,
        )  # fmt: skip

    def make_room(self, size: int) -> list[Effect]:
        """Before an update of `size` bytes is stored: while it and those that wait are over the limits, the oldest that hasn't begun goes."""
        notes: list[Effect] = []
        while self.waiting:
            count, held = self.spooled
            if count < self._limits.updates and held + size <= self._limits.bytes:
                break
            over = f"{self._limits.updates} updates" if count >= self._limits.updates else f"{self._limits.bytes} bytes"
            oldest = next((u for u in self.waiting if not u.begun), self.waiting[0])
            self.settle(oldest, delivered=False)
            notes.append(_expired(oldest.record, f"the spool holds at most {over}"))
        return notes

    def receipt(self, upload: Upload, verdict: Verdict, head: Head | None, also: Sequence[Row] = ()) -> None:
        """Ends an upload; an accepted update with a residual is kept, though not sent any more, until its round is closed."""
        record = upload.record
        fate = fate_of(head, record)
        if verdict == "accepted" and record.residual and fate is None:
            self.fates.accepted(record, also)
            self._leave(upload)
        elif verdict == "duplicate":
            self.settle(upload, None, also)
        else:
            self.settle(upload, verdict == "accepted" and fate != "abandoned", also)

    def go_on(self, select_round: int, now: float, also: Sequence[Row]) -> list[Effect]:
        """A newer attempt is taken up: of the same round, it says that ours was abandoned; of a later one, nothing."""
        upload = self.upload
        if upload and upload.record.round == select_round:
            self.settle(upload, False, also)
            return [_expired(upload.record, "its attempt was abandoned")]
        self._store.commit(list(also))
        self.wait(now)
        return []

    def wait(self, now: float) -> None:
        """The upload stands back: its round is over, and whether it was counted isn't known."""
        if self.upload:
            self.upload.stand_back(now)
            self.waiting.append(self.upload)
            self.upload = None

    def close(self, head: Head) -> list[Effect]:
        """Ends those that wait, and what is pending, if the head says how."""
        self.fates.close(head)
        notes: list[Effect] = []
        for upload in list(self.waiting):
            if not upload.record.residual and fate_of(head, upload.record) == "abandoned":
                self.settle(upload, delivered=False)
                notes.append(_expired(upload.record, "its attempt was abandoned"))
        return notes

    def drop(self, delivered: bool | None, also: Sequence[Row] = ()) -> None:
        """Ends the upload, if there is one; `delivered` and `also` are as in Fates.settle."""
        if self.upload:
            self.settle(self.upload, delivered, also)
        elif also:
            self._store.commit(list(also))

    def settle(self, upload: Upload, delivered: bool | None, also: Sequence[Row] = ()) -> None:
        """Ends one; the arguments are as in Fates.settle."""
        self.fates.settle(upload.record, delivered, also)
        self._leave(upload)

    def _leave(self, upload: Upload) -> None:
        self._ended_bytes += upload.bytes_up
        self._ended_resent += upload.resent
        if upload is self.upload:
            self.upload = None
        else:
            self.waiting.remove(upload)

    # --- what is due --------------------------------------------------------------------------------------------------
    def connected(self, now: float) -> list[Effect]:
        """A new connection: the newest first."""
        return self._each(lambda upload: upload.connected(now, self._first(upload)))

    def tick(self, now: float) -> list[Effect]:
        return self._each(lambda upload: upload.tick(now, self._first(upload)))

    def bitmap(self, upload: Upload, bitmap: Bitmap, now: float) -> list[Effect]:
        return self._sent(upload, lambda upload: upload.bitmap(bitmap, now, self._first(upload)))

    def cut(self, chunk_bytes: int, now: float) -> None:
        """The head names the length of chunks."""
        for upload in self._all():
            upload.cut(chunk_bytes, now)

    def pause(self, until: float) -> None:
        """The aggregator has too much to do: nothing is sent before that time."""
        for upload in self._all():
            upload.pause(until)

    def _each(self, act: Callable[[Upload], list[Effect]]) -> list[Effect]:
        return [effect for upload in list(self._all()) for effect in self._sent(upload, act)]

    def _sent(self, upload: Upload, act: Callable[[Upload], list[Effect]]) -> list[Effect]:
        """What an upload sends; one whose payload is lost is given up, and its round asks again (`lost`)."""
        try:
            return act(upload)
        except PayloadLost as e:
            notes = self.fates.quarantine({upload.record.key: str(e)})
            self._leave(upload)
            self.lost = True
            return notes

    def _first(self, upload: Upload) -> bool:
        return self.upload is None or upload is self.upload

    def wake_at(self) -> float | None:
        return min((u.wake_at() for u in self._all()), default=None)


def _expired(record: Record, reason: str) -> Effect:
    return Log("update_expired", {"round": record.round, "attempt": record.attempt, "reason": reason})
