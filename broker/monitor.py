"""What people look at after a round: a row of results.py, the retained metrics, the model as ONNX.

Each version is evaluated on a thread of its own, so that the round machine keeps answering. At start, versions of the journal that
have no row are reported again.
"""

import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleetgrad.broker.closing import report
from fleetgrad.broker.events import Published
from fleetgrad.broker.journal import Contribution, Memory, Version
from fleetgrad.broker.registry import objects
from fleetgrad.broker.results import Results
from fleetgrad.broker.settings import Data
from fleetgrad.edge.autodiff.exporting import export_model
from fleetgrad.edge.data import npz
from fleetgrad.edge.data.dataset import Dataset
from fleetgrad.edge.training.plan_dir import Plan
from fleetgrad.edge.training.trainer import Trainer, TrainingError
from fleetgrad.wire.files import Files, PosixFiles
from fleetgrad.wire.log import log
from fleetgrad.wire.messages import Metrics, Policy

MODEL = "model.onnx"
Origin = tuple[Version, str | None, list[Contribution]]


class Monitor:
    """Evaluates and reports versions in order; `report` is called with each row on the monitor's thread."""

    def __init__(
        self, directory: Path, plan: Plan, data: Data | None, results: Results, report: Callable[[Metrics], None]
    ) -> None:
        self._directory, self._plan, self._results, self._report = directory, plan, results, report
        self._files: Files = PosixFiles(directory)
        self._trainer = Trainer(plan)
        self._data: Dataset | None = None
        if data:
            self._data = npz.load(
                directory / data.path, plan.manifest, x=data.x, y=data.y, scale=data.scale, shape=data.shape
            )
        self._work: queue.SimpleQueue[Published | Version | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="monitor")
        self._thread.start()

    def add(self, published: Published) -> None:
        """Queues a version."""
        self._work.put(published)

    def catch_up(self, memory: Memory, missing: Iterable[Origin], step_bytes: int, chunk_bytes: int) -> None:
        """Queues the versions `missing`, which were published just before a crash and have no row, and the model that a withdrawal has
        made current again."""
        current = memory.current.number if memory.versions else 0
        for published in unreported(missing, current, step_bytes, chunk_bytes):
            self.add(published)
        if memory.taken_back is not None:
            self._work.put(memory.current)

    def close(self) -> None:
        """Waits for what is queued."""
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            number = item.number if isinstance(item, Version) else item.version
            try:
                if isinstance(item, Version):
                    self._export(self._vector(item.params))
                else:
                    self._one(item)
            except (ValueError, OSError) as e:
                log("report_failed", version=number, reason=e)

    def _vector(self, params: str) -> NDArray[np.float32]:
        return objects.whole_vector(self._plan, objects.verified(self._files, params))

    def _export(self, vector: NDArray[np.float32]) -> None:
        temporary = self._directory / f"{MODEL}.tmp"
        export_model(self._plan.directory, vector, temporary)
        temporary.replace(self._directory / MODEL)

    def _one(self, p: Published) -> None:
        accuracy, loss, scores = None, p.loss, dict[str, float]()
        try:
            vector = self._vector(p.params)
            if self._data is not None:
                self._trainer.load(vector[: self._plan.manifest.travels])
                found = self._trainer.evaluate(self._data)
                accuracy, loss, scores = found.accuracy, found.loss, found.scores
            self._export(vector)
        except (objects.ObjectError, TrainingError) as e:
            log("evaluation_failed", version=p.version, reason=e)
        row = Metrics(
            round=p.round, version=p.version, members=p.members, accuracy=accuracy, loss=loss, bytes_up=p.bytes_up,
            bytes_down=p.bytes_down, seconds=None if p.seconds is None else round(p.seconds, 3),
            codec=p.codec, bits=None if p.bits is None else round(p.bits, 4),
            scores={name: round(value, 6) for name, value in scores.items() if math.isfinite(value)},
        )  # fmt: skip
        self._results.add(row)
        log("version_evaluated", round=p.round, version=p.version, accuracy=accuracy, loss=round(loss, 5))
        self._report(row)


def unreported(missing: Iterable[Origin], current: int, step_bytes: int, chunk_bytes: int) -> Iterator[Published]:
    """What there is to say of versions that have no row; of the time that their rounds took, nothing.

    `step_bytes` is of the current version; which deltas were offered to older ones is forgotten, so their params count.
    """
    for version, policy, members in missing:
        round_ = msgspec.json.decode(version.record)["round"]
        ran = msgspec.json.decode(policy, type=Policy) if policy else None
        step = step_bytes if version.number == current else version.size
        yield report(version, round_, ran, members, None, step, chunk_bytes)
