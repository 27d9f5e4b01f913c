"""`fleetgrad-edge doctor` against a real mosquitto over TLS: beside a daemon that it doesn't disturb, and at each fault of the link."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fleetgrad.broker.registrar.authority import Authority, utc
from fleetgrad.hardware.fleet import console_script
from tests.fleet.conftest import SECONDS, MakeSecured, command

Told = dict[str, dict[str, str]]


def doctor(folder: Path, code: int) -> Told:
    """What it finds, by check."""
    text = command(
        "fleetgrad-edge", "doctor", "--config", folder / "edge.toml", "--format", "json", "--timeout", 30, code=code
    )
    return {f["check"]: f for f in json.loads(text)["findings"]}


def failed(told: Told) -> list[str]:
    return [check for check, f in told.items() if f["state"] == "failed"]


@pytest.mark.needs("mosquitto")
def test_the_doctor_finds_each_fault_and_disturbs_nobody(tmp_path: Path, make_secured: MakeSecured) -> None:
    federation = make_secured(rounds=500)
    fleet, registrar = federation.fleet, federation.registrar
    federation.start_broker()
    fleet.aggregator(federation.directory)
    fleet.start("registrar", [console_script("fleetgrad"), "registrar", "serve", str(registrar)])
    board = federation.join("dev-1")
    fleet.edge("dev-1", board / "edge.toml")
    with federation.watch() as watch:
        watch.until(lambda v: 2 in v.metrics, SECONDS)
    told = doctor(board, 0)
    assert {check: f["said"] for check, f in told.items() if f["state"] != "ok"} == {}
    assert {"login", "membership", "head", "aggregator", "daemon", "memory"} <= set(told)

    stranger, names = tmp_path / "stranger", ("edge.toml", "data.npz", "ca.pem", "tls.pem")
    shutil.copytree(board, stranger, ignore=shutil.ignore_patterns("spool"))
    for name, damage, checks, said in damages(tmp_path):
        damage(stranger)
        told = doctor(stranger, 1)
        assert (failed(told), said in told[checks[0]]["said"]) == (checks, True), (name, told)
        for file in names:
            shutil.copy(board / file, stranger / file)

    assert "broker_unreachable" not in fleet.log("dev-1").read_text(), "nobody threw the daemon off"
    fleet.kill("aggregator")
    assert failed(doctor(board, 1)) == ["aggregator"]
    command("fleetgrad", "device", "revoke", "dev-1", "--dir", registrar, "--reason", "stolen")
    assert fleet.wait("dev-1", SECONDS) == 2
    assert "stolen" in doctor(board, 1)["membership"]["said"]
    os.kill(fleet.pid("broker"), signal.SIGHUP)
    end = time.monotonic() + SECONDS
    while "login" not in failed(told := doctor(board, 1)):
        assert time.monotonic() < end
    assert "certificate revoked" in told["login"]["said"]
    fleet.kill("broker")
    assert "port" in failed(doctor(board, 1))


def damages(root: Path) -> list[tuple[str, Callable[[Path], object], list[str], str]]:
    """What can be wrong with a board's files: its name, how it is done, the checks that fail, and what the first says."""
    other = Authority.create("other", utc(time.time()))

    def renamed(folder: Path) -> None:
        toml = folder / "edge.toml"
        toml.write_text(toml.read_text().replace('name = "test"', 'name = "other"'))

    def plain(folder: Path) -> None:
        toml = folder / "edge.toml"
        lines = toml.read_text().replace("mqtts:", "mqtt:").splitlines()
        toml.write_text("\n".join(line for line in lines if not line.startswith(("ca =", "certificate ="))))

    return [
        ("another fleet's CA", lambda f: (f / "ca.pem").write_text(other.pem), ["tls"], "isn't signed by"),
        ("another federation", renamed, ["head", "aggregator"], "none on the broker"),
        ("no TLS", plain, ["login"], "broker"),
    ]
