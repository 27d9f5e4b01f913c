"""Log lines: one an event, whatever strangers put into its fields."""

import errno
import io
import sys

import pytest

from fleetgrad.wire import log


def test_others_words_in_a_log_stay_in_their_field_and_leave_terminals_alone() -> None:
    said = log.line("update_refused", reason='x\n\x1b[2J\x9b1A\u2028 "y" z=1', device="dev-1")
    assert said == "update_refused reason=\"x \\x1b[2J\\x9b1A\\u2028 'y' z=1\" device=dev-1"


def test_of_lines_that_strangers_cause_few_are_written_and_the_others_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    say = log.Sparing(lambda: now)
    for i in range(1000):
        say("message_dropped", device=f"dev-{i}", reason=f"device 'x{i}' isn't in the roster")
        say("update_accepted", device=f"dev-{i}")
    for letter in "abcdefghij" * 100:
        say("message_dropped", reason="frame of " + letter * 7)
    lines = capsys.readouterr().err.splitlines()
    assert sum("roster" in line for line in lines) == log.AT_ONCE
    assert sum("frame of c" in line for line in lines) == log.AT_ONCE
    assert sum("update_accepted" in line for line in lines) == 1000, "what others can't cause at will is all written"
    now = 61.0
    for i in range(2):
        say("message_dropped", reason=f"device 'y{i}' isn't in the roster")
    assert (
        capsys.readouterr().err
        == f"message_dropped reason=\"device 'y0' isn't in the roster\" left_out={1000 - log.AT_ONCE}\n"
    )


class Full(io.StringIO):
    """A file on a disk that has no room."""

    tries = 0

    def write(self, text: str) -> int:
        self.tries += 1
        raise OSError(errno.ENOSPC, "No space left on device")


def test_no_process_ends_because_its_log_cant_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    full, closed = Full(), io.StringIO()
    closed.close()
    for stream in (full, closed, None):
        monkeypatch.setattr(sys, "stderr", stream)
        log.log("update_accepted", device="dev-1")
    assert full.tries == 1


def test_lines_without_a_reason_or_with_an_empty_one_are_all_written(capsys: pytest.CaptureFixture[str]) -> None:
    say = log.Sparing(lambda: 0.0)
    for round_ in range(2 * log.AT_ONCE):
        say("receipt", round=round_, verdict="accepted", reason="")
        say("training", round=round_)
    assert capsys.readouterr().err.count("\n") == 4 * log.AT_ONCE


def test_however_many_reasons_a_stranger_makes_up_the_lines_are_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    say = log.Sparing(lambda: 0.0)
    for i in range(20_000):
        say("message_dropped", reason="frame of " + "".join(chr(97 + (i // 26**n) % 26) for n in range(4)))
    assert capsys.readouterr().err.count("\n") <= (log.KINDS + 1) * log.AT_ONCE
