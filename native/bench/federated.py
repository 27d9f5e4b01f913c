"""Federated averaging on digits with a codec in the loop: what an update's few bits do to accuracy.

    10 devices, Dirichlet(0.5) label skew, all in every round; 25 rounds of 2 local epochs (batches of 16, SGD 0.05)
    each device:  v = delta + residual;  sent = codec(v);  residual = v - sent with error feedback, else 0
    the model moves by the mean of what was sent, weighted by samples

Error feedback: Seide et al. 2014, Karimireddy et al. 2019. The model is the MLP 64-128-128-10 in NumPy, so that 3 seeds of a
codec take seconds. Same seed: same bytes.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

DEVICES, ALPHA, ROUNDS = 10, 0.5, 25
EPOCHS, BATCH, LEARNING_RATE = 2, 16, 0.05
HELD_OUT = 397  # of 1,797 images
LAYERS = ((128, 64), (128, 128), (10, 128))  # outputs, inputs
NO_DIGITS = "scikit-learn is not installed (pip install 'fleetgrad[demo]')"

Floats = NDArray[np.float32]
Codec = Callable[[Floats, int], tuple[Floats, float]]  # (values, seed) -> (decoded, bits per coordinate spent)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Accuracy on the held-out part after each round in percent, and the mean bits per coordinate of an update."""

    accuracy: tuple[float, ...]
    bits: float

    @property
    def last(self) -> float:
        """Mean of the last three rounds: one held-out image is 0.25 points, a single round is noise."""
        return float(np.mean(self.accuracy[-3:]))


def exact(values: Floats, _seed: int) -> tuple[Floats, float]:
    """The codec that loses nothing."""
    return values, 32.0


def available() -> str:
    """Why the simulation can't run, or nothing."""
    return "" if importlib.util.find_spec("sklearn") else NO_DIGITS


def offsets() -> tuple[tuple[int, int, int], ...]:
    """(offset, rows, columns) of each weight matrix in the flat vector; its bias follows it."""
    found, at = [], 0
    for outputs, inputs in LAYERS:
        found.append((at, outputs, inputs))
        at += outputs * inputs + outputs
    return tuple(found)


SIZE = sum(o * i + o for o, i in LAYERS)


def run(codec: Codec, seed: int, *, feedback: bool, rounds: int = ROUNDS) -> Outcome:
    """One federation from its first round to its last."""
    x, y = _digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    test, train = order[:HELD_OUT], order[HELD_OUT:]
    shares = [train[part] for part in _dirichlet(y[train], rng)]
    server = np.concatenate(
        [np.concatenate([rng.standard_normal(o * i) * np.sqrt(2 / i), np.zeros(o)]) for o, i in LAYERS]
    )
    residual = np.zeros((DEVICES, SIZE), np.float32)
    accuracy, spent = [], 0.0
    for number in range(rounds):
        base, total = server.astype(np.float32), np.zeros(SIZE)
        for device, share in enumerate(shares):
            delta = _train(base, x[share], y[share], np.random.default_rng([seed, number, device])) - base
            wanted = delta + residual[device]
            sent, bits = codec(wanted, (seed * rounds + number) * DEVICES + device)
            if feedback:
                residual[device] = wanted - sent
            total += sent * (len(share) / len(train))
            spent += bits / (rounds * DEVICES)
        server += total
        right = _forward(server.astype(np.float32), x[test])[-1].argmax(1) == y[test]
        accuracy.append(100 * float(right.mean()))
    return Outcome(tuple(accuracy), spent)


@lru_cache
def _digits() -> tuple[Floats, NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.data / 16).astype(np.float32), found.target.astype(np.int64)


def _dirichlet(labels: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Indices of each device: each class is dealt out in proportions drawn from Dirichlet(ALPHA); none gets under a batch."""
    while True:
        parts: list[list[NDArray[np.int64]]] = [[] for _ in range(DEVICES)]
        for value in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == value))
            cuts = (np.cumsum(rng.dirichlet(np.full(DEVICES, ALPHA)))[:-1] * len(members)).round().astype(int)
            for part, dealt in zip(parts, np.split(members, cuts), strict=True):
                part.append(dealt)
        joined = [np.sort(np.concatenate(p)) for p in parts]
        if min(map(len, joined)) >= BATCH:
            return joined


def _layers(flat: Floats) -> list[tuple[Floats, Floats]]:
    """Views of each layer's matrix [outputs, inputs] and bias."""
    return [(flat[a : a + r * c].reshape(r, c), flat[a + r * c : a + r * c + r]) for a, r, c in offsets()]


def _forward(flat: Floats, x: Floats) -> list[Floats]:
    """The input, each hidden layer after its ReLU, and the logits."""
    values = [x]
    for index, (w, b) in enumerate(_layers(flat)):
        out = values[-1] @ w.T + b
        values.append(out if index == len(LAYERS) - 1 else np.maximum(out, 0))
    return values


def _train(base: Floats, x: Floats, y: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """Parameters after the local epochs of plain SGD on softmax cross-entropy."""
    flat = base.copy()
    layers = _layers(flat)
    for _ in range(EPOCHS):
        order = rng.permutation(len(x))
        for start in range(0, len(x), BATCH):
            rows = order[start : start + BATCH]
            values = _forward(flat, x[rows])
            p = np.exp(values[-1] - values[-1].max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(len(rows)), y[rows]] -= 1
            back = p / np.float32(len(rows))
            for index in range(len(LAYERS) - 1, -1, -1):
                w, b = layers[index]
                dw, db = back.T @ values[index], back.sum(0)
                back = (back @ w) * (values[index] > 0)
                w -= np.float32(LEARNING_RATE) * dw
                b -= np.float32(LEARNING_RATE) * db
    return flat
