"""The participant, rule by rule of wire/SPEC.md section 4: heads, selects and what it reports."""

import hashlib
from typing import Any

import msgspec
import pytest

from fleetgrad.edge import events as ev
from fleetgrad.wire import frames, seeds
from fleetgrad.wire.messages import COMMAND, HEAD, AggregatorStatus, DeviceStatus, Select
from fleetgrad.wire.signing import PrivateKey
from tests.edge.one_device import AGGREGATOR, KEY, PARAMS, PLAN, TOPICS, Device, ref, select


def test_it_fetches_what_the_head_names_and_reports_by_a_birth() -> None:
    device = Device()
    device.handle(ev.Connected())
    assert device.births()[0].params is None
    device.head()
    assert device.participant.state == "fetching"
    device.objects(PLAN, PARAMS)
    (birth,) = device.births()
    assert (birth.state, birth.params, birth.samples) == ("idle", ref(PARAMS).sha256, 50)
    assert device.disk.held[f"objects/{ref(PLAN).sha256}"] == PLAN


def test_an_object_with_other_bytes_than_its_hash_is_not_installed() -> None:
    device = Device()
    device.handle(ev.Connected())
    device.head()
    header = frames.object_header(len(PLAN), hashlib.sha256(PLAN).digest())
    wrong = b"x" + PLAN[1:]
    for i, frame in enumerate(frames.frames(header, wrong)):
        device.handle(ev.Message(TOPICS.object(ref(PLAN).sha256, i), frame))
    assert device.logs() == ["object_dropped"]
    assert f"objects/{ref(PLAN).sha256}" not in device.disk.held
    wake = device.participant.wake_at()
    assert wake is not None
    device.now = wake
    device.handle(ev.Tick())
    device.objects(PLAN, PARAMS)
    assert device.participant.state == "idle"


@pytest.mark.parametrize(
    ("fields", "key"), [({"version": 0}, KEY), ({"version": 0, "federation": "other"}, AGGREGATOR)]
)
def test_a_head_that_is_forged_or_of_another_federation_is_dropped(fields: dict[str, Any], key: PrivateKey) -> None:
    device = Device()
    device.handle(ev.Connected())
    device.head(key=key, **fields)
    assert device.logs() == ["message_dropped"]
    assert device.participant.state == "fetching"


def test_an_older_version_is_never_run_even_after_a_restart() -> None:
    device = Device()
    device.handle(ev.Connected())
    device.head(version=5)
    device.objects(PLAN, PARAMS)
    for _ in range(2):
        device.head(version=4, params=b"old")
        assert device.logs() == ["message_dropped"]
        device.start()
        device.handle(ev.Connected())
        assert device.births()[0].version == 5


def test_every_select_is_answered_by_a_birth_and_trains_at_most_once() -> None:
    device = Device().ready()
    device.select()
    (train,) = device.trains()
    assert (train.round, train.attempt) == (1, 1)
    assert train.seed == seeds.derive("fl1-seed", "test", "dev-1", 1, 1)
    assert train.keys == seeds.codec_keys("test", "dev-1", 1, 1)
    assert [b.state for b in device.births()] == ["training"]
    device.select()
    assert device.trains() == []
    assert [(b.state, b.round, b.attempt) for b in device.births()] == [("training", 1, 1)]


@pytest.mark.parametrize("fields", [{"params": "0" * 64}, {"config": "0" * 64}])
def test_a_select_for_another_model_or_policy_is_answered_and_not_taken_up(fields: dict[str, Any]) -> None:
    device = Device().ready()
    device.select(**fields)
    assert device.trains() == []
    assert [b.state for b in device.births()] == ["idle"]


@pytest.mark.parametrize(
    ("command", "key", "typ"),
    [
        (select(), KEY, COMMAND),
        (select(), AGGREGATOR, HEAD),
        (select(device="dev-2"), AGGREGATOR, COMMAND),
        (select(federation="other"), AGGREGATOR, COMMAND),
    ],
)
def test_a_command_that_is_forged_or_for_another_is_dropped(command: Select, key: PrivateKey, typ: str) -> None:
    device = Device().ready()
    device.command(command, key, typ)
    assert device.trains() == []
    assert device.logs() == ["message_dropped"]


def test_a_higher_attempt_drops_the_older_one_and_a_lower_is_ignored() -> None:
    device = Device().ready()
    device.select()
    device.select(1, 2)
    assert any(isinstance(e, ev.CancelTraining) for e in device.effects)
    assert [(t.round, t.attempt) for t in device.trains()] == [(1, 2)]
    device.trained(1, 1)  # the cancelled one's word comes late
    assert device.spooled() == []
    device.trained(1, 2)
    assert device.spooled()
    device.select(1, 1)
    assert device.trains() == []
    device.select(2, 1)
    assert device.spooled() == ["1-2"], "of a later round it waits for word"
    assert [(t.round, t.attempt) for t in device.trains()] == [(2, 1)]


