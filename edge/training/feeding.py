"""What a session is fed with, in memory that stays: batches are written there, and each size of a batch is bound once.

    room(n)      the first n rows of each buffer, to be filled
    binding(n)   those rows, the weights and the outputs, bound to the session

A buffer grows when a larger batch comes; smaller ones share it. So a step allocates nothing but what onnxruntime takes from
its own arena.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fleetgrad.edge.training.plan_dir import aligned_bytes
from fleetgrad.wire.plan import Feed

Array = NDArray[np.generic]


class Feeder:
    """Buffers for `feeds`; `fixed` inputs and `outputs` are bound beside them, whatever the batch."""

    def __init__(
        self,
        session: ort.InferenceSession,
        feeds: Sequence[Feed],
        fixed: Mapping[str, ort.OrtValue],
        outputs: Mapping[str, ort.OrtValue],
    ) -> None:
        self._session, self._feeds, self._fixed, self._outputs = session, tuple(feeds), fixed, outputs
        self._most = 0
        self._buffers: list[Array] = []
        self._bindings: dict[int, ort.IOBinding] = {}

    def room(self, count: int) -> list[Array]:
        """The first `count` rows of each feed's buffer, in the order of the feeds."""
        if count > self._most:
            self._bindings.clear()
            self._buffers = [_buffer(feed, count) for feed in self._feeds]
            self._most = count
        return [buffer[:count] for buffer in self._buffers]

    def binding(self, count: int) -> ort.IOBinding:
        """What a run of `count` samples reads and writes."""
        if (found := self._bindings.get(count)) is None:
            found = self._session.io_binding()
            for feed, rows in zip(self._feeds, self.room(count), strict=True):
                found.bind_ortvalue_input(feed.name, shared(rows))
            for name, value in self._fixed.items():
                found.bind_ortvalue_input(name, value)
            for name, value in self._outputs.items():
                found.bind_ortvalue_output(name, value)
            self._bindings[count] = found
        return found


def _buffer(feed: Feed, count: int) -> Array:
    dtype = np.dtype(feed.dtype)
    size = count * int(np.prod(feed.shape, dtype=np.int64))
    return aligned_bytes(size * dtype.itemsize).view(dtype).reshape(count, *feed.shape)


def shared(array: Array) -> ort.OrtValue:
    """The array as onnxruntime sees it, without a copy."""
    return ort.OrtValue.ortvalue_from_numpy(array)
