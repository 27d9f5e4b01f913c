"""The board's command: eight packages are enough, what needs a ninth says so, and bad numbers are named."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fleetgrad.edge.autodiff import zoo
from fleetgrad.edge.autodiff.compiling import compile_model

EXTRAS = ("onnx", "sklearn", "matplotlib", "amqtt")


def run(module: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Runs a command's main with the packages of the extras hidden."""
    hidden = "".join(f"sys.modules[{name!r}] = None\n" for name in EXTRAS)
    program = f"import sys\n{hidden}sys.argv[0] = 'fleetgrad'\nfrom {module} import main\nmain()"
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("module", ["fleetgrad.edge.cli", "fleetgrad.broker.cli"])
@pytest.mark.parametrize("word", ["--version", "--help"])
def test_the_commands_start_without_any_extra(module: str, word: str) -> None:
    done = run(module, word)
    assert done.returncode == 0, done.stderr


def test_a_plan_trains_without_onnx(tmp_path: Path) -> None:
    compile_model(zoo.mlp(inputs=4, classes=2), loss="cross-entropy", output=tmp_path / "plan")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.random((60, 4)), y=rng.integers(0, 2, 60))
    done = run("fleetgrad.edge.cli", "train", tmp_path / "plan", "--data", tmp_path / "d.npz", "--epochs", 1)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("fleetgrad.edge.cli", ("check", "m.onnx")),
        ("fleetgrad.edge.cli", ("compile", "m.onnx", "-o", "plan")),
        ("fleetgrad.broker.cli", ("new", "there", "--model", "m.onnx")),
    ],
)
def test_what_needs_onnx_names_the_extra(tmp_path: Path, module: str, words: tuple[str, ...]) -> None:
    done = run(module, *(str(tmp_path / w) if w in ("there", "plan") else w for w in words))
    assert done.returncode == 2
    assert "pip install 'fleetgrad[compile]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--learning-rate", "-1"), ("--learning-rate", "nan"), ("--momentum", "nan"), ("--momentum", "1")],
)
def test_numbers_that_cannot_train_are_refused_by_name(tmp_path: Path, flag: str, value: str) -> None:
    done = run("fleetgrad.edge.cli", "train", tmp_path, "--data", tmp_path, flag, value)
    assert done.returncode == 2
    assert flag in done.stderr
