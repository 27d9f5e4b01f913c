"""Log lines: one an event, whatever strangers put into its fields."""

from fleetgrad.wire import log


def test_others_words_in_a_log_stay_in_their_field_and_leave_terminals_alone() -> None:
    said = log.line("update_refused", reason='x\n\x1b[2J\x9b1A\u2028 "y" z=1', device="dev-1")
    assert said == "update_refused reason=\"x \\x1b[2J\\x9b1A\\u2028 'y' z=1\" device=dev-1"
