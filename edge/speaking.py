"""When a device speaks without being asked: a report that is due, one more after a silence, nothing while the disk refuses.

a refused write  everything that is due waits DISK_RETRY_SECONDS, then is asked for again
retry_after      the next report comes where the aggregator spread it
its restart      at once
silence          an idle device reports again after 15 s without a word from the aggregator, then after twice as long, up to 2 min;
                     one that was revoked, once a day
"""

import random

import msgspec

from fleetgrad.wire.messages import AggregatorStatus
from fleetgrad.wire.signing import Untrusted
from fleetgrad.wire.strict import MALFORMED

DISK_RETRY_SECONDS = 5.0
REFRESH_SECONDS, MOST_REFRESH_SECONDS = 15.0, 120.0
REVOKED_SECONDS = 86400.0  # between two times that a device which was revoked asks whether it still is


class Speaking:
    """`birth_at` is when a report is due, `disk_at` when the disk is tried again: monotonic seconds, None for never."""

    def __init__(self, random: random.Random) -> None:
        self._random = random
        self.birth_at: float | None = None
        self.disk_at: float | None = None
        self.refresh_at, self._silence = 0.0, REFRESH_SECONDS
        self._aggregator_boot: int | None = None

    def heard(self, now: float, *, seldom: bool = False) -> None:
        """The aggregator has said something new: silence is counted from here. `seldom` is for a device that was revoked."""
        self._silence = REVOKED_SECONDS if seldom else REFRESH_SECONDS
        self._wait(now)

    def restarted(self, status: bytes) -> bool:
        """Whether the aggregator's status shows another start of it than the last one did; raises Untrusted."""
        if not status:
            return False
        try:
            boot = msgspec.json.decode(status, type=AggregatorStatus).boot
        except MALFORMED as e:
            raise Untrusted(f"aggregator's status: {e}") from e
        known, self._aggregator_boot = self._aggregator_boot, boot
        return known is not None and known != boot

    def silent(self, now: float) -> bool:
        """Whether a silence has lasted long enough to report again; the next one lasts twice as long."""
        if now < self.refresh_at:
            return False
        self._silence = max(self._silence, min(MOST_REFRESH_SECONDS, self._silence * 2))
        self._wait(now)
        return True

    def _wait(self, now: float) -> None:
        self.refresh_at = now + self._silence * self._random.uniform(0.5, 1.0)

    def later(self, now: float, least: float, most: float) -> float:
        """A report, and whatever else may wait, at a time drawn from between `least` and `most` seconds from now."""
        self.birth_at = now + self._random.uniform(least, max(least, most))
        return self.birth_at

    def birth_due(self, now: float) -> bool:
        """Whether a report is due; it is asked for once."""
        if self.birth_at is None or now < self.birth_at:
            return False
        self.birth_at = None
        return True

    def disk_refused(self, now: float) -> None:
        """Nothing is tried again at once."""
        self.birth_at = self.disk_at = now + DISK_RETRY_SECONDS

    def disk_waits(self, now: float) -> bool:
        """Whether it is too early to try the disk again."""
        if self.disk_at is not None and now < self.disk_at:
            return True
        self.disk_at = None
        return False
