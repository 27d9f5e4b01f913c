"""Trains and evaluates a plan on one flat vector.

Weights are views of the flat vector, bound to the session once: onnxruntime reads them where they lie. Gradients land in a
second vector of the same layout, and one C call updates the first by the second. With one thread, the same parameters, data
and seed give the same bytes on one machine.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fleetgrad.edge.data.dataset import Dataset
from fleetgrad.edge.training.plan_dir import Plan, aligned
from fleetgrad.edge.training.scores import Evaluation, Scores
from fleetgrad.native import kernels, optimizers
from fleetgrad.wire import plan as plans

EVAL_BATCH = 256
NOISE_STREAM = 1  # beside the seed of a training: masks and the order of samples are drawn apart

Floats = NDArray[np.float32]


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

    def __init__(self, plan: Plan, threads: int = 1) -> None:
        self.plan, self.manifest = plan, plan.manifest
        if self.manifest.op_abi > kernels.OP_ABI:
            raise plans.PlanError(
                f"plan needs version {self.manifest.op_abi} of the custom ops, this one has {kernels.OP_ABI}: update fleetgrad"
            )
        self._flat = plan.initial_parameters()
        trainable, personal = self.manifest.of_role("trainable"), self.manifest.of_role("personal")
        self._end = trainable[-1].end
        self._personal = slice(personal[0].offset, personal[-1].end) if personal else slice(0, 0)
        self._statistics = aligned(self._personal.stop)  # as they are after a step, where the vector has them
        self._gradients, self._velocity = aligned(self._end), aligned(self._end)
        self._loss = np.zeros((), np.float32)
        self._noise = np.random.Generator(np.random.PCG64(NOISE_STREAM))
        self._threads = threads
        self._train = self._session(plans.TRAIN)
        self._eval: ort.InferenceSession | None = None
        self._weights = {t.name: _shared(self._view(self._flat, t)) for t in (*trainable, *personal)}
        self._binding = self._train.io_binding()
        self._outputs = {plans.GRADIENT + t.name: _shared(self._view(self._gradients, t)) for t in trainable}
        self._outputs |= {plans.STATISTIC + t.name: _shared(self._view(self._statistics, t)) for t in personal}
        self._outputs[plans.LOSS] = _shared(self._loss)
        fed = {f.name for f in self._train.get_inputs()}
        wanted = {*self._weights, *(f.name for f in (*self.manifest.inputs, self.manifest.label, *self.manifest.noise))}
        made = {f.name for f in self._train.get_outputs()}
        if lost := sorted((wanted - fed) | (self._outputs.keys() - made)):
            raise plans.PlanError(f"plan {plan.directory}: {plans.TRAIN} has no {', '.join(lost)}, its manifest has")
        if unfed := sorted(fed - wanted):
            raise plans.PlanError(
                f"plan {plan.directory}: {plans.TRAIN} needs {', '.join(unfed)}, its manifest has none"
            )
        for name, value in self._weights.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    @staticmethod
    def _view(vector: Floats, tensor: plans.Tensor) -> Floats:
        return vector[tensor.offset : tensor.offset + tensor.size].reshape(tensor.shape)

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.enable_mem_pattern = False  # its plan of buffers lies beside the arena: up to 1.7 times the memory
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # gradients are used and gone a little earlier
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self.manifest.op_abi:
            options.register_custom_ops_library(kernels.custom_ops_library())
        return options

    def _session(self, name: str) -> ort.InferenceSession:
        try:
            return ort.InferenceSession(str(self.plan.path(name)), self._options(), providers=["CPUExecutionProvider"])
        except Exception as e:
            raise plans.PlanError(f"plan {self.plan.directory}: onnxruntime can't load {name}: {_first_line(e)}") from e

    @property
    def parameters(self) -> Floats:
        """The part of the model that travels, float32[travels]; a view."""
        return self._flat[: self.manifest.travels]

    @property
    def model(self) -> Floats:
        """The whole model, what stays on the device included, float32[length]; a view."""
        return self._flat

    def load(self, parameters: Floats) -> None:
        """Sets the part of the model that travels; raises TrainingError if it has another size or isn't finite."""
        if parameters.shape != self.parameters.shape:
            raise TrainingError(f"model has {parameters.size} floats, the plan has {self.manifest.travels}")
        if (index := kernels.find_nonfinite(np.ascontiguousarray(parameters, np.float32))) >= 0:
            raise TrainingError(f"model holds {parameters[index]} at {index} (tensor {self._tensor_at(index)})")
        self.parameters[:] = parameters

    def step(self, x: NDArray[np.generic], y: NDArray[np.generic], *more: NDArray[np.generic]) -> float:
        """Runs one batch (as Dataset.batch gives it) forward and back; gradients are then in place. Returns its mean loss."""
        self._feed(self._binding, x, y, *more)
        drawn = [self._noise.random((len(x), *feed.shape), np.float32) for feed in self.manifest.noise]
        for feed, value in zip(self.manifest.noise, drawn, strict=True):
            self._binding.bind_ortvalue_input(feed.name, _shared(value))
        try:
            self._train.run_with_iobinding(self._binding)
        except Exception as e:
            raise TrainingError(f"a training step failed: {_first_line(e)}") from e
        if math.isfinite(self._loss):
            self._flat[self._personal] = self._statistics[self._personal]
        return float(self._loss)

    def _feed(
        self, binding: ort.IOBinding, x: NDArray[np.generic], y: NDArray[np.generic], *more: NDArray[np.generic]
    ) -> None:
        binding.bind_ortvalue_input(self.manifest.label.name, _shared(y))
        for feed, value in zip(self.manifest.inputs, (x, *more), strict=True):
            binding.bind_ortvalue_input(feed.name, _shared(value))

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
        progress: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> TrainingResult:
        """Trains on every sample `epochs` times, in an order drawn from the 64-bit seed; the last, partial batch counts.

        Raises TrainingError when the loss or a gradient isn't finite, naming step and tensor. Momentum starts at zero.
        """
        order = np.random.Generator(np.random.PCG64(seed))
        self._noise = np.random.Generator(np.random.PCG64([seed, NOISE_STREAM]))
        edges = self._edges(len(data), batch_size)
        steps = len(edges) - 1
        optimizer = optimizers.Optimizer("momentum", learning_rate, momentum=momentum, weight_decay=weight_decay)
        self._velocity[:] = 0
        done, first, mean = 0, 0.0, 0.0
        for epoch in range(epochs):
            permutation, total, seen = order.permutation(len(data)), 0.0, 0
            for step in range(steps):
                if should_stop and should_stop():
                    return TrainingResult(done, len(data), first, mean)
                batch = data.batch(permutation[edges[step] : edges[step + 1]])
                done += 1
                try:
                    loss = self.step(*batch)
                except TrainingError as e:  # the int8 node refuses NaN before the loss is seen
                    raise TrainingError(f"step {done}: {e} (try a lower learning rate than {learning_rate:g})") from e
                hint = f"try a lower learning rate than {learning_rate:g}"
                if not math.isfinite(loss):
                    raise TrainingError(f"loss is {loss} at step {done}: {hint}, or check the data")
                try:
                    optimizers.step(optimizer, self._flat[: self._end], self._gradients, self._velocity)
                except optimizers.GradientError as e:
                    raise TrainingError(
                        f"gradient of {self._tensor_at(e.index)!r} isn't finite at step {done}: {hint}"
                    ) from e
                total, seen = total + loss * len(batch[0]), seen + len(batch[0])
                mean = total / seen
                if progress:
                    progress(Progress(epoch, epochs, step + 1, steps, mean))
            first = first if epoch else mean
        if (index := kernels.find_nonfinite(self._flat[: self._end])) >= 0:
            raise TrainingError(f"the trained model holds {self._flat[index]} in tensor {self._tensor_at(index)}")
        return TrainingResult(done, len(data), first, mean)

    def _edges(self, samples: int, batch_size: int) -> list[int]:
        """Where batches begin and end. Batch statistics need two samples: a single one at the end joins the batch before."""
        edges = [*range(0, samples, batch_size), samples]
        if self._personal.stop and batch_size > 1 and len(edges) > 2 and edges[-1] - edges[-2] == 1:
            del edges[-2]
        return edges

    def delta(self, base: Floats) -> Floats:
        """What training changed: parameters - base, float32[travels]."""
        return self.parameters - base

    def gradients(self) -> dict[str, Floats]:
        """Gradients of the last step by tensor; views."""
        return {t.name: self._view(self._gradients, t) for t in self.manifest.of_role("trainable")}

    def vectors(self) -> tuple[Floats, Floats, Floats]:
        """Parameters, gradients and velocity of the trainable part, float32[n] each; views."""
        return self._flat[: self._end], self._gradients, self._velocity

    def evaluate(self, data: Dataset, batch_size: int = EVAL_BATCH) -> Evaluation:
        """Loss, accuracy and other scores of the current parameters on all of `data`."""
        if self._eval is None:
            self._eval = self._session(plans.EVAL)
        scores = Scores(self.manifest)
        for start in range(0, len(data), batch_size):
            x, y, *more = data.batch(np.arange(start, min(start + batch_size, len(data))))
            binding = self._eval.io_binding()
            for name, value in self._weights.items():
                binding.bind_ortvalue_input(name, value)
            self._feed(binding, x, y, *more)
            for output in (plans.LOSS, plans.PREDICTION):
                binding.bind_output(output)
            try:
                self._eval.run_with_iobinding(binding)
            except Exception as e:
                raise TrainingError(f"evaluation failed: {_first_line(e)}") from e
            loss, prediction = binding.copy_outputs_to_cpu()
            scores.add(float(loss), prediction, y)
        if (found := scores.result()) is None:
            raise TrainingError(
                f"evaluation failed: all labels are {self.manifest.loss_options.ignore_index}, the ignored one"
            )
        return found

    def _tensor_at(self, index: int) -> str:
        return next((t.name for t in self.manifest.tensors if t.offset <= index < t.end), "none")


def _shared(array: NDArray[np.generic]) -> ort.OrtValue:
    """The array as onnxruntime sees it, without a copy."""
    return ort.OrtValue.ortvalue_from_numpy(array)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
