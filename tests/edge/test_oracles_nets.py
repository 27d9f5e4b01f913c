"""Whole nets from export to training, by both of torch's exporters and in every profile, against torch in float64.

A sample of tests/edge/nets runs, drawn from the commit; all do in full.
"""

import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleetgrad.edge.autodiff import compile_model, survey
from tests.edge.nets import NETS
from tests.edge.nets.holding import EXPORTERS, KINDS, exported, hold, reference
from tests.edge.test_autodiff_compile import gradients, make, ones

SAMPLE = os.environ.get("FLEETGRAD_SAMPLE", "none")
DRAWN = sorted(NETS) if SAMPLE == "full" else sorted(random.Random(SAMPLE).sample(sorted(NETS), 2))


@pytest.mark.needs("torch", "onnxscript")
@pytest.mark.parametrize("name", DRAWN)
def test_a_net_trains_as_in_torch(name: str) -> None:
    net = NETS[name]
    exact = reference(net)
    for exporter in EXPORTERS:
        model = exported(net, exporter)
        faults = {kind: hold(net, model, exact, *kind).faults(net, kind[1]) for kind in KINDS}
        assert not any(faults.values()), (exporter, faults)


def dynamo(module: Any, *shape: int) -> onnx.ModelProto:
    """As torch's newer exporter writes a module when it is told nothing."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        free = ({0: torch.export.Dim.DYNAMIC},)
        program = torch.onnx.export(module, (torch.randn(shape),), dynamo=True, dynamic_shapes=free, verbose=False)
    found: onnx.ModelProto = program.model_proto
    return found


@pytest.mark.needs("torch", "onnxscript")
def test_batch_normalisation_that_the_newer_exporter_folded_is_told() -> None:
    import torch
    from torch import nn

    torch.set_num_threads(1)
    for layers, count in (([nn.Linear(4, 5), nn.BatchNorm1d(5)], 1), ([nn.Linear(4, 5)], 0)):
        notes = survey(dynamo(nn.Sequential(*layers, nn.ReLU()).train(), 3, 4)).notes
        assert len(notes) == count
        assert all("optimize=False" in text for text in notes)


def test_constants_that_torch_computed_are_no_weights(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "val_1"], ["a"]),
        helper.make_node("MatMul", ["a", "val_2"], ["b"]),
        helper.make_node("Mul", ["b", "scale"], ["y"]),
    ]
    model = make(nodes, {"val_1": ones(1), "val_2": ones(4, 3), "scale": ones(3)})
    for producer, names in (("pytorch", {"val_2", "scale"}), ("other", {"val_1", "val_2", "scale"})):
        model.producer_name = producer
        manifest = compile_model(model, loss="cross-entropy", output=tmp_path / producer)
        assert {t.name for t in manifest.of_role("trainable")} == names


@pytest.mark.parametrize("sizes", [np.array(2), np.array([2, 2]), np.array([1, 3])])
def test_a_list_that_is_split_and_read_again_passes_gradients(tmp_path: Path, sizes: np.ndarray) -> None:
    ends = np.cumsum(sizes if sizes.ndim else [2, 2])
    weights = {"u": ones(4, 4), "v": ones(int(ends[0]), 3), "w": ones(int(4 - ends[0]), 3)}
    first, last = helper.make_node("MatMul", ["x", "u"], ["h"]), helper.make_node("Add", ["c", "d"], ["y"])
    ends_of = [helper.make_node("MatMul", [a, b], [c]) for a, b, c in (("a", "v", "c"), ("b", "w", "d"))]
    lists = [
        helper.make_node("SplitToSequence", ["h", "sizes"], ["list"], axis=-1),
        helper.make_node("SequenceAt", ["list", "zero"], ["a"]),
        helper.make_node("SequenceAt", ["list", "one"], ["b"]),
    ]
    plain = [helper.make_node("Split", ["h", "sizes"], ["a", "b"], axis=-1)]
    found = []
    for which, middle in (("list", lists), ("split", plain)):
        model = make([first, *middle, *ends_of, last], weights)
        held = sizes.astype(np.int64) if which == "list" or sizes.ndim else np.array([2, 2])
        for name, value in (("sizes", held), ("zero", np.array(0)), ("one", np.array(1))):
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
        found.append(gradients(model, ones(5, 4), np.array([0, 1, 2, 0, 1]), tmp_path / which))
    assert found[0].keys() == found[1].keys() == {"loss", *weights}
    for name, value in found[0].items():
        np.testing.assert_allclose(value, found[1][name], rtol=1e-6, atol=1e-7)
