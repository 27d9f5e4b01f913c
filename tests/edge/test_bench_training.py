"""The bench of training beside onnxruntime-training: what fails there is told, and its script needs little."""

import ast
import sys
from pathlib import Path

import pytest

from fleetgrad.edge.bench import engine, ort_training


def test_the_engine_needs_numpy_alone_before_it_knows_its_kind() -> None:
    """It runs as a script in an environment without fleetgrad, torch or the stock onnxruntime."""
    needed = set()
    for node in ast.parse(Path(engine.__file__).read_text()).body:
        if isinstance(node, ast.Import):
            needed |= {name.name.split(".")[0] for name in node.names}
        if isinstance(node, ast.ImportFrom):
            needed.add(str(node.module).split(".")[0])
    assert needed - sys.stdlib_module_names == {"numpy"}


def test_an_environment_that_cant_be_filled_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho 'ERROR: No matching distribution found' >&2\nexit 1\n")
    failing.chmod(0o755)

    def made(folder: Path, **_: object) -> None:
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        (folder / "bin" / "python").unlink(missing_ok=True)
        (folder / "bin" / "python").symlink_to(failing)

    monkeypatch.setattr("venv.create", made)
    for _ in range(2):
        with pytest.raises(
            ort_training.PeerError, match=r"pip can't install onnxruntime-training-cpu==1\.19\.2 .*No matching"
        ):
            ort_training.prepare(tmp_path / "environment")


def test_a_model_that_gets_no_artifacts_is_told_with_the_last_line_of_the_error(tmp_path: Path) -> None:
    """The stock onnxruntime, which has no onnxruntime.training, stands for one that can't differentiate."""
    with pytest.raises(ort_training.PeerError, match="makes no artifacts: ModuleNotFoundError"):
        ort_training.make_artifacts(Path(sys.executable), b"", tmp_path / "artifacts")
