"""What a user can get wrong, and what an environment can: one clear line, a documented exit code, no traceback."""

import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fleetgrad.hardware.fleet import console_script
from tests.fleet.conftest import SECONDS, MakeFederation, command


def said(*words: object, code: int, cwd: Path | None = None) -> str:
    """Runs one of our commands; its whole output on one line."""
    return re.sub(r"[\s│]+", " ", command(*words, code=code, cwd=cwd))


def test_a_broker_that_is_down_is_tried_again_until_the_timeout(make_federation: MakeFederation) -> None:
    federation = make_federation()
    edge = federation.folder("dev-1") / "edge.toml"
    text = said("fleetgrad-edge", "run", "--config", edge, "--timeout", 2, code=3)
    assert "broker_unreachable" in text
    assert "retry_in" in text
    assert "Connection refused" in text
    text = said("fleetgrad", "serve", federation.directory, "--timeout", 2, code=3)
    assert "broker_unreachable" in text
    assert "gave_up" in text


def test_two_aggregators_on_one_directory_are_refused(make_federation: MakeFederation) -> None:
    federation = make_federation(kind="embedded")
    federation.start_broker()
    federation.start_aggregator()
    federation.until(lambda v: v.aggregator is not None)
    assert "another 'fleetgrad serve'" in said("fleetgrad", "serve", federation.directory, code=2)


@pytest.mark.needs("mosquitto")
def test_two_aggregators_of_one_federation_on_one_broker_say_so(make_federation: MakeFederation) -> None:
    federation = make_federation()
    federation.start_broker()
    copy = federation.root / "copy" / "aggregator"
    shutil.copytree(federation.directory, copy)
    federation.start_aggregator()
    federation.until(lambda v: v.aggregator is not None)
    federation.fleet.start("second", [console_script("fleetgrad"), "serve", str(copy)])
    logs = [federation.fleet.log(name) for name in ("aggregator", "second")]
    end = time.monotonic() + SECONDS
    while not any("another_aggregator" in log.read_text(errors="replace") for log in logs):
        assert time.monotonic() < end, [federation.fleet.tail(name) for name in ("aggregator", "second")]
        time.sleep(0.1)
    said = "".join(log.read_text(errors="replace") for log in logs)
    assert "run one of the two" in said


def test_two_daemons_on_one_spool_are_refused(make_federation: MakeFederation) -> None:
    federation = make_federation(kind="embedded")
    federation.start_broker()
    federation.start_edge("dev-1")
    federation.until(lambda v: "dev-1" in v.devices)
    edge = federation.folder("dev-1") / "edge.toml"
    assert "in use by another daemon" in said("fleetgrad-edge", "run", "--config", edge, code=2)


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "fleetgrad.broker.embedded", "--port", str(port)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command_name", ["serve", "run"])
def test_plain_mqtt_to_another_machine_needs_insecure(make_federation: MakeFederation, command_name: str) -> None:
    federation = make_federation()
    for path in (federation.directory / "federation.toml", federation.folder("dev-1") / "edge.toml"):
        path.write_text(re.sub(r"mqtt://127.0.0.1:\d+", "mqtt://192.0.2.1:1883", path.read_text()))
    edge = federation.folder("dev-1") / "edge.toml"
    words = (
        ("fleetgrad", "serve", federation.directory)
        if command_name == "serve"
        else ("fleetgrad-edge", "run", "--config", edge)
    )
    assert "--insecure" in said(*words, code=2)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("threads = 1", "thread = 1", r"edge.toml:\d+: key 'device.thread': unknown key"),
        ("threads = 1", 'threads = "1"', r"edge.toml:\d+: key 'device.threads': expected `int`, got `str`"),
        ('name = "test"', "", r"key 'federation.name': missing key"),
        ("[broker]", "[broker", "edge.toml"),
        ('path = "data.npz"', 'path = "none.npz"', "none.npz"),
        ('x = "x"', 'x = "images"', "no array 'images'; there are x, y"),
        ('key = "device.key"', 'key = "aggregator.pub"', "isn't an unencrypted private key"),
    ],
)
def test_settings_that_are_wrong_are_named(make_federation: MakeFederation, old: str, new: str, match: str) -> None:
    federation = make_federation()
    edge = federation.folder("dev-1") / "edge.toml"
    assert old in edge.read_text()
    edge.write_text(edge.read_text().replace(old, new))
    text = said("fleetgrad-edge", "run", "--config", edge, "--timeout", 1, code=2)
    assert re.search(match, text), text


def test_a_federation_is_not_made_over_another_nor_twice_a_device(make_federation: MakeFederation) -> None:
    federation = make_federation()
    text = said("fleetgrad", "new", federation.directory, "--model", federation.root / "mlp.onnx", code=2)
    assert "isn't an empty folder" in text
    text = said("fleetgrad", "device", "add", "dev-1", "--dir", federation.directory.parent, code=2)
    assert "exists" in text
    for scale in ("nan", "-1", "0"):
        text = said(
            "fleetgrad", "device", "add", "dev-9", "--dir", federation.directory.parent, "--scale", scale, code=2
        )
        assert "above 0" in text
    assert not (federation.directory / "roster" / "dev-9.jws").exists()
    text = said("fleetgrad", "device", "add", "Dev_1", "--dir", federation.directory.parent, code=2)
    assert "a-z" in text
    assert "fleetgrad new" in said("fleetgrad", "serve", federation.root, code=2)


def test_status_and_watch_say_when_nobody_is_there(make_federation: MakeFederation) -> None:
    federation = make_federation()
    assert "Connection refused" in said("fleetgrad", "status", federation.directory, code=0)
    text = said("fleetgrad", "watch", federation.directory, "--once", "--timeout", 1, code=3)
    assert "Connection refused" in text


def test_data_that_does_not_fit_the_plan_prints_both_shapes_and_trains_nothing(make_federation: MakeFederation) -> None:
    import numpy as np

    federation = make_federation(kind="embedded")
    folder = federation.folder("dev-1")
    np.savez(folder / "data.npz", x=np.zeros((50, 5), np.float32), y=np.zeros(50, np.int64))
    federation.start()
    view = federation.until(lambda v: "dev-1" in v.devices and v.devices["dev-1"].reason != "")
    assert "(5,)" in view.devices["dev-1"].reason
    assert "(8,)" in view.devices["dev-1"].reason


def test_a_broker_nobody_started_and_a_wrong_demo_option_are_named(tmp_path: Path) -> None:
    words = ("fleetgrad", "demo", "--rounds", 1, "--devices", 2, "--runs", tmp_path)
    assert "expected embedded, mosquitto or mqtt://" in said(*words, "--broker", "rabbit", code=2)
    assert "needs --model" in said(*words, "--data", tmp_path / "x.npz", code=2)
    assert "at least 10" in said(*words[:-2], "--runs", tmp_path, "--devices", 400, "--broker", "embedded", code=2)
