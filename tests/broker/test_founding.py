"""Founding a federation: what its plan is made of."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fleetgrad.broker import founding
from fleetgrad.broker.settings import Broker, Settings
from fleetgrad.wire.topics import NameRefused
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


def test_the_model_of_a_federation_is_one_whole_file_though_its_weights_lay_in_another(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    whole, apart = network(), tmp_path / "there" / "model.onnx"
    onnx.save(network(), apart, save_as_external_data=True, location="weights.bin", size_threshold=0)
    founding.create(tmp_path / "fed", apart, Settings(name="fed"))
    found = onnx.load(tmp_path / "fed" / "aggregator" / "model.onnx", load_external_data=False).graph.initializer
    for tensor, expected in zip(found, whole.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(expected))


def test_a_federation_is_not_made_under_a_file(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "model.onnx")
    with pytest.raises(founding.FoundingError, match=r"can't make \S+/more/fed: \S+/model.onnx is no folder"):
        founding.create(tmp_path / "model.onnx" / "more" / "fed", tmp_path / "model.onnx", Settings(name="fed"))


@pytest.mark.parametrize("registrar", ["fed", "fed/aggregator", "fed/registrar", "."])
def test_a_registrar_within_the_federation_or_around_it_is_refused_and_nothing_is_left(
    tmp_path: Path, registrar: str
) -> None:
    onnx.save(network(), tmp_path / "model.onnx")
    settings = Settings(name="fed")
    with pytest.raises(founding.FoundingError, match="one lies in the other"):
        founding.create(tmp_path / "fed", tmp_path / "model.onnx", settings, registrar=tmp_path / registrar)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_broker_needs_a_port_for_boards_that_enrol(tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "model.onnx")
    settings = Settings(name="fed", broker=Broker(url="mqtts://broker.lan:65535"))
    with pytest.raises(founding.FoundingError, match="65534 is the last"):
        founding.create(tmp_path / "fed", tmp_path / "model.onnx", settings)


def test_a_name_that_cannot_be_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(NameRefused, match="federation name 'My Fleet' refused: 1 to 64 letters"):
        founding.create(tmp_path / "fed", tmp_path / "model.onnx", Settings(name="My Fleet"))
