"""Harness C: real processes on loopback, through the proxy, while things are killed, stopped and cut.

    mosquitto <-- proxy <-- aggregator, devices, their trainers

A storm is a seeded schedule of faults; when it is over everything runs again, and rounds must be published in their time.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fleetgrad.broker import founding, settings
from fleetgrad.broker.journal import SqliteJournal
from fleetgrad.broker.registrar.registrar import Registrar
from fleetgrad.broker.server import JOURNAL
from fleetgrad.broker.withdrawing import WithdrawalError, withdraw
from fleetgrad.edge.autodiff import zoo
from fleetgrad.hardware.fleet import Fleet, free_port
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.files import PosixFiles
from fleetgrad.wire.messages import Training
from tests import invariants
from tests.chaos.evidence import Collector, Evidence, lines
from tests.chaos.proxy import KINDS, ProxyThread

MOST_REVOKED = 2  # devices: the goal must stay within reach
DEADLINE = 15.0  # seconds of a round
STOPPED_SECONDS = (0.5, 3.0)  # how long a stopped process stays so
FAULT_SECONDS = (0.5, 4.0)  # how long a connection suffers
CALM_ROUNDS = 2  # rounds that are published after the storm, within 2 deadlines each
START_SECONDS = 60.0
# What strikes how often, in parts.
FAULTS = {
    "network": 10, "kill device": 4, "kill trainer": 3, "stop device": 3, "stop trainer": 2, "kill aggregator": 2, "stop aggregator": 1,
    "kill broker": 1, "stop broker": 1, "withdraw version": 1, "revoke device": 1,
}  # fmt: skip


@dataclass
class Storm:
    """A federation of `devices` daemons in `root`, and what strikes it."""

    root: Path
    devices: int
    seed: int
    rounds: int = 100_000
    spared: Collection[str] = ()  # what is never killed or stopped
    collects: bool = True  # payloads and params, which are many in a long run
    struck: Counter[str] = field(default_factory=Counter)
    revoked: dict[str, int] = field(default_factory=dict)  # with the last round that can have counted them

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.root.mkdir(parents=True, exist_ok=True)
        self.fleet, self.port = Fleet(self.root / "logs"), free_port()
        self.proxy = ProxyThread(self.port, self.seed)
        self.directory = self.root / "federation" / "aggregator"
        self.devices_folder = self.root / "federation" / "devices"
        self.names = [f"dev-{i:02d}" for i in range(self.devices)]
        self._resume_at: dict[int, float] = {}
        self._found()
        folders = [self.directory / "spool", self.directory / "objects"] if self.collects else []
        self.collector = Collector(folders, self.root / "collected")

    def _found(self) -> None:
        onnx.save(zoo.mlp(inputs=8, hidden=150, classes=3), str(self.root / "mlp.onnx"))
        url = f"mqtt://127.0.0.1:{self.proxy.port}"
        founding.create(
            self.directory.parent,
            self.root / "mlp.onnx",
            settings.Settings(
                name="chaos",
                broker=settings.Broker(url=url, chunk_bytes=1024),
                codec=CodecSpec(name="blk8"),
                training=Training(local_epochs=1),
                round=settings.Round(rounds=self.rounds, goal=self.devices * 3 // 4, minimum=0.5, deadline=DEADLINE),
            ),
        )
        for number, name in enumerate(self.names):
            folder = founding.enlist(self.directory.parent, name)
            rng = np.random.default_rng(number)
            x = rng.standard_normal((32 + number, 8)).astype(np.float32)
            np.savez(folder / "data.npz", x=x, y=(x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0.5))
        # Where 'serve' could read the CA's key it would refuse to start.
        self.registrar = (self.directory.parent / founding.REGISTRAR).rename(self.directory.parent / "elsewhere")

    # --- processes ---------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Starts everything and waits for the first version."""
        for name in ["broker", "aggregator", *self.names]:
            self._start(name)
        self.await_published(1, START_SECONDS)

    def _start(self, name: str) -> None:
        if name == "broker":
            self.fleet.broker(self.port)
        elif name == "aggregator":
            self.fleet.aggregator(self.directory)
        else:
            self.fleet.edge(name, self.devices_folder / name / "edge.toml")

    def published(self) -> int:
        """The newest version that the aggregator's log tells of."""
        found = [v.number("version") for v in lines(self.fleet.log("aggregator")) if v.event == "version_published"]
        return max(found, default=0)

    def await_published(self, version: int, seconds: float) -> float:
        """Waits until the version is published; the seconds that it took. Raises Violation (I10) after `seconds`."""
        began = time.monotonic()
        while self.published() < version:
            time.sleep(0.1)
            self.resume(time.monotonic())
            self.fleet.check()
            invariants.check_progress(f"version {version}", time.monotonic() - began, seconds)
        return time.monotonic() - began

    # --- the storm ---------------------------------------------------------------------------------------------------
    def strike(self) -> str:
        """One fault; what it was."""
        self.resume(time.monotonic())
        kind = self.random.choices(list(FAULTS), list(FAULTS.values()))[0]
        verb, _, victim = kind.partition(" ")
        if verb == "network":
            fault = self.random.choice(KINDS)
            seconds = self.random.uniform(*FAULT_SECONDS)
            what = str(fault) if self.proxy.call(lambda: self.proxy.proxy.strike(fault, seconds)) else ""
        elif verb in ("withdraw", "revoke"):
            what = kind if (self.withdraw() if verb == "withdraw" else self.revoke()) else ""
        else:
            what = self._strike_process(verb, victim)
        if what:
            self.struck[what] += 1
        return what

    def _strike_process(self, verb: str, victim: str) -> str:
        name = victim if victim in ("broker", "aggregator") else self.random.choice(self.names)
        if name in self.spared:
            return ""
        pid = self.fleet.pid(name)
        if victim == "trainer":
            trainers = children(pid)
            if not trainers:
                return ""
            pid = trainers[0]
        if verb == "stop":
            self._signal(pid, signal.SIGSTOP)
            self._resume_at[pid] = time.monotonic() + self.random.uniform(*STOPPED_SECONDS)
        elif victim == "trainer":
            self._signal(pid, signal.SIGKILL)
        else:
            self.fleet.kill(name)
            self._start(name)
        return f"{verb} {victim}"

    def withdraw(self) -> bool:
        """The operator stops the aggregator, takes the current version back, and starts it again; whether there was one to take back."""
        if "aggregator" in self.spared:
            return False
        self.fleet.kill("aggregator")
        journal = SqliteJournal(self.directory / JOURNAL)
        try:
            withdraw(journal, PosixFiles(self.directory))
        except WithdrawalError:
            return False
        finally:
            journal.close()
            self._start("aggregator")
        return True

    def revoke(self) -> bool:
        """The registrar revokes a device, which goes on as if it hadn't heard; whether one was left that could be."""
        left = [name for name in self.names if name not in self.spared and name not in self.revoked]
        if not left or len(self.revoked) >= MOST_REVOKED:
            return False
        name = self.random.choice(left)
        Registrar(self.registrar).revoke(name)
        # The round that is open now counts what it has: the one after the last in the log, or one more if that line is still to come.
        self.revoked[name] = self._last_round() + 2
        return True

    def _last_round(self) -> int:
        """The newest round that the aggregator's log tells the end of."""
        found = [v.number("round") for v in lines(self.fleet.log("aggregator")) if v.event == "version_published"]
        return max(found, default=0)

    def resume(self, now: float) -> None:
        """Lets stopped processes go on whose time has come."""
        for pid, at in list(self._resume_at.items()):
            if now >= at:
                self._signal(pid, signal.SIGCONT)
                del self._resume_at[pid]

    @staticmethod
    def _signal(pid: int, number: int) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return

    def rage(self, faults: int, every: float) -> None:
        """Strikes `faults` times, some `every` seconds on average."""
        while sum(self.struck.values()) < faults:
            what = self.strike()
            print(f"{time.monotonic():.1f} {what or 'nothing to strike'}", flush=True)
            time.sleep(self.random.expovariate(1 / every))

    def calm(self) -> float:
        """Nothing breaks any more; waits for CALM_ROUNDS versions, and returns the seconds that they took."""
        self.resume(float("inf"))
        self.proxy.call(self.proxy.proxy.calm)
        return self.await_published(self.published() + CALM_ROUNDS, CALM_ROUNDS * 2 * DEADLINE)

    def stop(self) -> None:
        self.resume(float("inf"))
        self.fleet.stop()
        self.collector.stop()
        self.proxy.stop()

    def evidence(self) -> Evidence:
        """After `stop`."""
        spools = {name: self.devices_folder / name / "spool" for name in self.names}
        return Evidence(self.directory, spools, self.fleet.log("x").parent, self.root / "collected", self.revoked)

    # --- figures -----------------------------------------------------------------------------------------------------
    def figures(self) -> dict[str, dict[str, Any]]:
        """Process id, RSS in bytes, open file handles and the spool's bytes, by process."""
        found: dict[str, dict[str, Any]] = {}
        for name in ["broker", "aggregator", *self.names]:
            process = Path("/proc") / str(self.fleet.pid(name))
            try:
                pages = int((process / "statm").read_text().split()[1])
                handles = len(list((process / "fd").iterdir()))
            except (FileNotFoundError, ProcessLookupError):
                continue
            spool = (self.directory if name == "aggregator" else self.devices_folder / name) / "spool"
            size = sum(map(_size, spool.rglob("*")))
            found[name] = {
                "pid": self.fleet.pid(name),
                "rss": pages * os.sysconf("SC_PAGESIZE"),
                "handles": handles,
                "spool": size,
            }
        return found


def children(pid: int) -> list[int]:
    """Process ids of a process's children."""
    try:
        return [int(p) for p in (Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _size(path: Path) -> int:
    """Bytes of a file; none of what its process has just removed, or of a folder."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0
