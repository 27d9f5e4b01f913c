"""What `--help` says: every verb of both commands has an example, which its own parser takes, and every option says what it is."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from fleetgrad.broker.cli import app as operator
from fleetgrad.edge.commands import app as board

COMMANDS: dict[str, Any] = {
    "fleetgrad": typer.main.get_command(operator), "fleetgrad-edge": typer.main.get_command(board),
}  # fmt: skip


def verbs(path: list[str], command: Any) -> Iterator[tuple[list[str], Any]]:
    """Every verb below a command, with the words that lead to it."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, child in command.commands.items():
        yield from verbs([*path, name], child)


VERBS = [found for name, command in COMMANDS.items() for found in verbs([name], command)]


def taken_by(words: list[str]) -> Any:
    """The verb that takes these words, parsed as a shell's; raises typer's usage errors."""
    command, rest, parent = COMMANDS[words[0]], words[1:], None
    while hasattr(command, "commands"):
        parent = command.make_context(command.name, [rest[0]], parent)
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(command.name, rest, parent)
    return command


@pytest.mark.parametrize(("path", "verb"), VERBS, ids=[" ".join(path) for path, _ in VERBS])
def test_a_verb_says_in_a_sentence_what_it_does_and_shows_it(path: list[str], verb: Any) -> None:
    first, *more = verb.help.split("\n\n")
    assert re.fullmatch(r"[^.]+(\.\w[^.]+)*\.", " ".join(first.split())), "its line in the list of verbs"
    example = more[-1]
    assert "Example" in example
    shown = [words for words in map(shlex.split, re.findall(r"`([^`]+)`", example)) if words[0] in COMMANDS]
    assert verb in [taken_by(words) for words in shown]
    assert [p.name for p in verb.params if p.name != "help" and not p.help] == []


def test_the_verbs_are_listed_in_the_order_in_which_they_are_wanted() -> None:
    assert list(COMMANDS["fleetgrad"].commands)[:4] == ["new", "serve", "status", "watch"]
