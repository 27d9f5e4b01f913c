"""Makes the real model updates that the codecs are measured on: python -m fleetgrad.edge.bench.deltas OUT

    delta = parameters after a device's local training - parameters before it, the plan's flat vector, padding included

    cnn           FedAvg CNN, 1.66 M, Fashion-MNIST (digits grown to 28 x 28 without FLEETGRAD_DATA); 2 epochs of 600 images
    mlp           64-128-128-10 on digits; 2 epochs of a tenth of them
    transformer   2 layers of 192, 0.94 M, on the text of Python's standard library; 20 steps

Each with plain SGD, early (a device's first round) and late (after several rounds of federated averaging); the transformer
with Adam as well, whose steps are nearly all of one size: the nearest to Gaussian noise that training gives.
OUT gets NAME.npy (float32) and manifest.json: the tensors' names, shapes and offsets, and figures of shape. Same seed, same
machine: same bytes.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fleetgrad.edge.autodiff import zoo
from fleetgrad.edge.autodiff.compiling import compile_model
from fleetgrad.edge.bench.transformer import Size, Transformer
from fleetgrad.edge.data.dataset import Dataset, fit
from fleetgrad.edge.data.split import dirichlet
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Trainer
from fleetgrad.wire.plan import Tensor

MANIFEST = "manifest.json"
SEED = 3
CNN_CLIENTS, CNN_IMAGES, CNN_ROUNDS = 4, 600, 6
MLP_CLIENTS, MLP_ROUNDS = 10, 15
TEXT_BYTES, TEXT_STEPS, TEXT_BATCH, TEXT_ROUNDS = 2_000_000, 20, 16, 8

Floats = NDArray[np.float32]
Made = tuple[str, str, Floats, Sequence[Tensor]]  # name, how it was trained, delta, layout


def main() -> int:
    """Writes the corpus; prints a line per delta."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m {__spec__.name if __spec__ else __name__} OUT")
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    started = time.monotonic()
    for name, trained, delta, tensors in corpus():
        np.save(out / f"{name}.npy", delta)
        x = delta.astype(np.float64)
        deviation = float(x.std())
        entries.append({
            "name": name, "trained": trained, "size": delta.size,
            "kurtosis": float((x**4).mean() / deviation**4), "zeros": float((x == 0).mean()),
            "peak": float(np.abs(x).max() / deviation), "deviation": deviation,
            "tensors": [{"name": t.name, "shape": t.shape, "offset": t.offset} for t in tensors],
        })  # fmt: skip
        e = entries[-1]
        print(
            f"{name:22} {e['size']:8} floats, kurtosis {e['kurtosis']:7.1f}, zeros {e['zeros']:.3f}, "
            f"max/std {e['peak']:5.1f}, {time.monotonic() - started:5.1f} s: {trained}",
            flush=True,
        )
    (out / MANIFEST).write_text(json.dumps({"deltas": entries}, indent=1) + "\n")
    return 0


