"""Holds a whole net to torch: gradients of all weights at one point, and the losses of 20 steps of plain SGD.

    torch module --export--> ONNX --compile--> plan --Trainer--> gradients, losses
                 \\--double--> autograd, SGD ------------------> the same, exact

The exporters may rename or transpose weights, so a plan's tensor is found by its value where its name is unknown.
"""

import io
import logging
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from fleetgrad.edge.autodiff import compile_model
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Trainer
from fleetgrad.wire import plan
from tests.edge.nets.net import Net

Exporter = Literal["dynamo", "legacy"]
Array = NDArray[Any]

EXPORTERS: tuple[Exporter, ...] = ("legacy", "dynamo")
KINDS: tuple[tuple[plan.Profile, plan.Gradients], ...] = (
    ("cpu-std", "fp32"), ("cpu-native", "fp32"), ("cpu-native", "int8")
)  # fmt: skip
STEPS = 20
LEAST_ERROR, TIMES_TORCH = 2e-6, 3.0  # of the whole gradient in fp32, relative, and against torch's own in float32
CURVE = 0.01  # relative difference of the losses at any step; at the nets' rates torch in float32 keeps within a fifth of it
MEDIAN, LOW = 0.9999, 0.9995  # cosines of int8 weight gradients, as docs/adding-an-op.md promises
NORMED_MEDIAN, NORMED_LOW = (
    0.9998,
    0.9975,
)  # as measured before batch normalisation, which takes out most of what dY and X share
NOTHING = 1e-6  # of the whole gradient's norm: a bias before batch normalisation has rounding for a gradient


@dataclass(frozen=True, slots=True)
class Reference:
    """What torch finds: float64 gradients and losses, how far it is from them in float32, and the weights' initial values."""

    gradients: Mapping[str, Array]
    losses: Array
    error: float
    curve: float
    values: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Found:
    """Error of the whole gradient and its bound; `cosines` of the weights with more than one dimension; the curves' difference."""

    error: float
    bound: float
    cosines: Array
    curve: float
    first: float
    last: float

    @property
    def promised(self) -> bool:
        """Whether the cosines are what the documentation promises of int8."""
        return bool(np.median(self.cosines) >= MEDIAN and np.percentile(self.cosines, 5) >= LOW)

    def faults(self, net: Net, gradients: plan.Gradients) -> list[str]:
        """What isn't as it should be; of `normed` nets in int8 as it was measured."""
        median, low = np.median(self.cosines), np.percentile(self.cosines, 5)
        less = net.normed and gradients == "int8"
        least = (NORMED_MEDIAN, NORMED_LOW) if less else (MEDIAN, LOW)
        held = {
            f"gradient's error {self.error:.1e}, bound {self.bound:.1e}": gradients == "int8"
            or self.error <= self.bound,
            f"cosines {median:.6f} (median), {low:.6f} (5th percentile)": median >= least[0] and low >= least[1],
            f"losses differ by {self.curve:.2%}, bound {CURVE:.0%}": self.curve <= CURVE,
            f"the loss doesn't fall: {self.first:.3f} to {self.last:.3f}": self.last < self.first,
        }
        return [fault for fault, right in held.items() if not right]


def _loss(net: Net, output: Any, label: Any) -> Any:
    from torch.nn import functional

    if net.loss == "mse":
        return functional.mse_loss(output, label.to(output.dtype))
    return functional.cross_entropy(output.movedim(net.axis, 1), label)


def _gradients(net: Net, module: Any, inputs: Any, label: Any) -> tuple[float, dict[str, Any]]:
    """Loss and gradients by name; a weight that is used twice has its first name."""
    module.zero_grad()
    loss = _loss(net, module(*inputs), label)
    loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in module.named_parameters()}


def _cast(inputs: tuple[Array, ...], dtype: Any) -> list[Any]:
    import torch

    return [torch.tensor(x).to(dtype) if x.dtype == np.float32 else torch.tensor(x) for x in inputs]


