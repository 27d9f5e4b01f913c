"""The participant's uploads, rule by rule of wire/SPEC.md section 4: what ends one, and what doesn't."""

from typing import Any

import pytest

from fleetgrad.edge import events as ev
from fleetgrad.edge.link.delivery import Limits
from fleetgrad.wire import frames
from fleetgrad.wire.messages import Closed, Link, RetryAfter
from tests.edge.one_device import PARAMS, PLAN, Device


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
        device.bitmap(1, payload, received.to_bytes(-(-count // 8), "little").hex())
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


def test_a_head_that_lists_the_attempt_as_abandoned_ends_it() -> None:
    device = Device().ready()
    device.select()
    device.trained()
    device.head(closed=(Closed(round=1, attempt=1, outcome="abandoned"),))
    assert device.spooled() == []
    assert "round_closed" in device.logs()


@pytest.mark.parametrize("restart", [False, True])
def test_a_round_published_without_a_word_is_asked_about_and_the_device_is_free_for_the_next(restart: bool) -> None:
    device = Device().ready()
    device.select()
    device.trained()
    device.head(version=1, params=b"next" * 99, closed=(Closed(round=1, attempt=1, outcome="published"),))
    assert device.spooled() == ["1-1"], "whether it was counted, only a receipt tells"
    device.objects(b"next" * 99)
    if restart:
        device.start()
        device.handle(ev.Connected())
    else:
        device.handle(ev.Tick())
    assert device.queries() == [(1, 1)]
    assert device.participant.state == "idle"
    device.receipt()
    assert device.spooled() == []
    assert device.statuses()[-1].updates == 1


def publish(device: Device, round_: int) -> None:
    """The device's update of a round stays without a word, and the next round begins."""
    device.select(round_)
    device.trained(round_)


def test_an_older_update_waits_for_word_and_a_newer_one_goes_first() -> None:
    device = Device().ready()
    publish(device, 1)
    publish(device, 2)
    assert device.spooled() == ["1-1", "2-1"]
    assert [h.round for h in device.frames() if h.type == frames.UPDATE] == [2, 2]
    payload = device.frames()[-1].payload_sha256.hex()
    device.bitmap(1, payload, "")
    assert device.frames() == [], "the older one isn't in the newer one's way"
    device.receipt(2)
    assert device.spooled() == ["1-1"]
    device.now += 2
    device.bitmap(1, payload, "")
    assert [(h.type, h.round) for h in device.frames()] == [(frames.UPDATE, 1)] * 2


@pytest.mark.parametrize(
    ("limits", "kept"), [(Limits(3), ["2-1", "3-1", "4-1"]), (Limits(1), ["4-1"]), (Limits(9, 700_000), ["3-1", "4-1"])]
)
def test_over_the_spools_cap_the_oldest_goes_with_a_log_line(limits: Limits, kept: list[str]) -> None:
    device = Device(limits=limits).ready()
    for round_ in range(1, 5):
        publish(device, round_)
    assert device.spooled() == kept
    assert device.disk.names("updates") == [f"{key}.payload" for key in kept]
    (line,) = [e for e in device.effects if isinstance(e, ev.Log) and e.event == "update_expired"]
    assert line.fields["round"] == 4 - len(kept)
    assert str(line.fields["reason"]).startswith("the spool holds at most")


def test_a_single_update_over_the_cap_is_sent_all_the_same() -> None:
    device = Device(limits=Limits(3, 1000)).ready()
    publish(device, 1)
    assert device.spooled() == ["1-1"]


def test_every_update_of_a_full_spool_is_offered_again_after_a_restart() -> None:
    device = Device().ready()
    for round_ in (1, 2, 3):
        publish(device, round_)
    device.start()
    device.handle(ev.Connected())
    assert sorted(device.queries()) == [(1, 1), (2, 1), (3, 1)]
    for round_ in (2, 3, 1):
        device.receipt(round_, verdict="late")
    assert device.spooled() == []


def test_a_later_attempt_of_the_same_round_says_that_the_last_was_abandoned() -> None:
    device = Device().ready()
    publish(device, 1)
    device.select(1, 2)
    assert device.spooled() == []
    assert "update_expired" in device.logs()


def test_a_device_that_is_told_to_wait_sends_nothing_meanwhile_and_then_asks() -> None:
    device = Device().ready()
    publish(device, 1)
    publish(device, 2)
    payload = device.frames()[-1].payload_sha256.hex()
    device.command(RetryAfter(federation="test", device="dev-1", least=30.0, most=40.0))
    began = device.now
    device.now += 1
    device.bitmap(2, payload, "03")
    assert device.frames() == []
    wake = device.participant.wake_at()
    assert wake is not None
    assert 30 <= wake - began <= 40
    device.now = wake
    device.handle(ev.Tick())
    assert sorted(device.queries()) == [(1, 1), (2, 1)]
    assert len(device.births()) == 1
    device.bitmap(2, payload, "03")
    assert [h.seq for h in device.frames()] == [2, 3]


def test_chunks_are_as_long_as_the_head_says() -> None:
    device = Device()
    device.handle(ev.Connected())
    device.head(link=Link(chunk_bytes=4096))
    device.objects(PLAN, PARAMS, chunk_bytes=4096)
    device.select()
    device.trained()
    assert {(h.chunk_bytes, h.nchunks) for h in device.frames()} == {(4096, -(-(1171 * 256 + 64) // 4096))}


def test_a_new_length_of_chunks_counts_for_the_upload_under_way_and_a_bitmap_of_the_old_one_for_nothing() -> None:
    device = Device().ready()
    device.select()
    device.trained()
    payload = device.frames()[0].payload_sha256.hex()
    device.head(boot=2, link=Link(chunk_bytes=4096))
    device.handle(ev.Tick())
    assert device.queries() == [(1, 1)], "what has arrived is asked for"
    device.bitmap(1, payload, "03")  # chunks of the former length, which the broker may have had under way
    assert device.frames() == []
    device.bitmap(1, payload, "01", chunk_bytes=4096)
    assert [(h.seq, h.chunk_bytes) for h in device.frames()] == [(1, 4096), (2, 4096)]


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
