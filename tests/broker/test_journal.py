"""The SQLite journal: what was committed is there after kill -9; foreign and locked files are refused."""

import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from fleetgrad.broker.closing import KEPT_VERSIONS
from fleetgrad.broker.gathering import RECORDS
from fleetgrad.broker.journal import (
    CLOSED_SHOWN,
    KEPT_ATTEMPTS,
    KEPT_COUNTED,
    KEPT_LINE,
    Attempt,
    Boot,
    Config,
    Contribution,
    JournalError,
    Ledger,
    Memory,
    Row,
    SqliteJournal,
    Version,
    Withdrawn,
)
from fleetgrad.broker.results import Results, read_rounds
from fleetgrad.wire.files import DiskError
from fleetgrad.wire.messages import Metrics

ROWS: list[Row] = [
    Boot(1),
    Config("cc", "{}"),
    Attempt(1, 1, "open", 0, "cc"),
    Attempt(1, 1, "collecting", 0, "cc"),
    Contribution(1, 1, "dev-1", "ab", 10, 20, 3, 0.5, 8.5),
    Version(0, "aa", 40, "00", "bb", "{}"),
]


def test_rows_are_read_back_as_they_were_committed(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "j")
    journal.commit(ROWS)
    journal.close()
    memory = SqliteJournal(tmp_path / "j").load()
    assert memory.boot == 1
    assert memory.configs == {"cc": "{}"}
    assert memory.attempts == {(1, 1): ROWS[3]}
    assert memory.contributions == {(1, 1, "dev-1"): ROWS[4]}
    assert memory.versions == [ROWS[5]]


def test_memory_keeps_what_is_recent_however_long_it_runs_and_the_journal_all(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "j")
    ledger, rounds = Ledger(journal), 2 * KEPT_ATTEMPTS
    ledger.commit([Version(0, "aa", 40, "00", "s0", "{}")])
    for number in range(1, rounds + 1):
        for attempt, end in ((1, "abandoned"), (2, "published")):
            key = number, attempt
            ledger.commit([Attempt(*key, "open", number - 1, "cc")])
            counted = [Contribution(*key, f"dev-{i}", f"{key}{i}", 10, 20, 3, 0.5, 8.5) for i in range(3)]
            version = Version(number, "aa", 40, "00", f"s{number}", f'{{"round":{number}}}')
            done: list[Row] = [version] if end == "published" else []
            ledger.commit([*counted, *done, Attempt(*key, end, number - 1, "cc")])  # type: ignore[arg-type]
        if number % 40 == 0:
            ledger.commit([Withdrawn(number), Withdrawn(number - 1)])
        held = ledger.memory
        assert len(held.attempts) <= KEPT_ATTEMPTS
        assert len(held.contributions) <= 3 * KEPT_COUNTED
        assert len(held.versions) <= KEPT_LINE + 1
        assert len(held.withdrawn) <= KEPT_LINE
    again = Ledger(journal)
    held.keep()
    assert again.memory == held
    for memory in (ledger, again):
        assert memory.memory.highest == rounds
        for number in range(1, rounds + 1):
            found, before = memory.counted(number, 2, "dev-2"), memory.attempt(number, 1)
            assert found is not None
            assert before is not None
            assert (found.payload, before.state) == (f"{(number, 2)}2", "abandoned")
        for unknown in ((1, 1, "dev-3"), (2, 3, "dev-1"), (rounds + 1, 1, "dev-1")):
            assert memory.counted(*unknown) is None
        assert memory.attempt(2, 3) is memory.attempt(rounds + 1, 1) is None
    whole = journal.load()
    assert (len(whole.contributions), len(whole.attempts)) == (6 * rounds, 2 * rounds)
    assert journal.line() == [v.number for v in whole.versions]
    version, policy, members = journal.origin(3)
    assert (version, policy, [m.payload for m in members]) == (
        whole.versions[3],
        None,
        [f"(3, 2){i}" for i in range(3)],
    )


