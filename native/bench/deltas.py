"""Real model updates for the codecs' benches, read from a folder: `python -m fleetgrad.edge.bench.deltas FOLDER` makes it.

They are made by training, which lies above this room; so they come as files. tests/bench.py makes them when they are missing and
names the folder in FLEETGRAD_DELTAS.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native.entropy import Layout

FOLDER = "FLEETGRAD_DELTAS"
DEFAULT = "build/bench/deltas"
MANIFEST = "manifest.json"


class NoDeltas(LookupError):
    """The folder has no corpus; the message says how to make one."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a delta; `offset` counts floats."""

    name: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Delta:
    """One device's update: float32[d] in the plan's layout, padding included, and how it was trained."""

    name: str
    trained: str
    values: NDArray[np.float32]
    tensors: tuple[Tensor, ...]

    @property
    def layout(self) -> Layout:
        """The tensors as matrices, with padding as vectors between: what a plan tells the entropy-coded codecs."""
        shapes: list[tuple[int, ...]] = []
        at = 0
        for tensor in self.tensors:
            shapes += [(tensor.offset - at,), tensor.shape] if tensor.offset > at else [tensor.shape]
            at = tensor.offset + int(np.prod(tensor.shape, dtype=np.int64))
        return Layout.of(shapes if at == self.values.size else [*shapes, (self.values.size - at,)])


def load(folder: Path | None = None) -> list[Delta]:
    """All deltas of the corpus in the order they were made; raises NoDeltas."""
    where = folder or Path(os.environ.get(FOLDER, DEFAULT))
    if not (where / MANIFEST).is_file():
        raise NoDeltas(f"no deltas in {where}: make them with 'python -m fleetgrad.edge.bench.deltas {where}'")
    return [
        Delta(
            entry["name"],
            entry["trained"],
            np.load(where / f"{entry['name']}.npy", allow_pickle=False),
            tuple(Tensor(t["name"], tuple(t["shape"]), t["offset"]) for t in entry["tensors"]),
        )
        for entry in json.loads((where / MANIFEST).read_text())["deltas"]
    ]
