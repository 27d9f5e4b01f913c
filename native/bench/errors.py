"""What each codec loses of real updates, and at how many bits: the figures by which one chooses.

Each delta of the corpus (deltas.py) through each codec's own encoder and decoder; bits are those of the whole coded vector. ec-dither and rot-k
are compared at equal bytes: ec-dither gets no more than rot-2 took.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native import codecs, entropy, rotation, topk
from fleetgrad.native.bench import deltas
from fleetgrad.native.bench.kernels import row
from fleetgrad.native.bench.results import at_most, skipped
from fleetgrad.native.bench.theory import nmse

KEY = 0x5EED
MODELS = {"cnn": "FedAvg CNN", "mlp": "MLP", "transformer": "transformer"}
MOST_ERROR = 0.25  # of rot-2's, at equal bytes
BITS = {"ec-dz": (0.1, 0.25, 0.5, 1.0), "ec-dither": (1.0, 2.0, 4.0)}
FRACTIONS = (0.01, 0.1)

Floats = NDArray[np.float32]
Coded = tuple[Floats, int]  # decoded, bytes


def rows() -> list[dict[str, Any]]:
    """One row a model for the promise, then a row a codec, rate and delta."""
    try:
        corpus = deltas.load()
    except deltas.NoDeltas as reason:
        return [skipped(_figure(model), str(reason), MOST_ERROR) for model in MODELS.values()]
    table = [
        _equal_bytes(model, [d for d in corpus if d.name.startswith(f"{key}-sgd")]) for key, model in MODELS.items()
    ]
    for delta in corpus:
        if delta.name.endswith("-late"):
            for codec, (decoded, size) in all_codecs(delta):
                bits = 8 * size / delta.values.size
                table.append(
                    row(f"{codec}, {delta.name}: NMSE", nmse(delta.values, decoded), "ratio", f"{bits:.3f} bits")
                )
    return table


def _figure(model: str) -> str:
    return f"ec-dither NMSE / rot-2 NMSE at equal bytes, {model}"


def _equal_bytes(model: str, found: list[deltas.Delta]) -> dict[str, Any]:
    """The worst of the model's deltas."""
    ratios = {}
    for delta in found:
        x, rotated = delta.values, rotate(delta.values, 2)
        decoded = at_most_bytes(delta, rotated[1])
        ratios[delta.name] = nmse(x, decoded[0]) / nmse(x, rotated[0])
    worst = max(ratios, key=lambda name: ratios[name])
    told = ", ".join(f"{name} {ratio:.4f}" for name, ratio in ratios.items())
    return at_most(_figure(model), ratios[worst], "ratio", f"worst of {told}", MOST_ERROR)


def at_most_bytes(delta: deltas.Delta, most: int) -> Coded:
    """ec-dither in no more than so many bytes: its rate is searched, and asked for a little lower until it is so."""
    bits = 8 * most / delta.values.size
    for _ in range(20):
        decoded, size = code(delta, "dither", bits)
        if size <= most:
            return decoded, size
        bits *= 0.998
    raise AssertionError(f"{delta.name}: ec-dither takes {size} bytes where {most} were wanted")


def code(delta: deltas.Delta, kind: entropy.Kind, bits: float) -> Coded:
    """ec-dither or ec-dz, there and back."""
    out = np.empty_like(delta.values)
    coded = entropy.encode(delta.values, kind=kind, key=KEY, bits=bits, layout=delta.layout)
    entropy.decode(coded, out, kind=kind, key=KEY, layout=delta.layout)
    return out, coded.size


def rotate(x: Floats, k: int) -> Coded:
    """rot-k, there and back."""
    coded, out = np.empty(rotation.rot_size(x.size, k), np.uint8), np.empty_like(x)
    rotation.rot_encode(x, coded, k=k, key=KEY)
    rotation.rot_decode(coded, out, k=k, key=KEY)
    return out, coded.size


def keep(x: Floats, fraction: float) -> Coded:
    """topk, there and back."""
    out, coded = np.empty_like(x), topk.encode(x, round(fraction * x.size))
    topk.decode(coded, out)
    return out, coded.size


def all_codecs(delta: deltas.Delta) -> list[tuple[str, Coded]]:
    """Every lossy codec, least bits first."""
    x = delta.values
    found = [(f"ec-dz at {bits:g}", code(delta, "dead-zone", bits)) for bits in BITS["ec-dz"]]
    found += [(f"topk, {100 * fraction:g} %", keep(x, fraction)) for fraction in FRACTIONS]
    found += [(f"ec-dither at {bits:g}", code(delta, "dither", bits)) for bits in BITS["ec-dither"]]
    found += [(f"rot-{k}", rotate(x, k)) for k in (1, 2, 4)]
    fixed: dict[str, tuple[int, Callable[[Any], object], Callable[[Any, Any], object]]] = {
        "blk4, stochastic": (codecs.blk4_size(x.size), lambda c: codecs.blk4_encode(x, c, KEY), codecs.blk4_decode),
        "blk4, nearest": (codecs.blk4_size(x.size), lambda c: codecs.blk4_encode(x, c, None), codecs.blk4_decode),
        "blk8, stochastic": (codecs.blk8_size(x.size), lambda c: codecs.blk8_encode(x, c, KEY), codecs.blk8_decode),
        "fp16": (codecs.fp16_size(x.size), lambda c: codecs.fp16_encode(x, c), codecs.fp16_decode),
    }
    for name, (size, encode, decode) in fixed.items():
        coded, out = np.empty(size, np.uint8), np.empty_like(x)
        encode(coded)
        decode(coded, out)
        found.append((name, (out, size)))
    return found
