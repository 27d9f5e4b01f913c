"""Optimizer steps over the flat vector."""

import numpy as np

from fleetgrad.native.binding import Floats, KernelError, check, lib, pointer


def sgd_momentum_step(
    parameters: Floats,
    gradients: Floats,
    velocity: Floats,
    *,
    learning_rate: float,
    momentum: float,
    weight_decay: float = 0.0,
) -> None:
    """One step in place: velocity = momentum * velocity + (g + weight_decay * p); p -= learning_rate * velocity.

    All three are float32[n] and don't overlap (Sutskever et al., ICML 2013, in the form that torch uses).
    """
    for array in (parameters, gradients, velocity):
        check("sgd step", array, np.float32, parameters.size)
    pairs = ((parameters, gradients), (parameters, velocity), (gradients, velocity))
    if any(np.may_share_memory(a, b) for a, b in pairs):
        raise KernelError("sgd step: parameters, gradients and velocity must not share memory")
    lib.fg_sgd_momentum(
        *(pointer("float *", a) for a in (parameters, gradients, velocity)),
        parameters.size,
        learning_rate,
        momentum,
        weight_decay,
    )
