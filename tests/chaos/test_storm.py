"""A hundred faults on twenty devices: nothing is lost, nothing is counted twice, and rounds go on when it is over."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.evidence import Evidence
from tests.chaos.storm import START_SECONDS, Storm
from tests.invariants import Violation

pytestmark = pytest.mark.needs("mosquitto")
FAULTS, EVERY = 100, 0.4  # seconds between them, on average


def test_a_hundred_faults_lose_nothing_and_rounds_go_on(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    storm = Storm(tmp_path / "storm", devices=20, seed=seed)
    try:
        storm.start()
        storm.rage(FAULTS // 2, EVERY)
        storm.await_published(storm.published() + 1, START_SECONDS)
        assert storm.withdraw()
        assert storm.revoke() or storm.revoked
        storm.rage(FAULTS, EVERY)
        seconds = storm.calm()
    finally:
        storm.stop()
    evidence = storm.evidence()
    evidence.check()
    print(
        f"{len(evidence.memory.versions) - 1} versions, {len(evidence.summed)} summed again, calm after {seconds:.1f} s"
    )
    print(dict(storm.struck), evidence.revoked, [v.number for v in evidence.memory.withdrawn])
    assert evidence.summed
    assert evidence.memory.withdrawn
    assert len(storm.struck) > 10
    for lie, invariant in LIES:
        spoiled = storm.evidence()
        mend = lie(spoiled)
        with pytest.raises(Violation, match=rf"^{invariant}"):
            spoiled.check()
        mend()
    storm.evidence().check()


Lie = Callable[[Evidence], Callable[[], object]]


def forgotten(evidence: Evidence) -> Callable[[], object]:
    """A member of a published round isn't in the journal."""
    contributions = evidence.memory.contributions
    published = {key for key, attempt in evidence.memory.attempts.items() if attempt.state == "published"}
    del contributions[next(key for key in sorted(contributions) if key[:2] in published)]
    return lambda: None


def left_out(evidence: Evidence) -> Callable[[], object]:
    """A version is missing from the chain."""
    del evidence.memory.versions[1]
    return lambda: None


def number_gone(evidence: Evidence) -> Callable[[], object]:
    """A version that was withdrawn never was."""
    evidence.memory.withdrawn.pop()
    return lambda: None


def counted_though_revoked(evidence: Evidence) -> Callable[[], object]:
    """A device had been revoked rounds before it was last counted."""
    last = max(evidence.memory.contributions)
    evidence.revoked = {last[2]: last[0] - 1}
    return lambda: None


def torn(evidence: Evidence) -> Callable[[], object]:
    """The current model isn't what its name says."""
    path = evidence.directory / "objects" / evidence.memory.versions[-1].params
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    return lambda: path.write_bytes(whole)


def other_sum(evidence: Evidence) -> Callable[[], object]:
    """A model that was published isn't the sum of its members: one bit of what it follows from was another."""
    evidence.check()
    path = evidence.collected / f"objects-{evidence.summed[min(evidence.summed)]}"
    whole = path.read_bytes()
    path.unlink()  # a hard link of the aggregator's own
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    evidence._check_objects = lambda: None  # type: ignore[method-assign]  # this would say so before
    return lambda: path.write_bytes(whole)


def said(line: str) -> Lie:
    """A device's log says something else."""

    def lie(evidence: Evidence) -> Callable[[], object]:
        path = evidence.logs / "dev-00.log"
        whole = path.read_bytes()
        path.write_bytes(whole + line.encode())
        return lambda: path.write_bytes(whole)

    return lie


LIES: list[tuple[Lie, str]] = [
    (forgotten, "I1"),
    (said("\nreceipt device=dev-00 round=99999 verdict=accepted\n"), "I2"),
    (left_out, "I4"),
    (number_gone, "I4"),
    (counted_though_revoked, "I14"),
    (other_sum, "I5"),
    (torn, "I6"),
    (said("\nmodel_installed device=dev-00 version=99999\nmodel_installed device=dev-00 version=1\n"), "I8"),
]
