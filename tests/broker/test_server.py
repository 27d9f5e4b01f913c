"""The aggregator's shell, without a broker: what is in its inbox, and what it says of that."""

from pathlib import Path

import onnx
import pytest

from fleetgrad.broker import founding
from fleetgrad.broker.server import MOST_CHUNKS, Server
from fleetgrad.broker.settings import Settings
from fleetgrad.wire import mqtt
from fleetgrad.wire.messages import WINDOW
from tests.edge.test_batch_norm import network


def test_a_device_that_sends_more_than_was_granted_is_counted_and_told_of_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(network(), tmp_path / "model.onnx")
    founding.create(tmp_path / "fed", tmp_path / "model.onnx", Settings(name="fed"), registrar=tmp_path / "elsewhere")
    server = Server(tmp_path / "fed" / "aggregator", insecure=False, timeout=0, exit_when_done=False)
    assert MOST_CHUNKS >= 2 * (WINDOW + 1), "what is sent again after a lost connection must fit"
    for _ in range(MOST_CHUNKS + 100):
        server._loop.inbox.put(mqtt.Message("fl1/fed/up/0/flood", b"no frame"))
    server._loop.inbox.put(mqtt.Message("fl1/fed/up/0/other", b"no frame"))
    server._loop.stop()
    assert server.run() == 0
    drops = server._rounds.drops
    assert drops.pop(f"more than {MOST_CHUNKS} messages of the device wait unread") == 100
    assert sum(drops.values()) == MOST_CHUNKS + 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("messages_left_out")]
    assert "topic=fl1/fed/up/0/flood" in line
    assert "messages=100" in line
