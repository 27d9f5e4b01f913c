"""Many seeds, on every core: the simulation for a night.

python -m tests.simulation.many --seeds 20000 [--first 1] [--processes 2]

A failure's seed, its violation and the path of its trace are printed at once; the others go on. At the end: how often everything
was seen that the simulation counts, which faults were injected how often, and how fast it went.
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
FAULTS = {  # each with the counter that shows it was injected; the sample of CI must have seen all of them
    "drop": "message lost", "duplicate": "message doubled", "reorder, delay": "message overtaken",
    "bit flip on the way": "bit of a message flipped", "replay": "old message said again", "partition": "partition",
    "partition, one way": "upload of a mute device lost", "broker amnesia": "broker amnesia",
    "broker forgets retained messages": "broker forgets what it retained", "aggregator crash": "aggregator died",
    "crash before a commit": "crash before commit", "crash after one": "crash after commit",
    "crash between two effects": "crash before effect", "crash inside a write": "crash inside write",
    "device crash": "device died", "trainer crash": "trainer died", "co-signer crash": "cosignerprocess died",
    "co-signer's loss": "co-signer lost for good", "power cut": "power cut", "torn pages": "file torn by a power cut",
    "disk full": "disk full", "no room to train": "no room to train", "disk read-only": "disk read-only", "I/O errors": "disk with errors", "bit flip of an update at rest": "payload damaged",
    "bit flip of an upload at rest": "upload damaged", "bit flip of a model at rest": "object damaged",
    "damaged residual": "residual damaged", "another clock in each life": "clock elsewhere after a restart",
    "clone": "clone trains", "straggler, x50": "straggler trains",
    "identity renewed": "identity renewed", "identity renewed under an upload": "upload signed anew",
    "config change under an open attempt": "policy changed under an open attempt",
    "version withdrawn": "version withdrawn", "version withdrawn under an attempt": "attempt abandoned by a withdrawal",
    "device revoked": "identity revoked", "device revoked under an upload": "identity revoked under an upload",
}  # fmt: skip


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
    print("\nfaults that were injected")
    for fault, counter in FAULTS.items():
        print(f"{seen[counter]:9d}  {fault}")
    faults = sum(seen[counter] for counter in FAULTS.values())
    print(
        f"{done} seeds in {seconds:.0f} s: {events:,} events, {events / seconds:,.0f} a second, {faults:,} faults; {failed} failed"
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
