"""Training as a function: what the simulated trainer child makes of params, device and seed; and what must come of it.

The oracle repeats decoding and the merge of SPEC.md section 6 in NumPy and Python integers, from the payload's bytes alone:

    q = rint_even(x * 2^32)    S = sum(weight * q)    new = float32(old + S / W * 2^-32)
"""

import hashlib
import random
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleetgrad.edge import feedback
from fleetgrad.wire.codecs import decode_payload, encode_payload
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.messages import Policy
from fleetgrad.wire.seeds import Keys


@dataclass(frozen=True, slots=True)
class Trained:
    """One device's update; `residual` is what it left out, under a codec with error feedback."""

    payload: bytes
    steps: int
    loss: float
    delta: NDArray[np.float32]
    residual: NDArray[np.float32] | None = None
    given_up: str = ""


def train(
    params: bytes, device: str, samples: int, policy: Policy, seed: int, keys: Keys, layout: VectorLayout,
    carried: NDArray[np.float32] | None = None, *, mad: bool = False,
) -> Trained:  # fmt: skip
    """One device's update: the same for the same arguments, another for any other.

    A mad device's update is well-formed and signed, but has a value beyond the fixed-point range.
    """
    old = np.frombuffer(params, "<f4")
    drawn = np.random.default_rng(
        [seed, int.from_bytes(hashlib.sha256(device.encode() + params).digest()[:8], "little")]
    )
    delta = (0.05 * drawn.standard_normal(old.size) - 0.1 * old).astype(np.float32)
    layout.clear_padding(delta)
    if mad:
        delta[old.size // 2] = 100.0
    steps = -(-samples // policy.batch_size) * policy.local_epochs
    loss = float(drawn.random())
    if policy.codec.feedback:
        fed = feedback.encode(delta, carried, policy.codec, layout, keys, weight=samples, steps=steps, loss=loss)
        return Trained(fed.payload, steps, loss, delta, fed.residual, fed.given_up)
    return Trained(
        encode_payload(policy.codec, layout, delta, keys=keys, weight=samples, steps=steps, loss=loss), steps, loss, delta
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Made:
    """An update that a trainer made, sealed and before, and what it takes to read it."""

    sealed: bytes
    payload: bytes
    codec: CodecSpec
    keys: Keys
    layout: VectorLayout
    delta: NDArray[np.float32]


def layout_of(length: int) -> VectorLayout:
    """A matrix and two vectors, with padding, that take `length` floats."""
    return VectorLayout.stacked([("weight", (16, length // 16 - 4)), ("bias", (17,)), ("scale", (32,))])


def decode(made: Made) -> tuple[int, NDArray[np.float32]]:
    """Weight and vector of a payload: read by hand where a codec is simple, else by the decoder that its own tests hold."""
    payload = made.payload
    (length,) = struct.unpack_from("<H", payload)
    info = msgspec.msgpack.decode(payload[2 : 2 + length])
    coded = payload[2 + length :]
    if made.codec.name not in ("raw32", "blk8"):
        out = np.empty(made.layout.count, np.float32)
        return decode_payload(payload, made.codec, made.layout, made.keys, out).weight, out
    if info["codec"] == 0:
        return info["weight"], np.frombuffer(coded, "<f4").astype(np.float32)
    values: list[NDArray[np.float32]] = []
    at = 0
    while at < len(coded):
        scale = np.frombuffer(coded, "<f4", 1, at)
        codes = np.frombuffer(coded[at + 4 : at + 68], np.int8)
        values.append(scale * codes.astype(np.float32))
        at += 68
    joined = np.concatenate(values)
    made.layout.clear_padding(joined)
    return info["weight"], joined


def merge(old: bytes, updates: Iterable[Made]) -> bytes:
    """The params that must follow from `old` and exactly these updates, in whatever order."""
    base = np.frombuffer(old, "<f4")
    total: NDArray[np.int64] | None = None
    weights = 0
    for update in updates:
        weight, values = decode(update)
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