def corpus() -> Iterator[Made]:
    """All deltas, one model after another."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small, labels = (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)
    folder = os.environ.get("FLEETGRAD_DATA")
    if folder:
        with np.load(Path(folder) / "fmnist" / "fmnist.npz") as stored:
            count = CNN_CLIENTS * CNN_IMAGES
            images, classes = (stored["x_train"][:count] / np.float32(255)), stored["y_train"][:count].astype(np.int64)
        source = "Fashion-MNIST"
    else:
        images, classes, source = (
            np.pad(np.kron(small, np.ones((1, 3, 3), np.float32)), ((0, 0), (2, 2), (2, 2))),
            labels,
            "digits",
        )
    shares = dirichlet(classes, CNN_CLIENTS, 0.5, SEED)
    yield from federated("cnn", source, zoo.fedavg_cnn(SEED), images[:, None], classes, shares, CNN_ROUNDS, 0.05)
    shares = dirichlet(labels, MLP_CLIENTS, 0.5, SEED)
    yield from federated("mlp", "digits", zoo.mlp(SEED), small.reshape(-1, 64), labels, shares, MLP_ROUNDS, 0.1)
    yield from transformer()


def federated(
    name: str, source: str, model: onnx.ModelProto, x: Floats, y: NDArray[np.int64], shares: Sequence[NDArray[np.int64]],
    rounds: int, learning_rate: float,
) -> Iterator[Made]:  # fmt: skip
    """Federated averaging with plain SGD by our own trainer; the first device's delta of the first and the last round."""
    with tempfile.TemporaryDirectory() as folder:
        compile_model(model, loss="cross-entropy", gradients="fp32", output=Path(folder) / "plan")
        trainer = Trainer(open_plan(Path(folder) / "plan"))
        everything = fit(source, x, y, trainer.manifest)
        devices: list[Dataset] = [everything.subset(s) for s in shares]
        server = trainer.parameters.astype(np.float64)
        for number in range(1, rounds + 1):
            base, total = server.astype(np.float32), np.zeros_like(server)
            for index, data in enumerate(devices):
                trainer.load(base)
                trainer.run_epochs(
                    data,
                    epochs=2,
                    batch_size=16,
                    learning_rate=learning_rate,
                    momentum=0.0,
                    seed=SEED + 1000 * number + index,
                )
                delta = trainer.delta(base)
                total += delta * (len(data) / len(everything))
                if index == 0 and number in (1, rounds):
                    how = f"{source}, {len(data)} samples, 2 epochs of SGD {learning_rate:g}, round {number}"
                    yield (
                        f"{name}-sgd-{'early' if number == 1 else 'late'}",
                        how,
                        delta,
                        trainer.manifest.of_role("trainable"),
                    )
            server += total
        trainer.load(server.astype(np.float32))
        print(f"  {name}: accuracy after {rounds} rounds {trainer.evaluate(everything).accuracy:.3f}", file=sys.stderr)


def text() -> tuple[NDArray[np.int64], int]:
    """The standard library's own sources as character numbers, and how many characters there are."""
    sources = sorted(Path(json.__file__).parents[1].glob("*.py"))
    joined = "".join(p.read_text(encoding="utf-8", errors="replace") for p in sources).encode("ascii", "replace")[
        :TEXT_BYTES
    ]
    found, numbers = np.unique(np.frombuffer(joined, np.uint8), return_inverse=True)
    return numbers.astype(np.int64), len(found)


def transformer() -> Iterator[Made]:
    """Twenty steps of SGD early, twenty late, and twenty of Adam from where the late ones began."""
    characters, kinds = text()
    model = Transformer(Size(kinds), SEED)
    rng = np.random.default_rng(SEED)

    def local(rule: str) -> tuple[Floats, float]:
        base, first, second, loss = model.flat.copy(), np.zeros_like(model.flat), np.zeros_like(model.flat), 0.0
        for step in range(1, TEXT_STEPS + 1):
            starts = rng.integers(0, len(characters) - model.size.context - 1, TEXT_BATCH)
            window = starts[:, None] + np.arange(model.size.context + 1)
            loss = model.step(characters[window[:, :-1]], characters[window[:, 1:]])
            g = model.gradient
            if rule == "sgd":
                model.flat -= np.float32(0.3) * g
                continue
            first += np.float32(0.1) * (g - first)  # Adam, Kingma and Ba 2015
            second += np.float32(0.001) * (g * g - second)
            rate = np.float32(0.001 * np.sqrt(1 - 0.999**step) / (1 - 0.9**step))
            model.flat -= rate * first / (np.sqrt(second) + np.float32(1e-8))
        return model.flat - base, loss

    for number in range(1, TEXT_ROUNDS + 1):
        late = model.flat.copy()
        delta, loss = local("sgd")
        if number in (1, TEXT_ROUNDS):
            how = f"standard library, {TEXT_STEPS} steps of SGD 0.3, round {number}, loss {loss:.2f}"
            yield f"transformer-sgd-{'early' if number == 1 else 'late'}", how, delta, model.tensors
    model.flat[:] = late
    delta, loss = local("adam")
    yield (
        "transformer-adam-late",
        f"standard library, {TEXT_STEPS} steps of Adam 0.001, loss {loss:.2f}",
        delta,
        model.tensors,
    )


if __name__ == "__main__":
    sys.exit(main())
