"""Error feedback: what a biased codec leaves out of an update is added to the next one, so that nothing is lost for good.

    v = delta + e        payload = encode(v)        e' = v - decode(payload)

F. Seide et al., "1-bit stochastic gradient descent" (Interspeech 2014); S. Karimireddy et al., "Error feedback fixes SignSGD" (ICML 2019).
The device decodes with the aggregator's own decoder, so e' is exactly what the sum lacks, up to one float32 rounding a value.
e is zero for the first update under a plan. It is also given up, and the update goes out without it, when

    |e| > MOST_NORM |delta|     it has outgrown what it is to correct: training diverges, or the device was away for very long
    |v| > 64 somewhere          the sum takes no such value (wire/SPEC.md section 6), so it could never be delivered

Running statistics have no residual: codecs leave nothing of them out, and what an older update had measured is no news.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetgrad.edge.link.residual import Residual
from fleetgrad.native import kernels
from fleetgrad.wire.codecs import CodecError, decode_payload, encode_payload
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.seeds import Keys

MOST_NORM = 1000.0

Floats = NDArray[np.float32]


class ResidualLost(ValueError):
    """A residual whose files aren't what its ledger says."""


@dataclass(frozen=True, slots=True)
class Fed:
    """An update's payload and what it left out, float32[count]; `given_up` says why what was carried isn't in it, or nothing."""

    payload: bytes
    residual: Floats
    given_up: str = ""


def carried(read: Callable[[str], bytes], residual: Residual, layout: VectorLayout) -> Floats:
    """e as float32[layout.count]; raises ResidualLost where a file is missing, damaged or can't be read."""
    raw = _verified(read, residual.name, residual.sha256)
    if len(raw) != 4 * layout.count:
        raise ResidualLost(f"{residual.name} holds {len(raw) / 4:g} floats, the plan has {layout.count}")
    e = np.frombuffer(raw, "<f4").astype(np.float32)
    if residual.undelivered:
        sent = np.empty_like(e)
        try:
            payload = _verified(read, residual.payload_name, residual.payload)
            decode_payload(payload, residual.codec, layout, residual.keys, sent)
        except CodecError as f:
            raise ResidualLost(f"{residual.payload_name}: {f}") from f
        e += sent
    if kernels.find_nonfinite(e) >= 0:
        raise ResidualLost(f"{residual.name} isn't finite")
    return e


def _verified(read: Callable[[str], bytes], name: str, sha256: str) -> bytes:
    try:
        raw = read(name)
    except FileNotFoundError:
        raise ResidualLost(f"{name} is missing") from None
    except OSError as e:  # a bad sector would fail this and every later round, and the device's updates matter more
        raise ResidualLost(f"{name}: {e.strerror or e}") from e
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise ResidualLost(f"{name} isn't what its ledger says")
    return raw


def encode(
    delta: Floats, e: Floats | None, codec: CodecSpec, layout: VectorLayout, keys: Keys, *, weight: int, steps: int, loss: float
) -> Fed:  # fmt: skip
    """Codes delta + e; raises CodecError."""
    v, given_up = delta, ""
    if e is not None:
        v, trained = delta.copy(), slice(layout.trained.count)
        v[trained] += e[trained]
        given_up = _unfit(delta[trained], e[trained], v[trained])
        if given_up:
            v = delta
    payload = encode_payload(codec, layout, v, keys=keys, weight=weight, steps=steps, loss=loss)
    sent = np.empty_like(v)
    decode_payload(payload, codec, layout, keys, sent)
    return Fed(payload, v - sent, given_up)


def _unfit(delta: Floats, e: Floats, v: Floats) -> str:
    """Why the residual is to be given up, or nothing."""
    norm, own = (float(np.square(x, dtype=np.float64).sum()) ** 0.5 for x in (e, delta))
    if own > 0 and norm > MOST_NORM * own:
        return f"its norm {norm:.3g} is over {MOST_NORM:g} times the update's {own:.3g}"
    largest = float(np.abs(v).max(initial=0.0))
    if not largest <= kernels.RING_RANGE:
        return f"with it the update reaches {largest:.3g}, at most {kernels.RING_RANGE} can be summed"
    return ""
