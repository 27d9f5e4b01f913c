"""How a board begins and ends: an ask by a code that goes on after any cut, and a wipe that leaves what is the user's alone."""

import os
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from fleetgrad.broker.registrar.authority import request_key
from fleetgrad.edge import cli, config, daemon, enrolling, leaving, renewing
from fleetgrad.edge.commands import run_command
from fleetgrad.edge.enrolling import Pending, answer_to, finished, kit_of, pending
from fleetgrad.wire import kit as kits
from fleetgrad.wire import mqtt
from fleetgrad.wire.address import Address
from fleetgrad.wire.enrolment import Answer, new_code, prove
from fleetgrad.wire.kit import KitError
from fleetgrad.wire.settings import SettingsError
from tests.edge.test_renewing import CA, DAY, NOW, REGISTRAR, Board

KEY = b"k" * 32


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """One that has all that a device ever has on its disk, and a file of its user's."""
    made = Board(tmp_path)
    (made.folder / "data.npz").write_bytes(b"mine")
    (made.folder / "root.json").write_bytes(b"{}")
    for folder in ("objects", "updates", "residual"):
        (made.folder / "spool" / folder).mkdir(parents=True)
        (made.folder / "spool" / folder / "x").write_bytes(b"")
    (made.folder / "spool" / "edge.sqlite").write_bytes(b"")
    made.now += 61 * DAY
    made.asked()
    pending(made.folder, "c" * 20, "fed", None)
    for name in (".tls.pem.123.tmp", ".device.key.77.tmp"):
        (made.folder / name).write_bytes(b"a key, whose writing was cut short")
    (tmp_path / ".board.enrolling.12.tmp").write_bytes(b"")
    (tmp_path / "..board.enrolling.12.tmp").write_bytes(b"another")
    return made