def test_what_is_kept_is_enough_for_the_disk_and_for_co_signers() -> None:
    assert max(KEPT_VERSIONS, RECORDS) < KEPT_LINE
    assert CLOSED_SHOWN < KEPT_ATTEMPTS


def test_a_commit_that_a_full_disk_refuses_changes_nothing_and_the_next_one_is_taken(tmp_path: Path) -> None:
    ledger = Ledger(journal := SqliteJournal(tmp_path / "j"))
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(DiskError, match="database or disk is full"):
        ledger.commit([Boot(1), *(Config(str(i), "x" * 3000) for i in range(50))])
    journal._db.execute("PRAGMA max_page_count=1000000")
    assert ledger.memory == journal.load() == Memory()
    ledger.commit([Boot(1)])
    assert journal.load().boot == 1


def test_withdrawn_versions_are_read_back_as_such_whatever_came_after(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "j")
    versions = [Version(number, f"p{number}", 40, "00", f"s{number}", f"r{number}") for number in range(7)]
    rows: list[Row] = [*versions[:4], Withdrawn(2), Withdrawn(3), *versions[4:6], Withdrawn(5), versions[6]]
    journal.commit(rows)
    memory = Memory()
    assert (memory.highest, memory.taken_back) == (-1, None)
    for row in rows:
        memory.apply(row)
    for held in (memory, journal.load()):
        assert [v.number for v in held.versions] == [0, 1, 4, 6]
        assert [v.number for v in held.withdrawn] == [2, 3, 5]
        assert (held.highest, held.taken_back) == (6, None)
        assert held.records() == [f"r{number}" for number in range(6)]
    journal.commit([Withdrawn(1), Withdrawn(4), Withdrawn(6)])
    assert (journal.load().highest, journal.load().taken_back) == (6, 6)


def test_a_commit_is_all_or_nothing(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "j")
    journal.commit(ROWS)
    with pytest.raises(JournalError):
        journal.commit([Attempt(2, 1, "open", 0, "cc"), ROWS[4]])  # the second row's key is taken
    assert set(journal.load().attempts) == {(1, 1)}


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "j")
    program = f"from pathlib import Path; from fleetgrad.broker.journal import *; SqliteJournal(Path({str(tmp_path / 'j')!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "another 'fleetgrad serve' is running" in done.stderr
    journal.close()


