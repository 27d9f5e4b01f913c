"""What both commands share: foreseeable faults become one line on standard error and a documented exit code."""

import importlib.metadata
import os
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from fleetgrad.wire.exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_NO_BROKER, EXIT_USAGE

PIPED_COLUMNS = 100_000  # where there is no terminal whose width would cut a table: programs read it line by line

PATH_FAULTS = (
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)  # of what was given
EXTRAS = {"onnx": "compile", "amqtt": "demo", "sklearn": "demo", "matplotlib": "demo"}  # module: the extra that has it

# The base of typer's usage errors, which typer doesn't export.
UsageFault: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


Format = Annotated[Literal["table", "json"], typer.Option("--format", help="For people, or for programs.")]


class Terminal(Console):
    """Where a command prints."""

    def say(self, text: str, style: str = "") -> None:
        """A text as it stands, but for control characters, which others may have written: nothing in it is coloured by what it looks
        like, and whoever reads it breaks its lines."""
        shown = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
        self.print(shown, style=style or None, markup=False, highlight=False, soft_wrap=True)


def make_console(stderr: bool = False) -> Terminal:
    """Standard output (or error) for text that says what it says, without markup; in a pipe, tables are as wide as they need."""
    stream = sys.stderr if stderr else sys.stdout
    piped = stream is None or not stream.isatty()
    return Terminal(stderr=stderr, highlight=not stderr, markup=False, width=PIPED_COLUMNS if piped else None)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fleetgrad {importlib.metadata.version('fleetgrad')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


def make_app(help: str) -> typer.Typer:  # noqa: A002
    """A command line with --version; `help` is Markdown, and the exit codes are added to it."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        help=f"{help}\n\nExit codes: 0 fine; 1 failed at work; 2 bad usage, settings or input; "
        "3 no broker within --timeout; 130 interrupted.",
    )
    app.callback()(_options)
    return app


def run_app(app: typer.Typer, name: str, errors: Terminal, codes: Mapping[type[Exception], int] | None = None) -> int:
    """Runs a command line; its exit code. `codes` says what else an exception class means than the usual.

    The usual: ValueError, which every fault of input is, 2, and so is a path that is missing, forbidden or of the wrong kind;
    ConnectionError 3; other OSError 1.
    """
    os.umask(
        os.umask(0o022) | 0o022
    )  # whatever a shell or a service says: nobody else writes keys, models or a broker's permissions
    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except (ValueError, OSError) as e:
        errors.say(f"{name}: {fault(e)}", "red")
        for kind, chosen in (codes or {}).items():
            if isinstance(e, kind):
                return chosen
        if isinstance(e, ConnectionError):
            return EXIT_NO_BROKER
        return EXIT_USAGE if isinstance(e, (ValueError, *PATH_FAULTS)) else EXIT_FAILED
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] not in EXTRAS:
            raise
        extra = EXTRAS[(e.name or "").partition(".")[0]]
        errors.say(f"{name}: this needs {e.name}: pip install 'fleetgrad[{extra}]'", "red")
        return EXIT_USAGE
    except UsageFault as e:
        e.show()
        return EXIT_USAGE
    return int(code or 0)


def fault(error: Exception) -> str:
    """An error in words: the system's errors without their numbers."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


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
