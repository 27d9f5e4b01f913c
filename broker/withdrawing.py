"""Taking back versions: one, with all that came from it. The federation goes on from the version before, and no number is used twice.

It is one transaction of the journal, made while no aggregator runs: a round under way is abandoned in it, because its devices train what is
taken back. The next head that the aggregator signs says `withdrawn`, without which devices refuse an older version (wire/release.py).
"""

from dataclasses import dataclass, replace

from fleetgrad.broker.journal import ENDED, Attempt, Journal, Row, Version, Withdrawn
from fleetgrad.broker.registry import objects
from fleetgrad.wire.files import Files


class WithdrawalError(ValueError):
    """A version that can't be taken back; the message says why, and what could be."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was taken back, oldest first; the version that is current again; the attempt that was abandoned for it, if any."""

    versions: list[Version]
    current: Version
    abandoned: Attempt | None


def withdraw(journal: Journal, files: Files, number: int | None = None) -> Outcome:
    """Takes back version `number` (None: the current one) and what came from it; durable when it returns.

    Raises WithdrawalError where there is no such version, or the params of the one before are gone or damaged; JournalError, DiskError.
    """
    memory = journal.load(recent=True)
    line = memory.versions
    if not line:
        raise WithdrawalError("nothing to withdraw: no version was published yet")
    number = line[-1].number if number is None else number
    at = next((i for i, v in enumerate(line) if v.number == number), None)
    if at is None:
        known = f"the current one is {line[-1].number}"
        why = "it was withdrawn before" if any(v.number == number for v in memory.withdrawn) else "there is none"
        why = f"only what is newer than version {line[0].number} can be" if number < line[0].number else why
        raise WithdrawalError(f"can't withdraw version {number}: {why}; {known}")
    if at == 0 and number > 0:
        raise WithdrawalError(f"can't withdraw version {number}: what it came from isn't kept any more")
    if at == 0:
        raise WithdrawalError(f"can't withdraw version {number}: it is the first, nothing is before it to go back to")
    current = line[at - 1]
    try:
        objects.verified(files, current.params)
    except objects.ObjectError as e:
        raise WithdrawalError(
            f"can't withdraw version {number}: version {current.number}, which it came from, can't be used any more: {e} "
            "(only the last versions are kept: put it back from a backup, or withdraw a newer version)"
        ) from e
    last = memory.attempts[max(memory.attempts)] if memory.attempts else None
    abandoned = replace(last, state="abandoned") if last and last.state not in ENDED else None
    rows: list[Row] = [*(Withdrawn(v.number) for v in line[at:]), *([abandoned] if abandoned else [])]
    journal.commit(rows)
    return Outcome(line[at:], current, abandoned)
