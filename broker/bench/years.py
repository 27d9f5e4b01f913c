"""What years of rounds cost an aggregator: the time to start, the memory and the disk, by a journal and a rounds.jsonl that are made up.

100,000 versions are two years of a round in ten minutes; ten devices are counted in each.
"""

import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from fleetgrad.broker.announcing import GENESIS, version_record
from fleetgrad.broker.journal import Attempt, Config, Contribution, Ledger, Row, SqliteJournal
from fleetgrad.broker.results import ROUNDS, Results
from fleetgrad.native.bench.kernels import row
from fleetgrad.wire.messages import Metrics, ObjectRef, Policy

VERSIONS, DEVICES = 100_000, 10
A_COMMIT = 500  # versions


def rows() -> list[dict[str, Any]]:
    """Figures of a start on such a folder; the peer is what a start on the first version takes."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as last:
        for folder, versions in ((first, 1), (last, VERSIONS)):
            make(Path(folder), versions)
        few, _ = start(Path(first))
        seconds, held = start(Path(last))
        disk = (Path(last) / "journal.sqlite").stat().st_size, (Path(last) / ROUNDS).stat().st_size
    return [
        row("journal", disk[0] / VERSIONS, "bytes a version", f"{DEVICES} updates counted in each"),
        row(ROUNDS, disk[1] / VERSIONS, "bytes a version", ""),
        row("journal and results read at a start", seconds, "s", f"{few:.2g} s with one version"),
        row("memory kept of it", held / 1e6, "MB", ""),
    ]


def start(folder: Path) -> tuple[float, float]:
    """Seconds until a start has read the folder, and bytes that it keeps in memory then."""
    before, began = _rss(), time.perf_counter()
    journal = SqliteJournal(folder / "journal.sqlite")
    ledger, results = Ledger(journal), Results(folder)
    results.check(ledger.memory)
    assert results.versions().issuperset(journal.line()[1:])
    seconds = time.perf_counter() - began
    held = _rss() - before
    journal.close()
    return seconds, held


def make(folder: Path, versions: int) -> None:
    """Rounds that were never run."""
    journal, policy = SqliteJournal(folder / "journal.sqlite"), Policy()
    config = policy.sha256()
    version = version_record(0, ObjectRef(sha256="0" * 64, size=4000), GENESIS, config, [], 0)
    rows: list[Row] = [Config(config, msgspec.json.encode(policy).decode()), version]
    with (folder / ROUNDS).open("wb") as results:
        for number in range(1, versions + 1):
            members = [
                Contribution(number, 1, f"dev-{i:02d}", _hash(f"{number} {i}"), 4000, 100, 10, 0.5, 8.125)
                for i in range(DEVICES)
            ]
            ref = ObjectRef(sha256=_hash(str(number)), size=4000)
            version = version_record(number, ref, version.sha256, config, members, number)
            rows += [*members, Attempt(number, 1, "published", number - 1, config), version]
            reported = Metrics(
                round=number, version=number, members=DEVICES, accuracy=0.9123, loss=0.51234, bytes_up=40_000,
                bytes_down=20_000, seconds=12.345, codec="blk8", bits=8.125,
            )  # fmt: skip
            results.write(msgspec.json.encode(reported) + b"\n")
            if number % A_COMMIT == 0 or number == versions:
                journal.commit(rows)
                rows.clear()
    journal.close()


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def _rss() -> float:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096.0
