"""A version taken back between two starts of the aggregator: boards go back to the one before, then on from it."""

import json

from fleetgrad.broker.journal import SqliteJournal
from fleetgrad.broker.server import JOURNAL
from tests.fleet.conftest import DEVICES, MakeFederation, command


def test_boards_go_back_to_the_version_before_and_rounds_go_on(make_federation: MakeFederation) -> None:
    federation = make_federation(kind="embedded", rounds=500)
    federation.start()
    federation.until(lambda v: max(v.metrics, default=0) >= 2)
    federation.fleet.kill(DEVICES[2])  # the round that follows can't close without it
    federation.fleet.kill("aggregator")
    told = command("fleetgrad", "release", "withdraw", federation.root / "federation")
    journal = SqliteJournal(federation.directory / JOURNAL)
    memory = journal.load()
    journal.close()
    current, highest = memory.current.number, memory.highest
    assert (current, memory.taken_back) == (highest - 1, highest)
    assert f"withdrawn: {highest}. Start the aggregator again: version {current} is current" in told
    federation.start_aggregator()
    federation.until(lambda v: [d.version for name, d in v.devices.items() if name in DEVICES[:2]] == [current] * 2)
    federation.start_edge(DEVICES[2])
    view = federation.until(lambda v: max(v.metrics, default=0) > highest)
    assert min(row.version for row in view.metrics.values() if row.round > highest) > highest
    rows = [json.loads(line) for line in (federation.directory / "rounds.jsonl").read_text().splitlines()]
    assert [row["version"] for row in rows][: highest + 1] == list(range(1, highest + 2))
    for name in DEVICES:
        assert "message_dropped" not in federation.fleet.log(name).read_text()
