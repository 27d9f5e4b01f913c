"""Optimizer steps over the flat vector: SGD, momentum, Nesterov, Adam and AdamW, with what federated methods add, in one pass.

For each coordinate, in float32 and in this order:

    d = g * c  [+ proximal * (w - anchor)]  [+ (control - own_control)]  [- dynamic]

c is 1, or min(1, max_norm / (|g| + 1e-6)) with the norm over all coordinates that the step touches: torch's clip_grad_norm_ before
optimizer.step(). So it is the loss's gradient that is clipped; the terms of the federated method are added to it unclipped, since
a client whose gradient is large needs them most. Then torch's rules: weight decay adds weight_decay * w to d (AdamW: w is multiplied by
1 - learning_rate * weight_decay instead), and

    sgd        w -= learning_rate * d
    momentum   v = momentum * v + d;  w -= learning_rate * v                        (Sutskever et al., ICML 2013, as in torch)
    nesterov   v = momentum * v + d;  w -= learning_rate * (d + momentum * v)
    adam(w)    m = b1 m + (1 - b1) d;  s = b2 s + (1 - b2) d^2                      (Kingma & Ba, ICLR 2015; Loshchilov & Hutter, ICLR 2019)
               w -= learning_rate / (1 - b1^t) * m / (sqrt(s) / sqrt(1 - b2^t) + epsilon)

FedProx (Li et al., MLSys 2020) is anchor with proximal = mu; SCAFFOLD (Karimireddy et al., ICML 2020) is control = c and own_control = c_i;
FedDyn (Acar et al., ICLR 2021) is anchor with proximal = alpha and dynamic = h_i. All machines compute the same bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fleetgrad.native.binding import Floats, KernelError, check, check_output, ffi, lib, pointer

Rule = Literal["sgd", "momentum", "nesterov", "adam", "adamw"]
MOMENTS: dict[Rule, int] = {
    "sgd": 0,
    "momentum": 1,
    "nesterov": 1,
    "adam": 2,
    "adamw": 2,
}  # vectors of state a rule has
_KERNEL = {
    "sgd": lib.FG_SGD, "momentum": lib.FG_MOMENTUM, "nesterov": lib.FG_NESTEROV, "adam": lib.FG_ADAM, "adamw": lib.FG_ADAM,
}  # fmt: skip
NORM_EPSILON = 1e-6  # as in torch's clip_grad_norm_
Ranges = Sequence[tuple[int, int]]


class GradientError(KernelError):
    """A gradient that isn't finite, at `index` of the flat vector; nothing was written."""

    def __init__(self, index: int, size: int, value: float) -> None:
        super().__init__(f"optimizer step: gradient {index} of {size} is {value}")
        self.index = index


