"""docs/training.md does what it says: its Python and its commands run, block after block, as they stand there."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from fleetgrad.broker.cli import main
from fleetgrad.edge.autodiff import survey
from fleetgrad.edge.commands import run_command

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def commanded(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command line, run in this process."""
    monkeypatch.setattr(sys, "argv", line.split())
    if line.startswith("fleetgrad-edge "):
        return run_command()
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


@pytest.mark.needs("torch", "onnxscript")
def test_the_pages_code_and_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    blocks = re.findall(r"```(python|sh)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "sh", "python", "python", "sh", "sh", "sh"]
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), found)  # noqa: S102 - our own page
        else:
            assert [commanded(line, monkeypatch) for line in text.splitlines()] == [0] * len(text.splitlines())
    assert found["refused"] == []
    assert len(found["still"]) == 2
    assert all("running" in name for name in found["still"])
    logits = onnxruntime.InferenceSession("trained.onnx").run(None, {"image": found["images"].astype(np.float32)})[0]
    assert (logits.argmax(1) == found["labels"]).mean() > 0.9
    assert (tmp_path / "digits" / "registrar" / "kits" / "dev-01.kit").exists()


@pytest.mark.needs("torch", "onnxscript")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False])
def test_exported_otherwise_layers_are_folded_or_become_one(dynamo: bool, tmp_path: Path) -> None:
    """Why the page says how to export: the newer exporter does both, the older one folds."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    how = {"optimize": False} if dynamo else {"training": torch.onnx.TrainingMode.TRAINING}
    fresh = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(4)).train()
    normed = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).train()
    path, trained, kinds = tmp_path / "model.onnx", [], []
    for options in ({"dynamo": dynamo, **how}, {"dynamo": dynamo}):
        torch.onnx.export(fresh, (torch.ones(2, 4),), path, verbose=False, **options)
        trained.append(sum(weight.trains for weight in survey(path).weights))
        torch.onnx.export(normed, (torch.ones(2, 1, 3, 3),), path, verbose=False, **options)
        kinds.append({n.op_type for n in onnx.load(path).graph.node})
    assert trained == ([8, 6] if dynamo else [8, 8])  # the second normalisation's scale and shift are the first's
    assert ["BatchNormalization" in found for found in kinds] == [True, False]


def test_the_pages_links_lead_somewhere() -> None:
    for name, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", PAGE.read_text()):
        other = (PAGE.parent / name).read_text()
        heads = {
            re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.*)$", other, re.M)
        }
        assert not anchor or anchor in heads, (name, anchor)
