"""The device's store on a real disk: what is committed stays, what is damaged is found, and nothing of it stops a device for good."""

import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fleetgrad.edge.link import memory
from fleetgrad.edge.link.memory import FIRST_NEW_BOOT, Memory
from fleetgrad.edge.link.store import FILE, Drop, Put, Row, SqliteStore, StoreError, look
from fleetgrad.wire.files import DiskError


def reopened(store: SqliteStore, folder: Path) -> SqliteStore:
    store.close()
    return SqliteStore(folder)


def test_what_is_committed_is_there_after_a_restart(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.commit([Put("update", "1-1", b"one"), Put("update", "2-1", b"two"), Memory(boot=7).row()])
    store.commit([Drop("update", "1-1"), Put("update", "2-1", b"three"), Drop("carried", "")])
    held = reopened(store, tmp_path).load()
    assert held.rows == {("update", "2-1"): b"three", ("memory", ""): msgspec.json.encode(Memory(boot=7))}
    assert held.damaged == {}


def test_it_is_a_write_ahead_log_synced_at_every_commit(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    settings = [store._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert settings == ["wal", 2], "synchronous=NORMAL syncs at checkpoints alone: a power cut would undo commits"


def test_a_commit_that_a_full_disk_refuses_changes_nothing_and_the_next_one_is_taken(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.commit([Put("update", "1-1", b"old")])
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(DiskError, match=r"edge\.sqlite: database or disk is full"):
        store.commit([Put("update", "1-1", b"new"), Put("update", "2-1", bytes(100_000))])
    store._db.execute("PRAGMA max_page_count=1000000")
    assert store.load().rows == {("update", "1-1"): b"old"}
    store.commit([Put("update", "1-1", b"new")])
    assert reopened(store, tmp_path).load().rows == {("update", "1-1"): b"new"}


def junk(path: Path) -> None:
    path.write_bytes(b"junk" * 3000)


def torn_page(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-4096:] = b"\xff" * 4096
    path.write_bytes(raw)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize("spoil", [junk, torn_page, cut])
def test_a_damaged_file_is_set_aside_and_the_device_is_newer_than_it_ever_was(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    store = SqliteStore(tmp_path)
    store.commit([Memory(boot=7).row(), *(Put("update", f"{i}-1", bytes(9000)) for i in range(1, 4))])
    store.close()
    spoil(tmp_path / FILE)
    store = SqliteStore(tmp_path)
    held = store.load()
    assert held.rows == {}
    found, notes = memory.load(held, random.Random(1))
    assert found.boot >= FIRST_NEW_BOOT
    assert "edge.sqlite.bad" in str(notes)
    assert (tmp_path / f"{FILE}.bad").exists()
    again, _ = memory.load(reopened(store, tmp_path).load(), random.Random(2))
    assert again.boot >= FIRST_NEW_BOOT, "nor is it taken for new after a crash before its first commit"


def test_a_file_that_is_damaged_in_use_is_written_anew_with_all_that_was_committed(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.commit([Memory(boot=7).row(), *(Put("update", f"{i}-1", bytes(9000)) for i in range(1, 4))])
    store = reopened(store, tmp_path)
    before = store.load().rows
    with (tmp_path / FILE).open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * ((tmp_path / FILE).stat().st_size - 4096))
    store._db.execute("PRAGMA cache_size=0")
    store._db.execute("PRAGMA shrink_memory")
    store.commit([Put("head", "", b"head")])
    assert store.load().rows == {**before, ("head", ""): b"head"}
    assert (tmp_path / f"{FILE}.bad").exists()
    assert reopened(store, tmp_path).load().rows == {**before, ("head", ""): b"head"}


def removed(folder: Path) -> None:
    (folder / FILE).unlink()


def all_removed(folder: Path) -> None:
    for file in folder.glob(f"{FILE}*"):
        file.unlink()


def log_removed(folder: Path) -> None:
    (folder / f"{FILE}-wal").unlink()


def replaced(folder: Path) -> None:
    with sqlite3.connect(folder / "other") as other:
        other.execute("CREATE TABLE theirs (a)")
    (folder / "other").replace(folder / FILE)


def all_cut(folder: Path) -> None:
    for file in folder.glob(f"{FILE}*"):
        os.truncate(file, 0)


def log_cut(folder: Path) -> None:
    os.truncate(folder / f"{FILE}-wal", 100)


@pytest.mark.parametrize("spoil", [removed, all_removed, log_removed, replaced, all_cut, log_cut])
def test_a_file_that_goes_while_it_is_in_use_is_written_anew_with_all_that_was_committed(
    tmp_path: Path, spoil: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    store = SqliteStore(tmp_path)
    store.commit([Memory(boot=7).row(), Put("head", "", b"head")])
    before = store.load().rows
    spoil(tmp_path)
    store.commit([Put("update", "1-1", b"one")])
    assert look(tmp_path).rows == {**before, ("update", "1-1"): b"one"}
    assert capsys.readouterr().err.count("store_written_anew") == 1
    store.commit([Put("update", "2-1", b"two")])
    assert "store_written_anew" not in capsys.readouterr().err
    assert reopened(store, tmp_path).load().rows == {**before, ("update", "1-1"): b"one", ("update", "2-1"): b"two"}


def test_what_a_full_disk_left_half_written_anew_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(tmp_path)
    store.commit([Put("head", "", b"head")])
    all_removed(tmp_path)

    def full(rows: list[Row]) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_write", full)
        with pytest.raises(DiskError, match="disk is full"):
            store.commit([Put("update", "1-1", b"one")])
    store.commit([Put("update", "2-1", b"two")])
    assert reopened(store, tmp_path).load().rows == {("head", ""): b"head", ("update", "2-1"): b"two"}


def test_a_row_that_rotted_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store.commit([Put("carried", "", b"{}"), Put("head", "", b"head")])
    store._db.execute("UPDATE record SET body=? WHERE kind='carried'", (b"{ ",))
    held = reopened(store, tmp_path).load()
    assert held.rows == {("head", ""): b"head"}
    assert held.damaged == {("carried", ""): "CRC32C doesn't match"}


def test_files_that_are_no_store_of_this_version_are_refused_and_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as other:
        other.execute("CREATE TABLE theirs (a)")
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(StoreError, match="another program's folder"):
        SqliteStore(tmp_path)
    assert (tmp_path / FILE).read_bytes()[100:] == before[100:]
    newer = tmp_path / "newer"
    newer.mkdir()
    store = SqliteStore(newer)
    store._db.execute("PRAGMA user_version=9")
    store.close()
    with pytest.raises(StoreError, match="schema 9, this fleetgrad reads 1"):
        SqliteStore(newer)


def test_a_store_in_use_is_refused_in_words(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    store._db.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="in use by another process"):
        SqliteStore(tmp_path)


def test_a_store_is_read_beside_its_daemon_and_after_it(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no daemon has run"):
        look(tmp_path)
    assert list(tmp_path.iterdir()) == []
    store = SqliteStore(tmp_path)
    store.commit([Put("head", "", b"head")])
    files = sorted(tmp_path.iterdir())
    assert look(tmp_path).rows == {("head", ""): b"head"}
    assert sorted(tmp_path.iterdir()) == files, (
        "no index in mapped memory, which kills whoever has it open when it is cut"
    )
    assert [f.name for f in files] == [FILE, f"{FILE}-wal"]
    store.close()
    assert look(tmp_path).rows == {("head", ""): b"head"}
    junk(tmp_path / FILE)
    with pytest.raises(StoreError, match="not a database"):
        look(tmp_path)
