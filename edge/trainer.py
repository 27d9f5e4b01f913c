"""The trainer: a child process of the daemon that lives as long as the federation and keeps sessions and data loaded.

It reads requests and writes replies, one JSON object a line, on its standard input and output:

    {"round", "attempt", "plan", "params", "policy", "seed", "keys", "output", ...}  ->  progress*, then trained | failed

A reply `trained` is sent after the payload is durable, and under a codec with error feedback what it leaves out before it. Killed at any moment, it repeats the same payload byte for byte, sealed anew: order
of samples and rounding are drawn from the request's seeds. It ends when its input does, and at once when the daemon dies: two
trainers never write one payload.
"""

import ctypes
import errno
import hashlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleetgrad.edge import feedback
from fleetgrad.edge.data import npz
from fleetgrad.edge.data.dataset import DataError, Dataset
from fleetgrad.edge.events import Progress, Train, Trained, TrainerWord, TrainingFailed
from fleetgrad.edge.training import gate, memory
from fleetgrad.edge.training import trainer as training
from fleetgrad.edge.training.plan_dir import Plan, open_plan
from fleetgrad.wire import bundle, codecs, seal
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.files import DiskError, PosixFiles, put
from fleetgrad.wire.kit import Data
from fleetgrad.wire.log import log
from fleetgrad.wire.plan import PlanError

PR_SET_PDEATHSIG = 1
HASH_LETTERS = 64
CACHE = "cache"  # in the plan's folder, and gone with it
DISK_RETRY_SECONDS, MOST_DISK_RETRY_SECONDS = 1.0, 60.0

T = TypeVar("T")


class Request(Train, frozen=True, kw_only=True):
    """One attempt's work; `plan`, `params` and `output` are names under the folder `spool`."""

    spool: str
    data: Data
    threads: int
    max_rss: int | None = None


class _Loaded:
    """The plan and data of the last request; another of either replaces both. `again`: this process has had sessions before."""

    def __init__(self, request: Request, again: bool = False) -> None:
        spool, d = Path(request.spool), request.data
        self.source = (request.plan, request.data)
        plan = _unpacked(spool / request.plan, spool / "plans")
        self.data: Dataset = npz.load(Path(d.path), plan.manifest, x=d.x, y=d.y, scale=d.scale, shape=d.shape)
        self.layout = VectorLayout.of(plan.manifest)
        self._manifest = plan.manifest
        self._before = memory.resident() - (memory.SESSION_BYTES if again else 0)  # what the first one brings stays
        self.trainer = training.Trainer(plan, request.threads, self.micro_batch(request), plan.directory / CACHE)

    def micro_batch(self, request: Request) -> int | None:
        """What the request's limit leaves of its batch; None is all. Raises DoesNotFit."""
        if request.max_rss is None:
            return None
        size = min(request.policy.batch_size, len(self.data))
        found = memory.micro_batch(self._manifest, size, request.max_rss, self._before)
        if found:
            log("batches_run_in_pieces", round=request.round, samples=found, of=size, max_rss=request.max_rss)
        return found


def _unpacked(bundled: Path, plans: Path) -> Plan:
    """The plan, unpacked unless a whole one lies there; others are removed. Raises PlanError or OSError."""
    folder = plans / bundled.name
    try:
        plan = open_plan(folder)
    except PlanError:  # not there yet, or torn by a power cut: unpacking isn't synced, since it can be done again
        shutil.rmtree(folder, ignore_errors=True)
        bundle.unpack(_verified(bundled), folder)
        plan = open_plan(folder)
    gate.check_plan(plan)
    for other in plans.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return plan


def _verified(path: Path) -> bytes:
    """An object's bytes; a file named by a SHA-256 is held to it. Raises ValueError where the disk has changed them since they were stored."""
    raw = path.read_bytes()
    if len(path.name) == HASH_LETTERS and hashlib.sha256(raw).hexdigest() != path.name:
        raise ValueError(f"{path.parent.name}/{path.name[:16]} isn't what its name says: damaged on the disk")
    return raw


def _when_there_is_room(round_: int, act: Callable[[], T]) -> T:
    """What `act` gives; while the disk is full, it is tried again until the daemon gives the attempt up and kills us."""
    wait = DISK_RETRY_SECONDS
    while True:
        try:
            return act()
        except OSError as e:
            if not isinstance(e, DiskError) and e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            log("disk_failed", round=round_, reason=e, retry_in=f"{wait:.0f}s")
            time.sleep(wait)
            wait = min(MOST_DISK_RETRY_SECONDS, 2 * wait)


