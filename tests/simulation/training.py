"""Training as a function: what the simulated trainer child makes of params, device and seed; and what must come of it.

The oracle repeats decoding and the merge of SPEC.md section 6 in NumPy and Python integers, from the payload's bytes alone:

    q = rint_even(x * 2^32)    S = sum(weight * q)    new = float32(old + S / W * 2^-32)
"""

import hashlib
import random
import struct
from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleetgrad.wire.codecs import CODECS, encode_payload
from fleetgrad.wire.messages import Policy


def train(
    params: bytes, device: str, samples: int, policy: Policy, seed: int, codec_seed: int, *, mad: bool = False
) -> tuple[bytes, int, float]:
    """Payload, steps and loss of one device's update: the same for the same arguments, another for any other.

    A mad device's update is well-formed and signed, but has a value beyond the fixed-point range.
    """
    old = np.frombuffer(params, "<f4")
    drawn = np.random.default_rng(
        [seed, int.from_bytes(hashlib.sha256(device.encode() + params).digest()[:8], "little")]
    )
    delta = (0.05 * drawn.standard_normal(old.size) - 0.1 * old).astype(np.float32)
    if mad:
        delta[old.size // 2] = 100.0
    steps = -(-samples // policy.batch_size) * policy.local_epochs
    loss = float(drawn.random())
    rounding = codec_seed if policy.rounding == "stochastic" else None
    return (
        encode_payload(CODECS[policy.codec], delta, weight=samples, steps=steps, loss=loss, seed=rounding),
        steps,
        loss,
    )


def decode(payload: bytes) -> tuple[int, NDArray[np.float32]]:
    """Weight and vector of a payload, read by hand."""
    (length,) = struct.unpack_from("<H", payload)
    info = msgspec.msgpack.decode(payload[2 : 2 + length])
    coded = payload[2 + length :]
    if info["codec"] == 0:
        return info["weight"], np.frombuffer(coded, "<f4").astype(np.float32)
    values: list[NDArray[np.float32]] = []
    at = 0
    while at < len(coded):
        scale = np.frombuffer(coded, "<f4", 1, at)
        codes = np.frombuffer(coded[at + 4 : at + 68], np.int8)
        values.append(scale * codes.astype(np.float32))
        at += 68
    return info["weight"], np.concatenate(values)


def merge(old: bytes, payloads: Iterable[bytes]) -> bytes:
    """The params that must follow from `old` and exactly these payloads, in whatever order."""
    base = np.frombuffer(old, "<f4")
    total: NDArray[np.int64] | None = None
    weights = 0
    for payload in payloads:
        weight, values = decode(payload)
        fixed = np.rint(values.astype(np.float64) * 2.0**32).astype(np.int64) * weight
        total = fixed if total is None else total + fixed
        weights += weight
    if total is None:
        raise ValueError("a model of no updates")
    new = base.astype(np.float64)
    new[: total.size] += total.astype(np.float64) / float(weights) * 2.0**-32
    return new.astype("<f4").tobytes()


def initial_params(length: int, seed: int) -> bytes:
    """Version 0: any finite vector."""
    drawn = random.Random(seed)
    return np.array([drawn.uniform(-1, 1) for _ in range(length)], "<f4").tobytes()
