"""The daemon's shell as a process: what it loads, how it ends, what it does when its trainer dies or its disk is full."""

import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from fleetgrad.edge import config as configs
from fleetgrad.edge import events as ev
from fleetgrad.edge.autodiff import zoo
from fleetgrad.edge.autodiff.compiling import compile_model
from fleetgrad.edge.daemon import TRAINER_TRIES, TrainerChild
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.wire import bundle, mqtt, signing
from fleetgrad.wire.messages import Policy
from fleetgrad.wire.seal import SealKey
from fleetgrad.wire.seeds import Keys

SECONDS = 60.0  # a hang guard
SEAL = SealKey.from_bytes(bytes(range(32))).public
SHA256 = r'"sha256":"[0-9a-f]{64}"'  # of the sealed payload
HEAVY = ("onnxruntime", "onnx", "typer", "rich")
MOST_ANONYMOUS = 32 << 20  # bytes; with 25 to 30 MB of mapped libraries that is the daemon's 60 MB of RSS


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """edge.toml of a device with a plan in its spool; nobody listens where it looks for its broker."""
    compile_model(zoo.mlp(inputs=8, classes=3), loss="cross-entropy", output=tmp_path / "plan")
    opened = open_plan(tmp_path / "plan")
    objects = tmp_path / "spool" / "objects"
    objects.mkdir(parents=True)
    (objects / "aa").write_bytes(bundle.pack(tmp_path / "plan"))
    (objects / "bb").write_bytes(opened.initial_parameters()[: opened.manifest.travels].tobytes())
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.random((300, 8)), y=rng.integers(0, 3, 300))
    for name in ("device", "aggregator"):
        key = signing.PrivateKey.from_seed(name.encode().ljust(32))
        (tmp_path / f"{name}.key").write_bytes(key.pem())
        (tmp_path / f"{name}.pub").write_bytes(key.public.pem())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    toml = tmp_path / "edge.toml"
    toml.write_text(
        f'[device]\nid = "dev-1"\n[federation]\nname = "test"\n[broker]\nurl = "mqtt://127.0.0.1:{port}"\n'
        '[data]\npath = "data.npz"\n'
    )
    return toml


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that end with the test."""
    made: list[subprocess.Popen[str]] = []
    yield made
    for process in made:
        process.kill()
        process.wait()


def run(toml: Path, started: list[subprocess.Popen[str]], limit: int | None = None) -> subprocess.Popen[str]:
    """Starts a daemon; no file of it may grow beyond `limit` bytes, as on a full disk."""
    words = ["from fleetgrad.edge.cli import main", "main()"]
    if limit is not None:
        words.insert(0, f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, -1))")
    process = subprocess.Popen(
        [sys.executable, "-c", "; ".join(words), "run", "--config", str(toml)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    started.append(process)
    return process


def await_line(process: subprocess.Popen[str], start: str) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(start):
            return line
    pytest.fail(f"no line {start!r} before the end")


def await_end(pid: int) -> None:
    """Waits until a process that isn't our child has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([handle], [], [], SECONDS)[0], f"process {pid} is still there"
    os.close(handle)


def job(round_: int = 3, **policy: Any) -> ev.Train:
    return ev.Train(
        round_,
        1,
        "objects/aa",
        "objects/bb",
        Policy(**policy),
        1,
        Keys(2, 3),
        f"updates/{round_}-1.sealed",
        SEAL.hex(),
        "00",
    )


def unsealed(event: ev.Event) -> ev.Event:
    """An outcome without what the sealing makes different each time."""
    assert isinstance(event, ev.Trained)
    return msgspec.structs.replace(event, sha256="")


class Trainers:
    """A daemon's keeper of trainers, and the events that come of what they say."""

    def __init__(self, toml: Path) -> None:
        settings, folder = configs.load(toml)
        self.inbox = mqtt.Inbox()
        self.keeper = TrainerChild(settings, folder, folder / "spool", self.inbox)

    def event(self) -> ev.Event:
        while (event := self.keeper.reply(*self.inbox.get(timeout=SECONDS))) is None:
            continue
        return event

    def outcome(self) -> ev.Event:
        while isinstance(event := self.event(), ev.Progress):
            continue
        return event

    def pid(self) -> int:
        assert self.keeper._child is not None
        return self.keeper._child.pid


@pytest.fixture
def trainers(device: Path) -> Iterator[Trainers]:
    made = Trainers(device)
    yield made
    made.keeper.stop()


