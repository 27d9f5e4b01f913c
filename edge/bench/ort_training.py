"""onnxruntime-training in an environment of its own, as a peer of the bench of training: it can't live beside onnxruntime.

Its last version has wheels for x86-64 and Python up to 3.12. Where pip finds none, PeerError says so.
"""

import subprocess
import sys
import venv
from pathlib import Path

from fleetgrad.edge.bench import engine

PEER = "onnxruntime-training"
PINS = ("onnxruntime-training-cpu==1.19.2", "onnx==1.16.2", "numpy==1.26.4")  # onnx makes the artifacts; of that time
MADE = ".made"


class PeerError(RuntimeError):
    """What onnxruntime-training can't do here, in one line."""


def prepare(environment: Path) -> Path:
    """The environment's Python; makes the environment the first time (a minute). Raises PeerError where pip can't fill it."""
    python = environment / "bin" / "python"
    if not (environment / MADE).exists():
        venv.create(environment, clear=True, with_pip=True)
        _run(
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PINS],
            f"pip can't install {PINS[0]} for Python {sys.version_info.major}.{sys.version_info.minor}",
        )
        (environment / MADE).touch()
    return python


def command(python: Path) -> list[str]:
    """Begins a call of the engine in the environment."""
    return [str(python), "-P", engine.__file__]  # the folder has modules of common names


def make_artifacts(python: Path, model: bytes, directory: Path) -> None:
    """Writes the artifacts of a model; raises PeerError where onnxruntime-training can't differentiate it."""
    directory.mkdir()
    file = directory / "model.onnx"
    file.write_bytes(model)
    _run([*command(python), "artifacts", str(directory), str(file)], f"{PEER} makes no artifacts")


def _run(arguments: list[str], act: str) -> None:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit {done.returncode}"]
        raise PeerError(f"{act}: {said[-1].strip()}")
