"""The codecs of a fixed rate: rot-k against EDEN in torch and against its theory, and every codec's speed beside memcpy. One thread each.

Times are the fastest of several calls in turns, so that what else the machine does meets both sides alike. Sizes and errors are the worst over
lengths that are no power of two, since a rotation that pads pays for them there.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native import codecs, lossless, rotation, topk
from fleetgrad.native.bench.eden import COUNT, NO_TORCH, Eden
from fleetgrad.native.bench.kernels import in_turns, row
from fleetgrad.native.bench.results import at_most, skipped
from fleetgrad.native.bench.theory import eden_nmse, nmse
from fleetgrad.native.binding import capability

LENGTHS = (4097, 5000, 12_289, 100_003)
COORDINATES = 8_000_000  # of all keys of a length: at one bit, the mean's chance error is then some 0.1 %
FASTER = 60.0  # than EDEN in torch
MOST_ERROR, MOST_BYTES = 1.02, 1.0  # of theory; of 1.01 k d / 8 + 64
RATES = {"1.66 M values (FedAvg CNN)": 1_663_376}

Floats = NDArray[np.float32]


def rows() -> list[dict[str, Any]]:
    """rot-k's speed, error and size, and the rates of the codecs that aren't entropy-coded at a chosen rate."""
    return [*against_eden(), *against_theory(), *rates()]


def against_eden() -> list[dict[str, Any]]:
    """How many times as fast as EDEN in torch, at d = 2^20."""
    figures = [(k, act) for k in (1, 2, 4) for act in ("encode", "decode")]
    if importlib.util.find_spec("torch") is None:
        return [skipped(_against(k, act), NO_TORCH, _promise(k, act)) for k, act in figures]
    import torch

    x = np.random.default_rng(0).standard_normal(COUNT).astype(np.float32)
    vector, out = torch.from_numpy(x), np.empty_like(x)
    table = []
    for k in (1, 2, 4):
        eden, coded = Eden(k), np.empty(rotation.rot_size(COUNT, k), np.uint8)
        found = eden.encode(vector, 1)
        rotation.rot_encode(x, coded, k=k, key=1)
        pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "encode": (
                lambda: rotation.rot_encode(x, coded, k=k, key=1),  # noqa: B023
                lambda: eden.encode(vector, 1),  # noqa: B023
            ),
            "decode": (
                lambda: rotation.rot_decode(coded, out, k=k, key=1),  # noqa: B023
                lambda: eden.decode(*found, 1),  # noqa: B023
            ),
        }
        for act, (own, peers) in pairs.items():
            best = in_turns({"own": own, "EDEN": peers}, turns=10, repeats=2)
            seconds, peers_seconds = best["own"], best["EDEN"]
            peer = f"EDEN-{k} in torch, {x.nbytes / 1e9 / peers_seconds:.3f} GB/s; rot-{k} {x.nbytes / 1e9 / seconds:.1f} GB/s"
            table.append(row(_against(k, act), peers_seconds / seconds, "x as fast", peer, _promise(k, act)))
    return table


def _against(k: int, act: str) -> str:
    return f"rot-{k} {act}, d = 2^20 ({capability()})"


def _promise(k: int, act: str) -> float | None:
    return FASTER if k == 4 and act == "encode" else None


def against_theory() -> list[dict[str, Any]]:
    """NMSE over D / (1 - D) and bytes over what was promised, each the worst of the lengths."""
    table = []
    lengths = ", ".join(f"{d:,}" for d in LENGTHS)
    for k in range(1, 9):
        error, size = max(_mean_error(k, d) for d in LENGTHS), max(_size_ratio(k, d) for d in LENGTHS)
        peer = f"worst of d = {lengths}"
        table.append(at_most(f"rot-{k} NMSE / theory D/(1-D)", error, "ratio", peer, MOST_ERROR))
        table.append(at_most(f"rot-{k} bytes / (1.01 k d / 8 + 64)", size, "ratio", peer, MOST_BYTES))
    return table


def _mean_error(k: int, d: int) -> float:
    """Over keys, of a vector with heavy tails: the rotation must level them."""
    x = np.random.default_rng(d).standard_t(4, d).astype(np.float32)
    coded, out = np.empty(rotation.rot_size(d, k), np.uint8), np.empty_like(x)
    errors = []
    for key in range(COORDINATES // d):
        rotation.rot_encode(x, coded, k=k, key=key)
        rotation.rot_decode(coded, out, k=k, key=key)
        errors.append(nmse(x, out))
    return float(np.mean(errors)) / eden_nmse(k)


def _size_ratio(k: int, d: int) -> float:
    return rotation.rot_size(d, k) / (1.01 * k * d / 8 + 64)


def rates() -> list[dict[str, Any]]:
    """GB/s of float32 in and out, as shares of memcpy as well."""
    table = []
    for name, count in RATES.items():
        x = np.random.default_rng(1).standard_normal(count).astype(np.float32) * np.float32(0.01)
        out, whole = np.empty_like(x), np.empty_like(x)
        gigabytes = x.nbytes / 1e9
        for codec, (encode, decode) in _codecs(x, out).items():
            best = in_turns({"memcpy": lambda: np.copyto(whole, x), "encode": encode, "decode": decode}, repeats=2)  # noqa: B023
            for act in ("encode", "decode"):
                peer = f"{best['memcpy'] / best[act]:.3f} of memcpy, {gigabytes / best['memcpy']:.1f} GB/s"
                table.append(row(f"{codec} {act}, {name}", gigabytes / best[act], "GB/s of floats", peer))
    return table


def _codecs(x: Floats, out: Floats) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Codec -> encode, decode."""
    halves, nibbles = np.empty(codecs.fp16_size(x.size), np.uint8), np.empty(codecs.blk4_size(x.size), np.uint8)
    packed = np.empty(rotation.ring_size(x.size, 16), np.uint8)
    codecs.fp16_encode(x, halves)
    codecs.blk4_encode(x, nibbles, 1)
    kept = topk.encode(x, x.size // 100)
    planes = lossless.encode(x)
    step, total = 2.0**-12, np.empty(x.size, np.uint32)

    def ring_encode() -> None:
        integers = rotation.ring_encode(x, step=step, most=2**14, shared=1, own=2)
        rotation.ring_pack(integers, packed, r=16)

    def ring_decode() -> None:
        rotation.ring_unpack(packed, total, r=16)
        rotation.ring_decode(total, out, r=16, step=step, shared=1)

    ring_encode()
    return {
        "fp16": (lambda: codecs.fp16_encode(x, halves), lambda: codecs.fp16_decode(halves, out)),
        "blk4, stochastic": (lambda: codecs.blk4_encode(x, nibbles, 1), lambda: codecs.blk4_decode(nibbles, out)),
        "blk4, nearest": (lambda: codecs.blk4_encode(x, nibbles, None), lambda: codecs.blk4_decode(nibbles, out)),
        "topk, 1 %": (lambda: topk.encode(x, x.size // 100), lambda: topk.decode(kept, out)),
        "lossless": (lambda: lossless.encode(x), lambda: lossless.decode(planes, out)),
        "ring, 16 bits": (ring_encode, ring_decode),
    }