def reference(net: Net) -> Reference:
    """Torch's gradients at the net's weights, and its losses over STEPS steps on the net's one batch."""
    import torch

    arrays, labels = net.batch()
    values = {n: p.detach().numpy().copy() for n, p in net.module().named_parameters()}
    runs = []
    for dtype in (torch.float64, torch.float32):
        module, inputs = net.module().to(dtype), _cast(arrays, dtype)
        losses, first = [], dict[str, Array]()
        for step in range(STEPS):
            loss, found = _gradients(net, module, inputs, torch.tensor(labels))
            losses.append(loss)
            if not step:
                first = {n: g.numpy().copy() for n, g in found.items()}
            with torch.no_grad():
                for p in module.parameters():
                    p.sub_(net.rate * p.grad)
        runs.append((np.array(losses), first))
    (exact, gradients), (rough, own) = runs
    return Reference(gradients, exact, _error(own, gradients), float(np.abs(rough / exact - 1).max()), values)


def _error(found: Mapping[str, Array], exact: Mapping[str, Array]) -> float:
    """Norm of the difference of all gradients together, relative."""
    off = sum(float(((found[n].astype(np.float64) - e) ** 2).sum()) for n, e in exact.items())
    return float(np.sqrt(off / sum(float((e**2).sum()) for e in exact.values())))


def exported(net: Net, exporter: Exporter) -> onnx.ModelProto:
    """The net as ONNX in training mode, its batch free."""
    import torch

    module, arrays = net.module(), net.batch()[0]
    inputs = tuple(torch.tensor(x) for x in arrays)
    names = [f"x{i}" for i in range(len(inputs))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            free = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
            program = torch.onnx.export(
                module, inputs, dynamo=True, dynamic_shapes=free, input_names=names, output_names=["y"], verbose=False,
                optimize=False,  # else it folds batch normalisation, in training mode too, and parts tied weights
            )  # fmt: skip
            return program.model_proto
        file = io.BytesIO()
        torch.onnx.export(
            module, inputs, file, dynamo=False, training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False,
            input_names=names, output_names=["y"], dynamic_axes={n: {0: "N"} for n in [*names, "y"]},
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def hold(net: Net, model: onnx.ModelProto, exact: Reference, profile: plan.Profile, gradients: plan.Gradients) -> Found:
    """Compiles the exported net and compares it; raises ModelError where it doesn't train, ValueError where weights are lost."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan"
        how: dict[str, Any] = {"gradients": gradients, "profile": profile, "loss_options": net.options}
        compile_model(model, loss=net.loss, batch_norm="batch", output=path, **how)
        trainer = Trainer(open_plan(path))
        (x, *more), label = net.batch()
        flat, slopes, _ = trainer.vectors()
        tensors = trainer.manifest.of_role("trainable")
        start = {t.name: flat[t.offset : t.offset + t.size].reshape(t.shape).copy() for t in tensors}
        losses = []
        for step in range(STEPS):
            losses.append(trainer.step(x, label, *more))
            if not step:
                found = matched({n: g.copy() for n, g in trainer.gradients().items()}, start, exact)
            flat -= np.float32(net.rate) * slopes
    curve = np.array(losses)
    whole = np.sqrt(sum(float((e**2).sum()) for e in exact.gradients.values()))
    cosines = [
        float((found[n] * e).sum() / (np.linalg.norm(found[n]) * np.linalg.norm(e)))
        for n, e in exact.gradients.items()
        if e.ndim > 1 and np.linalg.norm(e) > NOTHING * whole
    ]
    return Found(
        error=_error(found, exact.gradients),
        bound=max(LEAST_ERROR, TIMES_TORCH * exact.error),
        cosines=np.array(cosines),
        curve=float(np.abs(curve / exact.losses - 1).max()),
        first=losses[0],
        last=losses[-1],
    )


def matched(found: Mapping[str, Array], start: Mapping[str, Array], exact: Reference) -> dict[str, Array]:
    """The plan's gradients under torch's names and in its layout; raises ValueError unless they cover every weight."""
    result = {n: g.astype(np.float64) for n, g in found.items() if n in exact.values}
    for name, gradient in found.items():
        if name in result:
            continue
        for own, value in exact.values.items():
            if own not in result and value.size == gradient.size:
                for turned, back in ((start[name], gradient), (start[name].T, gradient.T)):
                    if np.array_equal(turned.reshape(-1), value.reshape(-1)):
                        result[own] = back.reshape(value.shape).astype(np.float64)
        if not any(np.shares_memory(gradient, g) or g.size == gradient.size for g in result.values()):
            raise ValueError(f"{name!r} is trained, and torch has no such weight")
    if lost := sorted(exact.values.keys() - result.keys()):
        raise ValueError(f"not trained: {', '.join(lost)}")
    return result