def test_the_daemon_loads_neither_onnxruntime_nor_a_terminal_library() -> None:
    code = (
        "import sys\n"
        "import fleetgrad.edge.cli, fleetgrad.edge.daemon\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=SECONDS)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_daemon_takes_32_mb_beside_the_libraries_it_maps(device: Path, started: list[subprocess.Popen[str]]) -> None:
    # Not VmHWM: how much of a library is mapped around a fault depends on how its pages came into the page cache
    # (7 MB more where its file has just been written), and the kernel takes such pages back when it needs them.
    daemon = run(device, started)
    await_line(daemon, "broker_unreachable")
    status = dict(line.split(":", 1) for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines())
    print(status["RssAnon"], status["RssFile"])
    assert int(status["RssAnon"].split()[0]) << 10 < MOST_ANONYMOUS


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_its_code_while_the_broker_is_down(
    device: Path, started: list[subprocess.Popen[str]], number: signal.Signals, code: int
) -> None:
    daemon = run(device, started)
    assert "retry_in=" in await_line(daemon, "broker_unreachable")
    daemon.send_signal(number)
    assert "Traceback" not in daemon.communicate(timeout=SECONDS)[1]
    assert daemon.returncode == code


def test_a_disk_that_is_full_at_the_start_is_one_line_and_may_be_tried_again(
    device: Path, started: list[subprocess.Popen[str]]
) -> None:
    daemon = run(device, started, limit=0)
    text = daemon.communicate(timeout=SECONDS)[1]
    assert daemon.returncode == 1
    assert text.count("\n") == 1
    assert "edge.sqlite" in text
    await_line(run(device, started), "daemon_started")


def test_a_trainer_that_is_killed_is_started_again_with_the_same_outcome(trainers: Trainers) -> None:
    trainers.keeper.train(job(local_epochs=30))
    first = trainers.outcome()
    assert isinstance(first, ev.Trained)
    trainers.keeper.train(job(local_epochs=30))
    assert isinstance(trainers.event(), ev.Progress)
    os.kill(trainers.pid(), signal.SIGKILL)
    assert unsealed(trainers.outcome()) == unsealed(first)


def test_a_trainer_that_keeps_dying_fails_the_attempt_and_the_next_one_trains(trainers: Trainers) -> None:
    trainers.keeper.train(job(local_epochs=1000))
    for death in range(TRAINER_TRIES):
        os.kill(trainers.pid(), signal.SIGKILL)
        child, raw = trainers.inbox.get(timeout=SECONDS)
        while raw:
            child, raw = trainers.inbox.get(timeout=SECONDS)
        event = trainers.keeper.reply(child, raw)
        assert (event is None) == (death + 1 < TRAINER_TRIES)
    assert event == ev.TrainingFailed(3, 1, f"the trainer died {TRAINER_TRIES} times (code -9)")
    trainers.keeper.train(job(4, local_epochs=1))
    assert isinstance(trainers.outcome(), ev.Trained)


def test_what_a_cancelled_trainer_said_is_not_taken_for_the_next_ones_word(trainers: Trainers) -> None:
    trainers.keeper.train(job(3, local_epochs=1))
    late = trainers.inbox.get(timeout=SECONDS)
    trainers.keeper.cancel()
    trainers.keeper.train(job(4, local_epochs=1))
    assert trainers.keeper.reply(*late) is None
    done = trainers.outcome()
    assert isinstance(done, ev.Trained)
    assert done.round == 4


def ask(toml: Path, child: "subprocess.Popen[str]", **policy: Any) -> None:
    """Hands a trainer the request that a daemon would."""
    request = {
        "round": 3, "attempt": 1, "plan": "objects/aa", "params": "objects/bb", "policy": Policy(**policy), "seed": 1,
        "keys": {"own": 2, "shared": 3}, "output": "updates/3-1.sealed", "seal": SEAL.hex(), "sealed-with": "00",
        "spool": str(toml.parent / "spool"),
        "data": {"path": str(toml.parent / "data.npz")}, "threads": 1,
    }  # fmt: skip
    assert child.stdin is not None
    child.stdin.write(msgspec.json.encode(request).decode() + "\n")
    child.stdin.flush()


TRAINER = [sys.executable, "-m", "fleetgrad.edge.trainer"]


def test_an_update_that_a_full_disk_refuses_is_stored_when_there_is_room(
    device: Path, started: list[subprocess.Popen[str]]
) -> None:
    pipe = subprocess.PIPE
    trainer = subprocess.Popen(TRAINER, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    started.append(trainer)
    assert trainer.stdout is not None
    ask(device, trainer, local_epochs=1)
    while '"trained"' not in (before := trainer.stdout.readline()):
        assert before
    resource.prlimit(trainer.pid, resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
    ask(device, trainer, local_epochs=1)
    assert "retry_in=" in await_line(trainer, "disk_failed")
    resource.prlimit(trainer.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    while '"trained"' not in (after := trainer.stdout.readline()):
        assert after
    assert re.sub(SHA256, "", after) == re.sub(SHA256, "", before)


def test_a_plan_folder_torn_by_a_power_cut_is_unpacked_again_and_older_ones_go(
    trainers: Trainers, device: Path
) -> None:
    plans = device.parent / "spool" / "plans"
    trainers.keeper.train(job(local_epochs=1))
    first = trainers.outcome()
    trainers.keeper.cancel()
    (plans / "older").mkdir()
    (plans / "aa" / "train.onnx").write_bytes(b"")
    trainers.keeper.train(job(local_epochs=1))
    assert unsealed(trainers.outcome()) == unsealed(first)
    assert [p.name for p in plans.iterdir()] == ["aa"]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word on a parent's death is Linux's")
def test_a_trainer_dies_with_its_daemon_in_the_middle_of_its_training(
    device: Path, started: list[subprocess.Popen[str]]
) -> None:
    # A parent that passes requests through, and is killed while the trainer is far from done.
    code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen({TRAINER!r}, stdin=subprocess.PIPE)\n"
        "sys.stderr.write(f'{child.pid}\\n')\n"
        "for line in sys.stdin.buffer: child.stdin.write(line); child.stdin.flush()\n"
    )
    pipe = subprocess.PIPE
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    started.append(parent)
    assert parent.stderr is not None
    assert parent.stdout is not None
    pid = int(parent.stderr.readline())
    # The trainer's own stdin must not end with its parent, or this would show nothing: we hold it open as well.
    held = os.open(f"/proc/{pid}/fd/0", os.O_WRONLY)
    ask(device, parent, local_epochs=1000)
    assert '"progress"' in parent.stdout.readline()
    parent.kill()
    parent.wait()
    await_end(pid)
    os.close(held)
