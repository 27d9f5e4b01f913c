"""`fleetgrad-edge`: the command of a board.

`run`, the daemon, is parsed here with the standard library, so that it carries neither typer nor rich nor onnxruntime. `doctor` starts
without onnxruntime too, which may be broken. Everything else is in edge/commands.py.

Exit codes: 0 fine; 1 failed at work; 2 bad usage, settings or input; 3 no broker within --timeout; 130 interrupted.
"""

import argparse
import os
import sys
from pathlib import Path

from fleetgrad.wire.exits import EXIT_INTERRUPTED, refused


def _seconds(text: str) -> float:
    from fleetgrad.wire.settings import MOST_SECONDS

    seconds = float(text)
    if not 0 <= seconds <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text}: 0 to {MOST_SECONDS} seconds")
    return seconds


def _size(text: str) -> str:
    from fleetgrad.wire.sizes import parse_size

    try:
        parse_size(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e
    return text


def parse_run(arguments: list[str]) -> argparse.Namespace:
    """The flags of `fleetgrad-edge run`."""
    parser = argparse.ArgumentParser(
        prog="fleetgrad-edge run",
        description="Takes part in a federation until stopped: waits for rounds, trains, uploads. The log goes to standard error; what must "
        "survive a restart is in the spool beside edge.toml.",
        epilog="Example: fleetgrad-edge run --config dev-01/edge.toml, which 'fleetgrad-edge join KIT' has written. Exit codes: 0 stopped; "
        "1 failed at work; 2 bad settings, keys or data, or the registrar has revoked this device; 3 no broker within --timeout; 130 interrupted.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="edge.toml", help="the device's settings")
    parser.add_argument(
        "--insecure", action="store_true", help="allow plain MQTT to a broker that isn't on this machine"
    )
    parser.add_argument(
        "--timeout", type=_seconds, default=0.0, metavar="SECONDS",
        help="give up (exit code 3) when the broker stays down so long; default: edge.toml's, 0 waits for ever",
    )  # fmt: skip
    parser.add_argument(
        "--max-rss", type=_size, metavar="SIZE",
        help="resident memory that training may take, as 200MB: batches run in pieces, or not at all; default: edge.toml's",
    )  # fmt: skip
    return parser.parse_args(arguments)


def run_daemon(arguments: list[str]) -> int:
    """Runs the daemon; the exit code."""
    import msgspec

    from fleetgrad.edge import config, daemon
    from fleetgrad.wire.settings import SettingsError

    options = parse_run(arguments)
    os.umask(0o077)  # what is learnt from the data lies in the spool
    try:
        settings, folder = config.load(options.config)
    except SettingsError as e:
        sys.stderr.write(f"fleetgrad-edge: {e}\n")
        return refused(e)
    if options.max_rss:
        device = msgspec.structs.replace(settings.device, max_rss=options.max_rss)
        settings = msgspec.structs.replace(settings, device=device)
    return daemon.run(settings, folder, insecure=options.insecure, timeout=options.timeout)


def main() -> None:
    """The console script."""
    try:
        if sys.argv[1:2] == ["run"]:
            code = run_daemon(sys.argv[2:])
        elif sys.argv[1:2] == ["doctor"]:
            from fleetgrad.edge.doctor.command import run_command

            code = run_command()
        else:
            from fleetgrad.edge.commands import run_command

            code = run_command()
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    sys.exit(code)
