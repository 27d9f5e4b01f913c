"""docs/migrating.md does what it says: its code runs, block after block, as it stands there."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from fleetgrad.edge.autodiff import zoo

PAGE = Path(__file__).parents[2] / "docs" / "migrating.md"


def test_the_pages_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(zoo.mlp(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    found: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), found)  # noqa: S102 - our own page
    losses = found["losses"]
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    assert found["loss"] < losses[0]
    trained = onnxruntime.InferenceSession(tmp_path / "trained.onnx")
    (logits,) = trained.run(None, {trained.get_inputs()[0].name: found["samples"]})
    accuracy = (logits.argmax(1) == found["labels"]).mean()
    assert accuracy == found["later"].evaluate(found["data"]).accuracy > 0.9


def test_every_name_of_the_table_is_there() -> None:
    """Attributes and methods that the page speaks of, on the objects that it speaks of."""
    from fleetgrad.edge.training import checkpoint
    from fleetgrad.edge.training.trainer import Trainer

    rows = PAGE.read_text().partition("## On the machine")[0]
    for name in set(re.findall(r"trainer\.(\w+)", rows)) - {"manifest"}:
        assert hasattr(Trainer, name), name
    for name in set(re.findall(r"checkpoint\.(\w+)\(", rows)):
        assert hasattr(checkpoint, name), name
