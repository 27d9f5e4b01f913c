"""The entropy-coded codecs' speed, and how near their streams come to the entropy of what they code; on real deltas and on normal values.

ec-dither runs at 2 bits, ec-dz at 0.25. Times are whole calls from Python, the search for the step included, the fastest of several in turns with
memcpy of the same floats. The bits of an ideal coder are those of symbols.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native import entropy
from fleetgrad.native.bench import deltas
from fleetgrad.native.bench.kernels import in_turns, row
from fleetgrad.native.bench.results import at_most, skipped
from fleetgrad.native.bench.symbols import ideal_bits
from fleetgrad.native.binding import capability

KEY = 0x5EED
KINDS: dict[str, tuple[entropy.Kind, float]] = {"ec-dither": ("dither", 2.0), "ec-dz": ("dead-zone", 0.25)}
LEAST_RATE = {("ec-dither", "encode"): 0.5, ("ec-dither", "decode"): 1.0}  # GB/s of floats
MOST_BITS = 1.01  # of the entropy
NORMAL = "normal values"
TIMED = "-late"  # of the corpus: the deltas of trained models

Floats = NDArray[np.float32]
Input = tuple[str, Floats, entropy.Layout]


def rows() -> list[dict[str, Any]]:
    """Bits over the entropy, then rates."""
    x = np.random.default_rng(2).standard_normal(1 << 20).astype(np.float32)
    inputs: list[Input] = [(NORMAL, x, entropy.Layout.flat(x.size))]
    table: list[dict[str, Any]] = []
    try:
        inputs += [(d.name, d.values, d.layout) for d in deltas.load()]
    except deltas.NoDeltas as reason:
        table = [
            skipped("ec-dither bits / entropy of its symbols, real deltas", str(reason), MOST_BITS),
            *(skipped(f"{name} {act}, real deltas", str(reason), rate) for (name, act), rate in LEAST_RATE.items()),
        ]
    table += [_bits(*found) for found in inputs]
    for name, values, layout in inputs:
        if name == NORMAL or name.endswith(TIMED):
            for codec in KINDS:
                table += _rates(codec, name, values, layout)
    return table


def _bits(name: str, values: Floats, layout: entropy.Layout) -> dict[str, Any]:
    coded = entropy.encode(values, kind="dither", key=KEY, bits=KINDS["ec-dither"][1], layout=layout)
    ideal = ideal_bits(coded, values, KEY, layout)
    peer = (
        f"ideal coder with the format's classes and levels and free, exact tables: {ideal / values.size:.4f} bits a value; "
        f"{coded.size:,} bytes, {coded[2]} tables"
    )
    return at_most(f"ec-dither bits / entropy of its symbols, {name}", 8 * coded.size / ideal, "ratio", peer, MOST_BITS)


def _rates(codec: str, name: str, values: Floats, layout: entropy.Layout) -> list[dict[str, Any]]:
    kind, bits = KINDS[codec]
    coded = entropy.encode(values, kind=kind, key=KEY, bits=bits, layout=layout)
    out, copy = np.empty_like(values), np.empty_like(values)
    acts: dict[str, Callable[[], object]] = {
        "memcpy": lambda: np.copyto(copy, values),
        "encode": lambda: entropy.encode(values, kind=kind, key=KEY, bits=bits, layout=layout),
        "decode": lambda: entropy.decode(coded, out, kind=kind, key=KEY, layout=layout),
    }
    best, gigabytes = in_turns(acts, repeats=2), values.nbytes / 1e9
    table = []
    for act in ("encode", "decode"):
        figure = f"{codec} {act} at {bits:g} bits, {name}, {values.size:,} values ({capability()})"
        peer = f"{best['memcpy'] / best[act]:.3f} of memcpy, {gigabytes / best['memcpy']:.1f} GB/s"
        table.append(row(figure, gigabytes / best[act], "GB/s of floats", peer, LEAST_RATE.get((codec, act))))
    return table
