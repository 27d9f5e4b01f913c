"""What devices may fetch: the plan, the last versions' params, and deltas to the newest from what devices hold.

Deltas are lossless and made anew for each version (wire/deltas.py); they are nothing that a crash could lose.
"""

import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256

from fleetgrad.broker.announcing import OFFERED, object_name
from fleetgrad.broker.closing import KEPT_VERSIONS
from fleetgrad.broker.journal import Memory
from fleetgrad.wire import deltas
from fleetgrad.wire.files import DiskError, Files, put
from fleetgrad.wire.messages import Delta, ObjectRef

MAX_DELTAS = 3
WORTH = 0.9  # of the snapshot: a delta that saves less isn't worth its place on the broker
OBJECTS, NAME = "objects", re.compile("[0-9a-f]{64}")


class Offer:
    """The objects of one federation; `deltas` are those to the newest version."""

    def __init__(self, files: Files, memory: Memory, plan: ObjectRef) -> None:
        self._files, self._memory, self._plan = files, memory, plan
        self.deltas: tuple[Delta, ...] = ()
        self._params: list[ObjectRef] = []
        self.renew(())

    def former(self) -> list[ObjectRef]:
        """Params of kept versions that are offered no more."""
        offered = {ref.sha256 for ref in self.refs()}
        versions = self._memory.versions[-KEPT_VERSIONS:-OFFERED]
        return [ObjectRef(sha256=v.params, size=v.size) for v in versions if v.params not in offered]

    def refs(self) -> list[ObjectRef]:
        """All objects that are offered, each once."""
        return list({ref.sha256: ref for ref in (self._plan, *self._params, *(d.object for d in self.deltas))}.values())

    def newest(self) -> list[ObjectRef]:
        """The newest version's params and the deltas to it."""
        current = self._memory.current
        return [ObjectRef(sha256=current.params, size=current.size), *(d.object for d in self.deltas)]

    @property
    def step_bytes(self) -> int:
        """Size of what brings a device from the version before to the newest: the delta if there is one, else the params."""
        current, before = self._memory.current, [v.params for v in self._memory.versions[-2:-1]]
        return next((d.object.size for d in self.deltas if d.base in before), current.size)

    def renew(self, held: Iterable[str]) -> list[ObjectRef]:
        """Makes the deltas to the newest version, from the one before and from the params that most devices hold; the objects that are
        offered no more.

        `held` are hashes of params, one for each device. Without room on the disk there are none.
        """
        former, self.deltas = self.deltas, ()
        current, there = self._memory.current, set[str]()
        with suppress(DiskError):
            there = set(self._files.names(OBJECTS))
        last = [
            v for v in self._memory.versions[-OFFERED:] if v is current or v.params in there
        ]  # an older one may be gone
        self._params = [ObjectRef(sha256=v.params, size=v.size) for v in last]
        kept = {v.params for v in self._memory.versions[-KEPT_VERSIONS:] if v.params in there} - {current.params}
        before = [v.params for v in self._memory.versions[-2:-1] if v.params in kept]
        others = Counter(h for h in held if h in kept and h not in before)
        bases = [*before, *(base for base, _ in others.most_common(MAX_DELTAS - len(before)))]
        with suppress(DiskError, FileNotFoundError):  # the snapshot does as well
            new = self._files.read(object_name(current.params)) if bases else b""
            for base in bases:
                raw = deltas.make(self._files.read(object_name(base)), new)
                if raw is not None and len(raw) <= WORTH * len(new):
                    ref = ObjectRef(sha256=sha256(raw).hexdigest(), size=len(raw))
                    put(self._files, object_name(ref.sha256), raw)
                    self.deltas = (*self.deltas, Delta(base=base, object=ref))
        offered = {ref.sha256 for ref in self.refs()}
        gone = [d.object for d in former if d.object.sha256 not in offered]
        with suppress(DiskError):
            for ref in gone:
                self._files.unlink(object_name(ref.sha256))
        return gone

    def sweep(self) -> list[ObjectRef]:
        """Removes what the last boot has left: halves of objects, and deltas, which may be on the broker still: these are given."""
        left: list[ObjectRef] = []
        needed = {ref.sha256 for ref in self.refs()} | {v.params for v in self._memory.versions[-KEPT_VERSIONS:]}
        for name in self._files.names(OBJECTS):
            if name not in needed:
                if NAME.fullmatch(name) and (raw := self._files.read(f"{OBJECTS}/{name}")):
                    left.append(ObjectRef(sha256=name, size=len(raw)))
                self._files.unlink(f"{OBJECTS}/{name}")
        return left
