"""The demo, as a user runs it."""

import json
import subprocess
from pathlib import Path

import onnx
import pytest

from fleetgrad.hardware.fleet import console_script


@pytest.mark.parametrize("broker", ["embedded", pytest.param("mosquitto", marks=pytest.mark.needs("mosquitto"))])
def test_the_demo_trains_a_cnn_on_digits_and_writes_its_run(tmp_path: Path, broker: str) -> None:
    done = subprocess.run(
        [console_script("fleetgrad"), "demo", "--broker", broker, "--runs", str(tmp_path), "--name", "run", "--rounds", "8"],
        capture_output=True, text=True, timeout=200, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [r["round"] for r in rows] == list(range(1, 9))
    assert max(r["accuracy"] for r in rows) >= 0.95
    onnx.checker.check_model(onnx.load(str(tmp_path / "run" / "model.onnx")))
    report = (tmp_path / "run" / "report.html").read_text()
    assert report.count("<svg") == 2
    assert "http://" not in report.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert "bare onnxruntime.InferenceSession" in done.stdout
    assert "times fewer than fp32" in done.stdout
