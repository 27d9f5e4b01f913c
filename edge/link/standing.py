"""Why a board isn't connected, in one file of its spool, for `fleetgrad-edge status`: written when the reason changes, removed when it is
connected or stops. Nothing hangs on it, so it isn't synced."""

import contextlib
from pathlib import Path

FILE = "link"
MOST = 500  # characters


def note(spool: Path, reason: str) -> None:
    """Writes the reason, or removes it where it is empty."""
    with contextlib.suppress(OSError):  # the log has it
        if reason:
            (spool / FILE).write_text(reason[:MOST])
        else:
            (spool / FILE).unlink(missing_ok=True)


def read(spool: Path) -> str:
    """The reason, or an empty text."""
    try:
        return (spool / FILE).read_text(errors="replace")[:MOST]
    except OSError:
        return ""
