"""Disks that fail under running devices, each in its own way: read-only, with errors, full. They say so, stay, and go on when it is over."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from fleetgrad.hardware.fleet import console_script
from tests.fleet.conftest import DEVICES, SECONDS, Federation, MakeFederation

SOURCE = Path(__file__).with_name("failing_disk.c")
WELL, READ_ONLY, ERRORS, FULL = ".", "r", "e", "f"
WAYS = dict(zip(DEVICES, (READ_ONLY, ERRORS, FULL), strict=True))
pytestmark = pytest.mark.needs("gcc", "mosquitto")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("library") / "failing_disk.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", str(made), str(SOURCE), "-ldl"], check=True)
    return made


def fail(federation: Federation, name: str, way: str) -> None:
    """From now on; the file is mapped by the device's processes."""
    with (federation.root / name).open("r+") as mode:
        mode.write(way)


def settings(federation: Federation, library: Path, name: str, folder: Path) -> dict[str, str]:
    """The environment of a device whose disk can fail in `folder`."""
    (federation.root / name).write_text(WELL)
    folder.mkdir(exist_ok=True)
    return {"LD_PRELOAD": str(library), "FAIL_ROOT": str(folder), "FAIL_MODE": str(federation.root / name)}


def test_devices_outlive_disks_that_become_read_only_give_errors_or_are_full(
    make_federation: MakeFederation, library: Path
) -> None:
    federation = make_federation(rounds=1000)
    federation.start_broker()
    federation.start_aggregator()
    for name in DEVICES:
        variables = settings(federation, library, name, federation.folder(name) / "spool")
        edge = [console_script("fleetgrad-edge"), "run", "--config", str(federation.folder(name) / "edge.toml")]
        federation.fleet.start(name, ["env", *(f"{k}={v}" for k, v in variables.items()), *edge])
    federation.until(lambda v: 1 in v.metrics)

    for name, way in WAYS.items():
        fail(federation, name, way)
    view = federation.until(lambda v: sum("can't" in d.reason for d in v.devices.values()) == len(DEVICES))
    done = max(view.metrics, default=0)
    for name in DEVICES:
        fail(federation, name, WELL)
    logs = {name: federation.fleet.log(name) for name in DEVICES}
    end = time.monotonic() + SECONDS
    while not all("accepted" in log.read_text().rpartition("disk_failed")[2] for log in logs.values()):
        federation.fleet.check()
        assert time.monotonic() < end, [federation.fleet.tail(name) for name in DEVICES]
        time.sleep(0.1)
    federation.until(lambda v: max(v.metrics, default=0) > done + 1)

    federation.fleet.check()  # none of them has ended
    rows = [json.loads(line) for line in (federation.directory / "rounds.jsonl").read_text().splitlines()]
    assert all(row["members"] <= len(DEVICES) for row in rows)
    for log in logs.values():
        lines = log.read_text().splitlines()
        assert not [line for line in lines if "Traceback" in line]
        counted = [line.split("round=")[1].split()[0] for line in lines if "receipt" in line and "accepted" in line]
        assert len(set(counted)) == len(counted)


@pytest.mark.parametrize(
    ("way", "folder", "says"),
    [
        (READ_ONLY, "spool", "Read-only file system"), (ERRORS, "spool", "Input/output error"), (FULL, "spool", "is full"),
        (ERRORS, ".", "Input/output error"),
    ],
)  # fmt: skip
def test_a_start_on_such_a_disk_is_one_line_and_may_be_tried_again(
    make_federation: MakeFederation, library: Path, way: str, folder: str, says: str
) -> None:
    federation = make_federation()
    variables = settings(federation, library, "dev-1", federation.folder("dev-1") / folder)
    fail(federation, "dev-1", way)
    done = subprocess.run(
        [console_script("fleetgrad-edge"), "run", "--config", str(federation.folder("dev-1") / "edge.toml")],
        env={**os.environ, **variables}, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
