"""The participant's uploads, rule by rule of wire/SPEC.md section 4: what ends one, and what doesn't."""

from typing import Any

import pytest

from fleetgrad.edge import events as ev
from fleetgrad.wire import frames
from fleetgrad.wire.messages import Bitmap, Closed
from tests.edge.one_device import Device


def test_an_upload_keeps_to_its_window_and_is_forgotten_on_the_receipt() -> None:
    device = Device().ready()
    device.select()
    device.trained()
    assert device.spooled()
    assert [h.seq for h in device.frames()] == [0, 1]
    count = device.frames()[0].nchunks
    payload = device.frames()[0].payload_sha256.hex()
    sent, received = {0, 1}, 0
    for seq in range(count):
        received |= 1 << seq
        bitmap = Bitmap(
            federation="test", device="dev-1", round=1, attempt=1, payload=payload,
            received=received.to_bytes(-(-count // 8), "little").hex(),
        )  # fmt: skip
        device.command(bitmap)
        sent |= {h.seq for h in device.frames()}
        assert len([s for s in sent if not received >> s & 1]) <= 2
    assert sent == set(range(count))
    device.receipt()
    assert device.spooled() == []
    assert device.disk.names("updates") == []
    assert [b.state for b in device.births()] == ["idle"]
    device.select()  # a late repetition
    assert device.trains() == []


@pytest.mark.parametrize("verdict", ["accepted", "duplicate", "late", "stale", "refused"])
def test_every_verdict_is_terminal(verdict: str) -> None:
    device = Device().ready()
    device.select()
    device.trained()
    device.receipt(verdict=verdict)
    assert device.participant.state == "idle"


@pytest.mark.parametrize("fields", [{"payload": "0" * 64}, {"round": 2}, {"attempt": 2}])
def test_a_receipt_for_another_update_changes_nothing(fields: dict[str, Any]) -> None:
    device = Device().ready()
    device.select()
    device.trained()
    device.receipt(**fields)
    assert device.participant.state == "uploading"


def test_a_silent_aggregator_is_asked_less_and_less_often() -> None:
    device = Device().ready()
    device.select()
    device.trained()
    waits = []
    for _ in range(7):
        wake = device.participant.wake_at()
        assert wake is not None
        waits.append(wake - device.now)
        device.now = wake
        device.handle(ev.Tick())
        assert [h.type for h in device.frames()] == [frames.QUERY]
    assert waits[0] <= 2.0
    assert waits[-1] > 5 * waits[1]
    assert max(waits) <= 60.0


def test_after_a_restart_a_stored_update_is_offered_by_a_query_first() -> None:
    device = Device().ready()
    device.select()
    device.trained()
    device.start()
    device.handle(ev.Connected())
    assert [h.type for h in device.frames()] == [frames.QUERY]
    assert [b.state for b in device.births()] == ["uploading"]
    device.receipt()
    assert device.participant.state == "idle"


@pytest.mark.parametrize("outcome", ["published", "abandoned"])
def test_a_head_that_lists_the_attempt_as_closed_ends_it(outcome: Any) -> None:
    device = Device().ready()
    device.select()
    device.trained()
    device.head(version=1, params=b"next" * 99, closed=(Closed(round=1, attempt=1, outcome=outcome),))
    assert device.spooled() == []
    assert "round_closed" in device.logs()


def test_a_full_disk_loses_no_update_and_stops_nothing() -> None:
    device = Device().ready()
    device.select()
    device.disk.full = True
    device.trained()
    assert "disk_failed" in device.logs()
    assert device.frames() == []  # nothing leaves before it is stored
    device.disk.full = False
    wake = device.participant.wake_at()
    assert wake is not None
    device.now = wake
    device.handle(ev.Tick())
    assert device.spooled()
    assert [h.seq for h in device.frames()] == [0, 1]


def test_a_receipt_that_a_full_disk_delays_is_counted_once() -> None:
    device = Device().ready()
    device.select()
    device.trained()
    device.disk.full = True
    device.receipt()
    assert device.spooled()
    device.disk.full = False
    device.receipt()
    assert [(s.state, s.updates) for s in device.statuses()] == [("idle", 1)]
