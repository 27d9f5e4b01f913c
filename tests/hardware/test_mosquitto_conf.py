"""The broker configurations that we give away: mosquitto takes them and carries our largest chunk through them."""

import random
import re
from pathlib import Path
from typing import Any

import pytest

from fleetgrad.hardware.fleet import Fleet, find_mosquitto, free_port
from fleetgrad.wire import mqtt
from fleetgrad.wire.address import Address

HARDWARE = Path(__file__).parents[2] / "hardware"
CHUNK = 60 * 1024 + 224  # data, header, signature
SECONDS = 30.0


def test_the_configuration_for_a_machine_listens_on_loopback_alone() -> None:
    text = (HARDWARE / "mosquitto" / "mosquitto.conf").read_text()
    assert re.findall(r"^listener .*$", text, re.MULTILINE) == ["listener 1883 127.0.0.1"]


def follow(inbox: mqtt.Inbox, kind: type) -> Any:
    while not isinstance(event := inbox.get(timeout=SECONDS), kind):
        continue
    return event


@pytest.mark.needs("mosquitto")
@pytest.mark.parametrize("folder", ["mosquitto", "docker"])
def test_mosquitto_takes_the_configuration_and_retains_a_whole_chunk(tmp_path: Path, folder: str) -> None:
    path, port = find_mosquitto(), free_port()
    assert path
    text = (HARDWARE / folder / "mosquitto.conf").read_text()
    config = tmp_path / "mosquitto.conf"
    config.write_text(re.sub(r"^listener .*$", f"listener {port} 127.0.0.1", text, flags=re.MULTILINE))
    fleet = Fleet(tmp_path / "logs")
    payload = random.Random(7).randbytes(CHUNK)
    try:
        fleet.start("broker", [path, "-c", str(config)])
        fleet.await_port("broker", port)
        sender: mqtt.Inbox = mqtt.Inbox()
        session = mqtt.Session(Address("127.0.0.1", port), "a", inbox=sender, will=None, random=random.Random(1))
        session.start()
        follow(sender, mqtt.Connected)
        assert session.publish("fl1/t/m/0123456789abcdef/0", payload, retain=True)
        session.subscribe(["fl1/t/m/0123456789abcdef/0"])
        assert follow(sender, mqtt.Message).payload == payload  # so the broker has it
        inbox: mqtt.Inbox = mqtt.Inbox()
        late = mqtt.Session(Address("127.0.0.1", port), "b", inbox=inbox, will=None, random=random.Random(2))
        late.start()
        follow(inbox, mqtt.Connected)
        late.subscribe(["fl1/t/m/0123456789abcdef/0"])
        message = follow(inbox, mqtt.Message)
        assert message.retained
        assert message.payload == payload
        late.stop()
        session.stop()
    finally:
        fleet.stop()
