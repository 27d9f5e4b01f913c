"""A round's sum: updates decoded and added one at a time as they come, and at the end the next model's bytes.

Sums are of integers, so their order doesn't matter, and a sum that was lost is made again from the stored payloads.
"""

from collections.abc import Callable, Iterable

import numpy as np

from fleetgrad.broker.strategies.fedavg import FedAvg
from fleetgrad.broker.strategies.running import RunningStatistics
from fleetgrad.native import binding, kernels
from fleetgrad.wire.codecs import CodecError, decode_payload
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.messages import UpdateInfo
from fleetgrad.wire.seeds import Keys


class MergeError(ValueError):
    """A round that can't be merged; the message names the member."""


class Sum:
    """One attempt's sum; memory is O(model), whatever the number of members. `devices` are those in it."""

    def __init__(self, codec: CodecSpec, layout: VectorLayout) -> None:
        self._codec, self._layout = codec, layout
        self._delta = np.empty(layout.count, np.float32)
        self.clear()

    def clear(self) -> None:
        """Empties it."""
        self.devices: set[str] = set()
        self._rule, self._running = FedAvg(self._layout.trained.count), RunningStatistics(self._layout)

    def add(
        self, device: str, payload: bytes | memoryview, keys: Keys, weight_left: int = kernels.MAX_WEIGHT
    ) -> UpdateInfo:
        """Decodes an update as it counts and adds it; raises CodecError with the reason for a refusal, and adds nothing.

        `weight_left` is what the round's sum of weights has room for.
        """
        delta, layout = self._delta, self._layout
        info = decode_payload(payload, self._codec, layout, keys, delta)
        if info.weight > min(weight_left, kernels.MAX_WEIGHT - self._rule.total_weight):
            raise CodecError(f"weight {info.weight} takes the round's sum over {kernels.MAX_WEIGHT}")
        try:
            self._running.check(delta)  # so that what follows fails before it adds anything
            self._rule.add(delta[: layout.trained.count], info.weight)
        except binding.KernelError as e:
            over = int(np.argmax(np.abs(layout.summed(delta)) > kernels.RING_RANGE))
            raise CodecError(f"{layout.where(over)} is {delta[over]:g}: {e}") from e
        self._running.add(delta, info.weight)
        self.devices.add(device)
        return info

    def apply(self, old: bytes) -> bytes:
        """The next params object (little-endian float32) from the previous one."""
        base = np.frombuffer(old, "<f4").astype(np.float32)
        trained, statistics = np.split(base, [self._layout.trained.count])
        return b"".join(
            new.astype("<f4").tobytes() for new in (self._rule.apply(trained), self._running.apply(statistics))
        )


def merge(
    old: bytes, payloads: Iterable[tuple[str, bytes]], codec: CodecSpec, layout: VectorLayout, keys: Callable[[str], Keys]
) -> bytes:  # fmt: skip
    """The next params object from the previous one and (device, payload) pairs; `keys` gives the keys of a device's update.

    Raises MergeError for a payload that can't be added.
    """
    total = Sum(codec, layout)
    complete(total, payloads, keys)
    return total.apply(old)


def complete(total: Sum, payloads: Iterable[tuple[str, bytes]], keys: Callable[[str], Keys]) -> None:
    """Adds payloads that were accepted before: one that fails now has changed on disk. Raises MergeError."""
    for device, payload in payloads:
        try:
            total.add(device, payload, keys(device))
        except ValueError as e:
            raise MergeError(f"update of {device} can't be merged: {e}") from e
