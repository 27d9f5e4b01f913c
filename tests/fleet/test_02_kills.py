"""kill -9 of anything at any moment: the federation carries on with the same round and ends with the same bytes."""

import os
import random
import signal
import subprocess

import pytest

from tests.fleet.conftest import DEVICES, Federation, MakeFederation

pytestmark = pytest.mark.needs("mosquitto")
ROUNDS = 5


def undisturbed(make: MakeFederation) -> str:
    federation = make("calm", rounds=ROUNDS, epochs=4)
    federation.start()
    federation.until_reported()
    return federation.model_hash()


def check_end(federation: Federation, expected: str) -> None:
    rows = federation.until_reported()
    assert [r["round"] for r in rows] == list(range(1, ROUNDS + 1))
    assert [r["version"] for r in rows] == list(range(1, ROUNDS + 1))
    assert {r["members"] for r in rows} == {3}
    assert federation.model_hash() == expected


def test_killed_aggregators_and_devices_end_with_the_same_bytes(make_federation: MakeFederation, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    expected = undisturbed(make_federation)
    federation = make_federation("wild", rounds=ROUNDS, epochs=4)
    federation.start()
    with federation.watch() as watch:
        for kill in range(6):
            # The moment is an event of the topics, some random number of messages from now.
            for _ in range(rng.randrange(1, 12)):
                watch.step(0.5)
            victim = "aggregator" if kill % 2 == 0 else rng.choice(DEVICES)
            print(f"kill {victim}")
            federation.fleet.kill(victim)
            if victim == "aggregator":
                federation.start_aggregator()
            else:
                federation.start_edge(victim)
    check_end(federation, expected)


def trainer_of(pid: int) -> int | None:
    """Process id of a daemon's child."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False).stdout
    return int(found.split()[0]) if found.split() else None


def test_a_killed_trainer_repeats_its_update_byte_for_byte(make_federation: MakeFederation) -> None:
    expected = undisturbed(make_federation)
    federation = make_federation("wild", rounds=ROUNDS, epochs=4)
    federation.start()
    killed = 0
    with federation.watch() as watch:
        while killed < 3 and ROUNDS not in watch.view.metrics:
            watch.step(0.1)
            child = trainer_of(federation.fleet.pid("dev-2"))
            status = watch.view.devices.get("dev-2")
            if child and status and status.state == "training" and (status.round or 0) > killed:
                os.kill(child, signal.SIGKILL)
                killed = status.round or 0
    assert killed
    check_end(federation, expected)


def test_a_killed_broker_loses_its_retained_messages_and_nothing_else(make_federation: MakeFederation) -> None:
    expected = undisturbed(make_federation)
    federation = make_federation("wild", rounds=ROUNDS, epochs=4)
    federation.start()
    federation.until(lambda v: 2 in v.metrics)
    federation.fleet.kill("broker")
    federation.start_broker()
    check_end(federation, expected)
