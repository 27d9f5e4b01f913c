"""What training takes of a device's memory, told before it starts, and the micro-batch that a limit allows.

    growth = sessions + vectors + arena + scratch + feeds

of the resident memory over what the process has before its sessions are made. The vectors are the model, its gradient and
its velocity (another gradient where batches run as pieces); the arena's and the scratch's bytes are the plan's (wire/trial.py)
times what fragmentation makes of them. The constants are fitted to 56 measurements on x86-64 Linux with onnxruntime 1.32: seven models,
two profiles, batches of 1, 4, 16 and 32, at most 9.2 % off; 16 other nets are at most 11.5 % off. Where most of a model is frozen
the heap matters more: last layers, biases or adapters alone are mostly within 15 %, from 21 % too low to 32 % too high at the
worst. `make bench-memory` holds all to new ones.
"""

import ctypes
import gc
from pathlib import Path

import numpy as np

from fleetgrad.edge.training.pieces import least
from fleetgrad.wire.plan import Feed, Manifest, PlanError
from fleetgrad.wire.sizes import megabytes
from fleetgrad.wire.trial import SAMPLES, Usage

FLOAT = 4
SESSION_BYTES = 13_900_000  # onnxruntime's first session, the custom ops, the known step
NODE_BYTES = 3_100  # a node and its kernel
ARENA_FACTOR, FORWARD_FACTOR = 1.19, 1.8  # chunks that fit no request, where gradients follow and where they don't
FORWARD_SLOPE = 1.5  # of bytes per sample to those of evaluation: up to this little is kept for gradients
FROZEN_FACTOR = 0.8  # of the weights in the graph: what reading them leaves on the heap
SCRATCH_FACTOR = 3.4  # blocks that come and go between others of the heap
ROUND_UP = 1_000_000  # bytes of a limit that is recommended
STATM, PAGE_BYTES = Path("/proc/self/statm"), 4096


class DoesNotFit(PlanError):
    """A plan that takes more memory than it may, even sample by sample."""


def resident() -> int:
    """Bytes of this process that lie in memory, once what it doesn't use any more is given back."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)
    return int(STATM.read_text().split()[1]) * PAGE_BYTES


def growth(manifest: Manifest, samples: int, *, pieces: bool = False, evaluated: int = 0) -> int:
    """Bytes that training takes at its peak with `samples` at once; `pieces`: they are part of a batch; raises PlanError.

    `evaluated` is how many samples at once are evaluated between; 0 makes no session for it.
    """
    if manifest.memory is None:
        raise PlanError(f"plan of {manifest.model!r} doesn't say what memory a step takes: compile it again")
    trained, measured = manifest.of_role("trainable")[-1].end, sum(t.size for t in manifest.measured)
    if manifest.trial and not pieces:
        samples = max(samples, SAMPLES)  # of the known step that comes first
    vectors = FLOAT * (manifest.length + (3 if pieces else 2) * trained + measured)
    feeds = (*manifest.inputs, manifest.label)
    found: float = SESSION_BYTES + vectors + samples * _row((*feeds, *manifest.noise))
    frozen = FLOAT * sum(t.size for t in manifest.of_role("frozen"))
    train, evaluation = manifest.memory.train, manifest.memory.evaluation
    slopes = [max(line.per_sample for line in usage.arena) for usage in (train, evaluation)]
    alone = 2 * frozen > FLOAT * manifest.length and slopes[0] <= FORWARD_SLOPE * slopes[1]
    found += _graph(train, samples, frozen, alone=alone)
    if evaluated:
        found += _graph(evaluation, evaluated, frozen, alone=True) + evaluated * _row(feeds)
    return round(found)


def _graph(usage: Usage, samples: int, frozen: int, *, alone: bool) -> float:
    """Bytes of a graph with so many bytes of frozen weights, which lie in the arena; `alone`: it is a forward pass, or nearly."""
    arena = max(0, *(line.at(samples) for line in usage.arena))
    weights = min(arena, frozen)
    lent = (FORWARD_FACTOR if alone else ARENA_FACTOR) * (arena - weights) + weights
    return NODE_BYTES * usage.nodes + lent + FROZEN_FACTOR * frozen + SCRATCH_FACTOR * max(0, usage.scratch.at(samples))


def _row(feeds: tuple[Feed, ...]) -> int:
    return sum(np.dtype(f.dtype).itemsize * int(np.prod(f.shape, dtype=np.int64)) for f in feeds)


def micro_batch(manifest: Manifest, batch: int, limit: int, before: int, *, evaluation: bool = False) -> int | None:
    """The largest micro-batch with which a process that has `before` bytes stays within `limit`; None: whole batches do.

    With `evaluation`, as many samples are evaluated at once. Raises DoesNotFit.
    """
    fewest = min(least(manifest), batch)

    def needed(samples: int) -> int:
        pieces, joined = samples < batch, 1 if samples == batch and fewest > 1 else 0  # by a single sample at the end
        both = samples + joined
        return before + growth(manifest, both, pieces=pieces, evaluated=both if evaluation else 0)

    sizes = range(batch, fewest - 1, -1)
    found = next((samples for samples in sizes if needed(samples) <= limit), None)
    if found is None:
        best = min(sizes, key=needed)  # whole batches, where the pieces' gradients take more than they save
        would_do = -(-needed(best) // ROUND_UP)
        raise DoesNotFit(
            f"training doesn't fit: max-rss is {megabytes(limit)}, this process has {megabytes(before)} before training and "
            f"would have {megabytes(needed(best))} with a micro-batch of {best}; max-rss {would_do}MB would do"
        )
    return None if found == batch else found
