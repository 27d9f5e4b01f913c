"""A device whose disk fails once, at each single act of a round in turn: nothing is lost, doubled, claimed or forgotten by that."""

import errno
from collections.abc import Callable
from typing import Any

import pytest

from fleetgrad.edge import events as ev
from fleetgrad.wire.files import DiskError
from fleetgrad.wire.messages import Closed
from tests.edge.one_device import PARAMS, PLAN, Device, ref

ACTS = ("write", "fsync", "rename", "fsync_directory", "unlink", "read", "names")
NEXT = b"others" * 1000


class Failing(Device):
    """Counts the acts of its disk, commits among them; that of the number `at` fails, and `failed` is its name."""

    acts, at, failed = 0, -1, ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.said: list[ev.Effect] = []
        for name in ACTS:
            setattr(self.disk, name, self._counted(name, getattr(self.disk, name)))
        self.store.commit = self._counted("commit", self.store.commit)  # type: ignore[method-assign]

    def _counted(self, name: str, whole: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any) -> Any:
            self.acts += 1
            if self.acts == self.at:
                self.failed = name
                raise DiskError(errno.EIO, f"can't {name}: Input/output error")
            return whole(*arguments)

        return act

    def handle(self, event: ev.Event) -> list[ev.Effect]:
        self.said += super().handle(event)
        for birth in self.births():  # it claims no model that isn't on its disk
            assert birth.params is None or f"objects/{birth.params}" in self.disk.held
        return self.effects

    def rest(self) -> None:
        """Half a minute of ticks; the broker retains all chunks."""
        end = self.now + 30
        self.objects(PLAN, PARAMS, NEXT)
        while (wake := self.participant.wake_at()) is not None and wake < end:
            self.now = max(self.now, wake)
            self.handle(ev.Tick())
            self.objects(PLAN, PARAMS, NEXT)

    def round(self, receipt_first: bool) -> None:
        """From a first head over an update to the next model; the aggregator repeats itself until it has been heard."""
        self.handle(ev.Connected())
        self.until(lambda: self.participant.state == "idle", self.head)
        self.until(lambda: self.participant.state != "idle", self.select)
        self.trained()
        self.rest()
        assert self.spooled() == ["1-1"]
        closed = (Closed(round=1, attempt=1, outcome="published"),)
        ends = [
            (lambda: self.spooled() == [], self.receipt),
            (lambda: self.holds(NEXT), lambda: self.head(version=1, params=NEXT, closed=closed)),
        ]
        for done, say in ends if receipt_first else reversed(ends):
            self.until(done, say)

    def until(self, done: Callable[[], bool], say: Callable[[], Any]) -> None:
        for _ in range(3):
            say()
            self.rest()
            if done():
                return
        raise AssertionError(f"act {self.at}, {self.failed}, failed, and {say} is in vain: {self.participant.state}")

    def holds(self, params: bytes) -> bool:
        self.effects = self.said
        return self.births()[-1].params == ref(params).sha256 and self.participant.state == "idle"


@pytest.mark.parametrize("receipt_first", [True, False])
def test_a_disk_that_fails_once_costs_a_while_and_nothing_else(receipt_first: bool) -> None:
    well = Failing()
    well.round(receipt_first)
    assert well.acts > 30
    failed = set()
    for at in range(1, well.acts + 1):
        device = Failing()
        device.at = at
        device.round(receipt_first)
        failed.add(device.failed)
        device.effects = device.said
        assert device.statuses()[-1].updates == 1
        assert device.participant.state == "idle"
        assert {n for n in device.disk.held if n.startswith("updates/")} <= {"updates/1-1.payload"}
    assert failed == {*ACTS, "commit"}
