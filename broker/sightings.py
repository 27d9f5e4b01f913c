"""Whether a device's births come from one board: (boot, seq) grows over a device's life, and no two boards can keep that up with one identity.

    newer than all before             this is the device now
    known already, the same bytes     a broker's repetition or a replay: turned away
    known already, other bytes        two boards count alike: a clone
    of an earlier boot, and new       late, or another board: turned away, until the later boot has been silent for SILENT_SECONDS
    back to a boot that had been left, RETURNS times: two boards take turns: a clone

A clone is reported; who of the two is the right one, only people know. A revoked identity stops both.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal
from zlib import crc32

SILENT_SECONDS = 300.0
RETURNS = 2
BOOTS, SEQUENCES = 4, 8  # remembered of a device: its last boots, and the last births of each

Sighting = Literal["new", "repeated", "earlier"]


@dataclass(slots=True)
class Sightings:
    """Of one device, since the aggregator was started; `clone` is why two boards seem to use its identity."""

    boot: int = -1
    heard_at: float = 0.0
    clone: str = ""
    _last: int = -1  # boot of the last new birth
    _returns: int = 0
    _boots: OrderedDict[int, OrderedDict[int, int]] = field(default_factory=OrderedDict)

    def see(self, boot: int, seq: int, raw: bytes, now: float) -> Sighting:
        """What a proven birth is, by the table above; `now` is monotonic, in seconds."""
        births, digest = self._boots.setdefault(boot, OrderedDict()), crc32(raw)
        if births and seq <= next(reversed(births)):
            if births.get(seq, digest) != digest:
                self.clone = f"two births have the number {boot}.{seq}"
            return "repeated"
        births[seq] = digest
        while len(births) > SEQUENCES:
            births.popitem(last=False)
        if boot != self._last and len(births) > 1:
            self._returns += 1
            if self._returns >= RETURNS:
                self.clone = f"boots {boot} and {self._last} take turns"
        self._last = boot
        self._boots.move_to_end(boot)
        while len(self._boots) > BOOTS:
            self._boots.popitem(last=False)
        if boot < self.boot and now - self.heard_at < SILENT_SECONDS:
            return "earlier"
        self.boot, self.heard_at = boot, now
        return "new"
