"""What a device does that is told it was revoked: it falls silent, says so, keeps all it has, and asks once a day."""

import hashlib
import random

import msgspec
import pytest

from fleetgrad.edge import events as ev
from fleetgrad.edge.link import memory
from fleetgrad.edge.link.store import MEMORY
from fleetgrad.edge.speaking import REVOKED_SECONDS
from fleetgrad.wire.messages import REVOKED
from tests.edge.one_device import Device


def revoked() -> Device:
    device = Device().ready()
    device.select()
    device.trained()
    device.receipt(verdict="refused", reason=REVOKED)
    return device


def sent(device: Device) -> list[ev.Publish]:
    return [e for e in device.effects if isinstance(e, ev.Publish) and not e.retained]


def test_it_says_so_and_keeps_its_update() -> None:
    device = revoked()
    assert device.logs() == ["revoked"]
    assert device.spooled() == ["1-1"]
    assert device.disk.names("updates") == ["1-1.payload"]
    (status,) = device.statuses()
    assert (status.state, status.spooled) == ("refused", 1)
    assert "revoked this device" in status.reason
    assert sent(device) == []


def test_it_is_silent_for_hours_whatever_is_published_and_then_asks() -> None:
    device = revoked()
    start, asked = device.now, 0
    device.head(version=1, params=b"other " * 1000)
    assert not [e for e in device.effects if isinstance(e, ev.Subscribe)]
    while not asked:
        wake = device.participant.wake_at()
        assert wake is not None
        device.now = max(device.now, wake)
        device.handle(ev.Tick())
        asked = len(device.queries())
    assert REVOKED_SECONDS / 2 <= device.now - start <= REVOKED_SECONDS
    device.receipt(verdict="refused", reason=REVOKED)
    assert sent(device) == []
    assert device.spooled() == ["1-1"]
    again = device.participant.wake_at()
    assert again is not None
    assert again >= device.now + REVOKED_SECONDS / 2


def test_it_stays_silent_over_a_lost_connection_and_asks_at_a_start() -> None:
    device = revoked()
    device.handle(ev.Disconnected("gone"))
    device.handle(ev.Connected())
    assert device.queries() == []
    device.start()
    assert device.participant.state == "refused"
    device.handle(ev.Connected())
    assert device.queries() == [(1, 1)]
    device.receipt(verdict="refused", reason=REVOKED)
    assert device.queries() == []


@pytest.mark.parametrize("verdict", ["accepted", "late", "refused"])
def test_another_word_of_the_aggregator_ends_it(verdict: str) -> None:
    device = revoked()
    device.receipt(verdict=verdict)
    assert device.participant.state == "idle"
    assert device.spooled() == []
    device.start()
    assert device.participant.state == "idle"


def test_only_a_receipt_for_an_update_that_is_here_is_believed() -> None:
    device = Device().ready()
    device.select()
    device.trained()
    device.receipt(round_=9, verdict="refused", reason=REVOKED)
    device.receipt(verdict="refused", reason=REVOKED, payload=hashlib.sha256(b"other").hexdigest())
    assert device.participant.state == "uploading"


def test_training_for_a_later_round_ends() -> None:
    device = Device().ready()
    device.select()
    device.trained()
    device.select(round_=2)
    assert device.trains()
    device.receipt(verdict="refused", reason=REVOKED)
    assert [e for e in device.effects if isinstance(e, ev.CancelTraining)]
    assert device.spooled() == ["1-1"]


def test_a_memory_of_before_there_was_such_a_word_is_read() -> None:
    device = Device().ready()
    key = (MEMORY, "")
    old = msgspec.json.decode(device.store.held[key])
    del old["revoked"]
    device.store.held[key] = msgspec.json.encode(old)
    found, notes = memory.load(device.store.load(), random.Random(1))
    assert (found.revoked, notes) == (False, [])


def test_what_rested_is_asked_about_at_once_when_it_is_heard_again() -> None:
    device = revoked()
    device.head(version=1, params=b"other " * 1000)  # which it doesn't read: it would say that round 1 is over
    device.now += 5.0
    device.select(round=2)  # the aggregator asks it again, for whatever round
    assert "readmitted" in device.logs()
    device.handle(ev.Tick())
    assert device.queries() == [(1, 1)]
