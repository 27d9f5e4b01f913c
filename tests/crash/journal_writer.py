"""The recorded program: commits the rows of a whole run to a journal in SQLite, and marks each commit that has returned.

python -m tests.crash.journal_writer FOLDER ROWS     ROWS is JSON: a list of commits, each a list of [class, fields]
"""

import json
import sys
from dataclasses import astuple
from pathlib import Path

from fleetgrad.broker import journal
from tests.crash.recording import mark


def written(commits: list[list[journal.Row]]) -> str:
    """What ROWS is to hold."""
    return json.dumps([[(type(row).__name__, astuple(row)) for row in commit] for commit in commits])


if __name__ == "__main__":
    folder, rows = (Path(argument) for argument in sys.argv[1:])
    sqlite = journal.SqliteJournal(folder / "journal.sqlite")
    for number, commit in enumerate(json.loads(rows.read_text())):
        sqlite.commit([getattr(journal, name)(*fields) for name, fields in commit])
        mark(number)
