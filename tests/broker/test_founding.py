"""Founding a federation: what its plan is made of."""

from pathlib import Path

import onnx

from fleetgrad.broker import founding
from fleetgrad.broker.settings import Settings
from tests.edge.test_batch_norm import network


def test_a_federation_keeps_its_models_running_statistics(tmp_path: Path) -> None:
    """Unless they are shared: moved by each device, they would be missing from the model that is published."""
    onnx.save(network(), tmp_path / "model.onnx")
    manifest = founding.create(tmp_path / "fed", tmp_path / "model.onnx", Settings(name="fed"))
    assert not manifest.of_role("personal")
    assert {"mean", "var"} <= {t.name for t in manifest.of_role("frozen")}
