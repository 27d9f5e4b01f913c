"""What both commands share: which code a fault ends with, and that nothing foreign reaches a terminal as it came."""

import errno
import io
import sys
from collections.abc import Callable

import pytest

from fleetgrad.wire.command_line import Terminal, make_app, run_app


class Own(ValueError):
    """A fault with a code of its own."""


FAULTS: list[tuple[Callable[[], BaseException], int, str]] = [
    (lambda: ValueError("7 is too many"), 2, "test: 7 is too many"),
    (lambda: OSError(errno.ENOENT, "No such file or directory", "x.npz"), 2, "test: No such file or directory: x.npz"),
    (lambda: OSError(errno.EISDIR, "Is a directory", "x"), 2, "Is a directory: x"),
    (lambda: OSError(errno.EACCES, "Permission denied", "x"), 2, "Permission denied: x"),
    (lambda: OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
    (lambda: OSError(errno.EIO, "Input/output error"), 1, "Input/output error"),
    (lambda: OSError(errno.ECONNREFUSED, "Connection refused"), 3, "Connection refused"),
    (lambda: Own("by its own"), 7, "by its own"),
    (KeyboardInterrupt, 130, ""),
    (lambda: ModuleNotFoundError("no", name="onnx"), 2, "pip install 'fleetgrad[compile]'"),
]


@pytest.mark.parametrize(("fault", "code", "said"), FAULTS)
def test_a_fault_ends_with_its_documented_code(
    fault: Callable[[], BaseException], code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, told = make_app("A test."), io.StringIO()

    @app.command()
    def act() -> None:
        raise fault()

    monkeypatch.setattr(sys, "argv", ["test", "act"])
    assert run_app(app, "test", Terminal(file=told, width=200), {Own: 7}) == code
    assert said in told.getvalue()


def test_what_is_said_reaches_a_terminal_without_control_characters() -> None:
    told = io.StringIO()
    Terminal(file=told, width=40).say("evil\x1b[2J\udcff [red]" + 50 * "x" + "\nnext", "red")
    assert told.getvalue() == "evil\ufffd[2J\ufffd [red]" + 50 * "x" + "\nnext\n"
