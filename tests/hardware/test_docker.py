"""The container files agree with each other, with the command line and with the wire."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from fleetgrad.edge import config
from fleetgrad.wire import address

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "hardware" / "docker"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    assert isinstance(found, dict)
    return found


def test_no_container_can_be_reached_from_outside(compose: dict[str, Any]) -> None:
    assert compose["networks"]["fleet"]["internal"] is True
    for name, service in compose["services"].items():
        assert service["networks"] == ["fleet"], name
        assert "ports" not in service, name


def test_devices_and_aggregator_start_after_the_federation_is_founded(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"broker", "found", "aggregator", "edge"}
    for name in ("aggregator", "edge"):
        assert services[name]["depends_on"]["found"]["condition"] == "service_completed_successfully"
        assert services[name]["volumes"] == services["found"]["volumes"]
    assert services["found"]["environment"]["DEVICES"] == f"${{DEVICES:-{services['edge']['scale']}}}"


def test_the_founding_names_the_broker_container(compose: dict[str, Any]) -> None:
    where = address.parse(compose["services"]["found"]["environment"]["BROKER"])
    assert where.host in compose["services"]
    assert f"listener {where.port}" in (DOCKER / "mosquitto.conf").read_text()


def test_the_founding_makes_once_what_the_other_containers_look_for(compose: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "found.sh"
    text = (DOCKER / "found.sh").read_text().replace("/federation/run", f"{tmp_path}/run")
    path.write_text(text.replace("--runs /federation ", f"--runs {tmp_path} "))
    given = {"BROKER": "mqtt://broker:1883", "DEVICES": "3", "ROUNDS": "2"}
    environment = {**os.environ, **given, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    keys = []
    for _ in range(2):  # the second time it finds a federation and leaves it alone
        done = subprocess.run(
            ["sh", str(path)], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        keys.append((tmp_path / "run" / "federation" / "aggregator" / "keys" / "aggregator.key").read_bytes())
    assert keys[0] == keys[1]
    assert compose["services"]["aggregator"]["command"] == ["fleetgrad", "serve", "/federation/run/federation"]
    assert "for device in /federation/run/federation/devices/*/" in (DOCKER / "edge.sh").read_text()
    edges = sorted((tmp_path / "run" / "federation" / "devices").glob("*/edge.toml"))
    assert [e.parent.name for e in edges] == ["dev-1", "dev-2", "dev-3"]
    for edge in edges:
        settings, folder = config.load(edge)
        assert (folder / settings.data.path).is_file()
        assert settings.broker.url == given["BROKER"]
        assert settings.broker.insecure  # the broker is another container


def test_whatever_compose_starts_is_in_the_image(compose: dict[str, Any]) -> None:
    image = (DOCKER / "Dockerfile").read_text()
    scripts = ("python", "fleetgrad", "fleetgrad-edge")
    for name, service in compose["services"].items():
        program = service["command"][0]
        assert program in scripts or re.search(rf"[\s/]{re.escape(program)}\b", image), name
    for copied in re.findall(r"hardware/\S+\.(?:sh|conf)", image):
        assert (ROOT / copied).is_file(), copied


def test_the_base_image_can_be_chosen(compose: dict[str, Any]) -> None:
    image = (DOCKER / "Dockerfile").read_text()
    default = re.search(r"^ARG BASE_IMAGE=(\S+)$", image, re.MULTILINE)
    assert default is not None
    assert set(re.findall(r"^FROM (\S+)", image, re.MULTILINE)) == {"${BASE_IMAGE}"}
    assert compose["services"]["broker"]["build"]["args"]["BASE_IMAGE"] == f"${{BASE_IMAGE:-{default.group(1)}}}"


def test_two_containers_never_become_the_same_device(tmp_path: Path) -> None:
    devices = tmp_path / "devices"
    for name in ("dev-1", "dev-2"):
        (devices / name).mkdir(parents=True)
    script = (DOCKER / "edge.sh").read_text().replace("/federation/run/federation/devices", str(devices))
    # Stands for the daemon: says who it is and lives until its input ends.
    script = re.sub(r"exec fleetgrad-edge run --config (\S+)", r"echo \1; exec cat", script)
    path = tmp_path / "edge.sh"
    path.write_text(script)
    running, claimed = [], []
    for _ in range(2):
        child = subprocess.Popen(["sh", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        claimed.append(Path(child.stdout.readline().strip()).parent.name)
        running.append(child)
    third = subprocess.run(["sh", str(path)], input="", capture_output=True, text=True, timeout=60, check=False)
    assert sorted(claimed) == ["dev-1", "dev-2"]
    assert third.returncode == 2
    assert "every device" in third.stderr
    running[0].communicate("")
    again = subprocess.run(["sh", str(path)], input="", capture_output=True, text=True, timeout=60, check=False)
    assert Path(again.stdout.strip()).parent.name == claimed[0]
    running[1].communicate("")
