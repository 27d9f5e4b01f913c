"""Runs the test suites one after another, each within its budget of tests/suites.toml.

--sample gives tests the commit's hash as FLEETGRAD_SAMPLE, so that randomised tests draw a sample seeded by the commit;
--full sets FLEETGRAD_SAMPLE=full, and they run everything. Names given as arguments choose suites.
"""

import argparse
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

TESTS = Path(__file__).resolve().parent
SUM_SECONDS = 18 * 60
PROCESSES = ("fleet", "chaos", "brokers")  # these start many processes of their own: their tests run one after another


def commit() -> str:
    """The commit under test, or 'none' outside a git checkout."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=TESTS, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "none"


def main() -> int:
    """Runs the chosen suites; the exit code is 1 when one failed or ran out of time."""
    parser = argparse.ArgumentParser(description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--sample", action="store_true", help="a sample seeded by the commit")
    mode.add_argument("--full", action="store_true", help="everything")
    parser.add_argument("suites", nargs="*", help="names of suites; all without")
    options = parser.parse_args()

    budget: dict[str, int] = tomllib.loads((TESTS / "suites.toml").read_text())["budget"]
    if sum(budget.values()) > SUM_SECONDS:
        sys.exit(f"budgets add up to {sum(budget.values())} s, at most {SUM_SECONDS} s")
    if unknown := set(options.suites) - set(budget):
        sys.exit(f"no such suite: {', '.join(sorted(unknown))} (there are {', '.join(budget)})")
    sample = "full" if options.full else commit()
    environment = {**os.environ, "FLEETGRAD_SAMPLE": sample}
    print(f"sample: {sample}", flush=True)

    table: list[tuple[str, str, float, int]] = []
    for suite in options.suites or budget:
        limit = budget[suite] * (4 if options.full else 1)
        workers = [] if suite in PROCESSES else ["-n", "2"]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, str(TESTS / suite)]
        started = time.monotonic()
        try:
            code = subprocess.run(command, cwd=TESTS.parent, env=environment, timeout=limit, check=False).returncode
            state = "passed" if code == 0 else f"failed (pytest exit {code})"
        except subprocess.TimeoutExpired:
            state = "stopped: over its budget"
        table.append((suite, state, time.monotonic() - started, limit))
    print("\nsuite         seconds  budget  state")
    for suite, state, seconds, limit in table:
        print(f"{suite:<12} {seconds:8.1f} {limit:7d}  {state}")
    failed = sum(state != "passed" for _, state, _, _ in table)
    print(f"{len(table) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