def test_a_journal_with_a_flipped_bit_is_refused_unless_it_says_the_same(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    rng, path, rows = random.Random(seed), tmp_path / "j", list(ROWS)
    rows += [Contribution(1, 1, f"dev-{i}", f"{i}" * 64, 10, 20, 3, float(i), 8.5) for i in range(2, 20)]
    rows += [Version(1, "ab", 40, "bb", "cc", "{}"), Version(2, "ac", 40, "cc", "dd", "{}"), Withdrawn(2)]
    journal = SqliteJournal(path)
    journal.commit(rows)
    expected = journal.load()
    journal.close()
    whole, refused = path.read_bytes(), 0
    for _ in range(150):
        raw = bytearray(whole)
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
        try:
            journal = SqliteJournal(path)
        except JournalError:
            refused += 1
            continue
        try:
            assert journal.load() == expected
        except JournalError:
            refused += 1
        finally:
            journal.close()
    assert refused > 0


def test_a_journal_whose_schema_is_no_text_any_more_is_refused(tmp_path: Path) -> None:
    SqliteJournal(tmp_path / "j").close()
    raw = (tmp_path / "j").read_bytes()
    broken = raw.replace(b"tableattempt", b"table\xe8ttempt").replace(b"CREATE TABLE attempt", b"CREATE TABLX attempt")
    (tmp_path / "j").write_bytes(broken)
    with pytest.raises(JournalError, match="malformed"):
        SqliteJournal(tmp_path / "j")


@pytest.mark.parametrize("file", ["j", "j-wal"])
def test_nothing_is_promised_by_a_journal_that_someone_has_removed(tmp_path: Path, file: str) -> None:
    journal = SqliteJournal(tmp_path / "j")
    journal.commit(ROWS)
    (tmp_path / file).rename(tmp_path / "elsewhere")
    with pytest.raises(JournalError, match="was removed, replaced or cut"):
        journal.commit([Boot(2)])
    (tmp_path / "elsewhere").rename(tmp_path / file)
    journal.commit([Boot(2)])
    assert journal.load().boot == 2


def test_a_journal_that_is_older_than_what_was_reported_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = Metrics(round=2, version=2, members=3, accuracy=None, loss=0.5, bytes_up=1, bytes_down=1, seconds=None)
    (tmp_path / "rounds.jsonl").write_bytes(msgspec.json.encode(row) + b"\n")
    versions = [Version(i, "ab", 40, "bb", "cc", "{}") for i in range(4)]
    for known in (versions[3:], versions[2:3]):
        Results(tmp_path).check(Memory(versions=known))
    Results(tmp_path).check(Memory(versions=versions[:1], withdrawn=versions[1:3]))
    for known in ([], versions[:2]):
        with pytest.raises(ValueError, match="tells of version 2"):
            Results(tmp_path).check(Memory(versions=known))
    (tmp_path / "rounds.jsonl").write_bytes(b"\x00" * 30)
    with pytest.raises(ValueError, match=r"rounds\.jsonl isn't a list of rounds.*remove it"):
        Results(tmp_path).check(Memory(versions=versions))
    (tmp_path / "rounds.jsonl").unlink()
    capsys.readouterr()
    Results(tmp_path).check(Memory())
    assert not capsys.readouterr().err, "a federation that has just been made has none"
    Results(tmp_path).check(Memory(versions=versions))
    assert "reports_missing" in capsys.readouterr().err


def test_half_a_row_that_a_crash_left_is_cut_off_and_nothing_is_written_twice(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    rows = [
        Metrics(round=i, version=i, members=3, accuracy=None, loss=0.5, bytes_up=1, bytes_down=1, seconds=None)
        for i in range(1, 5)
    ]
    for i, row in enumerate(rows):
        results = Results(tmp_path)
        assert (results.newest, results.versions()) == (i, set(range(1, i + 1)))
        results.add(row)
        whole = path.read_bytes()
        for torn in (b"{", b'{"round":9,"ver', msgspec.json.encode(rows[0])):
            path.write_bytes(whole + torn)
            assert read_rounds(path) == rows[: i + 1]
    whole = path.read_bytes()[: -len(msgspec.json.encode(rows[0]))]
    results.add(rows[0])  # over what the last crash has left, by who wrote last
    assert path.read_bytes() == whole + msgspec.json.encode(rows[0]) + b"\n"
    path.unlink()  # by someone, while it runs
    results.add(rows[1])
    results.add(rows[2])
    assert read_rounds(path) == rows[1:3]
    path.write_bytes(whole + b"x\n" + whole)
    with pytest.raises(ValueError, match="isn't a list of rounds"):
        Results(tmp_path)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database at all, but long enough to be read as one " * 20)
    with pytest.raises(JournalError, match="not a database"):
        SqliteJournal(tmp_path / "text")
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE t (x)")
    with pytest.raises(JournalError, match="not a journal"):
        SqliteJournal(tmp_path / "other")


def test_what_a_killed_process_had_committed_is_there(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from fleetgrad.broker.journal import *\n"
        f"j = SqliteJournal(Path({str(tmp_path / 'j')!r}))\n"
        "for i in range(1, 100000):\n"
        "    j.commit([Boot(i), Attempt(i, 1, 'open', 0, '')]); print(i, flush=True)"
    )
    for _ in range(3):
        (tmp_path / "j").unlink(missing_ok=True)
        (tmp_path / "j-wal").unlink(missing_ok=True)
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        told = [int(child.stdout.readline()) for _ in range(25)]
        os.kill(child.pid, 9)
        told += [int(line) for line in child.stdout.read().splitlines() if line.strip()]
        child.wait()
        journal = SqliteJournal(tmp_path / "j")
        memory = journal.load()
        assert memory.boot >= told[-1]
        assert set(memory.attempts) == {(i, 1) for i in range(1, memory.boot + 1)}
        journal.close()
