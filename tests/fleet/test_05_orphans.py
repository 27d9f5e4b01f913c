"""However the demo ends, nothing of it stays behind: Ctrl-C, SIGKILL, and the death of one of its processes."""

import json
import os
import random
import select
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fleetgrad.hardware.fleet import Fleet, console_script, free_port
from fleetgrad.wire import mqtt
from fleetgrad.wire.address import Address
from fleetgrad.wire.messages import DeviceStatus, Metrics
from fleetgrad.wire.topics import Topics

MARK = "FLEETGRAD_TEST_RUN"
SECONDS = 60.0
PROCESSES = 6  # the demo, a broker, an aggregator and three devices; trainers come on top
BROKERS = ["embedded", pytest.param("mosquitto", marks=pytest.mark.needs("mosquitto"))]


class Demo:
    """A demo that would run for long, and how to find every process that it has started."""

    def __init__(self, folder: Path, broker: str) -> None:
        self.mark, self.root = uuid.uuid4().hex, folder / "run"
        words = [
            "demo",
            "--broker",
            broker,
            "--runs",
            str(folder),
            "--name",
            "run",
            "--devices",
            "3",
            "--rounds",
            "500",
        ]
        self.process = subprocess.Popen(
            [console_script("fleetgrad"), *words],
            env={**os.environ, MARK: self.mark}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip

    def until_training(self) -> None:
        """Waits for the first round's line, so for every process to be there."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("round"):
                return
        pytest.fail(f"the demo ended with {self.process.wait()} before its first round")

    def alive(self) -> dict[int, str]:
        """Processes of this demo that haven't ended, by their environment, which children inherit."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it has just ended, or isn't ours to read
        return found

    def output(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.read()


def open_handles(pids: dict[int, str]) -> dict[int, str]:
    """A pidfd, which becomes readable when its process ends, for each process that is still there."""
    handles = {}
    for pid, command in pids.items():
        try:
            handles[os.pidfd_open(pid)] = command
        except ProcessLookupError:
            continue
    return handles


def await_ends(handles: dict[int, str]) -> None:
    """Waits until every process has ended."""
    try:
        for handle, command in handles.items():
            assert select.select([handle], [], [], SECONDS)[0], f"still there: {command}"
    finally:
        for handle in handles:
            os.close(handle)


def await_event(inbox: mqtt.Inbox, kind: type) -> None:
    while not isinstance(inbox.get(timeout=SECONDS), kind):
        continue


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for path in Path("/proc").glob("[0-9]*"):  # after a failure: whatever still works in this test's folder
        try:
            if str(tmp_path).encode() in (path / "cmdline").read_bytes():
                os.kill(int(path.name), signal.SIGKILL)
        except OSError:
            continue


@pytest.mark.parametrize("broker", BROKERS)
def test_a_killed_demo_takes_all_its_processes_with_it(folder: Path, broker: str) -> None:
    demo = Demo(folder, broker)
    demo.until_training()
    running = demo.alive()
    assert len(running) >= PROCESSES, running
    handles = open_handles(running)
    demo.process.kill()
    demo.process.wait()
    await_ends(handles)
    assert demo.alive() == {}


def test_an_interrupted_demo_ends_its_processes_and_says_so_by_its_code(folder: Path) -> None:
    demo = Demo(folder, "embedded")
    demo.until_training()
    running = demo.alive()
    assert len(running) >= PROCESSES, running
    handles = open_handles(running)
    demo.process.send_signal(signal.SIGINT)
    text = demo.output()
    assert demo.process.wait(SECONDS) == 130, text
    assert "Traceback" not in text
    await_ends(handles)
    assert demo.alive() == {}


def test_a_device_that_dies_ends_the_demo_with_the_end_of_its_log(folder: Path) -> None:
    demo = Demo(folder, "embedded")
    demo.until_training()
    victim = next(pid for pid, command in demo.alive().items() if "fleetgrad-edge" in command and "dev-2" in command)
    os.kill(victim, signal.SIGKILL)
    text = demo.output()
    assert demo.process.wait(SECONDS) == 1, text
    assert "dev-2 has ended with code -9" in text
    assert "device=dev-2" in text
    assert "Traceback" not in text
    assert demo.alive() == {}


def test_what_an_earlier_demo_left_on_a_shared_broker_does_not_count(folder: Path) -> None:
    port, fleet = free_port(), Fleet(folder / "logs")
    fleet.embedded_broker(port)
    topics, inbox = Topics("demo"), mqtt.Inbox()
    earlier = mqtt.Session(Address("127.0.0.1", port), "earlier", inbox=inbox, will=None, random=random.Random(1))
    row = Metrics(round=1, version=1, members=2, accuracy=1.0, loss=0.0, bytes_up=1, bytes_down=1, seconds=1.0)
    try:
        earlier.start()
        await_event(inbox, mqtt.Connected)
        earlier.subscribe([topics.metrics])
        for name in ("dev-1", "dev-2"):
            done = DeviceStatus(state="idle", device=name, boot=1, updates=1)
            earlier.publish(topics.status(name), msgspec.json.encode(done), retain=True)
        earlier.publish(topics.metrics, msgspec.json.encode(row), retain=True)
        await_event(inbox, mqtt.Message)  # the broker has it all
        demo = subprocess.run(
            [console_script("fleetgrad"), "demo", "--broker", f"mqtt://127.0.0.1:{port}", "--runs", str(folder),
             "--name", "run", "--devices", "2", "--rounds", "1", "--local-epochs", "1"],
            capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert demo.returncode == 0, demo.stdout + demo.stderr
        rows = [json.loads(line) for line in (folder / "run" / "rounds.jsonl").read_text().splitlines()]
        assert [r["bytes_up"] > 1 for r in rows] == [True]
    finally:
        earlier.stop()
        fleet.stop()


def test_a_demo_without_the_broker_that_was_named_ends_at_once(folder: Path) -> None:
    done = subprocess.run(
        [console_script("fleetgrad"), "demo", "--broker", "mqtt://127.0.0.1:1", "--runs", str(folder), "--name", "run"],
        capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 3
    assert "mqtt://127.0.0.1:1: Connection refused" in done.stderr
    assert not (folder / "run").exists()
