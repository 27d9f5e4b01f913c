"""A federation's objects are what their names say, and those of its plan."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from fleetgrad.broker.registry import objects
from fleetgrad.edge.autodiff import zoo
from fleetgrad.edge.autodiff.compiling import compile_model
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.wire.plan import Optimizer
from tests.memory_files import MemoryFiles


def test_a_published_model_of_another_plan_is_refused_with_a_way_out(tmp_path: Path) -> None:
    onnx.save(zoo.mlp(inputs=8, hidden=16, classes=3), str(tmp_path / "mlp.onnx"))
    compile_model(
        tmp_path / "mlp.onnx", loss="cross-entropy", gradients="int8", output=tmp_path / "plan", optimizer=Optimizer()
    )  # fmt: skip
    plan, files = open_plan(tmp_path / "plan"), MemoryFiles()
    right, wrong = (
        objects.store(files, np.zeros(n, "<f4").tobytes()) for n in (plan.manifest.travels, plan.manifest.travels + 16)
    )
    assert objects.fitting(files, right.sha256, plan) == bytes(right.size)
    with pytest.raises(objects.ObjectError, match=r"floats, the plan .*: was the plan replaced\? .*fleetgrad new"):
        objects.fitting(files, wrong.sha256, plan)
    with pytest.raises(objects.ObjectError, match="is missing from objects/"):
        objects.fitting(files, "0" * 64, plan)
