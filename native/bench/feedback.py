"""Accuracy with a quarter of a bit a parameter: ec-dz against top-k, both with error feedback, and against fp32 (federated.py).

top-k gets the bytes that ec-dz took, at least: our own codec with the largest k that fits, and one whose places are counted at their entropy and
whose values are fp16 (eden.py). An accuracy is the mean of the last three of 25 rounds; figures are means over seeds.
"""

from typing import Any

import numpy as np

from fleetgrad.native import entropy, topk
from fleetgrad.native.bench import eden, federated
from fleetgrad.native.bench.federated import Codec, Floats, Outcome
from fleetgrad.native.bench.kernels import row
from fleetgrad.native.bench.results import at_most, skipped

BITS = 0.25
SEEDS = (0, 1, 2)
MOST_LOSS = 2.0  # points under fp32
LAYOUT = entropy.Layout.of([shape for o, i in federated.LAYERS for shape in ((o, i), (o,))])
AGAINST = "ec-dz less {} at equal bytes, FedAvg on digits, 25 rounds"
BEHIND = "fp32 less ec-dz, FedAvg on digits, 25 rounds"
PEERS = ("our topk", "top-k at its entropy")


def rows() -> list[dict[str, Any]]:
    """Points of accuracy between ec-dz at a quarter of a bit and each other."""
    if reason := federated.available():
        return [*(skipped(AGAINST.format(p), reason, 0.0) for p in PEERS), skipped(BEHIND, reason, MOST_LOSS)]
    own = _runs(dead_zone, feedback=True)
    spent = max(BITS, *(outcome.bits for outcome in own))
    table = []
    for name, codec in zip(PEERS, (own_top_k(spent), ideal_top_k(spent)), strict=True):
        peers = _runs(codec, feedback=True)
        points = _mean(own) - _mean(peers)
        found = row(AGAINST.format(name), points, "points", f"{_told('ec-dz', own)}; {_told(name, peers)}", 0.0)
        table.append({**found, "holds": points > 0})
    plain = _runs(federated.exact, feedback=False)
    told = f"{_told('fp32', plain)}; {_told('ec-dz', own)}"
    return [*table, at_most(BEHIND, _mean(plain) - _mean(own), "points", told, MOST_LOSS)]


def dead_zone(values: Floats, seed: int) -> tuple[Floats, float]:
    """ec-dz at BITS."""
    coded, out = entropy.encode(values, kind="dead-zone", key=seed, bits=BITS, layout=LAYOUT), np.empty_like(values)
    entropy.decode(coded, out, kind="dead-zone", key=seed, layout=LAYOUT)
    return out, 8 * coded.size / values.size


def own_top_k(bits: float) -> Codec:
    """Our topk, with as many values as fit."""

    def codec(values: Floats, _seed: int) -> tuple[Floats, float]:
        least, most = 1, values.size // 4
        while least < most:
            middle = (least + most + 1) // 2
            fits = 8 * topk.encode(values, middle).size <= bits * values.size
            least, most = (middle, most) if fits else (least, middle - 1)
        coded, out = topk.encode(values, least), np.empty_like(values)
        topk.decode(coded, out)
        return out, 8 * coded.size / values.size

    return codec


def ideal_top_k(bits: float) -> Codec:
    """The peer at its best."""
    return lambda values, _seed: eden.top_k(values, bits)


def _runs(codec: Codec, *, feedback: bool) -> list[Outcome]:
    return [federated.run(codec, seed, feedback=feedback) for seed in SEEDS]


def _mean(outcomes: list[Outcome]) -> float:
    return float(np.mean([outcome.last for outcome in outcomes]))


def _told(name: str, outcomes: list[Outcome]) -> str:
    each = " ".join(f"{outcome.last:.2f}" for outcome in outcomes)
    return f"{name} {_mean(outcomes):.2f} % ({each}) at {np.mean([o.bits for o in outcomes]):.4g} bits"
