"""Log lines: an event and its fields, one line each on standard error, as `update_accepted device=dev-07 round=3`."""

import contextlib
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fleetgrad.wire.pace import Pace

AT_ONCE, A_MINUTE = 20, 1  # lines with one kind of reason
KINDS = 64  # of reasons, for one event: others choose part of a reason's text
VARIES = re.compile(r"'[^']*'|\d+")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def line(event: str, **fields: object) -> str:
    """The line, without its end; values with spaces are quoted. Others' words can neither end it nor move a terminal's cursor."""
    parts = [event]
    for name, value in fields.items():
        text = CONTROL.sub(_shown, str(value)).replace('"', "'")
        parts.append(f'{name}="{text}"' if " " in text or not text else f"{name}={text}")
    return " ".join(parts)


def _shown(odd: re.Match[str]) -> str:
    return " " if odd[0] == "\n" else ascii(odd[0])[1:-1]


def log(event: str, **fields: object) -> None:
    """Writes one line, or none where standard error can't take it (its disk is full, its reader is gone): no process ends for its log."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr:
            sys.stderr.write(line(event, **fields) + "\n")
            sys.stderr.flush()


@dataclass(slots=True)
class Sparing:
    """Writes lines, but of those with a reason, which others can cause at will, only a few of each event and kind of reason: AT_ONCE, then
    A_MINUTE, with how many were `left_out` before."""

    clock: Callable[[], float] = time.monotonic
    _kinds: dict[str, dict[str, "_Kind"]] = field(default_factory=dict)

    def __call__(self, event: str, **fields: object) -> None:
        if not fields.get("reason"):
            log(event, **fields)
            return
        kinds = self._kinds.setdefault(event, {})
        name = VARIES.sub("*", str(fields["reason"])[:200])
        kind = kinds.setdefault(name if name in kinds or len(kinds) < KINDS else "", _Kind())
        if not kind.pace.take(1, self.clock()):
            kind.left_out += 1
            return
        if kind.left_out:
            fields["left_out"], kind.left_out = kind.left_out, 0
        log(event, **fields)


@dataclass(slots=True)
class _Kind:
    pace: Pace = field(default_factory=lambda: Pace(A_MINUTE / 60, AT_ONCE))
    left_out: int = 0
