"""What happened in a run: a running hash of every event, the last lines for whoever reads a failure, and counters of what
was seen at least once ("sometimes": a sample that never sees a late update doesn't test late updates)."""

import hashlib
from collections import Counter, deque

KEPT = 60  # lines


class Trace:
    """Lines are hashed all, kept the last KEPT (or all, for a replay)."""

    def __init__(self, keep_all: bool = False) -> None:
        self._hash = hashlib.sha256()
        self.lines: deque[str] = deque(maxlen=None if keep_all else KEPT)
        self.sometimes: Counter[str] = Counter()

    def note(self, now: float, line: str) -> None:
        text = f"{now:.6f} {line}"
        self._hash.update(text.encode() + b"\n")
        self.lines.append(text)

    def saw(self, what: str) -> None:
        self.sometimes[what] += 1

    def digest(self) -> str:
        return self._hash.hexdigest()
