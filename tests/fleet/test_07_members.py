"""Members come and go over a real mosquitto with the generated files: TLS, a code, a renewal, a revocation, a goodbye."""

import os
import re
import shlex
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import onnx
import paho.mqtt.client as paho
import pytest
from paho.mqtt.client import MQTT_ERR_SUCCESS
from paho.mqtt.enums import CallbackAPIVersion

from fleetgrad.broker import settings, watching
from fleetgrad.edge.autodiff import zoo
from fleetgrad.hardware.fleet import Fleet, console_script, find_mosquitto, free_port
from fleetgrad.wire import kit
from tests.fleet.conftest import SECONDS, MakeSecured, command, samples


@pytest.mark.needs("mosquitto")
def test_boards_join_by_kit_and_by_code_and_leave_over_tls(tmp_path: Path, make_secured: MakeSecured) -> None:
    federation = make_secured(rounds=2, goal=2)
    directory, registrar, fleet = federation.directory, federation.registrar, federation.fleet
    # The registrar reaches neither the roster nor the broker's folder: all it says goes over the broker.
    toml = registrar / "registrar.toml"
    text = re.sub(r'(roster|broker-files) = ".*"', r'\1 = "nowhere"', toml.read_text()).replace(
        f":{federation.port + 1}", f":{federation.enrol_port}"
    )
    toml.write_text(text.replace("certificate-days = 90", "certificate-days = 1"))
    first, second = tmp_path / "first", tmp_path / "second"
    command("fleetgrad", "device", "add", "dev-1", "--dir", registrar)
    toml.write_text(text)  # under which dev-1's certificate is due at once
    federation.start_broker()
    fleet.aggregator(directory)
    fleet.start("registrar", [console_script("fleetgrad"), "registrar", "serve", str(registrar)])
    command("fleetgrad-edge", "join", registrar / "kits" / "dev-1.kit", "--into", first)
    (code,) = command(
        "fleetgrad", "enroll", "new", "--dir", registrar, "--auto-approve", "--kit", tmp_path / "fleet.kit"
    ).split()
    said = command(
        "fleetgrad-edge", "join", tmp_path / "fleet.kit", "--code", code.lower(), "--into", second, "--timeout", 60
    )
    joined = kit.joined(second)
    assert joined is not None
    assert joined.device in said
    for number, folder in enumerate((first, second)):
        np.savez(folder / "data.npz", **samples(100, number))
    fleet.edge("dev-1", first / "edge.toml")
    fleet.edge("second", second / "edge.toml")
    for name, known in {"aggregator": "aggregator-test", "registrar": "registrar-test", "dev-1": "dev-1"}.items():
        while "\nconnected " not in fleet.log(name).read_text():
            fleet.check()
            time.sleep(0.05)
        # Whoever reaches the listener of enrolment, without any certificate.
        stranger = paho.Client(CallbackAPIVersion.VERSION2, client_id=known)
        stranger.tls_set(ca_certs=str(registrar / "ca.pem"))
        stranger.connect("localhost", federation.enrol_port)
        while not stranger.is_connected():
            assert stranger.loop(1.0) == MQTT_ERR_SUCCESS
    with federation.watch() as watch:
        watch.until(lambda v: 2 in v.metrics, SECONDS)
        assert set(watch.view.devices) == {"dev-1", joined.device}
    command("fleetgrad", "device", "revoke", joined.device, "--dir", registrar, "--reason", "stolen")
    assert fleet.wait("second", SECONDS) == 2  # it has heard so, and isn't started again
    assert "reason=stolen" in fleet.log("second").read_text()
    fleet.kill("dev-1")
    said = command("fleetgrad-edge", "leave", "--wipe", "--config", first / "edge.toml", "--timeout", 60)
    assert "the registrar has revoked dev-1" in said
    assert [p.name for p in first.iterdir()] == ["data.npz"]
    assert '"reason": "left"' in command("fleetgrad", "device", "list", "--dir", registrar, "--format", "json")
    fleet.stop()
    said = fleet.log("dev-1").read_text()
    assert "certificate_renewed" in said
    assert "identity_renewed" in said
    assert "renewal_due device=dev-1" in fleet.log("registrar").read_text()
    log = fleet.log("aggregator").read_text()
    assert "broker_unreachable" not in log + fleet.log("registrar").read_text() + said  # nobody threw them off
    assert f"device_enrolled device={joined.device}" in log
    assert "device_revoked device=dev-1" in log


@pytest.mark.needs("mosquitto")
def test_what_new_says_comes_next_is_a_fleet_that_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The printed commands are run as they stand, but for `chown` and for the user that mosquitto becomes."""
    onnx.save(zoo.mlp(inputs=8, hidden=16, classes=3), str(tmp_path / "m.onnx"))
    monkeypatch.chdir(tmp_path)
    port = next(p for p in iter(free_port, 0) if is_free(p + 1))
    flags = ["--broker", f"mqtts://localhost:{port}", "--rounds", 1]
    said = command("fleetgrad", "new", "fed", "--model", "m.onnx", *flags)
    steps = [shlex.split(line, comments=True) for line in said.splitlines() if line.startswith("  ")]
    conf = tmp_path / "fed" / "broker" / "mosquitto.conf"
    conf.write_text(("user root\n" if os.geteuid() == 0 else "") + conf.read_text())
    fleet, lasting = Fleet(tmp_path / "logs"), 0
    try:
        for words in steps:
            if words[0] in ("chown", "mv"):
                assert words[0] == "chown" or subprocess.run(words, check=False).returncode == 0
            elif words[0] == "mosquitto" or words[1:2] in (["serve"], ["run"]) or words[1:3] == ["registrar", "serve"]:
                lasting += 1
                program = find_mosquitto() if words[0] == "mosquitto" else console_script(words[0])
                assert program
                fleet.start(str(lasting), [program, *words[1:]])
                if words[0] == "mosquitto":
                    fleet.await_port(str(lasting), port)
            else:
                command(*words)
            if words[1:3] == ["device", "add"]:  # and carried to the board
                (tmp_path / "dev-01.kit").write_bytes(next(tmp_path.glob("*/kits/dev-01.kit")).read_bytes())
            if words[1] == "join":
                np.savez(tmp_path / "dev-01" / "data.npz", **samples(100, 0))
        assert lasting == 4
        aggregator = tmp_path / "fed" / "aggregator"
        with watching.Watch(settings.load(aggregator).broker.endpoint(aggregator), "fed") as watch:
            watch.until(lambda v: 1 in v.metrics, SECONDS)
    finally:
        fleet.stop()


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
