"""The simulation notices: each fault planted here is one that its invariants exist for."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from fleetgrad.broker import closing, rounds
from fleetgrad.broker.attempt import SUFFIX
from fleetgrad.broker.merge import Sum
from fleetgrad.edge import participant, speaking
from fleetgrad.edge.events import Disconnected
from fleetgrad.edge.link import delivery, fate, outbox
from fleetgrad.wire.files import TEMPORARY, DiskError, Files
from tests.invariants import Violation
from tests.simulation import device
from tests.simulation.disk import Disk
from tests.simulation.scenario import draw
from tests.simulation.world import World

Plant = Callable[[pytest.MonkeyPatch], None]


def put_without_sync(files: Files, name: str, data: bytes) -> None:
    files.write(name + TEMPORARY, data)
    files.rename(name + TEMPORARY, name)


def unsynced_payload(patch: pytest.MonkeyPatch) -> None:
    """A trainer that says it is done when only the page cache has its payload."""
    patch.setattr(device, "put", put_without_sync)


def unsynced_intake(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(closing, "put", put_without_sync)


def unsynced_group(patch: pytest.MonkeyPatch) -> None:
    whole = Disk.fsync
    patch.setattr(Disk, "fsync", lambda self, name: None if name.endswith(SUFFIX) else whole(self, name))


def forgetful_device(patch: pytest.MonkeyPatch) -> None:
    """Gives its update up with the connection."""
    whole = participant.Participant.handle

    def handle(self: Any, event: Any, now: float) -> Any:
        if isinstance(event, Disconnected):
            with suppress(DiskError):
                self._delivery.drop(delivered=False)
        return whole(self, event, now)

    patch.setattr(participant.Participant, "handle", handle)


def lossy_merge(patch: pytest.MonkeyPatch) -> None:
    whole = Sum.add

    def add(self: Any, device: str, payload: Any, keys: Any, *rest: Any) -> Any:
        """Leaves the first member's values out."""
        if self.devices:
            return whole(self, device, payload, keys, *rest)
        info = whole(self, device, payload, keys, *rest)
        self._rule._sum[:] = 0
        return info

    patch.setattr(Sum, "add", add)


def mute_device(patch: pytest.MonkeyPatch) -> None:
    """Reports once, and trusts the network with it."""
    patch.setattr(speaking, "REFRESH_SECONDS", 1e9)


def impatient_upload(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(outbox.Upload, "wake_at", lambda self: self.start_at)


def amnesic_attempts(patch: pytest.MonkeyPatch) -> None:
    """Begins each boot with a new attempt."""
    whole = rounds.Rounds._begin

    def begin(self: Any, now: float) -> None:
        whole(self, now)
        if self._open and self._open.state == "collecting" and self._open.members and not self._cohort.devices:
            self._abandon(self._open)
            whole(self, now)

    patch.setattr(rounds.Rounds, "_begin", begin)


def hasty_residual(patch: pytest.MonkeyPatch) -> None:
    """Takes a receipt for the round's end: an accepted update of an abandoned attempt is lost."""
    patch.setattr(fate.Fates, "accepted", lambda self, record, also: self.settle(record, True, also))


def lossy_feedback(patch: pytest.MonkeyPatch) -> None:
    """Forgets the payload of an update that wasn't delivered."""
    whole = outbox.Record.left_out
    patch.setattr(outbox.Record, "left_out", lambda self, undelivered: whole(self, False))


def presuming_device(patch: pytest.MonkeyPatch) -> None:
    """Sees its round published without a receipt, and doesn't ask whether it was counted."""
    patch.setattr(outbox.Upload, "ask", lambda self, now: None)
    patch.setattr(delivery, "fate_of", lambda head, record: "abandoned")


def unasked_upload(patch: pytest.MonkeyPatch) -> None:
    """Sends its window again after a break, rather than ask what has arrived."""
    patch.setattr(outbox.Upload, "connected", lambda self, now, first=True: self._pump())


def stale_signature(patch: pytest.MonkeyPatch) -> None:
    """Goes on with a body that was signed by the identity before."""
    whole = outbox.Upload._pump

    def pump(self: Any) -> Any:
        self._signed_by = self.key.public.kid if self._body else ""
        return whole(self)

    patch.setattr(outbox.Upload, "_pump", pump)


PLANTED = [
    (stale_signature, "I10|an attempt was abandoned"),
    (unasked_upload, "sends chunk"),
    (hasty_residual, "I13"),
    (lossy_feedback, "I13"),
    (presuming_device, "I13|I3"),
    (unsynced_payload, "I3|I6"),
    (unsynced_intake, "I6"),
    (unsynced_group, "I2"),
    (forgetful_device, "I3"),
    (lossy_merge, "I5"),
    (mute_device, "I10"),
    (impatient_upload, "busy loop"),
    (amnesic_attempts, "I7|an attempt was abandoned"),
]


@pytest.mark.parametrize(("plant", "invariant"), PLANTED, ids=[p.__name__ for p, _ in PLANTED])
def test_a_planted_fault_breaks_its_invariant(plant: Plant, invariant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(Violation, match=invariant):
        for seed in range(40):
            World(draw(seed)).run()
