"""`fleetgrad-edge doctor`: what it says of each fault of a board, and that it says so whatever is broken."""

import json
import os
import re
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetgrad.broker.registrar.authority import Authority
from fleetgrad.edge import daemon
from fleetgrad.edge.autodiff import zoo
from fleetgrad.edge.autodiff.compiling import compile_model
from fleetgrad.edge.doctor import board as boards
from fleetgrad.edge.doctor import findings, link
from fleetgrad.edge.doctor.board import Board
from fleetgrad.edge.doctor.findings import Finding, Heard
from fleetgrad.edge.link.store import Put, SqliteStore
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.wire import bundle, release
from fleetgrad.wire import kit as kits
from fleetgrad.wire.certificates import key_pem, new_key
from fleetgrad.wire.kit import Kit
from fleetgrad.wire.membership import Member, sign_member
from fleetgrad.wire.messages import HEAD, AggregatorStatus, Head, ObjectRef, Policy
from fleetgrad.wire.plan import Manifest, PlanError
from fleetgrad.wire.release import Role
from fleetgrad.wire.signing import PrivateKey, sign_message

DAY = 86400.0
NOW = 1_800_000_000.0
KEY, AGGREGATOR, REGISTRAR, OTHER = (PrivateKey.from_seed(bytes([i]) * 32) for i in (1, 2, 3, 4))
REF = ObjectRef(sha256="0" * 64, size=1)
ROOT = release.implied("fed", AGGREGATOR.public)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan") / "plan"
    compile_model(zoo.mlp(inputs=8, classes=3), loss="cross-entropy", output=folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A board's, as its kit and its user have made it; nobody listens where its broker should be."""
    now = datetime.now(UTC)
    authority, tls = Authority.create("fed", now), new_key()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kit = Kit(
        federation="fed", url=f"mqtts://127.0.0.1:{port}", device="dev-1", nonce="0" * 32, identity=KEY.pem().decode(),
        certificate=authority.client("dev-1", tls.public_key(), now, 90), key=key_pem(tls), ca=authority.pem,
        aggregator=AGGREGATOR.public.pem().decode(), registrar=REGISTRAR.public.pem().decode(),
    )  # fmt: skip
    made = tmp_path / "board"
    kits.install(kit, made)
    np.savez(made / "data.npz", x=np.zeros((30, 8)), y=np.zeros(30, np.int64))
    return made


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started for the trainer's libraries: the verb's own tests do that."""
    probe = boards._Probe("1", "serial", ["serial"], 60_000_000)
    monkeypatch.setattr(boards, "_trainer", lambda: (probe, Finding("trainer", "start it", "ok", "")))


def found(folder: Path) -> dict[str, Finding]:
    """What is found on the board itself, by check."""
    return {f.check: f for f in boards.examine(folder / "edge.toml") if isinstance(f, Finding)}


def reached(folder: Path, patience: float = 2.0) -> dict[str, Finding]:
    """What is found on the way to the broker."""
    (board,) = [b for b in boards.examine(folder / "edge.toml") if isinstance(b, Board)]
    return {f.check: f for f in link.examine(board, insecure=False, patience=patience)}


def head(key: PrivateKey = AGGREGATOR, **fields: Any) -> bytes:
    return sign_message(key, HEAD, head_of(**fields))


def head_of(sequence: int = 7, version: int = 3, federation: str = "fed") -> Head:
    return Head(
        federation=federation, version=version, plan=REF, params=REF, parent="0" * 64, policy=Policy(), seal="0" * 64, boot=1,
        sequence=sequence, expires=60.0,
    )  # fmt: skip


# --- judgements ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "days", "floor", "state", "said"),
    [
        ("dev-1", 30, 0, "ok", "holds until 2027-"),
        ("dev-1", 61, 0, "note", "should have been renewed"),
        ("dev-1", 91, 0, "failed", "it ended on"),
        ("dev-1", -300, 91, "failed", "it ended on"),
        ("dev-2", 30, 0, "failed", "it is dev-2's"),
    ],
)
def test_a_certificate_is_judged_by_a_time_that_has_passed(
    name: str, days: float, floor: float, state: str, said: str
) -> None:
    begins, ends = NOW, NOW + 90 * DAY
    told = findings.certificate(
        "tls.pem", name, begins, ends, "dev-1", NOW + floor * DAY if floor else 0, NOW + days * DAY
    )
    assert (told.state, said in told.said) == (state, True), told
    assert bool(told.remedy) == (state != "ok")


def test_a_clock_that_is_behind_is_a_note_and_who_else_runs_it_too() -> None:
    assert findings.clock(0.0, NOW).state == "note"
    assert findings.clock(NOW, NOW).state == "ok"
    assert findings.user(1, 1, {1: "fleetgrad"}).state == "ok"
    assert "sudo -u fleetgrad" in findings.user(0, 1, {0: "root", 1: "fleetgrad"}).remedy


@pytest.mark.parametrize(
    ("kind", "free", "state", "said"),
    [
        ("ext4", 100, "ok", "ext4"), ("ext4", 99, "failed", "training needs"), ("tmpfs", 100, "note", "lies in memory"),
        ("overlay", 100, "note", "container"), ("", 100, "ok", "unknown kind"),
    ],
)  # fmt: skip
def test_a_spool_needs_room_on_something_that_lasts(kind: str, free: int, state: str, said: str) -> None:
    told = findings.place("/spool", kind, free, 100)
    assert (told.state, said in told.said) == (state, True), told


def test_memory_is_judged_by_the_limit_and_without_one_by_what_there_is(plan: Path) -> None:
    manifest: Manifest = open_plan(plan).manifest
    mega = 10**6

    def room(limit: int | None, available: int = 10**10, before: int | None = 60 * mega, batch: int = 512) -> Finding:
        return findings.room(manifest, batch, limit, before, available)

    assert (room(None).state, room(10**9).state) == ("ok", "ok")
    assert "max-rss" in room(None, available=10 * mega).remedy
    assert room(None, available=10 * mega).state == "note"
    assert (room(62 * mega).state, "max-rss 7" in room(62 * mega).said) == ("failed", True), room(62 * mega)
    assert room(None, before=None).state == "note"
    assert "no plan is here yet" in findings.room(None, 1, None, mega, mega).said


def membership(raw: bytes | None, **heard: Any) -> Finding:
    return findings.membership(
        Heard(member=raw, **heard), REGISTRAR.public, "fed", "dev-1", [KEY.public, AGGREGATOR.public]
    )


def test_the_registrars_word_is_believed_by_its_signature_alone() -> None:
    def said(key: PrivateKey, by: PrivateKey = REGISTRAR, **fields: Any) -> bytes:
        return sign_member(
            by, Member(federation="fed", device="dev-1", key=key.public.raw.hex(), serial=1, not_after=0, **fields)
        )

    assert membership(said(KEY)).state == "ok"
    assert membership(said(AGGREGATOR)).state == "ok", "the next key, which the registrar has taken already"
    assert membership(said(OTHER)).state == "failed"
    assert membership(said(KEY, by=OTHER)).state == "failed"
    revoked = membership(said(KEY, revoked=True, reason="stolen"))
    assert (revoked.state, "revoked: stolen" in revoked.said) == ("failed", True)
    assert membership(None).state == membership(None, retains=False).state == "note"


def test_a_head_is_taken_by_the_root_that_can_be_followed_to() -> None:
    role = Role(threshold=1, keys=(OTHER.public.raw.hex(),))
    second = release.Root(federation="fed", version=1, root=ROOT.root, release=role)
    roots = {1: release.sign_root(second, [AGGREGATOR])}
    held = head_of()
    assert findings.head(Heard(head=head()), ROOT, None).state == "ok"
    assert "holds it" in findings.head(Heard(head=head()), ROOT, held).said
    assert "one that is 2 older" in findings.head(Heard(head=head(sequence=9)), ROOT, held).said
    assert findings.head(Heard(head=head(OTHER)), ROOT, None).state == "failed"
    assert findings.head(Heard(head=head(OTHER), roots=roots), ROOT, None).state == "ok"
    assert findings.head(Heard(head=head(), roots=roots), ROOT, None).state == "failed"
    older = findings.head(Heard(head=head(sequence=6)), ROOT, held)
    assert (older.state, "7 was seen" in older.said) == ("failed", True)
    assert findings.head(Heard(), ROOT, held).state == "failed"
    assert findings.head(Heard(retains=False), ROOT, held).state == "note"
    refused = findings.head(Heard(refused=["fl1/fed/head: not allowed"]), ROOT, held)
    assert (refused.state, "broker-files" in refused.remedy) == ("failed", True)


def test_an_aggregator_that_is_away_keeps_a_board_from_taking_part() -> None:
    def told(**fields: Any) -> Finding:
        return findings.aggregator(Heard(aggregator=AggregatorStatus(federation="fed", boot=1, **fields)))

    assert told(state="open").state == "ok"
    assert "waits for 1 signatures" in told(state="open", signatures_missing=1).said
    assert told(state="offline").state == findings.aggregator(Heard()).state == "failed"


# --- a board ---------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("quick")
def test_a_board_that_lacks_nothing_is_all_ok_and_stays_as_it_was(folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    said = found(folder)
    assert {check: f.said for check, f in said.items() if f.state == "failed"} == {}
    assert said["spool"].state == said["daemon"].state == "note", "none has run yet"
    assert said["data"].said == "30 samples"
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


@pytest.mark.usefixtures("quick")
def test_each_fault_of_a_board_is_found_by_its_own_check(folder: Path) -> None:
    (folder / "device.key").write_bytes(OTHER.pem().partition(b"-----BEGIN PUBLIC")[0] + KEY.public.pem())
    (folder / "data.npz").write_bytes(b"no zip")
    (folder / "tls.pem").write_text("no certificate")
    (folder / "spool").write_text("no folder")
    said = found(folder)
    assert {check for check, f in said.items() if f.state == "failed"} == {"identity", "data", "certificate", "disk"}
    assert "device.key is damaged" in said["identity"].said
    (folder / "device.key").unlink()
    assert "device.key" in found(folder)["identity"].said
    assert reached(folder)["broker"].state == "failed"


@pytest.mark.usefixtures("quick")
def test_what_this_user_may_not_read_is_said_to_be_the_daemons_users(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> bytes:
        raise PermissionError(13, os.strerror(13))

    (folder / "spool").mkdir()
    SqliteStore(folder / "spool").close()
    for check, owner, name in (
        ("identity", Path, "read_bytes"),
        ("writing", boards, "replace_file"),
        ("spool", boards, "look"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, forbidden)
            told = found(folder)[check]
        assert (told.state, "sudo -u fleetgrad" in told.remedy) == ("failed", True), told
    assert found(folder)["spool"].state == "ok"


def test_a_trainer_that_does_not_start_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for program in ("/bin/false", "/no/such/python"):
        monkeypatch.setattr(sys, "executable", program)
        probe, told = boards._trainer()
        assert (probe, told.state, "pip install" in told.remedy) == (None, "failed", True)


@pytest.mark.usefixtures("quick")
def test_settings_that_cannot_be_read_end_it(folder: Path) -> None:
    toml = folder / "edge.toml"
    toml.write_text(toml.read_text() + "\ncolour = 1\n")
    (only,) = found(folder).values()
    assert (only.check, only.state, "colour" in only.said) == ("settings", "failed", True)


@pytest.mark.usefixtures("quick")
def test_a_disk_that_does_not_sync_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        told = found(folder)["writing"]
    assert (told.state, told.said) == ("failed", "Input/output error")
    assert list(folder.glob(".doctor*")) == []


@pytest.mark.usefixtures("quick")
def test_a_running_daemon_is_seen_without_touching_its_lock(folder: Path) -> None:
    (folder / "spool").mkdir()
    with daemon.lock(folder / "spool"):
        assert found(folder)["daemon"].said == "it runs"
        (folder / "spool" / "link").write_text("mqtt://b: another connection has taken the name 'dev-1'")
        told = found(folder)["daemon"]
    assert (told.state, "has taken the name" in told.said) == ("failed", True)
    assert found(folder)["daemon"].state == "note"


@pytest.mark.usefixtures("quick")
def test_the_installed_plan_is_held_to_max_rss(folder: Path, plan: Path) -> None:
    raw = bundle.pack(plan)
    ref = {"sha256": "a" * 64, "size": len(raw)}
    spool = folder / "spool"
    (spool / "objects").mkdir(parents=True)
    (spool / "objects" / ("a" * 64)).write_bytes(raw)
    store = SqliteStore(spool)
    slot = {"number": 1, "version": 3, "plan": ref, "params": ref}
    store.commit([Put("installed", "a", json.dumps(slot).encode())])
    store.close()
    said = found(folder)
    assert "version 3 is installed" in said["spool"].said
    assert (said["memory"].state, "batches of 16" in said["memory"].said) == ("ok", True), said["memory"]
    toml = folder / "edge.toml"
    toml.write_text(toml.read_text().replace("threads = 1", 'threads = 1\nmax-rss = "1MB"'))
    told = found(folder)["memory"]
    assert (told.state, "MB would do" in told.said) == ("failed", True)


@pytest.mark.parametrize("raw", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_a_bundle_without_a_manifest_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(PlanError, match="plan bundle"):
        bundle.read_manifest(tmp_path / "x")


# --- the way to the broker -------------------------------------------------------------------------------------------
def at(folder: Path, url: str) -> None:
    """Sets the broker's address."""
    toml = folder / "edge.toml"
    toml.write_text(re.sub(r'url = ".*"', f'url = "{url}"', toml.read_text()))


@pytest.mark.usefixtures("quick")
def test_each_layer_on_the_way_is_tried_up_to_the_one_that_fails(folder: Path) -> None:
    def states(patience: float = 2.0) -> list[tuple[str, str]]:
        return [(f.check, f.state) for f in reached(folder, patience).values()]

    assert states() == [("name", "ok"), ("port", "failed")]
    at(folder, "mqtts://no-such-host.invalid")
    assert states() == [("name", "failed")]
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        at(folder, f"mqtts://127.0.0.1:{silent.getsockname()[1]}")
        assert states(0.3) == [("name", "ok"), ("port", "ok"), ("tls", "failed")]
    toml = folder / "edge.toml"
    toml.write_text(re.sub(r'(ca|certificate) = ".*\n', "", toml.read_text()))
    at(folder, "mqtt://192.0.2.1")
    assert "--insecure" in reached(folder)["broker"].said
    (folder / "device.key").unlink()
    at(folder, "mqtt://127.0.0.1:1")
    assert states() == [("name", "ok"), ("port", "failed")], "without its key it still looks for the broker"


@pytest.mark.usefixtures("quick")
def test_a_broker_that_knows_the_device_by_its_name_alone_is_not_logged_in_to(folder: Path) -> None:
    toml = folder / "edge.toml"
    toml.write_text(
        re.sub(r'(ca|certificate) = ".*\n', "", toml.read_text()).replace("[broker]", '[broker]\nprofile = "aws-iot"')
    )
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        at(folder, f"mqtt://127.0.0.1:{silent.getsockname()[1]}")
        told = reached(folder)["login"]
    assert (told.state, "would cut the daemon off" in told.said) == ("note", True)


# --- the verb --------------------------------------------------------------------------------------------------------
def verb(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from fleetgrad.edge.cli import main; main()"]
    return subprocess.run(
        [*program, "doctor", "--config", str(folder / "edge.toml"), *words], capture_output=True, text=True, check=False,
        env=os.environ | environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_the_verb_starts_where_onnxruntime_does_not_and_says_so(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "onnxruntime.py").write_text("raise ImportError('libgomp.so.1: cannot open')\n")
    done = verb(folder, PYTHONPATH=str(tmp_path / "broken"))
    assert (done.returncode, done.stderr) == (1, "")
    assert "failed  trainer" in done.stdout
    assert "libgomp.so.1: cannot open" in done.stdout
    assert done.stdout.rstrip().endswith("failed: trainer, port")


def test_the_verb_tells_programs_as_much(folder: Path) -> None:
    done = verb(folder, "--format", "json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["ok"]) == (1, False)
    (failed,) = [f for f in told["findings"] if f["state"] == "failed"]
    assert (failed["check"], bool(failed["remedy"]), "127.0.0.1" in failed["tried"]) == ("port", True, True)
    trainer = next(f for f in told["findings"] if f["check"] == "trainer")
    assert "the C core runs" in trainer["said"]
