"""Recurrent layers: X [T, B, I], W [D, G H, I], R [D, G H, H], B [D, 2 G H], lengths [B], h and c [D, B, H]."""

from typing import Any

import numpy as np

from tests.edge.cases.inputs import Case, numbers

r = numbers()
STEPS, BATCH, INPUTS, UNITS = 4, 3, 2, 3
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
LENGTHS = np.array([2, 4, 1], np.int32)
BATCHED = {0: 1, 4: 0, 5: 1, 6: 1}  # the axis of each input that is the batch


def case(op: str, d: int = 1, bias: bool = True, lengths: bool = False, states: bool = False, **how: Any) -> Case:
    wide = GATES[op] * UNITS
    found = [
        r(STEPS, BATCH, INPUTS),
        r(d, wide, INPUTS),
        r(d, wide, UNITS),
        r(d, 2 * wide) if bias else None,
        LENGTHS if lengths else None,
    ]
    if states:
        found += [r(d, BATCH, UNITS)] * (2 if op == "LSTM" else 1)
    while found[-1] is None:
        found.pop()
    direction = how.pop("direction", "bidirectional" if d == 2 else "forward")
    how = {"outputs": 3 if op == "LSTM" else 2, "probes": 12, "hidden_size": UNITS, "direction": direction, **how}
    return (
        op,
        tuple(found),
        {"batched": {i: a for i, a in BATCHED.items() if i < len(found) and found[i] is not None}, **how},
    )


CASES: list[Case] = [
    case("LSTM"),
    case("LSTM", bias=False, outputs=1),
    case("LSTM", states=True, lengths=True),
    case("LSTM", direction="reverse", states=True, lengths=True),
    case("LSTM", d=2, states=True),
    case("LSTM", d=2, lengths=True, absent=(0,)),
    case("LSTM", absent=(0, 1), bias=False),
    case("GRU"),
    case("GRU", bias=False, outputs=1, linear_before_reset=1),
    case("GRU", linear_before_reset=1, states=True, lengths=True),
    case("GRU", linear_before_reset=0, states=True, lengths=True, direction="reverse"),
    case("GRU", linear_before_reset=1, d=2, states=True),
    case("GRU", linear_before_reset=0, d=2, lengths=True, absent=(0,)),
    case("RNN"),
    case("RNN", states=True, lengths=True, direction="reverse"),
    case("RNN", d=2, bias=False, activations=["Relu", "Relu"]),
    case("RNN", d=2, states=True, absent=(0,)),
]
