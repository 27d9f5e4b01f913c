"""A hundred faults on twenty devices: nothing is lost, nothing is counted twice, and rounds go on when it is over."""

from pathlib import Path

import pytest

from tests.chaos.storm import Storm

pytestmark = pytest.mark.needs("mosquitto")
FAULTS, EVERY = 100, 0.4  # seconds between them, on average


def test_a_hundred_faults_lose_nothing_and_rounds_go_on(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    storm = Storm(tmp_path / "storm", devices=20, seed=seed)
    try:
        storm.start()
        storm.rage(FAULTS, EVERY)
        seconds = storm.calm()
    finally:
        storm.stop()
    evidence = storm.evidence()
    evidence.check()
    print(f"{len(evidence.memory.versions) - 1} versions, {evidence.summed} summed again, calm after {seconds:.1f} s")
    print(dict(storm.struck))
    assert evidence.summed > 0
    assert len(storm.struck) > 10
