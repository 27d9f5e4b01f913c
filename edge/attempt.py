"""The attempt that a device has taken up last: what is remembered of it, and its training until there is an update.

select --begin--> training --trained--> stored, and Delivery's from then on
                      \\--failed, too late, closed--> ended
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from fleetgrad.edge.events import CancelTraining, Effect, Train, Trained, TrainingFailed
from fleetgrad.edge.link.inbox import object_name
from fleetgrad.edge.link.memory import Memory
from fleetgrad.edge.link.outbox import Record, payload_name, plain_name
from fleetgrad.edge.link.residual import Residual, residual_name
from fleetgrad.edge.link.store import Row, Store
from fleetgrad.edge.reporting import Identity
from fleetgrad.wire import frames, seeds
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.messages import Head, Select
from fleetgrad.wire.topics import name_hash


@dataclass(frozen=True, slots=True)
class Job:
    """What is being trained for; `began` is monotonic, in seconds."""

    select: Select
    began: float
    plan: str
    codec: CodecSpec

    @property
    def deadline(self) -> float:
        """When it is too late, monotonic seconds."""
        return self.began + self.select.deadline


class Attempt:
    """`memory` is as on the disk; `job` is the training under way, `unstored` the trainer's word while the disk has no room for it."""

    def __init__(self, identity: Identity, store: Store, memory: Memory) -> None:
        self._id, self._store, self.memory = identity, store, memory
        self.job: Job | None = None
        self.unstored: Trained | TrainingFailed | None = None

    @property
    def last(self) -> tuple[int, int]:
        """(round, attempt); zeros before the first."""
        return self.memory.round, self.memory.attempt

    @property
    def named(self) -> tuple[int | None, int | None]:
        """The same as messages have it, where nothing stands for zero."""
        return self.memory.round or None, self.memory.attempt or None

    def trains(self, round_: int, attempt: int) -> bool:
        """Whether the training under way is for this one."""
        return self.job is not None and (round_, attempt) == self.last

    def remember(self, **fields: Any) -> None:
        with self.becoming(**fields) as row:
            self._store.commit([row])

    @contextmanager
    def becoming(self, **fields: Any) -> Iterator[Row]:
        """The row of the memory with these fields changed: what is done within commits it, and then it is so."""
        changed = msgspec.structs.replace(self.memory, **fields)
        yield changed.row()
        self.memory = changed

    def begin(self, select: Select, head: Head, carried: Residual | None, now: float) -> Train:
        """The order for the trainer; `select` is in memory already."""
        self.job, self.unstored = Job(select, now, head.plan.sha256, head.policy.codec), None
        name, device, asked = self._id.federation, self._id.device, (select.round, select.attempt)
        feedback = head.policy.codec.feedback
        return Train(
            *asked,
            object_name(head.plan.sha256),
            object_name(head.params.sha256),
            head.policy,
            seeds.derive("fl1-seed", name, device, *asked),
            seeds.codec_keys(name, device, *asked),
            payload_name(*asked),
            head.seal,
            frames.sealed_with(
                name_hash(name),
                *asked,
                name_hash(device),
                bytes.fromhex(select.params),
                bytes.fromhex(select.config),
            ).hex(),
            residual_name(*asked) if feedback else "",
            plain_name(*asked) if feedback else "",
            carried,
        )

    def record(self, job: Job, done: Trained) -> Record:
        """What is stored of the update that the training came to."""
        return Record(
            round=done.round, attempt=done.attempt, version=job.select.version, params=job.select.params,
            config=job.select.config, payload=done.payload, size=done.size, sha256=done.sha256, weight=done.weight,
            steps=done.steps, loss=done.loss, rate=done.rate, plan=job.plan, codec=job.codec,
            keys=seeds.codec_keys(self._id.federation, self._id.device, done.round, done.attempt),
            residual=done.residual, plain=done.plain,
        )  # fmt: skip

    def stop(self) -> list[Effect]:
        """No training any more."""
        effects: list[Effect] = [CancelTraining()] if self.job else []
        self.job = self.unstored = None
        return effects