@dataclass(frozen=True, slots=True)
class Optimizer:
    """A rule and its constants; raises KernelError on a value out of range.

    `momentum` belongs to momentum and nesterov, `betas` and `epsilon` to adam and adamw; `max_norm` None doesn't clip.
    """

    rule: Rule
    learning_rate: float
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_norm: float | None = None
    proximal: float = 0.0

    def __post_init__(self) -> None:
        if self.rule not in MOMENTS:
            raise KernelError(f"optimizer: rule {self.rule!r}, expected {', '.join(MOMENTS)}")
        for name in ("learning_rate", "epsilon", "weight_decay", "proximal"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise KernelError(f"optimizer: {name} {value}, expected a finite number from 0")
        for name, value in (("momentum", self.momentum), ("beta 1", self.betas[0]), ("beta 2", self.betas[1])):
            if not 0 <= value < 1:
                raise KernelError(f"optimizer: {name} {value}, expected 0 to below 1")
        if self.max_norm is not None and not 0 < self.max_norm < math.inf:
            raise KernelError(f"optimizer: max_norm {self.max_norm}, expected a finite number over 0, or None")


def norm(values: Floats, ranges: Ranges | None = None) -> float:
    """Euclidean norm over the ranges [start, end), in doubles; the same on every machine. Not finite where a value isn't."""
    check("norm", values, np.float32)
    bounds, count = _bounds("norm", ranges, values.size)
    return math.sqrt(lib.fg_square_sum(pointer("float *", values), bounds, count))


def step(
    optimizer: Optimizer,
    parameters: Floats,
    gradients: Floats,
    *moments: Floats,
    time: int = 1,
    ranges: Ranges | None = None,
    anchor: Floats | None = None,
    control: Floats | None = None,
    own_control: Floats | None = None,
    dynamic: Floats | None = None,
) -> float | None:
    """One step in place on `parameters` and `moments`; returns the gradient's norm where the optimizer clips.

    All vectors are float32[n]; those that are written overlap no other. `moments` are the velocity (momentum, nesterov) or the first and
    second moment (adam, adamw), zeros before the first step; `time` is Adam's t, the first step being 1. `ranges` are the parts
    [start, end) that the step may touch, ascending; None is all. Raises GradientError if a gradient there isn't finite, KernelError
    otherwise; nothing is written then.
    """
    act = "optimizer step"
    size = parameters.size
    if len(moments) != MOMENTS[optimizer.rule]:
        raise KernelError(f"{act}: {optimizer.rule} has {MOMENTS[optimizer.rule]} moments, got {len(moments)}")
    if (control is None) != (own_control is None):
        raise KernelError(f"{act}: control and own_control come together")
    if time < 1:
        raise KernelError(f"{act}: time {time}, the first step is 1")
    if anchor is None and optimizer.proximal:
        raise KernelError(f"{act}: proximal {optimizer.proximal} needs an anchor")
    written = [parameters, *moments]
    read = [gradients, *(a for a in (anchor, control, own_control, dynamic) if a is not None)]
    for array in written:
        check_output(act, array, np.float32, size)
    for array in read:
        check(act, array, np.float32, size)
    for i, array in enumerate(written):
        for other in (*written[:i], *read):
            if np.may_share_memory(array, other):
                raise KernelError(f"{act}: a vector that is written and another one share memory")
    bounds, count = _bounds(act, ranges, size)
    gradient = pointer("float *", gradients)

    length, clip = None, 1.0
    if optimizer.max_norm is None:
        _refuse_nonfinite(gradients, gradient, bounds, count)
    else:
        length = math.sqrt(lib.fg_square_sum(gradient, bounds, count))
        if not math.isfinite(length):
            _refuse_nonfinite(gradients, gradient, bounds, count)
        clip = min(1.0, optimizer.max_norm / (length + NORM_EPSILON))

    adam, decoupled = len(moments) == 2, optimizer.rule == "adamw"
    beta1, beta2 = optimizer.betas if adam else (optimizer.momentum, 0.0)
    terms = {"anchor": anchor, "control": control, "own_control": own_control, "dynamic": dynamic}
    update = ffi.new(
        "fg_update *",
        {
            "rule": _KERNEL[optimizer.rule],
            "rate": optimizer.learning_rate / (1 - power(beta1, time)) if adam else optimizer.learning_rate,
            "beta1": beta1,
            "fresh1": 1 - beta1,
            "beta2": beta2,
            "fresh2": 1 - beta2,
            "root": 1 / math.sqrt(1 - power(beta2, time)),
            "epsilon": optimizer.epsilon,
            "decay": 0.0 if decoupled else optimizer.weight_decay,
            "keep": 1 - optimizer.learning_rate * optimizer.weight_decay if decoupled else 1.0,
            "clip": clip,
            "proximal": optimizer.proximal,
        },
    )
    for name, vector in terms.items():
        if vector is not None:
            setattr(update, name, pointer("float *", vector))
    first, second = [*(pointer("float *", m) for m in moments), ffi.NULL, ffi.NULL][:2]
    lib.fg_optimizer_step(update, bounds, count, pointer("float *", parameters), gradient, first, second)
    return length


def power(base: float, exponent: int) -> float:
    """base ** exponent by squaring: products of doubles alone, so that every machine gets the same bits (libm's pow may differ)."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def _bounds(act: str, ranges: Ranges | None, size: int) -> tuple[Any, int]:
    """The ranges as C reads them, and how many there are."""
    if ranges is None:
        return ffi.new("size_t[2]", (0, size)), 1
    before = 0
    for start, end in ranges:
        if not before <= start <= end <= size:
            raise KernelError(
                f"{act}: range [{start}, {end}) of {size} coordinates; they ascend, don't overlap and end at {size} at most"
            )
        before = end
    return ffi.new("size_t[]", [bound for pair in ranges for bound in pair]), len(ranges)


def _refuse_nonfinite(gradients: Floats, values: Any, bounds: Any, count: int) -> None:
    """Raises GradientError if one in the ranges isn't finite; `values` is where C has them."""
    for i in range(count):
        start, end = bounds[2 * i], bounds[2 * i + 1]
        found = start + lib.fg_find_nonfinite(values + start, end - start)
        if found < end:
            raise GradientError(found, gradients.size, float(gradients.ravel()[found]))
