"""Runs benches, prints each one's table and writes build/bench/<name>.json.

A bench is a function `rows` that returns rows {figure, value, unit, bound, holds, peer}. A row whose bound is missed says so,
here and in the file; `holds` is null where no bound is set or nothing could be measured (the peer then says why). Names given
as arguments choose benches. "native" is every module of native/bench that has rows, and writes native/bench/RESULTS.md as well;
"native.kernels" is one of them alone.
"""

import argparse
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fleetgrad.native import bench as native_bench
from fleetgrad.native import binding
from fleetgrad.native.bench import deltas, results

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "bench"
ORT_TRAINING = ROOT / "build" / "venv-ort-training"
NATIVE = "native"
RESULTS = ROOT / "native" / "bench" / "RESULTS.md"
BENCHES = {
    "aggregate": "fleetgrad.broker.bench.aggregate",
    "link": "fleetgrad.broker.bench.link",
    "years": "fleetgrad.broker.bench.years",
    "step": "fleetgrad.edge.bench.step",
    "training": "fleetgrad.edge.bench.training",
    "memory": "fleetgrad.edge.bench.memory",
    "startup": "fleetgrad.edge.bench.startup",
    "fidelity": "fleetgrad.edge.bench.fidelity",
    "partial": "fleetgrad.edge.bench.partial",
    "normalised": "fleetgrad.edge.bench.normalised",
    "learning": "fleetgrad.edge.bench.learning",
    "accuracy": "fleetgrad.broker.bench.accuracy",
}
PIPE_COLUMNS = 1000  # into a file or a pipe: no terminal's width, so that a row stays a line
COLUMNS = ("figure", "value", "unit", "bound", "holds", "peer")


def native_modules() -> dict[str, str]:
    """Benches of the C core: name -> module, those that have rows."""
    prefix = f"{native_bench.__name__}."
    found = sorted(module.name for module in pkgutil.iter_modules(native_bench.__path__, prefix))
    return {
        f"{NATIVE}.{name.removeprefix(prefix)}": name
        for name in found
        if hasattr(importlib.import_module(name), "rows")
    }


def make_deltas(console: Console) -> None:
    """Trains the models whose updates the codecs are measured on, once per checkout (about two minutes)."""
    folder = Path(os.environ.setdefault(deltas.FOLDER, str(FOLDER / "deltas")))
    if not (folder / deltas.MANIFEST).is_file():
        console.print(f"training the models that give the deltas in {folder}, once")
        subprocess.run([sys.executable, "-m", "fleetgrad.edge.bench.deltas", str(folder)], check=True)


def show(console: Console, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints one bench's rows."""
    table = Table(title=f"{name} ({os.cpu_count()} cores)", title_justify="left")
    for column in COLUMNS:
        table.add_column(column)
    for row in rows:
        cells = {**row, "value": results.value_text(row), "bound": results.bound_text(row)}
        table.add_row(*["" if cells[c] is None else str(cells[c]) for c in COLUMNS])
    console.print(table)


def main() -> int:
    """Runs the chosen benches; the exit code is 0 also when a bound is missed: a figure is a report, not a test."""
    core = native_modules()
    known = {NATIVE: "", **core, **BENCHES}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benches", nargs="*", help=f"of {', '.join(known)}; all without")
    parser.add_argument(
        "--with-ort-training",
        action="store_true",
        help=f"beside 'training'; installs it into {ORT_TRAINING.relative_to(ROOT)}",
    )
    options = parser.parse_args()
    chosen = options.benches or [NATIVE, *BENCHES]
    if unknown := set(chosen) - set(known):
        sys.exit(f"no such bench: {', '.join(sorted(unknown))} (there are {', '.join(known)})")
    if options.with_ort_training and "training" not in chosen:
        sys.exit(f"--with-ort-training belongs to the bench 'training', which isn't among {', '.join(chosen)}")
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_COLUMNS)
    FOLDER.mkdir(parents=True, exist_ok=True)
    if any(name == NATIVE or name in core for name in chosen):
        make_deltas(console)
    for name in chosen:
        parts = core if name == NATIVE else {name: known[name]}
        tables: dict[str, list[dict[str, Any]]] = {}
        for part, module in parts.items():
            more = {"environment": ORT_TRAINING} if options.with_ort_training and part == "training" else {}
            tables[part] = importlib.import_module(module).rows(**more)
            show(console, part, tables[part])
        whole = [{**row, "bench": part} for part, rows in tables.items() for row in rows]
        (FOLDER / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
        if name == NATIVE:
            short = {part.removeprefix(f"{NATIVE}."): rows for part, rows in tables.items()}
            RESULTS.write_text(results.page(short, os.cpu_count() or 1, binding.capability()))
            console.print(f"written: {RESULTS.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
