"""Heads that two machines must sign: nothing is trained before the second has, which then goes and comes again, over TLS."""

import time
from pathlib import Path

import pytest

from fleetgrad.hardware.fleet import console_script
from tests.fleet.conftest import SECONDS, MakeSecured, command

ROUNDS, DEVICES = 4, ("dev-1", "dev-2")


@pytest.mark.needs("mosquitto")
def test_a_co_signer_on_another_machine_must_go_along_with_every_head(
    tmp_path: Path, make_secured: MakeSecured
) -> None:
    federation = make_secured(rounds=ROUNDS)
    directory, registrar, fleet = federation.directory, federation.registrar, federation.fleet
    folder = tmp_path / "cosigner"
    key = tmp_path / "key"
    command("fleetgrad", "release", "key", "release-2", "-o", key)
    keys = [word for path in (directory / "aggregator/keys/aggregator.pub", key / "release-2.pub")
            for word in ("--release", path)]  # fmt: skip
    command("fleetgrad", "release", "rotate", directory, *keys, "--release-threshold", 2)
    command("fleetgrad", "release", "export", directory, "-o", folder)
    command("fleetgrad", "registrar", "login", "cosigner", "--dir", registrar, "-o", folder / "tls.pem")

    def cosign(*flags: str) -> None:
        words = ["release", "cosign", str(folder), "--key", str(key / "release-2.key"), *flags]
        fleet.start("cosigner", [console_script("fleetgrad"), *words])

    federation.start_broker()
    fleet.aggregator(directory)
    for number, name in enumerate(DEVICES):
        fleet.edge(name, federation.join(name, number) / "edge.toml")
    with federation.watch() as watch:
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
    fleet.stop()
    log = fleet.log("aggregator").read_text()
    assert "signatures_awaited" in log
    assert "head_signed" in log
    assert "root_followed" not in fleet.log("dev-1").read_text()  # its kit has it
