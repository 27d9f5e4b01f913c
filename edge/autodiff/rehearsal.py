"""Runs compiled graphs on the operator's machine, so that the plan can say what memory a step takes and what it computes.

onnxruntime's profile has the bytes that its arena lends out after each node. From two batch sizes comes a line for each node,
bytes = fixed + per_sample * batch; those that are highest at some batch are kept. The C core counts what its ops take beside.
"""

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from fleetgrad.edge.autodiff.errors import first_line
from fleetgrad.edge.autodiff.graph import Shape
from fleetgrad.edge.training import sessions
from fleetgrad.edge.training.feeding import shared
from fleetgrad.edge.training.plan_dir import aligned
from fleetgrad.edge.training.trial import draw, told
from fleetgrad.native import kernels
from fleetgrad.wire import plan
from fleetgrad.wire.trial import SAMPLES, Line, Memory, Trial, Usage

MORE_SAMPLES = 2 * SAMPLES
DIGITS = 6  # that are kept of what is computed
SEED_DIGITS = 15  # of the training graph's hash, hexadecimal
VIEWS = {"Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"}

Array = NDArray[np.generic]
Line_ = tuple[int, int]  # per_sample, fixed


def rehearse(
    manifest: plan.Manifest,
    graphs: Mapping[str, bytes],
    vector: NDArray[np.float32],
    limits: Mapping[str, int],
    notice: Callable[[str], None],
) -> tuple[Memory | None, Trial | None]:
    """Memory and known step of a plan's graphs at the weights `vector`; None, and a notice, where made-up data can't be run."""
    end = manifest.of_role("trainable")[-1].end
    gradient, statistics, loss = aligned(end), aligned(manifest.length), np.zeros((), np.float32)

    def views(flat: NDArray[np.float32], tensors: Sequence[plan.Tensor], prefix: str = "") -> dict[str, Array]:
        return {prefix + t.name: flat[t.offset : t.offset + t.size].reshape(t.shape) for t in tensors}

    trained, measured = manifest.of_role("trainable"), manifest.measured
    weights = views(vector, (*trained, *measured))
    fetched = {
        plan.LOSS: loss,
        **views(gradient, trained, plan.GRADIENT),
        **views(statistics, measured, plan.STATISTIC),
    }
    seed = int(manifest.files[plan.TRAIN][:SEED_DIGITS], 16)
    noise = {feed.name for feed in manifest.noise}
    try:
        training, found = Rehearsal(graphs[plan.TRAIN], manifest.op_abi), None
        evaluation = Rehearsal(graphs[plan.EVAL], manifest.op_abi)
        for samples in (SAMPLES, MORE_SAMPLES):
            feeds = draw(manifest, limits, seed, samples)
            training.run(samples, {**feeds, **weights}, fetched)
            if found is None:
                found = float(loss), *told(gradient, seed)
            feeds = {name: value for name, value in feeds.items() if name not in noise}
            evaluation.run(samples, {**feeds, **weights}, {plan.LOSS: loss, plan.PREDICTION: None})
        memory = Memory(train=training.usage(), evaluation=evaluation.usage())
    except Exception as e:  # noqa: BLE001 - whatever onnxruntime raises
        notice(
            f"couldn't be tried on made-up data, so the plan has neither a memory contract nor a self-test: {first_line(e)}"
        )
        return None, None
    if found is None or not all(map(math.isfinite, found)):
        notice("its loss or gradient on made-up data isn't finite, so the plan has no self-test")
        return memory, None
    kept = [float(f"{value:.{DIGITS}g}") for value in found]
    return memory, Trial(seed=seed, limits=dict(limits), loss=kept[0], norm=kept[1], projection=kept[2])


def index_limits(
    nodes: Sequence[onnx.NodeProto], shapes: Mapping[str, Shape], inputs: Sequence[plan.Feed]
) -> dict[str, int]:
    """For integer inputs that choose rows of a table: how many rows the smallest one has."""
    found = dict[str, int]()
    for feed in inputs:
        if feed.dtype.startswith("float") or feed.dtype == "bool":
            continue
        names = {feed.name}
        for node in nodes:
            if node.op_type in VIEWS and node.input[0] in names:
                names.update(node.output)
            elif node.op_type == "Gather" and node.input[1] in names:
                axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
                rows = shapes[node.input[0]][axis] if node.input[0] in shapes else 0
                if rows > 0:
                    found[feed.name] = min(rows, found.get(feed.name, rows))
    return found


class Rehearsal:
    """Runs of one graph in a session that is profiled; larger batches come after smaller ones."""

    def __init__(self, graph: bytes, op_abi: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fleetgrad-rehearsal-")
        how = sessions.options(op_abi, threads=1)
        how.enable_profiling = True
        how.profile_file_prefix = str(Path(self._folder.name) / "profile")
        self._session = ort.InferenceSession(graph, how, providers=["CPUExecutionProvider"])
        self._batches, self._scratch = list[int](), list[int]()

    def run(self, batch: int, feeds: Mapping[str, Array], fetches: Mapping[str, Array | None]) -> None:
        """One run into the arrays of `fetches`, as a trainer binds them; None lets onnxruntime make one."""
        binding = self._session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, shared(value))
        for name, target in fetches.items():
            if target is None:
                binding.bind_output(name)
            else:
                binding.bind_ortvalue_output(name, shared(target))
        kernels.scratch_most()
        self._session.run_with_iobinding(binding)
        self._batches.append(batch)
        self._scratch.append(kernels.scratch_most())

    def usage(self) -> Usage:
        """What the runs took; ends the session's profile."""
        events: list[dict[str, Any]] = json.loads(Path(self._session.end_profiling()).read_text())
        self._folder.cleanup()
        nodes = [e["args"] for e in events if e["name"].endswith("_kernel_time")]
        count = len(nodes) // len(self._batches)
        few, many = self._batches[0], self._batches[-1]
        asked = [int(node["mem_bytes_requested_in_use"]) for node in nodes]
        pairs = zip(asked[:count], asked[-count:], strict=True)
        lines = [line(few, a, many, b) for a, b in pairs]
        # What a kernel takes and gives back is seen only where it raises the highest mark.
        own = max(int(n["mem_in_use_peak"]) for n in nodes[:count]) - max(
            int(n["mem_bytes_in_use"]) for n in nodes[:count]
        )
        beside = line(few, self._scratch[0], many, self._scratch[-1])
        return Usage(
            nodes=count,
            arena=tuple(Line(fixed=fixed + own, per_sample=slope) for slope, fixed in hull(lines)),
            scratch=Line(fixed=beside[1], per_sample=beside[0]),
        )


def line(few: int, a: int, many: int, b: int) -> Line_:
    """The line through (few, a) and (many, b), or the flat one through the higher where it would fall."""
    slope = max(0, -(-(b - a) // (many - few)))
    return slope, max(a, b) - slope * (many if b >= a else few)


def hull(lines: Sequence[Line_]) -> list[Line_]:
    """Of lines, those that are highest at some whole number from 1, by slope."""
    kept, at = list[Line_](), 1
    while True:
        slope, fixed = max(lines, key=lambda found: (found[1] + found[0] * at, found[0]))
        kept.append((slope, fixed))
        crossings = [(fixed - f) // (s - slope) + 1 for s, f in lines if s > slope]
        if not crossings:
            return kept
        at = min(crossings)  # the first batch at which a steeper one is higher
