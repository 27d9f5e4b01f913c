"""onnxruntime sends nothing to its maker from a process of ours, and keeps no number of the device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fleetgrad.edge.autodiff import compile_model, zoo


@pytest.mark.parametrize("module", ["fleetgrad.edge.trainer", "fleetgrad.edge.commands", "fleetgrad.broker.cli"])
def test_no_process_of_ours_starts_onnxruntimes_telemetry(tmp_path: Path, module: str) -> None:
    compile_model(zoo.mlp(inputs=4, classes=2), loss="cross-entropy", output=tmp_path / "plan")
    home = tmp_path / "home"
    home.mkdir()
    code = (
        f"import sys, {module}, onnxruntime\n"
        "onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
    )
    clean = {k: v for k, v in os.environ.items() if k not in {"ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"}}
    command = [sys.executable, "-c", code, str(tmp_path / "plan" / "infer.onnx")]
    subprocess.run(command, check=True, env=clean | {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")})
    assert [path for path in home.rglob("*") if path.is_file()] == []
