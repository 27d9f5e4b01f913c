"""What a net of this folder is: a torch module, one batch for it, and how it is trained."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fleetgrad.wire.loss import LossName, LossOptions

Label = Literal["class", "places", "itself"]  # one class a sample, one class a place of the output, the input itself
SPREAD = 0.1  # of what is added to biases and scales, so that none of their gradients is special


@dataclass(frozen=True, slots=True)
class Net:
    """`inputs` draws one batch; `axis` is where the output has its classes; `rate` is that of plain SGD.

    `normed` nets have batch normalisation after convolutions, which int8 gradients are less exact before.
    """

    name: str
    build: Callable[[], Any]
    inputs: Callable[[np.random.Generator], tuple[NDArray[Any], ...]]
    label: Label = "class"
    axis: Literal[1, -1] = 1
    rate: float = 0.05
    normed: bool = False

    @property
    def seed(self) -> int:
        return zlib.crc32(self.name.encode())

    @property
    def loss(self) -> LossName:
        return "mse" if self.label == "itself" else "cross-entropy"

    @property
    def options(self) -> LossOptions:
        return LossOptions() if self.label == "itself" else LossOptions(class_axis=self.axis)

    def module(self) -> Any:
        """The net in training mode, the same weights each time."""
        import torch

        torch.set_num_threads(1)  # tests run side by side: more would wait for each other
        torch.manual_seed(self.seed)
        module = self.build().train()
        with torch.no_grad():
            for p in module.parameters():
                if p.ndim == 1:
                    p.add_(SPREAD * torch.randn_like(p))
        return module

    def batch(self) -> tuple[tuple[NDArray[Any], ...], NDArray[Any]]:
        """Inputs and labels, the same each time."""
        import torch

        random = np.random.Generator(np.random.PCG64(self.seed))
        inputs = self.inputs(random)
        if self.label == "itself":
            return inputs, inputs[0]
        with torch.no_grad():
            shape = list(self.module()(*map(torch.tensor, inputs)).shape)
        classes = shape.pop(self.axis)
        return inputs, random.integers(0, classes, shape)


def images(*shape: int) -> Callable[[np.random.Generator], tuple[NDArray[Any], ...]]:
    """A batch of normal numbers of this shape, the batch included."""
    return lambda random: (random.standard_normal(shape).astype(np.float32),)


def tokens(count: int, *shape: int) -> Callable[[np.random.Generator], tuple[NDArray[Any], ...]]:
    """A batch of token numbers below `count`."""
    return lambda random: (random.integers(0, count, shape),)