def test_a_job_lost_in_a_crash_is_taken_up_again_with_the_same_seeds() -> None:
    device = Device().ready()
    device.select()
    (before,) = device.trains()
    device.start()
    device.handle(ev.Connected())
    assert [(b.state, b.round) for b in device.births()] == [("idle", None)]
    device.select()
    assert device.trains() == [before]


def test_a_deadline_that_passes_while_training_ends_the_attempt() -> None:
    device = Device().ready()
    device.select()
    device.now += 61
    device.handle(ev.Tick())
    assert any(isinstance(e, ev.CancelTraining) for e in device.effects)
    assert {(b.state, b.round) for b in device.births()} == {("idle", 1)}
    assert "60" in device.births()[0].reason


def test_training_that_fails_is_told_with_its_reason() -> None:
    device = Device().ready()
    device.select()
    device.handle(ev.TrainingFailed(1, 1, "loss is nan at step 3"))
    assert [(b.state, b.reason) for b in device.births()] == [("idle", "loss is nan at step 3")]


def test_a_new_boot_of_the_aggregator_is_answered_by_a_birth() -> None:
    device = Device().ready()
    for boot, births in ((1, 0), (1, 0), (2, 1)):
        status = AggregatorStatus(state="open", federation="test", boot=boot)
        device.handle(ev.Message(TOPICS.aggregator, msgspec.json.encode(status)))
        assert len(device.births()) == births


@pytest.mark.parametrize("what", ["memory", "head", "update", "payload"])
@pytest.mark.parametrize("damage", ["cut", "junk"])
def test_what_is_damaged_is_left_out_and_the_device_goes_on(what: str, damage: str) -> None:
    device = Device().ready()
    device.select()
    device.trained()
    if what == "payload":
        raw = device.disk.held["updates/1-1.payload"]
        device.disk.held["updates/1-1.payload"] = raw[: len(raw) // 2] if damage == "cut" else b"\xff" * len(raw)
    else:
        device.store.damage(what, damage)
    device.start()
    device.handle(ev.Connected())
    device.head()
    device.objects(PLAN, PARAMS)
    device.select(2, 1)
    assert [(t.round, t.attempt) for t in device.trains()] == [(2, 1)]


def test_a_failed_attempt_is_told_once_a_full_disk_has_room() -> None:
    device = Device().ready()
    device.select()
    device.disk.full = True
    device.handle(ev.TrainingFailed(1, 1, "loss is nan at step 3"))
    assert device.births() == []
    device.disk.full = False
    wake = device.participant.wake_at()
    assert wake is not None
    device.now = wake
    device.handle(ev.Tick())
    assert {(b.state, b.round, b.reason) for b in device.births()} == {("idle", 1, "loss is nan at step 3")}


def test_a_plan_that_its_data_does_not_fit_is_refused_until_another_plan_comes() -> None:
    device = Device().ready()
    device.select()
    device.handle(ev.TrainingFailed(1, 1, "samples have shape (5,)", lasting=True))
    assert [(b.state, b.round, b.reason) for b in device.births()] == [("refused", 1, "samples have shape (5,)")]
    device.select(2)
    assert device.trains() == []
    assert [b.state for b in device.births()] == ["refused"]
    device.head(version=1, params=b"next" * 99)
    device.objects(b"next" * 99)
    assert [b.state for b in device.births()] == ["refused"]
    device.head(version=2, params=b"next" * 99, plan=ref(b"other plan"))
    device.objects(b"other plan")
    assert [b.state for b in device.births()] == ["idle"]


def test_a_status_is_published_on_a_change_and_not_for_every_chunk() -> None:
    device = Device()
    device.handle(ev.Connected())
    device.head()
    shown = []
    for raw in (PLAN, PARAMS):
        header = frames.object_header(len(raw), hashlib.sha256(raw).digest())
        for i, frame in enumerate(frames.frames(header, raw)):
            device.handle(ev.Message(TOPICS.object(ref(raw).sha256, i), frame))
            shown += device.statuses()
    assert [(s.state, s.bytes_down > len(PLAN) + len(PARAMS)) for s in shown] == [("idle", True)]


def test_a_device_whose_memory_is_damaged_is_still_newer_than_its_last_birth() -> None:
    device = Device().ready()
    last = device.participant.will()[1]
    device.store.damage("memory", "junk")
    device.start()
    device.handle(ev.Connected())
    assert device.births()[0].boot > msgspec.json.decode(last, type=DeviceStatus).boot


def test_boot_grows_and_a_birth_is_never_older_than_its_last() -> None:
    device = Device()
    seen = []
    for _ in range(3):
        device.handle(ev.Connected())
        seen += [(b.boot, b.seq) for b in device.births()]
        device.start()
    assert seen == sorted(set(seen))


def test_only_a_life_that_ended_without_a_goodbye_is_followed_by_a_spread_return() -> None:
    device = Device().ready()
    assert [device.participant.cut_off] == [False]
    device.start()
    assert [device.participant.cut_off] == [True]
    device.participant.goodbye()
    device.start()
    assert [device.participant.cut_off] == [False]
    device.disk.full = True
    assert device.participant.goodbye(), "it parts all the same"
