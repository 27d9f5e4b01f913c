"""A fleet of processes on this machine: the emulated one of the demo and of the tests. Standard library only.

Every process dies with its parent, even when that is killed: each child asks the kernel for SIGKILL at its parent's death.
"""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
STOP_SECONDS = 5.0
TAIL_LINES = 15
POLL_SECONDS = 0.05


class FleetError(RuntimeError):
    """A process that couldn't be started or has died; the message holds the end of its log."""


def console_script(name: str) -> str:
    """Path of one of our console scripts: beside this Python, or on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise FleetError(f"command {name} isn't installed beside {sys.executable} nor on PATH")
    return found


def find_mosquitto() -> str | None:
    """Path of the mosquitto broker, which Debian keeps out of users' PATH."""
    return shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Fleet:
    """Named processes with a log file each."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        logs.mkdir(parents=True, exist_ok=True)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        """Starts `command` as `name`; its output is appended to NAME.log."""
        with self.log(name).open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  (one system call, before any thread of ours)
                start_new_session=True,
            )
        self._running[name] = child
        return child

    def await_port(self, name: str, port: int, seconds: float = 20.0) -> None:
        """Waits until process `name` listens on 127.0.0.1; raises FleetError if it ends or takes too long."""
        end = time.monotonic() + seconds
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1.0):
                    return
            except OSError:
                self.check()
            if time.monotonic() > end:
                raise FleetError(f"{name} doesn't listen on port {port} after {seconds:g} s:\n{self.tail(name)}")
            time.sleep(POLL_SECONDS)

    def broker(self, port: int) -> None:
        """Starts a mosquitto that listens on 127.0.0.1 alone."""
        path = find_mosquitto()
        if path is None:
            raise FleetError("mosquitto isn't installed")
        config = self._logs / "mosquitto.conf"
        # Started by root, mosquitto becomes another user, and with that forgets to die with its parent.
        user = "user root\n" if os.geteuid() == 0 else ""
        config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n{user}")
        self.start("broker", [path, "-c", str(config)])
        self.await_port("broker", port)

    def embedded_broker(self, port: int) -> None:
        """Starts the embedded broker."""
        self.start("broker", [sys.executable, "-m", "fleetgrad.broker.embedded", "--port", str(port)])
        self.await_port("broker", port)

    def aggregator(self, directory: Path, *flags: str) -> None:
        self.start("aggregator", [console_script("fleetgrad"), "serve", str(directory), *flags])

    def edge(self, device: str, config: Path, *flags: str) -> None:
        self.start(device, [console_script("fleetgrad-edge"), "run", "--config", str(config), *flags])

    def log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def check(self, *may_end: str) -> None:
        """Raises FleetError if a process has ended, but for those named that ended well."""
        for name, child in self._running.items():
            code = child.poll()
            if code is not None and not (code == 0 and name in may_end):
                raise FleetError(f"{name} has ended with code {code}:\n{self.tail(name)}")

    def tail(self, name: str) -> str:
        """The last lines of a process's log."""
        lines = self.log(name).read_text(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:])

    def kill(self, name: str) -> None:
        """Kills a process at once, as a power cut would."""
        child = self._running.pop(name)
        child.kill()
        child.wait()

    def wait(self, name: str, seconds: float) -> int:
        """Waits for a process to end by itself; its exit code."""
        try:
            return self._running[name].wait(seconds)
        except subprocess.TimeoutExpired:
            raise FleetError(f"{name} hasn't ended after {seconds:g} s:\n{self.tail(name)}") from None

    def stop(self) -> None:
        """Ends every process, the broker last: politely, then not."""
        order = sorted(self._running, key=lambda name: name == "broker")
        for name in order:
            if name != "broker":
                self._running[name].terminate()
        for name in order:
            child = self._running[name]
            if name == "broker":
                child.terminate()
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._running.clear()
