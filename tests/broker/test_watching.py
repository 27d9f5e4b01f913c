"""What the topics say is shown as it is: anyone on the broker may have published it."""

import io

import msgspec
from rich.console import Console

from fleetgrad.broker import cli, watching
from fleetgrad.wire.messages import DeviceStatus
from fleetgrad.wire.topics import Topics

HOSTILE = "[/] [red]can't read [/data/x]\x1b[2J\r\nline"


def test_a_devices_reason_is_neither_markup_nor_control_characters() -> None:
    view, topics = watching.View(), Topics("test")
    status = DeviceStatus(state="refused", device="dev-1", boot=1, reason=HOSTILE)
    view.take(topics, topics.status("dev-1"), msgspec.json.encode(status))
    told = io.StringIO()
    Console(file=told, width=300, force_terminal=False).print(watching.DevicesTable(view))
    assert "[/] [red]can't read [/data/x]\ufffd[2J\ufffd\ufffdline" in told.getvalue()
    assert "\x1b" not in told.getvalue()


def test_a_narrow_terminal_shows_whole_names_and_reasons_and_leaves_out_counters() -> None:
    view, topics, name = watching.View(), Topics("test"), "board-in-the-cellar"
    status = DeviceStatus(state="idle", device=name, boot=1, reason="its data doesn't fit the plan")
    view.take(topics, topics.status(name), msgspec.json.encode(status))
    shown = {}
    for width in (40, 120):
        told = io.StringIO()
        Console(file=told, width=width, force_terminal=False).print(watching.DevicesTable(view))
        shown[width] = told.getvalue()
        assert name in shown[width]
        assert "\N{HORIZONTAL ELLIPSIS}" not in shown[width]
    assert ("samples" in shown[40], "samples" in shown[120]) == (False, True)


def test_the_table_of_devices_says_how_many_updates_wait_and_how_many_chunks_went_twice() -> None:
    view, topics = watching.View(), Topics("test")
    status = DeviceStatus(state="uploading", device="dev-1", boot=1, updates=5, spooled=2, resent=71)
    view.take(topics, topics.status("dev-1"), msgspec.json.encode(status))
    told = io.StringIO()
    Console(file=told, width=300, force_terminal=False).print(watching.DevicesTable(view))
    head, row = (line.split() for line in told.getvalue().splitlines())
    assert head[-4:] == ["updates", "spooled", "resent", "reason"]
    assert row[-3:] == ["5", "2", "71"]


def test_the_commands_print_names_with_brackets_as_they_are() -> None:
    for console in (cli.out, cli.err):
        with console.capture() as told:
            console.print("runs/[/x][red]", highlight=False)
        assert told.get() == "runs/[/x][red]\n"
