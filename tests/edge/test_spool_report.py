"""`fleetgrad-edge status`, and what a device counts and refuses on behalf of its disk."""

import json
import sys
from pathlib import Path

import msgspec
import pytest

from fleetgrad.edge import events as ev
from fleetgrad.edge.commands import app, err
from fleetgrad.edge.config import EdgeConfig
from fleetgrad.edge.link.store import Held, Put, Row, SqliteStore
from fleetgrad.edge.link.wear import COMMIT_BYTES, DAY_SECONDS, Wear
from fleetgrad.wire import frames
from fleetgrad.wire.command_line import run_app
from fleetgrad.wire.files import put
from fleetgrad.wire.messages import REVOKED, Closed
from fleetgrad.wire.settings import SettingsError, load_toml
from fleetgrad.wire.signing import PrivateKey
from tests.edge import one_device
from tests.edge.one_device import AGGREGATOR, PARAMS, PLAN, Device, Rows, ref, select
from tests.memory_files import MemoryFiles

TOML = """
[device]
id = "dev-1"
free-space = "1KB"
[federation]
name = "test"
[broker]
url = "mqtt://127.0.0.1"
[data]
path = "data.npz"
"""


class Stored(Device):
    """A device whose rows are in a real store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "spool").mkdir()
        (folder / "edge.toml").write_text(TOML)
        (folder / "aggregator.pub").write_bytes(AGGREGATOR.public.pem())
        super().__init__()

    def __post_init__(self) -> None:
        self.store = SqliteStore(self.folder / "spool")  # type: ignore[assignment]
        self.start()


def status(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:

    sys.argv = ["fleetgrad-edge", "status", "--config", str(folder / "edge.toml"), *words]
    code = run_app(app, "fleetgrad-edge", err)
    captured = capsys.readouterr()
    return captured.out if code == 0 else f"{code} {captured.err}"


def test_the_status_follows_a_device_through_a_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no daemon has run" in status_before(tmp_path, capsys)
    device = Stored(tmp_path)

    def waits() -> str:
        return str(json.loads(status(tmp_path, capsys, "--format", "json"))["waits_for"])

    assert waits() == "a first head from the aggregator"
    device.handle(ev.Connected())
    device.head(version=3)
    assert waits() == "the model of version 3"
    device.objects(PLAN, PARAMS)
    assert waits() == "being selected"
    device.select(params=ref(PARAMS).sha256)
    assert waits() == "its own training for round 1"
    device.trained()
    assert waits() == "the receipt for round 1"
    found = json.loads(status(tmp_path, capsys, "--format", "json"))
    assert (found["installed"], found["offered"], found["to_fetch"]) == (3, 3, 0)
    assert [(u["round"], u["state"]) for u in found["updates"]] == [(1, "waits for its receipt")]
    text = status(tmp_path, capsys)
    for words in ("dev-1 of test", "waits for the receipt for round 1", "version 3", "updates on their way", "0.3 MB"):
        assert words in text
    device.receipt()
    assert waits() == "being selected"


def status_before(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    (folder / "edge.toml").write_text(TOML)
    (folder / "aggregator.pub").write_bytes(AGGREGATOR.public.pem())
    found = status(folder, capsys)
    assert found.startswith("2 ")
    return found


# --- room and wear ---------------------------------------------------------------------------------------------------
def test_without_room_a_select_is_declined_with_the_reason_and_the_next_one_taken_up() -> None:
    free = 50_000_000
    device = Device()
    wear = Wear(device.disk, device.store, 10**9, 100_000_000, lambda: free)
    device.no_room = wear.no_room
    device.start()
    device.ready()
    device.select()
    assert device.trains() == []
    (birth,) = device.births()
    assert (birth.state, birth.round, birth.attempt) == ("idle", 1, 1), "so the round doesn't wait for it"
    assert birth.reason == "50.0 MB are free where the spool lies, training needs 100.0 MB ([device] free-space)"
    device.select()
    assert device.trains() == []
    free = 200_000_000
    device.select(2)
    assert len(device.trains()) == 1


def test_what_is_written_is_counted_over_restarts_and_said_once_a_day() -> None:
    disk = MemoryFiles()
    rows = Rows(disk)

    def started() -> Wear:
        wear = Wear(disk, rows, 100_000, 0, lambda: 0)
        wear.load()
        return wear

    wear = started()
    wear.tick(50.0)
    put(wear.files, "a", bytes(60_000))
    wear.commit([Put("head", "", b"head")])
    assert wear.written == 60_000 + COMMIT_BYTES
    assert wear.tick(60.0) == []
    wear = started()
    assert wear.written == 60_000 + COMMIT_BYTES
    wear.tick(1e6)
    put(wear.files, "b", bytes(60_000))
    (line,) = wear.tick(1e6 + 10)
    assert isinstance(line, ev.Log)
    assert line.fields == {"bytes": 120_000 + COMMIT_BYTES, "a_day": 100_000}
    assert wear.tick(1e6 + 20) == []
    wear.commit([])
    wear = started()
    assert wear.tick(5.0) != []
    assert wear.tick(5.0 + DAY_SECONDS - 31) == []
    assert wear.written > 0
    wear.tick(5.0 + DAY_SECONDS)
    assert wear.written == 0


def test_a_commit_and_its_count_are_one_transaction() -> None:
    seen: list[list[Row]] = []

    class Watched:
        def load(self) -> Held:
            return Held()

        def commit(self, rows: list[Row]) -> None:
            seen.append(rows)

    wear = Wear(MemoryFiles(), Watched(), 0, 0, lambda: 0)
    wear.commit([Put("head", "", b"head")])
    assert [[(row.kind, row.key) for row in rows] for rows in seen] == [[("head", ""), ("written", "")]]


@pytest.mark.parametrize("key", ["spool-bytes", "free-space", "written-a-day"])
def test_a_size_that_is_none_is_named_with_its_line(tmp_path: Path, key: str) -> None:
    (tmp_path / "edge.toml").write_text(TOML.replace('free-space = "1KB"', f'{key} = "much"'))
    with pytest.raises(SettingsError, match=rf"edge\.toml:4: key 'device\.{key}': 'much'"):
        load_toml(tmp_path / "edge.toml", EdgeConfig)


# --- payloads that the disk loses ------------------------------------------------------------------------------------
@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_payload_that_is_lost_before_it_is_sent_is_given_up_and_trained_again(damage: str) -> None:
    device = Device().ready()
    device.select()
    device.handle(ev.Disconnected("gone"))
    device.trained()
    (name,) = device.disk.names("updates")
    if damage == "missing":
        del device.disk.held[f"updates/{name}"]
    else:
        device.disk.held[f"updates/{name}"] = b"x" + device.disk.held[f"updates/{name}"][1:]
    device.handle(ev.Connected())
    assert "update_quarantined" in device.logs()
    assert device.frames() == []
    assert [(b.state, b.round) for b in device.births()][-1] == ("idle", None), "the round may ask it again"
    device.command(select())
    assert len(device.trains()) == 1


def test_a_chunk_that_is_sent_twice_is_counted() -> None:
    device = Device().ready()
    device.select()
    device.trained()
    assert len(device.frames()) == 2
    device.handle(ev.Disconnected("gone"))
    device.handle(ev.Connected())
    payload = device.frames()[0].payload_sha256.hex()

    device.bitmap(1, payload, "01")
    assert [h.seq for h in device.frames()] == [1, 2], "0 has arrived"
    device.head(closed=(Closed(round=1, attempt=1, outcome="abandoned"),))
    assert device.statuses()[-1].resent == 1
    assert msgspec.structs.replace(device.statuses()[-1], resent=0).spooled == 0


def test_an_update_on_its_way_is_signed_again_when_the_identity_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    key, following = (PrivateKey.from_seed(bytes([seed]) * 32) for seed in (1, 9))
    monkeypatch.setattr(one_device, "KEY", key)
    device = Device().ready()
    device.select()
    device.trained()
    header = device.frames()[0]
    key.become(following)
    device.handle(ev.Disconnected("gone"))
    device.handle(ev.Connected())
    sent: dict[int, bytes] = {}
    while len(sent) < header.nchunks:
        received = sum(1 << seq for seq in sent).to_bytes(1, "little").hex()
        payload = header.payload_sha256.hex()
        device.bitmap(1, payload, received)
        for effect in device.effects:
            assert isinstance(effect, ev.Publish)
            again, chunk = frames.parse(effect.payload, most=1_000_000)
            sent[again.seq] = bytes(chunk)
    body = memoryview(b"".join(sent[seq] for seq in range(header.nchunks)))
    assert frames.signature_holds(following.public, header, body)


def test_the_status_says_that_the_device_was_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = Stored(tmp_path).ready()
    device.select()
    device.trained()
    device.receipt(verdict="refused", reason=REVOKED)
    told = json.loads(status(tmp_path, capsys, "--format", "json"))
    assert told["revoked"]
    assert len(told["updates"]) == 1
    assert "has revoked this device" in status(tmp_path, capsys)
