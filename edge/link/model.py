"""The model that a device is to have: which release that is, by a head that it trusts, how it comes, and whether it is here.

    head (trust.py) --> wanted --> fetched, chunk by chunk (inbox.py) --> installed in a slot (slots.py)

It knows of no rounds and says nothing to anyone but by what is returned.
"""

from collections.abc import Callable

from fleetgrad.edge.events import Effect, Log
from fleetgrad.edge.link.inbox import Inbox
from fleetgrad.edge.link.slots import Slots
from fleetgrad.edge.link.store import Held, Store
from fleetgrad.edge.link.trust import Trust
from fleetgrad.edge.reporting import Identity
from fleetgrad.wire.files import Files
from fleetgrad.wire.messages import Head, ObjectRef
from fleetgrad.wire.topics import Topics


class Model:
    """One device's; `notes` is what the start has found, `ask` makes a signed want as for Inbox."""

    def __init__(
        self, identity: Identity, files: Files, store: Store, held: Held, ask: Callable[[ObjectRef, int, bytes], Effect]
    ) -> None:
        self._topics = Topics(identity.federation)
        self.trust = Trust(store, held, identity.federation, identity.aggregator, identity.root)
        self.inbox = Inbox(self._topics, identity.device, files, ask)
        self.slots = Slots(store, self.inbox)
        self.notes: list[Effect] = [*self.trust.notes, *self.slots.load(held)]
        if head := self.head:
            for ref in (head.plan, head.params):
                if ref.sha256 not in self.inbox.held:
                    self.inbox.load(ref)  # whole, though a power cut came before it was committed
            self.inbox.need(head)
            self.notes += self.inbox.go_on(connected=False, now=0.0)
            self.inbox.keep(self.slots.needed | {head.plan.sha256, head.params.sha256})
            self.install()

    @property
    def head(self) -> Head | None:
        """The newest release that holds."""
        return self.trust.head

    @property
    def here(self) -> Head | None:
        """The same, once all of its model is on the disk."""
        return None if self.inbox.wanted else self.head

    @property
    def root_topic(self) -> str:
        """Where the next root of trust is retained."""
        return self._topics.root(self.trust.root.version + 1)

    def take_head(self, raw: bytes, now: float) -> Head | None:
        """The head, remembered, if it is new: `aim` is to follow. Raises Untrusted."""
        head = self.trust.take_head(raw, now)
        if head:
            self.inbox.need(head)
        return head

    def aim(self, before: Head | None, connected: bool, now: float) -> tuple[list[Effect], bool]:
        """Goes after the head's model, as one has come after `before`; whether another one than that is here already."""
        head = self.head
        if head is None:
            return [], False
        effects = self.inbox.go_on(connected, now)
        self.install()  # where the release has another version of the same model, or goes back to one that is here
        here = self.here is not None and before is not None and head.params != before.params
        return effects + ([_installed(head)] if here else []), here

    def take(self, topic: str, payload: bytes, now: float) -> tuple[list[Effect], bool]:
        """One chunk; whether it was the last one of the head's model: `install` is to follow."""
        effects, whole = self.inbox.take(topic, payload, now)
        if whole and (head := self.here):
            return [*effects, _installed(head)], True
        return effects, False

    def install(self) -> None:
        """Commits the head's model, once all of it is here."""
        head, current = self.here, self.slots.current
        if head and not (current and current.is_of(head)):
            self.slots.install(head)

    def check(self, connected: bool, now: float) -> list[Effect]:
        """Reads all that is held; what the disk has damaged is fetched again."""
        damage = self.slots.check()
        if damage and self.head:
            self.inbox.need(self.head)
            damage += self.inbox.go_on(connected, now)
        return damage


def _installed(head: Head) -> Effect:
    return Log("model_installed", {"version": head.version})
