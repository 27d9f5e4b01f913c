"""What the aggregator says of itself on agg/st, when that is news; and whether another one speaks there too."""

import random

import msgspec

from fleetgrad.broker import events as ev
from fleetgrad.broker.admission import Admission
from fleetgrad.broker.attempt import Open, RoundSettings
from fleetgrad.broker.cohort import Cohort
from fleetgrad.broker.gathering import Gathering
from fleetgrad.broker.journal import Memory
from fleetgrad.wire.messages import MAX_CLONES, AggregatorStatus, RoundState
from fleetgrad.wire.signing import Untrusted
from fleetgrad.wire.strict import MALFORMED
from fleetgrad.wire.topics import Topics

ANOTHER = "another 'fleetgrad serve' of this federation uses this broker, or this folder was put back from a backup: run one of the two"
FEW = 10  # messages turned away that are no news


class Standing:
    """Of one start of the aggregator, which has a mark of its own; it is read from the machine's parts."""

    def __init__(
        self, settings: RoundSettings, memory: Memory, cohort: Cohort, admission: Admission, gathering: Gathering,
        random: random.Random,
    ) -> None:  # fmt: skip
        self._settings, self._memory = settings, memory
        self._cohort, self._admission, self._gathering = cohort, admission, gathering
        self._topic = Topics(settings.federation).aggregator
        self._instance, self._other = random.getrandbits(48), -1  # this start's mark, and another aggregator's
        self._shown: AggregatorStatus | None = None

    def status(self, attempt: Open | None, goal: int, state: RoundState | None = None) -> AggregatorStatus:
        """The status now, with the open attempt; `state` where it isn't the attempt's."""
        return AggregatorStatus(
            state=state or (attempt.state if attempt else "finished"),
            federation=self._settings.federation,
            boot=self._memory.boot,
            version=self._memory.current.number,
            round=attempt.round if attempt else None,
            attempt=attempt.attempt if attempt else None,
            members=len(self._cohort.devices),
            received=len(attempt.members) if attempt else 0,
            goal=goal,
            rounds=self._settings.rounds,
            instance=self._instance,
            turned_away=self._admission.turned_away,
            clones=tuple(sorted(self._cohort.clones)[:MAX_CLONES]),
            signatures_missing=self._gathering.missing,
            unsigned_by=self._gathering.unsigned_by,
        )

    def forget_shown(self) -> None:
        """A new connection: whatever was published may be gone."""
        self._shown = None

    def news(self, attempt: Open | None, goal: int) -> list[ev.Effect]:
        """The status, to be retained, when it says something new; what was turned away alone is new when it has doubled."""
        status, shown = self.status(attempt, goal), self._shown
        if shown is not None and msgspec.structs.replace(status, turned_away=shown.turned_away) == shown:
            before, now = sum(shown.turned_away.values()), sum(status.turned_away.values())
            if now < 2 * before + FEW:
                return []
        self._shown = status
        return [ev.Publish(self._topic, msgspec.json.encode(status), retained=True)]

    def on_status(self, raw: bytes) -> list[ev.Effect]:
        """What some aggregator of this federation has last said: this one, one of its former lives, or another one. Raises Untrusted.

        Not every broker says that a session was taken over; but of its former lives none had as high a boot.
        """
        try:
            said = msgspec.json.decode(raw, type=AggregatorStatus) if raw else None
        except MALFORMED as e:
            raise Untrusted(f"aggregator's status: {e}") from e
        if said is None or said.boot < self._memory.boot or said.instance in (self._instance, self._other):
            return []
        self._other = said.instance
        return [ev.Log("another_aggregator", {"boot": said.boot, "reason": ANOTHER})]
