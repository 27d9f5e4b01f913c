"""What became of the device's updates, and what error feedback carries because of it (residual.py has the rules).

    stored --receipt accepted--> pending --head: published--> carried = what it left out
       |                            \\-----head: abandoned--> carried = the whole of it
       \\--receipt late, stale, refused; abandoned; a later attempt--> carried = the whole of it

Each arrow is one transaction of the store; files that it leaves without a name are removed after.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from fleetgrad.edge.events import Effect, Log
from fleetgrad.edge.link import outbox, residual
from fleetgrad.edge.link.outbox import Record
from fleetgrad.edge.link.residual import Residual
from fleetgrad.edge.link.store import Drop, Held, Row, Store
from fleetgrad.wire.files import Files
from fleetgrad.wire.messages import Head, Outcome


def fate_of(head: Head | None, record: Record) -> Outcome | None:
    """What a head says of an update's attempt; of one too old to be listed, what must have become of it."""
    if head is None:
        return None
    for closed in head.closed:
        if (closed.round, closed.attempt) == (record.round, record.attempt):
            return closed.outcome
    if not head.closed or (head.closed[0].round, head.closed[0].attempt) < (record.round, record.attempt):
        return None
    return "abandoned" if head.closed[0].round == record.round else "published"


@dataclass(slots=True)
class Fates:
    """`carried` goes into the next update; `pending` is accepted, and its round isn't closed yet.

    What is given as `also` is committed in the same transaction.
    """

    files: Files
    store: Store
    carried: Residual | None = None
    pending: Record | None = None

    def load(self, held: Held) -> tuple[list[Record], list[Effect]]:
        """What a restart finds: the updates that nothing has ended, oldest first."""
        records, bad = outbox.load(held, self.files)
        self.carried, lost = residual.load(held)
        notes: list[Effect] = [*lost, *(self.quarantine(bad) if bad else [])]
        self.pending = next((r for r in records if r.accepted), None)
        outbox.sweep(self.files, records, self.carried)
        return [r for r in records if not r.accepted], notes

    def quarantine(self, lost: dict[str, str]) -> list[Effect]:
        """Gives up updates that the disk has damaged, reasons by key.

        With them goes what was carried: whether it is in an update that was sent, nobody knows any more, and nothing is sent twice.
        """
        self.store.commit([*(Drop(outbox.UPDATE, key) for key in lost), residual.row(None)])
        self.carried = None
        return [Log("update_quarantined", {"update": key, "reason": reason}) for key, reason in lost.items()]

    def accepted(self, record: Record, also: Sequence[Row] = ()) -> None:
        """The receipt has come: nothing more is sent, and the record waits for the round's end."""
        record = msgspec.structs.replace(record, accepted=True)
        self.store.commit([outbox.row(record), *also])
        self.pending = record

    def settle(self, record: Record, delivered: bool | None, also: Sequence[Row] = ()) -> None:
        """The update is in a published model (True), in none (False), or another one is in its place (None)."""
        carried = self.carried
        if record.residual and delivered is not None:
            carried = record.left_out(undelivered=not delivered)
        self.store.commit([outbox.gone(record), residual.row(carried), *also])
        before, self.carried = self.carried, carried
        if self.pending == record:
            self.pending = None
        outbox.remove(self.files, record, before, carried)

    def close(self, head: Head) -> None:
        """Settles what is pending, if the head says how."""
        if self.pending and (fate := fate_of(head, self.pending)):
            self.settle(self.pending, delivered=fate == "published")

    def supersede(self, round_: int) -> None:
        """A select that is newer has come: for the same round, it says that ours was abandoned; for a later one, that it wasn't."""
        if self.pending:
            self.settle(self.pending, delivered=round_ > self.pending.round)

    def prepare(self, head: Head, waiting: Sequence[Record]) -> list[Effect]:
        """Before training: what means nothing under this plan, or to a codec that leaves nothing out, isn't carried any further."""
        notes: list[Effect] = []
        if self.carried and not (head.policy.codec.feedback and self.carried.plan == head.plan.sha256):
            self.store.commit([residual.row(None)])
            self.carried = None
            notes.append(Log("residual_dropped", {"reason": "another plan, or a codec without error feedback"}))
        outbox.sweep(self.files, waiting, self.carried)
        return notes
