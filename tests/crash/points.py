"""Harness B: a fault-free run of the simulated federation, in which one process dies at exactly its k-th crash point.

A crash point lies before, inside and after each file operation, before and after each commit, and before each effect: the run
without a crash counts them, so that an operation that is added tomorrow has its points. What the crash leaves of the disk is

    killed   all that was written
    cut      what was promised, and of the rest nothing
    torn     what was promised, and of the rest whatever the disk chooses: a prefix of the entries; old, empty or torn bytes

Then the process starts again, the run goes on to its end, and the invariants hold as in every simulated run.

python -m tests.crash.points VICTIM POINT[,POINT] LOSS     repeats one and prints all that happened
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Literal, get_args

from fleetgrad.wire.coding.spec import CodecSpec
from tests.simulation.disk import Crashed
from tests.simulation.process import Process
from tests.simulation.scenario import Faults, Scenario, draw
from tests.simulation.world import Outcome, World

Loss = Literal["killed", "cut", "torn"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
EVEN_SEED = 0  # its scenario is patient: no attempt is given up, so the last model is the fault-free run's


def quiet(codec: CodecSpec) -> Scenario:
    """Two devices on a fine day, two rounds, small params, short training."""
    return replace(
        draw(EVEN_SEED).calm(), devices=2, goal=2, rounds=2, length=320, codec=codec, then=None, samples=(40, 60),
        train_seconds=1.0,
    )  # fmt: skip


# Under error feedback a device has the most to keep.
SCENARIOS = {"aggregator": quiet(CodecSpec(name="blk8")), "dev-0": quiet(CodecSpec(name="topk", fraction=0.3))}


@dataclass(slots=True)
class Bomb:
    """Stands in for a process's `crash_point`: counts the points, and dies at those of `at`, counted over all its lives."""

    at: Sequence[int] = ()
    passed: int = 0
    acts: list[str] = field(default_factory=list)
    died: list[str] = field(default_factory=list)

    def __call__(self, act: str) -> None:
        self.passed += 1
        self.acts.append(act)
        if self.passed - 1 in self.at:
            self.died.append(act)
            raise Crashed(act)


def armed(victim: str, bomb: Bomb, loss: Loss, *, keep_all: bool = False) -> World:
    """A world in which `victim` carries the bomb."""
    world = World(replace(SCENARIOS[victim], faults=Faults(power_cuts=float(loss != "killed"))), keep_all=keep_all)
    process: Process = next(p for p in world.processes if p.name == victim)
    process.crash_point = process.disk.before = bomb  # type: ignore[method-assign]
    if loss == "cut":
        process.disk.power_cut = partial(process.disk.power_cut, keeps_none=True)  # type: ignore[method-assign]
    return world


@cache
def count(victim: str) -> tuple[list[str], Outcome]:
    """The victim's crash points in a run without a crash, and that run's outcome."""
    bomb = Bomb()
    outcome = armed(victim, bomb, "killed").run()
    return bomb.acts, outcome


def crashed(victim: str, at: Sequence[int], loss: Loss) -> tuple[list[str], Outcome]:
    """Where the victim died, and what the run came to; raises Violation."""
    bomb = Bomb(at)
    outcome = armed(victim, bomb, loss).run()
    return bomb.died, outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("victim", choices=SCENARIOS)
    parser.add_argument("points")
    parser.add_argument("loss", choices=LOSSES)
    options = parser.parse_args()
    bomb = Bomb([int(point) for point in options.points.split(",")])
    world = armed(options.victim, bomb, options.loss, keep_all=True)
    try:
        world.run()
    finally:
        print("\n".join(world.trace.lines))
        print(f"died: {', '.join(bomb.died) or 'never'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
