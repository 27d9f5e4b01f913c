"""docs/training.md does what it says: its Python and its commands run, block after block, as they stand there."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from fleetgrad.broker.cli import main
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
    assert (tmp_path / "digits" / "devices" / "dev-01" / "edge.toml").exists()


def test_the_pages_links_lead_somewhere() -> None:
    for name, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", PAGE.read_text()):
        other = (PAGE.parent / name).read_text()
        heads = {
            re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in re.findall(r"^#+ (.*)$", other, re.M)
        }
        assert not anchor or anchor in heads, (name, anchor)
