"""Heads that two machines must sign: nothing is trained before the second has, which then goes and comes again, over TLS."""

import os
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from fleetgrad.broker import founding, settings, watching
from fleetgrad.edge.autodiff import zoo
from fleetgrad.hardware.fleet import Fleet, console_script, find_mosquitto, free_port
from fleetgrad.wire.messages import Training
from tests.fleet.conftest import SECONDS, samples
from tests.fleet.test_07_members import command

ROUNDS, DEVICES = 4, ("dev-1", "dev-2")


@pytest.mark.needs("mosquitto")
def test_a_co_signer_on_another_machine_must_go_along_with_every_head(tmp_path: Path) -> None:
    onnx.save(zoo.mlp(inputs=8, hidden=16, classes=3), str(tmp_path / "m.onnx"))
    port, enrol_port = free_port(), free_port()
    directory, registrar, folder = tmp_path / "fed", tmp_path / "registrar", tmp_path / "cosigner"
    founding.create(
        directory,
        tmp_path / "m.onnx",
        settings.Settings(
            name="test",
            broker=settings.Broker(url=f"mqtts://localhost:{port}"),
            training=Training(local_epochs=1),
            round=settings.Round(rounds=ROUNDS),
        ),
        registrar=registrar,
    )
    conf = directory / "broker" / "mosquitto.conf"
    user = "user root\n" if os.geteuid() == 0 else ""
    conf.write_text(user + conf.read_text().replace(f"listener {port + 1}", f"listener {enrol_port}"))
    key = tmp_path / "key"
    command("fleetgrad", "release", "key", "release-2", "-o", key)
    keys = [word for path in (directory / "aggregator/keys/aggregator.pub", key / "release-2.pub")
            for word in ("--release", path)]  # fmt: skip
    command("fleetgrad", "release", "rotate", directory, *keys, "--release-threshold", 2)
    command("fleetgrad", "release", "export", directory, "-o", folder)
    command("fleetgrad", "registrar", "login", "cosigner", "--dir", registrar, "-o", folder / "tls.pem")
    fleet = Fleet(tmp_path / "logs")

    def cosign(*flags: str) -> None:
        words = ["release", "cosign", str(folder), "--key", str(key / "release-2.key"), *flags]
        fleet.start("cosigner", [console_script("fleetgrad"), *words])

    try:
        mosquitto = find_mosquitto()
        assert mosquitto
        fleet.start("broker", [mosquitto, "-c", str(conf)])
        fleet.await_port("broker", port)
        fleet.aggregator(directory)
        for number, name in enumerate(DEVICES):
            command("fleetgrad", "device", "add", name, "--dir", registrar)
            command("fleetgrad-edge", "join", registrar / "kits" / f"{name}.kit", "--into", tmp_path / name)
            np.savez(tmp_path / name / "data.npz", **samples(100, number))
            fleet.edge(name, tmp_path / name / "edge.toml")
        config = settings.load(directory / "aggregator")
        with watching.Watch(config.broker.endpoint(directory / "aggregator"), "test") as watch:
            watch.until(lambda v: bool(v.aggregator and v.aggregator.members == len(DEVICES)), SECONDS)
            said = command("fleetgrad", "status", directory)
            assert "the newest head waits for 1 more of the signatures of " in " ".join(said.split())
            cosign()
            end = time.monotonic() + SECONDS
            while "candidate_refused" not in fleet.log("cosigner").read_text():
                assert time.monotonic() < end, fleet.tail("cosigner")
                time.sleep(0.05)
            fleet.kill("cosigner")
            assert {d.version for d in watch.view.devices.values()} == {None}
            cosign("--allow-policy-change")
            watch.until(lambda v: any((d.version or 0) >= 1 for d in v.devices.values()), SECONDS)
            fleet.kill("cosigner")
            watch.until(lambda v: bool(v.aggregator and v.aggregator.signatures_missing), SECONDS)
            assert ROUNDS not in watch.view.metrics
            cosign()
            watch.until(lambda v: all(d.version == ROUNDS for d in v.devices.values()), SECONDS)
            assert len(watch.view.devices) == len(DEVICES)
    finally:
        fleet.stop()
    log = fleet.log("aggregator").read_text()
    assert "signatures_awaited" in log
    assert "head_signed" in log
    assert "root_followed" not in fleet.log("dev-1").read_text()  # its kit has it
