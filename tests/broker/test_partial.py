"""A federation that trains a part of its model: devices change and send that part alone, and it learns."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from fleetgrad.broker import founding
from fleetgrad.broker.merge import merge
from fleetgrad.broker.registry import objects
from fleetgrad.broker.settings import Settings
from fleetgrad.edge.autodiff import export_model, zoo
from fleetgrad.edge.data import dataset
from fleetgrad.edge.training.trainer import Trainer
from fleetgrad.wire.choice import Choice, Lora
from fleetgrad.wire.codecs import encode_payload
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.seeds import Keys
from tests.memory_files import MemoryFiles

FP16 = CodecSpec(name="fp16")
KEYS = Keys(1, 2)


def federated(
    folder: Path, choice: Choice, rate: float = 0.05, rounds: int = 10
) -> tuple[Trainer, bytes, list[float], int]:
    """Founds a federation of an MLP and plays it with two devices: a trainer with the last model, the first params, the loss
    on both devices' data after each round, and the bytes of one update."""
    onnx.save(zoo.mlp(inputs=8, hidden=64, classes=3), str(folder / "model.onnx"))
    manifest = founding.create(folder / "fed", folder / "model.onnx", Settings(name="fed"), choice=choice)
    opened, _, _ = objects.initial(MemoryFiles(), folder / "fed" / "aggregator")
    layout = VectorLayout.of(manifest)
    random = np.random.default_rng(0)
    x = random.standard_normal((200, 8)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0.5)
    everything = dataset.fit("data", x, y, manifest)
    parts = everything.subset(np.arange(80)), everything.subset(np.arange(80, 200))
    devices, judge = [Trainer(opened) for _ in parts], Trainer(opened)
    first = params = judge.parameters.astype("<f4").tobytes()
    losses, size = [judge.evaluate(everything).loss], 0
    for round_ in range(rounds):
        payloads = []
        for number, (trainer, data) in enumerate(zip(devices, parts, strict=True)):
            base = np.frombuffer(params, "<f4")
            trainer.load(base)
            result = trainer.run_epochs(data, epochs=2, batch_size=8, learning_rate=rate, momentum=0.9, seed=round_)
            payload = encode_payload(
                FP16, layout, trainer.delta(base), keys=KEYS, weight=len(data), steps=result.steps, loss=result.loss
            )
            payloads.append((f"dev-{number}", payload))
        params, size = merge(params, payloads, FP16, layout, lambda _: KEYS), len(payloads[0][1])
        judge.load(np.frombuffer(params, "<f4"))
        losses.append(judge.evaluate(everything).loss)
    assert np.array_equal(objects.whole_vector(opened, params), judge.model)
    return judge, first, losses, size


def weights(path: Path) -> dict[str, NDArray[np.float32]]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}


def test_a_federation_of_the_last_layer_learns_sends_it_alone_and_changes_nothing_else(tmp_path: Path) -> None:
    trainer, first, losses, size = federated(tmp_path, Choice(last=1))
    assert trainer.manifest.travels == 192 + 16
    assert 2 * 195 <= size < 2 * (192 + 16) + 100  # 195 numbers in fp16 and what says whose they are, not 4,931
    assert len(first) == 4 * (192 + 16)
    assert losses[-1] < losses[0] / 2
    export_model(tmp_path / "fed" / "aggregator" / "plan", trainer.model, tmp_path / "out.onnx")
    before, after = weights(tmp_path / "model.onnx"), weights(tmp_path / "out.onnx")
    assert before.keys() == after.keys()
    assert {n for n, w in after.items() if not np.array_equal(w, before[n])} == {"dense3.weight", "dense3.bias"}


def test_a_federation_of_adapters_learns_sends_the_factors_alone_and_publishes_whole_weights(tmp_path: Path) -> None:
    trainer, first, losses, size = federated(tmp_path, Choice(lora=Lora(["*.weight"], rank=2, alpha=4.0)), 0.01)
    floats = 2 * (8 + 64) + 2 * (64 + 64) + 2 * (64 + 3)  # 128 of 144 and so on are multiples of 16, 6 isn't
    assert trainer.manifest.travels == floats + 10
    assert len(first) == 4 * (floats + 10)
    assert 2 * floats <= size < 2 * (floats + 10) + 200
    assert losses[-1] < losses[0] / 2
    export_model(tmp_path / "fed" / "aggregator" / "plan", trainer.model, tmp_path / "out.onnx")
    before, after = weights(tmp_path / "model.onnx"), weights(tmp_path / "out.onnx")
    assert before.keys() == after.keys()
    changed = {n for n, w in after.items() if not np.array_equal(w, before[n])}
    assert changed == {"dense1.weight", "dense2.weight", "dense3.weight"}
    assert all(np.linalg.matrix_rank(after[n] - before[n], tol=1e-4) <= 2 for n in changed)
