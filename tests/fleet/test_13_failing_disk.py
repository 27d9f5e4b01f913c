"""Disks that fail under running devices, each in its own way: read-only, with errors, full. They say so, stay, and go on when it is over."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from fleetgrad.hardware.fleet import console_script
from tests.fleet.conftest import DEVICES, SECONDS, Federation, MakeFederation, command

SOURCE = Path(__file__).with_name("failing_disk.c")
WAYS = dict(zip(DEVICES, ("r", "e", "f"), strict=True))


def start_edges(federation: Federation, library: Path) -> None:
    for name in DEVICES:
        (federation.folder(name) / "spool").mkdir()
        (federation.root / name).write_text(".")
        settings = [
            f"LD_PRELOAD={library}", f"FAIL_ROOT={federation.folder(name) / 'spool'}", f"FAIL_MODE={federation.root / name}"
        ]  # fmt: skip
        edge = [console_script("fleetgrad-edge"), "run", "--config", str(federation.folder(name) / "edge.toml")]
        federation.fleet.start(name, ["env", *settings, *edge])


def fail(federation: Federation, name: str, way: str) -> None:
    with (federation.root / name).open("r+") as mode:  # the same file: it is mapped
        mode.write(way)


@pytest.mark.needs("gcc", "mosquitto")
def test_devices_outlive_disks_that_become_read_only_give_errors_or_are_full(
    make_federation: MakeFederation, tmp_path: Path
) -> None:
    library = tmp_path / "failing_disk.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", str(library), str(SOURCE), "-ldl"], check=True)
    federation = make_federation(rounds=1000)
    federation.start_broker()
    federation.start_aggregator()
    start_edges(federation, library)
    federation.until(lambda v: 1 in v.metrics)
    pids = {name: federation.fleet.pid(name) for name in DEVICES}

    for name, way in WAYS.items():
        fail(federation, name, way)
    view = federation.until(lambda v: sum("can't" in d.reason for d in v.devices.values()) == len(DEVICES))
    assert "Traceback" not in "".join(federation.fleet.log(name).read_text() for name in DEVICES)
    done = max(view.metrics)
    for name in DEVICES:
        fail(federation, name, ".")
    end = time.monotonic() + SECONDS
    while not all(
        "accepted" in federation.fleet.log(name).read_text().rpartition("disk_failed")[2] for name in DEVICES
    ):
        federation.fleet.check()
        assert time.monotonic() < end, [federation.fleet.tail(name) for name in DEVICES]
        time.sleep(0.1)
    federation.until(lambda v: max(v.metrics, default=0) > done + 1)

    assert {name: federation.fleet.pid(name) for name in DEVICES} == pids
    federation.fleet.check()
    rows = [json.loads(line) for line in (federation.directory / "rounds.jsonl").read_text().splitlines()]
    assert all(row["members"] <= len(DEVICES) for row in rows)
    for name in DEVICES:
        log = federation.fleet.log(name).read_text()
        assert "Traceback" not in log
        assert "disk_failed" in log
        counted = [line for line in log.splitlines() if line.startswith("receipt") and "verdict=accepted" in line]
        assert len({line.split("round=")[1].split()[0] for line in counted}) == len(counted)
    text = command("fleetgrad-edge", "status", "--config", federation.folder("dev-1") / "edge.toml")
    assert "can't" not in text
