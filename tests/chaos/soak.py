"""A storm for hours: does memory grow, do handles leak, do spools fill? Writes build/soak/report.json and report.md.

python -m tests.chaos.soak --hours 24 [--devices 20] [--seed 1] [--every 5]

Every process is looked at once a minute (or 60 times a run, if that is more often). Memory is judged between lives: a line through each
process's RSS, lives of less than a quarter of the run aside, must rise by less than MOST_SLOPE in a run that is LONG_ENOUGH; the report
says whose memory wasn't judged. Those that are never killed have the longest: the aggregator and two devices are spared.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from tests import invariants
from tests.chaos.storm import Storm
from tests.invariants import Violation

MOST_SLOPE = 1e6  # bytes of RSS an hour
LONG_ENOUGH = 3600.0  # seconds of a run, before which a line through an RSS says more of caches than of leaks
MOST_HANDLES = 8  # more at the end than after the first tenth
MOST_SPOOL = 8 << 20  # bytes: the model is small, and SQLite lets its log grow to 4 MB
WARM = 0.25  # share of the run after which memory is judged: caches and allocators fill up at first
FOLDER = Path("build") / "soak"


def slope(samples: list[tuple[float, float]]) -> float:
    """The least-squares line's rise, per second."""
    t, y = np.array(samples).T
    return float(np.polyfit(t - t[0], y, 1)[0])


def judge(samples: dict[str, list[tuple[float, dict[str, Any]]]], seconds: float) -> list[dict[str, Any]]:
    """A row for each process that lived long enough."""
    rows = []
    for name, taken in sorted(samples.items()):
        pids = [s["pid"] for _, s in taken]
        longest = max(set(pids), key=pids.count)
        life = [(t, s) for t, s in taken if s["pid"] == longest and t >= WARM * seconds]
        row = {"process": name, "lives": len(set(pids)), "spool": max(s["spool"] for _, s in taken)}
        if len(life) >= 5 and life[-1][0] - life[0][0] >= seconds / 4:
            rises = slope([(t, s["rss"]) for t, s in life]) * 3600
            row |= {
                "rss": life[-1][1]["rss"],
                "rss-an-hour": rises,
                "handles": [life[0][1]["handles"], life[-1][1]["handles"]],
            }
        rows.append(row)
    return rows


def check(rows: list[dict[str, Any]], seconds: float) -> list[str]:
    """What is out of bounds; a slope is one only in a run that is LONG_ENOUGH."""
    found = []
    for row in rows:
        try:
            invariants.check_within(f"bytes in the spool of {row['process']}", row["spool"], MOST_SPOOL)
            if "handles" in row:
                first, last = row["handles"]
                invariants.check_within(f"file handles of {row['process']}", last, first + MOST_HANDLES)
                if seconds >= LONG_ENOUGH:
                    what = f"bytes of memory an hour of {row['process']}"
                    invariants.check_within(what, row["rss-an-hour"], MOST_SLOPE)
        except Violation as e:
            found.append(str(e))
    return found


def unjudged(rows: list[dict[str, Any]], seconds: float) -> str:
    """Whose memory wasn't judged, and why, in words; nothing where all of it was."""
    if seconds < LONG_ENOUGH:
        return "no process's memory was judged: the run was shorter than an hour"
    short = [row["process"] for row in rows if "rss-an-hour" not in row]
    return f"the memory of {', '.join(short)} wasn't judged: no life of a quarter of the run" if short else ""


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| process | lives | RSS, MB | MB an hour | handles | spool, kB |", "|---|---|---|---|---|---|"]
    for row in rows:
        memory = (
            f"{row['rss'] / 1e6:.1f} | {row['rss-an-hour'] / 1e6:+.2f} | {row['handles'][0]} to {row['handles'][1]}"
            if "rss" in row
            else "| | "
        )
        lines.append(f"| {row['process']} | {row['lives']} | {memory} | {row['spool'] / 1e3:.0f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between faults, on average")
    options = parser.parse_args()
    seconds = options.hours * 3600
    place = FOLDER / time.strftime("%Y%m%d-%H%M%S")
    storm = Storm(
        place.resolve(), options.devices, options.seed, spared={"aggregator", "dev-00", "dev-01"}, collects=False
    )
    samples: dict[str, list[tuple[float, dict[str, Any]]]] = defaultdict(list)
    problems: list[str] = []
    try:
        storm.start()
        began = time.monotonic()
        look_at = strike_at = 0.0
        while (now := time.monotonic() - began) < seconds:
            if now >= look_at:
                look_at += min(60.0, seconds / 60)
                for name, figures in storm.figures().items():
                    samples[name].append((now, figures))
                print(
                    f"{now / 3600:.2f} h, version {storm.published()}, {sum(storm.struck.values())} faults", flush=True
                )
            if now >= strike_at:
                storm.strike()
                strike_at = now + storm.random.expovariate(1 / options.every)
            storm.resume(time.monotonic())
            time.sleep(0.1)
        calm = storm.calm()
    except Violation as e:
        problems.append(str(e))
        calm = float("nan")
    finally:
        storm.stop()
    try:
        storm.evidence().check()
    except Violation as e:
        problems.append(str(e))
    rows = judge(samples, seconds)
    problems += check(rows, seconds)
    report = {
        "hours": options.hours, "devices": options.devices, "seed": options.seed, "faults": storm.struck, "versions": storm.published(),
        "calm-seconds": calm, "processes": rows, "problems": problems,
    }  # fmt: skip
    (FOLDER / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    text = f"{options.hours:g} h, {options.devices} devices, seed {options.seed}: {sum(storm.struck.values())} faults, {report['versions']} versions"
    (FOLDER / "report.md").write_text(
        f"{text}\n\n{table(rows)}\n\n"
        + "".join(f"* {p}\n" for p in [*(problems or ["every invariant holds"]), unjudged(rows, seconds)] if p)
    )
    print((FOLDER / "report.md").read_text())
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
