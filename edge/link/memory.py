"""What a device remembers over a restart, beside its head, its updates and what it carries."""

import random

import msgspec

from fleetgrad.edge.events import Effect, Log
from fleetgrad.edge.link.store import MEMORY, Held, Put, Row
from fleetgrad.wire.strict import Strict

FIRST_NEW_BOOT = 1 << 32  # above any boot that was counted from 1


class Memory(Strict, frozen=True, kw_only=True):
    """`ended` says that (round, attempt) needs nothing more of us, `revoked` that the device was told it is no member any more,
    `parted` that its last life ended with a goodbye."""

    boot: int = 0
    round: int = 0
    attempt: int = 0
    ended: bool = True
    revoked: bool = False
    parted: bool = True

    def row(self) -> Row:
        return Put(MEMORY, "", msgspec.json.encode(self))


def load(held: Held, random: random.Random) -> tuple[Memory, list[Effect]]:
    """The memory; a damaged one is begun anew."""
    found = held.all(MEMORY, Memory).get("")
    if found is not None:
        return found, []
    lost = held.lost(MEMORY).get("")
    if lost is None:
        return Memory(), []
    # The aggregator drops births whose boot is older than the last it saw: this one has to be above.
    return Memory(boot=FIRST_NEW_BOOT + random.getrandbits(48)), [Log("memory_quarantined", {"reason": lost})]
