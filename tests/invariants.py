"""What must hold whatever dies, told by what is left: the simulation, the crash points and the real processes all ask here.

I1  an update is counted once, in the attempt that it was made for, and a version names exactly its members
I2  an acknowledged update is in a published model, or its attempt was abandoned
I3  an update that isn't acknowledged is still in its device's spool, until its attempt is over
I4  versions are a chain, each the next of the last, never written again
I5  a version's params are what its members add up to, whatever their order
I6  what is opened is whole: bytes are those of their name or record
I7  an attempt goes on or ends; the next one begins only then
I8  a device never goes back to an older model, but where a head withdraws what it has, which it then never takes up again
I9  memory and disk stay within their bounds
I10 once nothing breaks any more, rounds are published within their time
I14 who was revoked isn't asked any more, and nothing of it counts after the attempt in which it was
I15 nothing is trained from, or follows from, a version that is known to be withdrawn
"""

import hashlib
import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence

from fleetgrad.broker.announcing import GENESIS
from fleetgrad.broker.journal import ENDED, Attempt, Contribution, Version
from fleetgrad.wire.messages import Head
from tests.simulation.training import Made, merge

Attempts = Mapping[tuple[int, int], Attempt]
Contributions = Mapping[tuple[int, int, str], Contribution]


class Violation(AssertionError):
    """An invariant that doesn't hold."""


def members(contributions: Contributions, round_: int, attempt: int) -> list[Contribution]:
    """What was counted in an attempt, in the order of the devices' names."""
    found = [c for (r, a, _), c in contributions.items() if (r, a) == (round_, attempt)]
    return sorted(found, key=lambda c: c.device)


def check_members(version: Version, counted: Sequence[Contribution]) -> None:
    """I1: the version's record names exactly what was counted in its attempt."""
    lines = "".join(f"{c.device} {c.payload} {c.weight}\n" for c in counted)
    if hashlib.sha256(lines.encode()).hexdigest() != json.loads(version.record)["members"]:
        raise Violation(f"I1: version {version.number} doesn't name exactly its {len(counted)} members")


def check_counted_once(contributions: Contributions) -> None:
    """I1: no payload is counted twice, under whatever key."""
    keys: dict[str, tuple[int, int, str]] = {}
    for key, row in sorted(contributions.items()):
        if (row.round, row.attempt, row.device) != key:
            raise Violation(f"I1: the contribution of {key} is {row}")
        if row.payload in keys:
            raise Violation(f"I1: {key} counts the payload that {keys[row.payload]} counted")
        keys[row.payload] = key


def check_acknowledged(
    accepted: Iterable[tuple[int, int, str, str]], attempts: Attempts, contributions: Contributions, *, over: bool = True
) -> None:  # fmt: skip
    """I2: (round, attempt, device, payload) of receipts; when the run isn't `over`, the last attempt may be open still."""
    for round_, attempt, device, payload in sorted(accepted):
        row, ran = contributions.get((round_, attempt, device)), attempts.get((round_, attempt))
        if row is None or row.payload != payload:
            raise Violation(f"I2: {device}'s acknowledged update of round {round_} isn't counted")
        if ran is None or (ran.state not in ENDED and over):
            raise Violation(
                f"I2: {device}'s acknowledged update is in an attempt that is {ran.state if ran else 'unknown'}"
            )


def check_kept(
    device: str, stored: tuple[int, int], spooled: Collection[tuple[int, int]], acknowledged: Collection[tuple[int, int]],
    attempts: Attempts,
) -> None:  # fmt: skip
    """I3: the last update that a device stored, and those that its spool holds now, by (round, attempt)."""
    ran = attempts.get(stored)
    over = (ran is not None and ran.state in ENDED) or max(attempts, default=stored) > stored
    if stored not in spooled and stored not in acknowledged and not over:
        raise Violation(
            f"I3: {device} gave up its update of {stored}, nothing ended it, its spool holds {sorted(spooled)}"
        )