def all_of(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*")}


def test_wiping_removes_what_is_ours_alone(board: Board, tmp_path: Path) -> None:
    settings, folder = config.load(board.folder / "edge.toml")
    removed, elsewhere = leaving.wipe(board.folder / "edge.toml", settings, folder)
    assert all_of(tmp_path) == {"board", "board/data.npz", ".board.enrolling.12.tmp"}
    assert {"device.key", "device.next", "tls.pem", "tls.next", "edge.toml", "spool/", ".board.enrolling"} <= set(
        removed
    )
    assert elsewhere == []


class Cut(BaseException):
    """The power is gone."""


def test_a_wipe_that_was_cut_short_anywhere_goes_on_when_it_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every removal and sync is the last one once; the command is then run as an operator does, without a broker."""
    names = ("unlink", "rmdir", "fsync")
    real = {name: getattr(os, name) for name in names}
    for cut in range(1000):
        root = tmp_path / str(cut)
        root.mkdir()
        board = Board(root)
        (board.folder / "data.npz").write_bytes(b"mine")
        (board.folder / "spool" / "updates").mkdir(parents=True)
        (board.folder / "spool" / "updates" / "x").write_bytes(b"")
        toml = board.folder / "edge.toml"
        settings, folder = config.load(toml)
        left, done = [cut], False

        def counted(name: str, left: list[int] = left) -> object:
            def call(*args: object, **keywords: object) -> object:
                if left[0] == 0:
                    raise Cut
                left[0] -= 1
                return real[name](*args, **keywords)

            return call

        with monkeypatch.context() as patched:
            for name in names:
                patched.setattr(os, name, counted(name))
            try:
                leaving.wipe(toml, settings, folder)
                done = True
            except Cut:
                pass
        if toml.exists():
            words = ["leave", "--wipe", "--config", str(toml), "--timeout", "0.01"]
            monkeypatch.setattr(sys, "argv", ["fleetgrad-edge", *words])
            assert run_command() == 3
            said = " ".join(capsys.readouterr().err.split())
            assert (
                "fleetgrad device revoke dev-1' run there, unless the board gets a new kit" in said
            )  # which that would end
        assert all_of(root) == {"board", "board/data.npz"}
        if done:
            break
    assert cut >= 12


def test_leave_beside_a_running_daemon_says_to_stop_it(
    board: Board, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = board.folder / "edge.toml"
    monkeypatch.setattr(sys, "argv", ["fleetgrad-edge", "leave", "--wipe", "--config", str(toml)])
    before = all_of(board.folder)
    with daemon.lock(board.folder / "spool"):
        assert run_command() == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "leave refused: a daemon runs on" in said and "Stop it first: 'systemctl stop fleetgrad-edge'" in said
    assert all_of(board.folder) - before == {"spool/lock"}


def test_keys_that_lie_elsewhere_are_named_and_a_link_is_followed(board: Board, tmp_path: Path) -> None:
    toml, disk = board.folder / "edge.toml", tmp_path / "disk"
    (board.folder / "spool").rename(disk)
    (board.folder / "spool").symlink_to(disk)
    (board.folder / "device.key").rename(tmp_path / "shared.key")
    toml.write_text(toml.read_text().replace('key = "device.key"', 'key = "../shared.key"'))
    settings, folder = config.load(toml)
    _, elsewhere = leaving.wipe(toml, settings, folder)
    assert elsewhere == [str(tmp_path / "shared.key")]
    assert not disk.exists()
    assert [p.name for p in board.folder.iterdir()] == ["data.npz"]


@pytest.mark.parametrize("spool", [".", "..", "/", "spool/../", "store"])
def test_a_spool_that_holds_the_settings_or_the_data_is_refused(board: Board, spool: str) -> None:
    toml = board.folder / "edge.toml"
    text = toml.read_text().replace('spool = "spool"', f'spool = "{spool}"').replace("data.npz", "store/data.npz")
    toml.write_text(text)
    with pytest.raises(SettingsError, match="give it a folder of its own"):
        config.load(toml)


def test_an_ask_that_was_begun_goes_on_with_the_same_keys(tmp_path: Path) -> None:
    folder = tmp_path / "edge"
    held = pending(folder, "c" * 20, "fed", None)
    path = tmp_path / ".edge.enrolling"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert pending(folder, "c" * 20, "fed", None) == held
    assert pending(folder, "d" * 20, "fed", None) != held  # another code, other keys
    path.write_bytes(b"noise")
    with pytest.raises(KitError, match="remove it"):
        pending(folder, "c" * 20, "fed", None)


def answered(held: Pending) -> Answer:
    public = REGISTRAR.public.pem().decode()
    key = request_key(held.ask.request, "test")
    certificate = CA.client("dev-1", key, datetime.fromtimestamp(NOW, UTC), 90)
    return Answer(
        nonce=held.ask.nonce, status="enrolled", now=1, device="dev-1", aggregator=public, registrar=public, url="mqtt://127.0.0.1", certificate=certificate
    )  # fmt: skip


def test_what_the_registrar_says_to_another_board_with_the_same_code_ends_nothing(tmp_path: Path) -> None:
    held = pending(tmp_path / "edge", "c" * 20, "fed", None)
    mine = answered(held)
    others = msgspec.structs.replace(
        mine, nonce="f" * 32, status="refused", reason="the code was used by another board"
    )
    assert answer_to(held, KEY, prove(KEY, others)) is None
    assert answer_to(held, KEY, prove(b"x" * 32, mine)) is None
    assert answer_to(held, KEY, prove(KEY, mine)) == mine


def test_joining_by_a_code_whose_end_was_cut_short_is_finished_by_the_same_command(tmp_path: Path) -> None:
    folder = tmp_path / "edge"
    held = pending(folder, "c" * 20, "fed", None)
    assert not finished(folder, "c" * 20)
    kits.install(kit_of(held, answered(held)), folder, rehearse=config.rehearse)
    with pytest.raises(KitError, match="belongs to device 'dev-1' of 'fed' already"):
        finished(folder, "d" * 20)
    assert finished(folder, "c" * 20)
    assert not (tmp_path / ".edge.enrolling").exists()
    with pytest.raises(KitError, match="belongs to device 'dev-1' of 'fed' already"):
        finished(folder, "c" * 20)
    assert renewing.NEXT not in all_of(folder)


def test_what_is_for_boards_with_a_code_is_not_ignored_beside_a_kit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in ("--broker", "--ca", "--federation", "--name"):
        monkeypatch.setattr(sys, "argv", ["fleetgrad-edge", "join", str(tmp_path / "dev-1.kit"), flag, "x"])
        assert run_command() == 2
        assert f"{flag}: only with --code" in " ".join(capsys.readouterr().err.split())


class Deaf:
    """A connection on which nobody answers."""

    connected = True

    def __init__(self, *_: object, inbox: mqtt.Inbox, **__: object) -> None:
        inbox.put(mqtt.Connected())

    def publish(self, *_: object) -> None: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def subscribe(self, _: object) -> None: ...


def test_a_board_that_nobody_answers_says_once_what_must_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "Session", Deaf)
    monkeypatch.setattr(enrolling, "ASK_SECONDS", 0.0)
    said = list[str]()
    endpoint = mqtt.Endpoint(Address("127.0.0.1", 1))
    with pytest.raises(ConnectionError, match="no answer within 2 s: the registrar hasn't answered yet: 'fleetgrad"):
        enrolling.enrol(new_code(), "fed", endpoint, tmp_path / "edge", timeout=2.0, say=said.append)
    assert said == [enrolling.SILENT]


def test_a_federation_whose_name_cannot_be_leaves_no_ask_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["join", "--code", new_code(), "--broker", "mqtt://127.0.0.1:1", "--federation", "Digits", "--timeout", "5"]
    monkeypatch.setattr(sys, "argv", ["fleetgrad-edge", *words, "--into", str(tmp_path / "edge")])
    assert run_command() == 2
    assert "federation name 'Digits' refused" in capsys.readouterr().err
    assert all_of(tmp_path) == set()


def test_what_a_daemon_writes_is_its_owners_alone(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> int:
        return 0 if os.umask(0o077) == 0o077 else 1

    monkeypatch.setattr(daemon, "run", run)
    before = os.umask(0)
    try:
        assert cli.run_daemon(["--config", str(board.folder / "edge.toml")]) == 0
    finally:
        os.umask(before)
