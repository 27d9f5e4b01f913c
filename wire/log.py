"""Log lines: an event and its fields, one line each on standard error, as `update_accepted device=dev-07 round=3`."""

import sys


def line(event: str, **fields: object) -> str:
    """The line, without its end; values with spaces are quoted."""
    parts = [event]
    for name, value in fields.items():
        text = str(value).replace("\n", " ")
        parts.append(f'{name}="{text}"' if " " in text or not text else f"{name}={text}")
    return " ".join(parts)


def log(event: str, **fields: object) -> None:
    """Writes one line."""
    sys.stderr.write(line(event, **fields) + "\n")
    sys.stderr.flush()
