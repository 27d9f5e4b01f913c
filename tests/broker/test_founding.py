"""Founding a federation: what its plan is made of."""

from pathlib import Path

import onnx

from fleetgrad.broker import founding
from fleetgrad.broker.settings import Settings
from tests.edge.test_batch_norm import network


def test_a_federation_shares_its_models_running_statistics_unless_told_to_leave_them(tmp_path: Path) -> None:
    """They never stay on a device: moved by each, they would be missing from the model that is published."""
    onnx.save(network(), tmp_path / "model.onnx")
    manifest = founding.create(tmp_path / "fed", tmp_path / "model.onnx", Settings(name="fed"))
    assert {t.name for t in manifest.of_role("statistic")} == {"mean", "var"}
    settings = Settings(name="left")
    manifest = founding.create(tmp_path / "left", tmp_path / "model.onnx", settings, batch_norm="frozen")
    assert {"mean", "var"} <= {t.name for t in manifest.of_role("frozen")}
    assert not manifest.measured
