"""A federation that trains a part of its model: devices change and send that part alone."""

from pathlib import Path

import numpy as np
import onnx

from fleetgrad.broker import founding
from fleetgrad.broker.registry import objects
from fleetgrad.broker.settings import Settings
from fleetgrad.edge.autodiff import zoo
from fleetgrad.edge.data import dataset
from fleetgrad.edge.training.trainer import Trainer
from tests.broker.conftest import MemoryFiles


def test_devices_train_and_send_only_what_a_federation_chose(tmp_path: Path) -> None:
    onnx.save(zoo.mlp(inputs=8, hidden=16, classes=3), str(tmp_path / "model.onnx"))
    manifest = founding.create(tmp_path / "fed", tmp_path / "model.onnx", Settings(name="fed"), last=1)
    opened, _, params = objects.initial(MemoryFiles(), tmp_path / "fed")
    assert params.size == 4 * manifest.travels == 4 * (48 + 16)
    trainer = Trainer(opened)
    base, whole = trainer.parameters.copy(), trainer.model.copy()
    random = np.random.default_rng(0)
    x, y = random.random((40, 8), np.float32), random.integers(0, 3, 40)
    data = dataset.fit("data", x, y, manifest)
    trainer.run_epochs(data, epochs=2, batch_size=8, learning_rate=0.1, momentum=0.9, seed=1)
    delta = trainer.delta(base)
    assert delta.any()
    assert np.array_equal(trainer.model[manifest.travels :], whole[manifest.travels :])
    vector = objects.whole_vector(opened, (base + delta).astype("<f4").tobytes())
    np.testing.assert_allclose(vector, trainer.model, rtol=0, atol=1e-6)  # base + (new - base) rounds
