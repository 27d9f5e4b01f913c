"""The link's bench does what it says: every update that it counts is in the journal, and in the sum."""

from pathlib import Path

import pytest

from fleetgrad.broker.bench import link
from fleetgrad.broker.events import Message


@pytest.fixture
def federation(tmp_path: Path) -> link.Federation:
    made = link.Federation(tmp_path, devices=20, count=4096, chunk_bytes=1024)
    made.ask()
    return made


def test_every_device_is_asked_and_each_update_is_counted_once(federation: link.Federation) -> None:
    assert federation.asked == set(federation.names)
    messages = list(federation.mixed())
    assert len({topic for topic, _ in messages[:32]}) == link.ABREAST
    for topic, frame in messages:
        federation.handle(Message(topic, frame))
    while federation.accepted < 20:
        federation.turn()
    counted = federation.journal.load().contributions
    assert {device for _, _, device in counted} == set(federation.names)
    assert federation.accepted == 20


def test_an_update_that_is_refused_stops_the_bench(federation: link.Federation) -> None:
    federation.count = 2048  # of another model
    with pytest.raises(ValueError, match="update of dev-0: refused"):
        for frame in federation.update("dev-0", link.payload(2048)):
            federation.handle(Message(federation.topics.update("dev-0", 1), frame))


def test_memory_of_uploads_under_way_is_measured_half_way() -> None:
    assert link.memory(5) >= 0
