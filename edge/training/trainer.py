"""Trains and evaluates a plan on one flat vector.

Weights are views of the flat vector, bound to the session once: onnxruntime reads them where they lie. Gradients land in a
second vector of the same layout, and one C call updates the first by the second. With one thread, the same parameters, data
and seed give the same bytes on one machine.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fleetgrad.edge.data.dataset import Dataset
from fleetgrad.edge.training import trial
from fleetgrad.edge.training.cache import cached_session
from fleetgrad.edge.training.feeding import Array, Feeder, shared
from fleetgrad.edge.training.pieces import cut, least, shares
from fleetgrad.edge.training.plan_dir import Plan, aligned
from fleetgrad.edge.training.scores import Evaluation, Scores
from fleetgrad.edge.training.sessions import first_line, open_session, options
from fleetgrad.native import kernels, optimizers
from fleetgrad.wire import plan as plans
from fleetgrad.wire.trial import SAMPLES

EVAL_BATCH = 256
DIVERGED = 1000  # times the first step's loss (or 1, where that is less): an epoch's mean above it is no training
SHRINK = "memory.enable_memory_arena_shrinkage"  # after a run, for the device named
NOISE_STREAM = 1  # beside the seed of a training: masks and the order of samples are drawn apart

Floats = NDArray[np.float32]
Fill = Callable[[int, int, Sequence[Array]], None]  # writes a batch's samples from start to end into a room


class TrainingError(ValueError):
    """Training that can't go on; nothing of it is to be published."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Told after each step: `loss` is the running mean of this epoch."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Optimizer steps made, samples of the data set, mean loss of the first and of the last epoch."""

    steps: int
    samples: int
    first_loss: float
    loss: float


