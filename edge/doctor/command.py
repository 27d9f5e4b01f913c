"""`fleetgrad-edge doctor`: the verb. It imports nothing of onnxruntime, which may be what is broken, and the rest when it is called:
the other verbs share a process with this text, and a training's memory is counted with all that the process holds.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.text import Text

from fleetgrad.wire.command_line import Format, make_app, make_console, run_app
from fleetgrad.wire.exits import EXIT_FAILED
from fleetgrad.wire.link_options import Insecure
from fleetgrad.wire.settings import MOST_SECONDS

if TYPE_CHECKING:
    from fleetgrad.edge.doctor.findings import Finding

STYLES = {"ok": "green", "note": "yellow", "failed": "red"}

out, err = make_console(), make_console(stderr=True)


def doctor(
    config: Annotated[Path, typer.Option(help="The device's settings, edge.toml.")],
    insecure: Insecure = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=MOST_SECONDS, help="Seconds that each step to the broker may take.")
    ] = 10.0,
    format: Format = "table",  # noqa: A002
) -> None:
    """Find out why this board takes no part: settings, keys, clock, disk, memory, libraries, and the way to the broker.

    The daemon may be running, and isn't disturbed. The exit code is 1 when something fails. Run it as the daemon's user.

    Example: `fleetgrad-edge doctor --config edge.toml`
    """
    from fleetgrad.edge.doctor import board, link
    from fleetgrad.edge.doctor.board import Board

    found: list[Finding] = []

    def tell(finding: "Finding") -> None:
        found.append(finding)
        if format == "table":
            _show(finding)

    for item in board.examine(config):
        if isinstance(item, Board):
            for finding in link.examine(item, insecure, timeout):
                tell(finding)
        else:
            tell(item)
    failed = [f.check for f in found if f.state == "failed"]
    if format == "json":
        sys.stdout.write(msgspec.json.encode({"ok": not failed, "findings": found}).decode() + "\n")
    else:
        out.say(f"failed: {', '.join(failed)}" if failed else "Nothing stands in this board's way.")
    if failed:
        raise typer.Exit(EXIT_FAILED)


def _show(finding: "Finding") -> None:
    said = finding.said if finding.state == "ok" else f"{finding.tried}: {finding.said}"
    out.print(Text(f"{finding.state:<7}", STYLES[finding.state]), end=" ")
    out.say(f"{finding.check:<12} {said}")
    if finding.remedy:
        out.say(f"{'':<20} -> {finding.remedy}")


def run_command() -> int:
    """Runs this verb alone; the exit code."""
    app = make_app("Finds out why a board takes no part.")
    app.command()(doctor)
    return run_app(app, "fleetgrad-edge", err)