def check_link(version: Version, last: Version | None, number: int) -> None:
    """I4: a version has this number, and follows the last one."""
    record = json.loads(version.record)
    if hashlib.sha256(version.record.encode()).hexdigest() != version.sha256:
        raise Violation("I4: a version's hash isn't its record's")
    if version.record != json.dumps(record, sort_keys=True, separators=(",", ":")):
        raise Violation("I4: a record's keys aren't sorted")
    if (version.number, record["version"], record["params"]) != (number, number, version.params):
        raise Violation(f"I4: version {version.number} where {number} is due")
    parent = last.sha256 if last else GENESIS
    if version.parent != parent or record["parent"] != parent:
        raise Violation(f"I4: version {version.number} has another parent than the last version")


def check_chain(versions: Sequence[Version], withdrawn: Sequence[Version] = ()) -> None:
    """I4 for all of them: the line that leads to the current one, and those that were withdrawn. Every number was used, and used once."""
    every = sorted((*versions, *withdrawn), key=lambda v: v.number)
    if [v.number for v in every] != list(range(len(every))):
        raise Violation(f"I4: versions have the numbers {[v.number for v in every]}")
    by_hash = {v.sha256: v for v in every}
    for i, version in enumerate(versions):
        check_link(version, versions[i - 1] if i else None, version.number)
    for version in withdrawn:
        parent = by_hash.get(version.parent)
        check_link(version, parent, version.number)
        if parent is None or parent.number >= version.number:
            raise Violation(f"I4: the withdrawn version {version.number} comes from none before it")


def by_round(versions: Iterable[Version]) -> dict[int, Version]:
    """What each round made, withdrawn or not."""
    return {json.loads(v.record)["round"]: v for v in versions if v.number}


def taken_back(head: Head, versions: Iterable[Version]) -> set[int]:
    """The numbers that a head shows to be withdrawn: they were given, and its own version doesn't come from them."""
    every = {v.sha256: v for v in versions}
    line, at = set[int](), next((v for v in every.values() if v.number == head.version), None)
    while at is not None:
        line.add(at.number)
        at = every.get(at.parent)
    return set(range(max(head.version, head.withdrawn or 0) + 1)) - line


def check_sum(number: int, old: bytes, new: bytes, updates: Iterable[Made]) -> None:
    """I5: the params are the oracle's, byte for byte."""
    made = list(updates)
    if merge(old, made) != new:
        raise Violation(f"I5: version {number} isn't the sum of its {len(made)} members")


def check_whole(what: str, raw: bytes | None, sha256: str, size: int | None = None) -> None:
    """I6."""
    if raw is None or hashlib.sha256(raw).hexdigest() != sha256 or (size is not None and len(raw) != size):
        raise Violation(f"I6: {what} isn't there, whole and as its name says")


def following(attempts: Attempts) -> tuple[int, int]:
    """I7: the only attempt that may begin after these."""
    if open_ := [a for a in attempts.values() if a.state not in ENDED]:
        raise Violation(f"I7: an attempt begins before {open_[0]} ended")
    if not attempts:
        return 1, 1
    last = attempts[max(attempts)]
    return (last.round + 1, 1) if last.state == "published" else (last.round, last.attempt + 1)


def check_attempts(attempts: Attempts) -> None:
    """I7 for all of them."""
    before: dict[tuple[int, int], Attempt] = {}
    for key in sorted(attempts):
        if key != (due := following(before)):
            raise Violation(f"I7: attempt {key} began, {due} should")
        before[key] = attempts[key]


def check_forward(device: str, versions: Sequence[int], withdrawn: Collection[int] = ()) -> None:
    """I8: what a device reported that it holds, in order; it may go back from one of the `withdrawn`, and doesn't return then."""
    left: set[int] = set()
    for before, after in itertools.pairwise(versions):
        if after in left:
            raise Violation(f"I8: {device} took up version {after} again, which it had left as withdrawn")
        if after < before:
            if before not in withdrawn:
                raise Violation(f"I8: {device} went back from version {before} to {after}")
            left.update(range(after + 1, before + 1))


def check_within(what: str, used: float, cap: float) -> None:
    """I9: bytes, file handles or messages."""
    if used > cap:
        raise Violation(f"I9: {what}: {used:,.0f}, {cap:,.0f} should do")


def check_progress(what: str, seconds: float, bound: float) -> None:
    """I10."""
    if seconds > bound:
        raise Violation(f"I10: {what} took {seconds:.0f} s, at most {bound:.0f} s")
