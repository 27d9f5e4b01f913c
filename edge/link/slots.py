"""The two models that a device has on its disk: the current one, and the one before, which stays whole until the next is verified.

    a: version 6  b: version 5      version 7 is fetched: its objects lie beside those of both
    a: version 6  b: version 7      one commit: 7 is current; the objects that only 5 had are removed after

A power cut anywhere leaves one that loads. Where the current one's files are damaged, the other is fallen back to (deltas start from it),
and what is missing is fetched again. An older model is never trained: an attempt needs the head's.
"""

from dataclasses import dataclass, field

import msgspec

from fleetgrad.edge.events import Effect, Log
from fleetgrad.edge.link.inbox import FOLDER, Inbox
from fleetgrad.edge.link.store import Held, Put, Store
from fleetgrad.wire.messages import Count, Head, ObjectRef, Version
from fleetgrad.wire.strict import Strict

INSTALLED = "installed"
SLOTS = ("a", "b")


class Installed(Strict, frozen=True, kw_only=True):
    """One slot: a release whose objects were whole when it was committed. `number` grows with each: versions may not, under new keys."""

    number: Count
    version: Version
    plan: ObjectRef
    params: ObjectRef

    def is_of(self, head: Head) -> bool:
        """Whether it is the head's release."""
        return (self.version, self.plan, self.params) == (head.version, head.plan, head.params)

    @property
    def objects(self) -> set[str]:
        return {self.plan.sha256, self.params.sha256}


@dataclass(slots=True)
class Slots:
    """`by_key` has the slots whose objects are whole."""

    store: Store
    inbox: Inbox
    by_key: dict[str, Installed] = field(default_factory=dict)

    def load(self, held: Held) -> list[Effect]:
        """Takes stock of both at the start."""
        self.by_key = {k: slot for k, slot in held.all(INSTALLED, Installed).items() if k in SLOTS}
        return self.check()

    def check(self) -> list[Effect]:
        """Reads every object of both slots; one that has a damaged object is no slot any more."""
        newest = self.current
        for ref in {ref.sha256: ref for slot in self.by_key.values() for ref in (slot.plan, slot.params)}.values():
            self.inbox.load(ref)
        self.by_key = {k: slot for k, slot in self.by_key.items() if slot.objects <= self.inbox.held}
        if newest is None or newest == self.current:
            return []
        back = self.current.version if self.current else None
        return [Log("model_damaged", {"version": newest.version, "fell_back_to": back})]

    @property
    def current(self) -> Installed | None:
        """The one that was installed last."""
        return max(self.by_key.values(), key=lambda slot: slot.number, default=None)

    @property
    def needed(self) -> set[str]:
        """Hashes of the objects of both."""
        return {sha256 for slot in self.by_key.values() for sha256 in slot.objects}

    def install(self, head: Head) -> None:
        """Makes the head's release current, whose objects are held; what no slot needs any more is removed."""
        current = self.current
        if current is None or not current.is_of(head):
            number = current.number + 1 if current else 0
            made = Installed(number=number, version=head.version, plan=head.plan, params=head.params)
            same = current is not None and made.objects == current.objects
            key = next((k for k in SLOTS if (self.by_key.get(k) == current) == same), SLOTS[0]) if current else SLOTS[0]
            # An object that was found at the start may have been renamed by a process that was killed before it synced the folder.
            self.inbox.files.fsync_directory(FOLDER)
            self.store.commit([Put(INSTALLED, key, msgspec.json.encode(made))])
            self.by_key[key] = made
        self.inbox.keep(self.needed)
