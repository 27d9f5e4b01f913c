"""Graphs as onnxruntime has optimised them, kept beside an installed plan: a session is made in a third of the time.

    KEY-SHA256.ort      KEY = SHA-256 of the graph's own hash, onnxruntime's version, the processor, the editions of the custom ops and of the options

What is optimised for one processor and version may be wrong for another, so it is found by the key alone. The name has the
file's own hash; a file that doesn't match it is dropped with a log line and made anew. Nothing here fails a training.
"""

import hashlib
import os
import platform
from pathlib import Path

import onnxruntime as ort

from fleetgrad.edge.training.plan_dir import Plan
from fleetgrad.edge.training.sessions import EDITION, first_line, open_session, options
from fleetgrad.wire.log import log
from fleetgrad.wire.plan import PlanError

CPUINFO = Path("/proc/cpuinfo")
FEATURES = ("model name", "flags", "Features", "CPU part")  # of x86 and ARM
KEY_DIGITS = 24
MOST_FILES = 4  # training and evaluation, of two versions or processors


def processor() -> str:
    """What this machine's processor is and can."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        lines = []
    kept = {line for line in lines if line.partition(":")[0].strip() in FEATURES}
    return "\n".join([platform.machine(), *sorted(kept)])


def cached_session(plan: Plan, name: str, threads: int, folder: Path) -> ort.InferenceSession:
    """The session of one of the plan's files, from `folder` if it is there, else put there; raises PlanError."""
    abi = plan.manifest.op_abi
    parts = (plan.manifest.files[name], ort.__version__, processor(), str(abi), str(EDITION))
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:KEY_DIGITS]
    if (found := _kept(folder, key)) is not None:
        how = options(abi, threads)
        how.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return ort.InferenceSession(str(found), how, providers=["CPUExecutionProvider"])
        except Exception as e:  # noqa: BLE001 - whatever onnxruntime raises
            _drop(found, first_line(e))
    how, temporary = options(abi, threads), folder / f".{key}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.touch()  # a folder that can't be written isn't onnxruntime's error
        how.optimized_model_filepath = str(temporary)
        # In the other format nodes come back in another order: activations would live longer, by a fifth of the memory and more.
        how.add_session_config_entry("session.save_model_format", "ORT")
    except OSError as e:
        log("cache_unwritable", folder=folder, reason=e.strerror)
        return open_session(plan, name, how)
    try:
        session = open_session(plan, name, how)
    except PlanError as e:  # the plan's fault, or a disk that is full
        session = open_session(plan, name, options(abi, threads))
        log("cache_unwritable", folder=folder, reason=e)
        temporary.unlink(missing_ok=True)
        return session
    _keep(temporary, folder, key)
    return session


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kept(folder: Path, key: str) -> Path | None:
    """The file of this key, if it is whole."""
    for path in folder.glob(f"{key}-*.ort"):
        try:
            if path.stem == f"{key}-{_digest(path)}":
                return path
        except OSError as e:
            _drop(path, e.strerror or "")
            continue
        _drop(path, "it isn't what its name says")
    return None


def _keep(temporary: Path, folder: Path, key: str) -> None:
    """Puts what onnxruntime has written in its place; the oldest files go."""
    try:
        temporary.replace(folder / f"{key}-{_digest(temporary)}.ort")
        files = sorted(folder.glob("*-*.ort"), key=lambda path: path.stat().st_mtime)
        for old in (*files[:-MOST_FILES], *folder.glob(".*")):  # and what a process left that was killed
            old.unlink(missing_ok=True)
    except OSError as e:
        log("cache_unwritable", folder=folder, reason=e.strerror)
        temporary.unlink(missing_ok=True)


def _drop(path: Path, reason: str) -> None:
    log("cache_dropped", file=path.name, reason=reason)
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        log("cache_unwritable", folder=path.parent, reason=e.strerror)
