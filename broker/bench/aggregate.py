"""Updates a second that the aggregator takes in and merges, for updates of 1.66 million parameters coded as blk8, in memory.

The peer does the same sum in NumPy: decode to floats, to fixed point in float64, add as int64.
"""

import hashlib
from typing import Any

import numpy as np

from fleetgrad.broker.intake import Intake
from fleetgrad.broker.merge import Sum
from fleetgrad.native import codecs
from fleetgrad.native.bench.kernels import COUNT, best_seconds, row
from fleetgrad.wire import frames, seeds
from fleetgrad.wire.chunks import Assembly
from fleetgrad.wire.codecs import encode_payload
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.seal import SealKey, seal
from fleetgrad.wire.signing import PrivateKey
from fleetgrad.wire.topics import name_hash


def rows() -> list[dict[str, Any]]:
    """Rates of the whole way in (frames, CRC, hash, signature, check), of merging, and of both."""
    delta = np.random.default_rng(0).standard_normal(COUNT).astype(np.float32) * np.float32(0.01)
    codec, layout, keys = CodecSpec(name="blk8"), VectorLayout.flat(COUNT), seeds.codec_keys("bench", "dev-1", 1, 1)
    payload = encode_payload(codec, layout, delta, keys=keys, weight=100, steps=10, loss=0.5)
    key = PrivateKey.from_seed(bytes(32))
    ids, seals = (name_hash("bench"), 1, 1, name_hash("dev-1"), bytes(32), bytes(32)), SealKey.generate()
    sealed = seal(seals.public, payload, frames.sealed_with(*ids))
    header = frames.update_header(frames.UPDATE, *ids, len(sealed), hashlib.sha256(sealed).digest())
    messages = list(frames.frames(header, sealed + frames.sign_body(key, header)))
    intake, total = Intake("bench", layout, codec, [seals]), Sum(codec, layout)

    def take_in() -> None:
        assembly = Assembly(header)
        for message in messages:
            assembly.add(*intake.parse(message, "dev-1"))
        intake.open(header, intake.prove(header, memoryview(assembly.body), key.public))

    def merge_one() -> None:
        total.add("dev-1", payload, keys)

    peer_total = np.zeros(COUNT, np.int64)
    blocks = (COUNT + 63) // 64
    coded = np.frombuffer(payload, np.uint8)[-codecs.blk8_size(COUNT) :]
    whole = coded[: (blocks - 1) * 68].reshape(-1, 68) if COUNT % 64 else coded.reshape(-1, 68)

    def numpy_merge() -> None:
        scales = whole[:, :4].copy().view("<f4")
        values = scales * whole[:, 4:].view(np.int8).astype(np.float32)
        peer_total[: values.size] += np.rint(values.ravel().astype(np.float64) * 2.0**32).astype(np.int64) * 100

    take, merge, peer = (best_seconds(act, 8) for act in (take_in, merge_one, numpy_merge))
    return [
        row("take in: CRC, SHA-256, signature, opening", 1 / take, "updates/s", ""),
        row("merge: decode, range, ring add", 1 / merge, "updates/s", ""),
        row("merge", peer / merge, "x as fast", "NumPy"),
        row("take in and merge", 1 / (take + merge), "updates/s", ""),
    ]
