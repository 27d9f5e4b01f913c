"""What both commands share: foreseeable faults become one line on standard error and a documented exit code."""

from collections.abc import Mapping
from typing import Any

import typer
from rich.console import Console

EXIT_FAILED, EXIT_USAGE, EXIT_NO_BROKER, EXIT_INTERRUPTED = 1, 2, 3, 130

# The base of typer's usage errors, which typer doesn't export.
UsageFault: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def run_app(app: typer.Typer, name: str, errors: Console, codes: Mapping[type[Exception], int] | None = None) -> int:
    """Runs a command line; its exit code. `codes` says what else an exception class means than the usual.

    The usual: ValueError, which every fault of input is, 2; ConnectionError 3; other OSError 1.
    """
    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except (ValueError, OSError) as e:
        errors.print(f"{name}: {e}", markup=False, style="red", soft_wrap=True)
        for kind, chosen in (codes or {}).items():
            if isinstance(e, kind):
                return chosen
        if isinstance(e, ConnectionError):
            return EXIT_NO_BROKER
        return EXIT_USAGE if isinstance(e, ValueError) else EXIT_FAILED
    except UsageFault as e:
        e.show()
        return EXIT_USAGE
    return int(code or 0)


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """'1,28,28' as (1, 28, 28)."""
    if text is None:
        return None
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise typer.BadParameter(f"--shape {text!r}: expected positive numbers with commas, as 1,28,28")
    return found
