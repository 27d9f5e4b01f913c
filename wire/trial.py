"""What a plan says of a training step, as its compiler saw it: the memory it takes, and what comes of one known batch.

Memory is told as lines over the samples that run at once, bytes = fixed + per-sample x samples. The known batch is drawn
from a seed on the device (edge/training/trial.py), and the step must give what it gave when the plan was compiled.
"""

import math

import msgspec

from fleetgrad.wire.strict import Strict

MOST_LINES = 64
MOST_BYTES = 1 << 48
MOST_NODES = 1 << 24
MOST_SEED = 1 << 63
SAMPLES = 2  # of the known batch


class TrialError(ValueError):
    """Figures that can't be; the message names the field and the value."""


class Line(Strict, frozen=True, kw_only=True):
    """Bytes over the number of samples that run at once."""

    fixed: int
    per_sample: int

    def at(self, samples: int) -> int:
        """Bytes for so many samples."""
        return self.fixed + self.per_sample * samples


class Usage(Strict, frozen=True, kw_only=True):
    """Memory of a graph's runs: `nodes` that run, bytes of onnxruntime's arena (the highest line counts) and of ops beside it."""

    nodes: int
    arena: tuple[Line, ...]
    scratch: Line


class Memory(Strict, frozen=True, kw_only=True):
    """Of the training graph and of the evaluation graph."""

    train: Usage
    evaluation: Usage


class Trial(Strict, frozen=True, kw_only=True):
    """The known batch's seed, and its loss, its gradient's norm and the gradient's sum with random signs.

    `limits` are for integer inputs, by name: the batch has whole numbers from 0 to below.
    """

    seed: int
    limits: dict[str, int] = msgspec.field(default_factory=dict)
    loss: float
    norm: float
    projection: float


def check(memory: Memory | None, trial: Trial | None) -> None:
    """Raises TrialError where a figure is out of bounds."""
    for name, usage in (("train", memory.train), ("evaluation", memory.evaluation)) if memory else ():
        if not 0 < usage.nodes <= MOST_NODES:
            raise TrialError(f"memory of {name}: {usage.nodes} nodes, from 1 to {MOST_NODES} are possible")
        if not 0 < len(usage.arena) <= MOST_LINES:
            raise TrialError(f"memory of {name}: {len(usage.arena)} lines, from 1 to {MOST_LINES} are possible")
        for line in (*usage.arena, usage.scratch):
            if abs(line.fixed) > MOST_BYTES or not 0 <= line.per_sample <= MOST_BYTES:
                raise TrialError(
                    f"memory of {name}: {line.fixed} + {line.per_sample} a sample, up to {MOST_BYTES} bytes are possible"
                )
    if trial:
        if not 0 <= trial.seed < MOST_SEED:
            raise TrialError(f"trial: seed {trial.seed}, from 0 to below {MOST_SEED} is possible")
        if bad := {name: limit for name, limit in trial.limits.items() if not 0 < limit < MOST_SEED}:
            raise TrialError(f"trial: limits {bad}, from 1 to below {MOST_SEED} is possible")
        if not all(map(math.isfinite, (trial.loss, trial.norm, trial.projection))):
            raise TrialError(
                f"trial: loss {trial.loss}, norm {trial.norm}, projection {trial.projection}: must be finite"
            )
