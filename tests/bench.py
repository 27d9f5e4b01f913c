"""Runs benches, prints each one's table and writes build/bench/<name>.json.

A bench is a function that returns rows {figure, value, unit, bound, holds, peer}. A row whose bound is missed says so, here
and in the file; `holds` is null where no bound is set. Names given as arguments choose benches.
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).resolve().parent.parent / "build" / "bench"
BENCHES = {
    "kernels": "fleetgrad.native.bench.kernels",
    "aggregate": "fleetgrad.broker.bench.aggregate",
    "step": "fleetgrad.edge.bench.step",
    "fidelity": "fleetgrad.edge.bench.fidelity",
    "accuracy": "fleetgrad.broker.bench.accuracy",
}
COLUMNS = ("figure", "value", "unit", "bound", "holds", "peer")


def show(console: Console, name: str, rows: list[Mapping[str, object]]) -> None:
    """Prints one bench's rows."""
    table = Table(title=f"{name} ({os.cpu_count()} cores)", title_justify="left")
    for column in COLUMNS:
        table.add_column(column)
    for row in rows:
        value = row["value"]
        cells = {**row, "value": f"{value:.6g}" if isinstance(value, float) else value}
        table.add_row(*["" if cells[c] is None else str(cells[c]) for c in COLUMNS])
    console.print(table)


def main() -> int:
    """Runs the chosen benches; the exit code is 0 also when a bound is missed: a figure is a report, not a test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benches", nargs="*", help=f"of {', '.join(BENCHES)}; all without")
    chosen = parser.parse_args().benches or list(BENCHES)
    if unknown := set(chosen) - set(BENCHES):
        sys.exit(f"no such bench: {', '.join(sorted(unknown))} (there are {', '.join(BENCHES)})")
    console = Console()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        rows = importlib.import_module(BENCHES[name]).rows()
        (FOLDER / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
        show(console, name, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
