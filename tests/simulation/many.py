"""Many seeds, on every core: the simulation for a night.

python -m tests.simulation.many --seeds 20000 [--first 1] [--processes 2]

A failure's seed, its violation and the path of its trace are printed at once; the others go on. At the end: how fast it went, how many
faults were injected, and how often everything was seen that the simulation counts.
"""

import argparse
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.simulation.scenario import draw
from tests.simulation.world import World, replay

FOLDER = Path("build") / "simulate"
PROGRESS_SECONDS = 10.0
# What the scenario does to the federation, as the trace counts it; each message that is lost or repeated comes on top.
FAULTS = (
    "crash ",
    "broker amnesia",
    "partition",
    "disk full",
    "trainer died",
    "residual damaged",
    "aggregator died",
    "device died",
    "fault ",
)


def one(seed: int) -> tuple[int, Counter[str], int, str]:
    """Runs a seed: (seed, what was seen, events, what failed or nothing)."""
    scenario = draw(seed)
    world = World(scenario, keep_all=False)
    problem = ""
    try:
        final = world.run().final
        if scenario.patient and final != World(scenario.calm()).run().final:
            problem = "not the fault-free run's model"
    except Exception:  # noqa: BLE001  (a machine may fail in any way: that is what is looked for)
        problem = traceback.format_exc()
    if problem:
        FOLDER.mkdir(parents=True, exist_ok=True)
        again = World(scenario, keep_all=True)
        try:
            again.run()
        except Exception as e:  # noqa: BLE001
            again.trace.lines.append(str(e))
        (FOLDER / f"{seed}.txt").write_text("\n".join(again.trace.lines) + f"\n\n{problem}\n")
    return seed, world.trace.sometimes, world.clock.steps, problem


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    seen: Counter[str] = Counter()
    began = shown = time.monotonic()
    done = events = failed = 0
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for seed, sometimes, steps, problem in pool.imap_unordered(
            one, range(options.first, options.first + options.seeds), chunksize=4
        ):
            done, events = done + 1, events + steps
            seen += sometimes
            if problem:
                failed += 1
                print(
                    f"seed {seed}: {problem.strip().splitlines()[-1]}\n  {FOLDER / f'{seed}.txt'}, {replay(seed)}",
                    flush=True,
                )
            if (now := time.monotonic()) - shown > PROGRESS_SECONDS or done == options.seeds:
                shown = now
                print(
                    f"{done} of {options.seeds} seeds, {done / (now - began):.1f} a second, {failed} failed", flush=True
                )
    seconds = time.monotonic() - began
    for what, count in sorted(seen.items()):
        print(f"{count:9d}  {what}")
    faults = sum(count for what, count in seen.items() if what.startswith(FAULTS))
    print(
        f"{done} seeds in {seconds:.0f} s: {events:,} events, {events / seconds:,.0f} a second, {faults:,} faults; {failed} failed"
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
