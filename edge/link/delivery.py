"""The update from when it is stored until its end is known: the upload on its way, and the fates of those that have left (fate.py)."""

import random
from collections.abc import Sequence

from fleetgrad.edge.link.fate import Fates, fate_of
from fleetgrad.edge.link.outbox import Record, Upload
from fleetgrad.edge.link.store import Row, Store
from fleetgrad.edge.reporting import Identity
from fleetgrad.wire.files import Files
from fleetgrad.wire.messages import Head, Verdict
from fleetgrad.wire.topics import Topics


class Delivery:
    """At most one `upload` under way; `bytes_up` counts this life's, headers included."""

    def __init__(self, identity: Identity, files: Files, store: Store, random: random.Random) -> None:
        self._id, self._files, self._store, self._random = identity, files, store, random
        self.fates = Fates(files, store)
        self.upload: Upload | None = None
        self._ended_bytes = 0

    @property
    def bytes_up(self) -> int:
        return self._ended_bytes + (self.upload.bytes_up if self.upload else 0)

    def begin(self, record: Record, shards: int, *, window: int, start_at: float, ask_first: bool) -> Upload:
        """Takes a stored update up."""
        topic = Topics(self._id.federation).update(self._id.device, shards)
        self.upload = Upload(
            record, topic, self._id.federation, self._id.device, self._id.key, self._files, self._random, window,
            start_at, ask_first,
        )  # fmt: skip
        return self.upload

    def receipt(self, verdict: Verdict, head: Head | None, also: Sequence[Row] = ()) -> None:
        """Ends the upload; an accepted update with a residual is kept, though not sent any more, until its round is closed."""
        if not self.upload:
            return
        record = self.upload.record
        fate = fate_of(head, record)
        if verdict == "accepted" and record.residual and fate is None:
            self.fates.accepted(record, also)
            self._leave()
        elif verdict == "duplicate":
            self.drop(None, also)
        else:
            self.drop(verdict == "accepted" and fate != "abandoned", also)

    def drop(self, delivered: bool | None, also: Sequence[Row] = ()) -> None:
        """Ends the stored update, if there is one; `delivered` and `also` are as in Fates.settle."""
        if self.upload:
            self.fates.settle(self.upload.record, delivered, also)
            self._leave()
        elif also:
            self._store.commit(list(also))

    def _leave(self) -> None:
        self._ended_bytes, self.upload = self.bytes_up, None