class Trainer:
    """Sessions of one plan over one flat vector, for as long as the federation lasts."""

    def __init__(self, plan: Plan, threads: int = 1, micro_batch: int | None = None, cache: Path | None = None) -> None:
        """Opens the plan and makes its known step, in pieces of `micro_batch` samples; raises PlanError where it comes out otherwise.

        `cache` is a folder where onnxruntime's work on the graphs is kept for the next time.
        """
        self.plan, self.manifest = plan, plan.manifest
        if self.manifest.op_abi > kernels.OP_ABI:
            raise plans.PlanError(
                f"plan needs version {self.manifest.op_abi} of the custom ops, this one has {kernels.OP_ABI}: update fleetgrad"
            )
        self._flat = plan.initial_parameters()
        trainable, measured = self.manifest.of_role("trainable"), self.manifest.measured
        self._end = trainable[-1].end
        self._measured = slice(measured[0].offset, measured[-1].end) if measured else slice(0, 0)
        self._statistics = aligned(self._measured.stop)  # as they are after a step, where the vector has them
        self._gradients, self._velocity = aligned(self._end), aligned(self._end)
        self._sum: Floats | None = None  # of the pieces' gradients, where batches are cut
        self._loss = np.zeros((), np.float32)
        self._noise = self._generators(0)
        self._threads, self._cache = threads, cache
        self._train = self._open(plans.TRAIN)
        self._evaluation: tuple[ort.InferenceSession, Feeder] | None = None
        self._weights = {t.name: shared(self._view(self._flat, t)) for t in (*trainable, *measured)}
        outputs = {plans.GRADIENT + t.name: shared(self._view(self._gradients, t)) for t in trainable}
        outputs |= {plans.STATISTIC + t.name: shared(self._view(self._statistics, t)) for t in measured}
        outputs[plans.LOSS] = shared(self._loss)
        self._batch = (*self.manifest.inputs[:1], self.manifest.label, *self.manifest.inputs[1:])  # as Dataset.batch
        self._dtypes = [np.dtype(feed.dtype) for feed in self._batch]
        self._check(outputs)
        self._feeder = Feeder(self._train, (*self._batch, *self.manifest.noise), self._weights, outputs)
        self._how: ort.RunOptions | None = ort.RunOptions()
        self._how.add_run_config_entry(SHRINK, "cpu:0")  # or the arena would stay laid out for two samples
        self._try(micro_batch)
        self._how = None  # steps keep their arena

    def _check(self, outputs: dict[str, ort.OrtValue]) -> None:
        """Raises PlanError unless the graph has just the inputs and outputs that the manifest names."""
        fed = {f.name for f in self._train.get_inputs()}
        wanted = {*self._weights, *(f.name for f in (*self._batch, *self.manifest.noise))}
        made = {f.name for f in self._train.get_outputs()}
        if lost := sorted((wanted - fed) | (outputs.keys() - made)):
            raise plans.PlanError(
                f"plan {self.plan.directory}: {plans.TRAIN} has no {', '.join(lost)}, its manifest has"
            )
        if unfed := sorted(fed - wanted):
            raise plans.PlanError(
                f"plan {self.plan.directory}: {plans.TRAIN} needs {', '.join(unfed)}, its manifest has none"
            )

    @staticmethod
    def _view(vector: Floats, tensor: plans.Tensor) -> Floats:
        return vector[tensor.offset : tensor.offset + tensor.size].reshape(tensor.shape)

    def _options(self) -> ort.SessionOptions:
        return options(self.manifest.op_abi, self._threads)

    def _open(self, name: str) -> ort.InferenceSession:
        if (
            self._cache is None or self.manifest.profile == "cuda"
        ):  # what is optimised for one provider is wrong for another
            return open_session(self.plan, name, self._options())
        return cached_session(self.plan, name, self._threads, self._cache)

    def _generators(self, seed: int) -> list[np.random.Generator]:
        """One for each feed of noise, so that a batch's numbers are the same in whatever pieces they are drawn."""
        streams = range(len(self.manifest.noise))
        return [np.random.Generator(np.random.PCG64([seed, NOISE_STREAM, i])) for i in streams]

    @property
    def parameters(self) -> Floats:
        """The part of the model that travels, float32[travels]; a view."""
        return self._flat[: self.manifest.travels]

    @property
    def model(self) -> Floats:
        """The whole model, what stays on the device included, float32[length]; a view."""
        return self._flat

    def load(self, parameters: Floats) -> None:
        """Sets the part of the model that travels, or all of it; raises TrainingError if it has another size or isn't finite."""
        if parameters.shape not in (self.parameters.shape, self.model.shape):
            raise TrainingError(f"model has {parameters.size} floats, the plan has {self.manifest.travels}")
        if (index := kernels.find_nonfinite(np.ascontiguousarray(parameters, np.float32))) >= 0:
            raise TrainingError(f"model holds {parameters[index]} at {index} (tensor {self._tensor_at(index)})")
        frozen = self.manifest.of_role("frozen")
        if parameters.size > self.parameters.size and frozen:
            kept = slice(frozen[0].offset, frozen[-1].end)
            if not np.array_equal(parameters[kept], self.model[kept]):
                raise TrainingError(
                    "model has other frozen weights than the plan, whose graphs hold them: compile it again"
                )
        self.model[: parameters.size] = parameters

    def step(self, x: Array, y: Array, *more: Array, micro_batch: int | None = None) -> float:
        """Runs one batch (as Dataset.batch gives it) forward and back; gradients are then in place. Returns its mean loss.

        With `micro_batch`, it runs as pieces of at most so many samples. Raises TrainingError.
        """
        batch = (x, y, *more)
        if len(batch) != len(self._batch):
            raise TrainingError(f"a batch of {len(batch)} arrays, the plan takes {len(self._batch)}")
        for feed, dtype, array in zip(self._batch, self._dtypes, batch, strict=True):
            if array.dtype != dtype or array.shape != (len(y), *feed.shape):
                raise TrainingError(
                    f"a batch has {array.dtype} {list(array.shape)} for {feed.name!r}, "
                    f"the plan takes {feed.dtype} {[len(y), *feed.shape]}"
                )

        self._check_micro_batch(micro_batch)
        return self._step(y, micro_batch, _copying(batch))

    def _step(self, y: Array, micro_batch: int | None, fill: Fill) -> float:
        """Loss and gradient of a batch whose labels are y; `fill` writes a part of it to the room."""

        def draw(start: int, end: int, room: Sequence[Array]) -> None:
            fill(start, end, room[: len(self._batch)])
            for generator, rows in zip(self._noise, room[len(self._batch) :], strict=True):
                generator.random(out=rows, dtype=np.float32)  # type: ignore[arg-type]

        return self._in_pieces(y, micro_batch, draw)

    def _in_pieces(self, y: Array, micro_batch: int | None, fill: Fill) -> float:
        edges = cut(len(y), micro_batch)
        if len(edges) == 2:
            return self._piece(0, len(y), fill)
        if self._sum is None:
            self._sum = aligned(self._end)
        loss, self._sum[:] = 0.0, 0
        for start, end, share in zip(edges[:-1], edges[1:], shares(edges, y, self.manifest), strict=True):
            loss += share * self._piece(start, end, fill)
            np.multiply(self._gradients, np.float32(share), out=self._gradients)
            np.add(self._sum, self._gradients, out=self._sum)
        self._gradients[:] = self._sum
        return loss

    def _piece(self, start: int, end: int, fill: Fill) -> float:
        fill(start, end, self._feeder.room(end - start))
        try:
            self._train.run_with_iobinding(self._feeder.binding(end - start), self._how)
        except Exception as e:
            raise TrainingError(f"a training step failed: {first_line(e)}") from e
        loss = float(self._loss)
        if self._measured.stop and math.isfinite(loss):
            self._flat[self._measured] = self._statistics[self._measured]
        return loss

    def _try(self, micro_batch: int | None) -> None:
        """Makes the step that the plan knows the outcome of; raises PlanError where this machine's is another."""
        if (expected := self.manifest.trial) is None:
            return
        known = trial.draw(self.manifest, expected.limits, expected.seed, SAMPLES)
        ordered = [known[feed.name] for feed in (*self._batch, *self.manifest.noise)]
        before = self._flat[self._measured].copy()
        pieces = micro_batch if micro_batch and micro_batch >= least(self.manifest) else None
        try:
            loss = self._in_pieces(known[self.manifest.label.name], pieces, _copying(ordered))
        except TrainingError as e:
            raise plans.PlanError(
                f"plan {self.plan.directory}: this board can't make the plan's known step: {e}"
            ) from e
        self._flat[self._measured] = before
        if differs := trial.difference(expected, loss, *trial.told(self._gradients, expected.seed)):
            raise plans.PlanError(
                f"plan {self.plan.directory}: this board computes another step than the plan was compiled with: {differs}; "
                f"it won't train (FLEETGRAD_CAPABILITY=serial chooses the plainest kernels)"
            )

    def _check_micro_batch(self, micro_batch: int | None) -> None:
        fewest = least(self.manifest)
        if micro_batch is not None and micro_batch < fewest:
            why = "its batch normalisation takes the statistics of each piece" if fewest > 1 else "a piece has a sample"
            raise TrainingError(f"micro-batch {micro_batch}: the plan needs {fewest} or more, since {why}")

    def run_epochs(
        self,
        data: Dataset,
        *,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        momentum: float,
        weight_decay: float = 0.0,
        seed: int,
        micro_batch: int | None = None,
        progress: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> TrainingResult:
        """Trains on every sample `epochs` times, in an order drawn from the 64-bit seed; the last, partial batch counts.

        With `micro_batch`, batches run as pieces of at most so many samples; the model learns the same (pieces.py).
        Raises TrainingError when the loss or a gradient isn't finite, naming step and tensor, and when an epoch's mean loss is
        over DIVERGED times the first step's: one that blew up may end at a small loss, with nothing left that could learn. Momentum starts at zero.
        """
        order = np.random.Generator(np.random.PCG64(seed))
        self._noise = self._generators(seed)
        self._check_micro_batch(micro_batch)
        edges = self._edges(len(data), batch_size)
        steps = len(edges) - 1
        optimizer = optimizers.Optimizer("momentum", learning_rate, momentum=momentum, weight_decay=weight_decay)
        self._velocity[:] = 0
        hint = f"try a lower learning rate than {learning_rate:g}"
        done, first, mean, began = 0, 0.0, 0.0, 0.0
        for epoch in range(epochs):
            permutation, total, seen = order.permutation(len(data)), 0.0, 0
            for step in range(steps):
                if should_stop and should_stop():
                    return TrainingResult(done, len(data), first, mean)
                drawn = permutation[edges[step] : edges[step + 1]]
                done += 1
                try:
                    loss = self._step(data.y[drawn], micro_batch, _drawing(data, drawn))
                except TrainingError as e:  # the int8 node refuses NaN before the loss is seen
                    raise TrainingError(f"step {done}: {e} ({hint})") from e
                began = loss if done == 1 else began
                if not math.isfinite(loss):
                    raise TrainingError(f"loss is {loss} at step {done}: {hint}, or check the data")
                try:
                    optimizers.step(optimizer, self._flat[: self._end], self._gradients, self._velocity)
                except optimizers.GradientError as e:
                    raise TrainingError(
                        f"gradient of {self._tensor_at(e.index)!r} isn't finite at step {done}: {hint}"
                    ) from e
                total, seen = total + loss * len(drawn), seen + len(drawn)
                mean = total / seen
                if progress:
                    progress(Progress(epoch, epochs, step + 1, steps, mean))
            if mean > DIVERGED * max(1.0, abs(began)):
                raise TrainingError(
                    f"training diverged: the mean loss of epoch {epoch + 1} is {mean:.3g}, over {DIVERGED} times the {began:.3g} "
                    f"of its first step: {hint}, or check the data"
                )
            first = first if epoch else mean
        if (index := kernels.find_nonfinite(self._flat[: self._end])) >= 0:
            raise TrainingError(f"the trained model holds {self._flat[index]} in tensor {self._tensor_at(index)}")
        return TrainingResult(done, len(data), first, mean)

    def _edges(self, samples: int, batch_size: int) -> list[int]:
        """Where batches begin and end. Batch statistics need two samples: a single one at the end joins the batch before."""
        edges = [*range(0, samples, batch_size), samples]
        if self._measured.stop and batch_size > 1 and len(edges) > 2 and edges[-1] - edges[-2] == 1:
            del edges[-2]
        return edges

    def delta(self, base: Floats) -> Floats:
        """What training changed: parameters - base, float32[travels].

        Raises TrainingError where that is more than an aggregator's sum takes (wire/SPEC.md section 6), naming the tensor.
        """
        found = self.parameters - base
        for last, most in (
            (self._end, kernels.RING_RANGE),
            (len(found), kernels.RING_RANGE * 2.0**self.manifest.statistics.exponent),
        ):
            part = found[:last]  # whose magnitudes would be one more vector of memory
            index = int(part.argmax() if part.max() > -part.min() else part.argmin())
            if not abs(found[index]) <= most:
                raise TrainingError(
                    f"the update changes tensor {self._tensor_at(index)!r} by {found[index]:.3g}, at most {most:g} can be summed: "
                    f"try a lower learning rate, or inputs and targets of a smaller scale"
                )
        return found

    def weights(self) -> dict[str, Floats]:
        """Trainable tensors by name; views, which may be written to."""
        return {t.name: self._view(self._flat, t) for t in self.manifest.of_role("trainable")}

    def gradients(self) -> dict[str, Floats]:
        """Gradients of the last step by tensor; views."""
        return {t.name: self._view(self._gradients, t) for t in self.manifest.of_role("trainable")}

    def vectors(self) -> tuple[Floats, Floats, Floats]:
        """Parameters, gradients and velocity of the trainable part, float32[n] each; views."""
        return self._flat[: self._end], self._gradients, self._velocity

    def evaluate(self, data: Dataset, batch_size: int = EVAL_BATCH) -> Evaluation:
        """Loss, accuracy and other scores of the current parameters on all of `data`."""
        if self._evaluation is None:
            session = self._open(plans.EVAL)
            self._evaluation = session, Feeder(session, self._batch, self._weights, {})
        session, feeder = self._evaluation
        scores = Scores(self.manifest)
        for start in range(0, len(data), batch_size):
            indices = np.arange(start, min(start + batch_size, len(data)))
            _, y, *_ = data.batch(indices, feeder.room(len(indices)))
            binding = feeder.binding(len(indices))
            for output in (plans.LOSS, plans.PREDICTION):
                binding.bind_output(output)
            try:
                session.run_with_iobinding(binding)
            except Exception as e:
                raise TrainingError(f"evaluation failed: {first_line(e)}") from e
            loss, prediction = binding.copy_outputs_to_cpu()
            scores.add(float(loss), prediction, y.copy())  # the room is filled anew
        if (found := scores.result()) is None:
            raise TrainingError(
                f"evaluation failed: all labels are {self.manifest.loss_options.ignore_index}, the ignored one"
            )
        return found

    def _tensor_at(self, index: int) -> str:
        return next((t.name for t in self.manifest.tensors if t.offset <= index < t.end), "none")


def _copying(batch: Sequence[Array]) -> Fill:
    """Fills a piece's room from a batch."""

    def fill(start: int, end: int, room: Sequence[Array]) -> None:
        for rows, array in zip(room, batch, strict=True):
            np.copyto(rows, array[start:end])

    return fill


def _drawing(data: Dataset, drawn: NDArray[np.integer]) -> Fill:
    """Fills a piece's room from the data set."""

    def fill(start: int, end: int, room: Sequence[Array]) -> None:
        data.batch(drawn[start:end], room)

    return fill
