"""From a round's stored payloads to the next model's bytes, one payload in memory at a time."""

from collections.abc import Callable, Iterable

import numpy as np

from fleetgrad.broker.strategies.fedavg import FedAvg
from fleetgrad.broker.strategies.running import RunningStatistics
from fleetgrad.wire.codecs import decode_payload
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.seeds import Keys


class MergeError(ValueError):
    """A round that can't be merged; the message names the member."""


def merge(
    old: bytes, payloads: Iterable[tuple[str, bytes]], codec: CodecSpec, layout: VectorLayout, keys: Callable[[str], Keys],
    opened: Callable[[str, bytes], bytes] = lambda _, payload: payload,
) -> bytes:  # fmt: skip
    """The next params object (little-endian float32) from the previous one and (device, payload) pairs.

    `opened` gives a device's payload from its sealed form (not given: it isn't sealed), `keys` gives the keys of a device's update in this attempt. Payloads were checked when they were accepted; one that fails now has changed on disk.
    """
    base = np.frombuffer(old, "<f4").astype(np.float32)
    rule, running = FedAvg(layout.trained.count), RunningStatistics(layout)
    delta = np.empty_like(base)
    for device, payload in payloads:
        try:
            info = decode_payload(opened(device, payload), codec, layout, keys(device), delta)
            rule.add(delta[: layout.trained.count], info.weight)
            running.add(delta, info.weight)
        except ValueError as e:
            raise MergeError(f"update of {device} can't be merged: {e}") from e
    trained, statistics = np.split(base, [layout.trained.count])
    return b"".join(new.astype("<f4").tobytes() for new in (rule.apply(trained), running.apply(statistics)))
