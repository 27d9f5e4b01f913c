"""Log lines: an event and its fields, one line each on standard error, as `update_accepted device=dev-07 round=3`."""

import re
import sys

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
    """Writes one line."""
    sys.stderr.write(line(event, **fields) + "\n")
    sys.stderr.flush()