def train(request: Request, loaded: _Loaded, replies: IO[bytes]) -> Trained:
    """Trains one attempt and stores its payload; raises ValueError or OSError with the reason."""
    trainer, policy = loaded.trainer, request.policy
    base = np.frombuffer(_verified(Path(request.spool) / request.params), "<f4").astype(np.float32)
    trainer.load(base)
    epoch = 0

    def progress(p: training.Progress) -> None:
        nonlocal epoch
        if p.step == p.steps:
            epoch += 1
            steps = p.epoch * p.steps + p.step
            _send(replies, Progress(request.round, request.attempt, steps, p.loss))

    result = trainer.run_epochs(
        loaded.data,
        epochs=policy.local_epochs,
        batch_size=policy.batch_size,
        learning_rate=policy.learning_rate,
        momentum=policy.momentum,
        weight_decay=policy.weight_decay,
        seed=request.seed,
        micro_batch=loaded.micro_batch(request),
        progress=progress,
    )
    files = PosixFiles(Path(request.spool))
    delta = trainer.delta(base)
    told: dict[str, Any] = {"weight": result.samples, "steps": result.steps, "loss": result.loss}
    left_out = ""
    if request.residual_output:
        fed = _fed(request, files, loaded.layout, delta, told)
        payload, raw = fed.payload, fed.residual.astype("<f4").tobytes()
        left_out = hashlib.sha256(raw).hexdigest()
        _when_there_is_room(request.round, lambda: put(files, request.residual_output, raw))
        _when_there_is_room(request.round, lambda: put(files, request.plain_output, payload))
    else:
        payload = codecs.encode_payload(policy.codec, loaded.layout, delta, keys=request.keys, **told)
    sealed = seal.seal(bytes.fromhex(request.seal), payload, bytes.fromhex(request.sealed_with))
    _when_there_is_room(request.round, lambda: put(files, request.output, sealed))
    return Trained(
        request.round, request.attempt, request.output, len(sealed), hashlib.sha256(sealed).hexdigest(), result.samples,
        result.steps, result.loss, codecs.read_info(payload)[0].rate, left_out, hashlib.sha256(payload).hexdigest(),
    )  # fmt: skip


def _fed(
    request: Request, files: PosixFiles, layout: VectorLayout, delta: NDArray[np.float32], told: dict[str, Any]
) -> feedback.Fed:
    """The update with what is carried; without it, and a log line, where that is damaged or has to be given up."""
    e = None
    try:
        if request.carried:
            e = feedback.carried(files.read, request.carried, layout)
    except feedback.ResidualLost as f:
        log("residual_lost", round=request.round, reason=f)
    fed = feedback.encode(delta, e, request.policy.codec, layout, request.keys, **told)
    if fed.given_up:
        log("residual_given_up", round=request.round, reason=fed.given_up)
    return fed


def _send(replies: IO[bytes], reply: TrainerWord) -> None:
    try:
        replies.write(msgspec.json.encode(reply) + b"\n")
        replies.flush()
    except BrokenPipeError:
        os._exit(0)  # the daemon has gone: nobody waits for this, and what is on disk is for the next one


def main() -> None:
    """Serves requests until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon, which then ends us
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints goes to the log, not between the replies
    loaded: _Loaded | None = None
    again = False
    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line, type=Request)
        try:
            if loaded is None or loaded.source != (request.plan, request.data):
                loaded = None  # two plans and their data at once may be more than there is room for
                loaded = _when_there_is_room(request.round, lambda: _Loaded(request, again))  # noqa: B023  (called at once)
                again = True
            _send(replies, train(request, loaded, replies))
        except (ValueError, OSError, MemoryError) as e:
            # A file that can't be read may be there the next time; one that doesn't fit the plan never will.
            lasting = isinstance(e, (DataError, PlanError)) and not isinstance(e.__cause__, OSError)
            reason = f"not enough memory to train in: {e}" if isinstance(e, MemoryError) else str(e)
            _send(replies, TrainingFailed(request.round, request.attempt, reason[:500], lasting))


if __name__ == "__main__":
    main()
