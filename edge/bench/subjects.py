"""What is learned in the bench of learning: real data, a model, and how it is trained.

    Fashion-MNIST   28 x 28 images of clothes          FedAvg CNN (arXiv 1602.05629)
    spoken digits   log-mel spectra of one second      DS-CNN (MLPerf Tiny, arXiv 2106.07597)
    Shakespeare     the next of 65 characters          two layers of LSTM (LEAF, arXiv 1812.01097), a prediction at each place

The folder FLEETGRAD_DATA has them as NAME/NAME.npz; docs/testing.md says which arrays and where they come from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fleetgrad.edge.bench.models import Task, ds_cnn, fedavg_cnn

CHARACTERS, CONTEXT = 65, 80
Array = NDArray[Any]
Samples = tuple[Array, Array]  # x[n, ...], float32 or int64, and y[n, ...], int64


@dataclass(frozen=True, slots=True)
class Subject:
    """`split` makes training and test samples of the file's arrays; the rate falls linearly from `rate` to 0.

    `least` is the accuracy, in percent, from which torch's model counts as having learned. The mean of `seeds` seeds is told.
    """

    name: str
    file: str
    split: Callable[[dict[str, Array]], tuple[Samples, Samples]]
    task: Task
    rule: Literal["momentum", "adam"]
    rate: float
    batch: int
    epochs: int
    least: float
    seeds: int = 1
    class_axis: Literal[1, -1] = 1

    def samples(self, data: Path) -> tuple[Samples, Samples]:
        """Training and test samples from the folder of data sets; raises OSError where the file isn't there."""
        with np.load(data / self.file / f"{self.file}.npz") as stored:
            return self.split({name: stored[name] for name in stored.files})


def images(arrays: dict[str, Array]) -> tuple[Samples, Samples]:
    """Bytes [n, height, width] as one channel of mean 0 and deviation 1 (the training samples')."""
    mean, deviation = arrays["x_train"].mean(), arrays["x_train"].std()

    def part(kind: str) -> Samples:
        x = ((arrays[f"x_{kind}"] - mean) / deviation).astype(np.float32)[:, None]
        return x, arrays[f"y_{kind}"].astype(np.int64)

    return part("train"), part("test")


def windows(arrays: dict[str, Array]) -> tuple[Samples, Samples]:
    """Each role's text in pieces of CONTEXT characters; the labels are the characters one place further."""

    def part(kind: str) -> Samples:
        text, offsets = arrays[kind].astype(np.int64), arrays[f"{kind}_offsets"]
        roles = [text[start:end] for start, end in pairwise(offsets)]
        pieces = [role[i : i + CONTEXT + 1] for role in roles for i in range(0, len(role) - CONTEXT, CONTEXT)]
        both = np.stack(pieces)
        return np.ascontiguousarray(both[:, :-1]), np.ascontiguousarray(both[:, 1:])

    return part("train"), part("test")


def reader() -> Any:
    """LEAF's model of Shakespeare, with logits [n, places, characters]."""
    from torch import nn

    class Reader(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.last = nn.Embedding(CHARACTERS, 8), nn.Linear(256, CHARACTERS)
            self.lstm = nn.LSTM(8, 256, 2, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.last(self.lstm(self.embedding(x))[0])

    return Reader()


SUBJECTS = (
    Subject(
        "Fashion-MNIST, FedAvg CNN", "fmnist", images, Task(fedavg_cnn, (1, 28, 28), 10),
        rule="momentum", rate=0.02, batch=32, epochs=1, least=87,
    ),
    Subject(
        "spoken digits, DS-CNN", "fsdd", images, Task(partial(ds_cnn, 10), (1, 61, 32), 10),
        rule="momentum", rate=0.05, batch=32, epochs=8, least=90, seeds=3,
    ),
    Subject(
        "Shakespeare, LSTM", "shakespeare", windows, Task(reader, (CONTEXT,), CHARACTERS, tokens=CHARACTERS),
        rule="adam", rate=0.004, batch=32, epochs=2, least=40, class_axis=-1,
    ),
)  # fmt: skip
