"""The daemon's shell: one thread, one queue. MQTT, the trainer child and signals put events in; the participant says what to
do; nothing is decided here.

It stays small: neither onnxruntime nor the command line's libraries are imported (the trainer child has them).
"""

import contextlib
import importlib.metadata
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

import msgspec

from fleetgrad.edge import events as ev
from fleetgrad.edge.config import EdgeConfig, beginning, client_id
from fleetgrad.edge.data import npz
from fleetgrad.edge.link import outbox, standing
from fleetgrad.edge.link.store import SqliteStore
from fleetgrad.edge.link.wear import Wear
from fleetgrad.edge.participant import Participant
from fleetgrad.edge.renewing import Renewing, Step
from fleetgrad.edge.reporting import Identity
from fleetgrad.wire import files, mqtt, signing
from fleetgrad.wire.events import earliest
from fleetgrad.wire.exits import EXIT_FAILED, EXIT_USAGE, refused
from fleetgrad.wire.files import DiskError, PosixFiles
from fleetgrad.wire.log import Sparing, log
from fleetgrad.wire.loop import Loop, Stop
from fleetgrad.wire.sizes import parse_size
from fleetgrad.wire.tls import Floor
from fleetgrad.wire.topics import Topics

TRAINER_TRIES = 3
CLOCK = "clock"  # in the spool: a time that has passed for certain


class DaemonError(ValueError):
    """A daemon that can't start; the message says what to mend."""


class TrainerChild:
    """Starts, feeds and, when it dies, starts again the trainer process; replies go into the daemon's queue."""

    def __init__(self, config: EdgeConfig, folder: Path, spool: Path, inbox: mqtt.Inbox) -> None:
        self._config, self._spool, self._inbox = config, spool, inbox
        data = config.data
        self._data = msgspec.structs.replace(data, path=str(folder / data.path))
        self._child: subprocess.Popen[bytes] | None = None
        self._job: ev.Train | None = None
        self._deaths = 0

    def train(self, job: ev.Train) -> None:
        """Hands over an attempt; the child is started if it isn't there."""
        self._job, self._deaths = job, 0
        self._send(job)

    def cancel(self) -> None:
        """Drops the attempt under way: killing the child is the shortest way, and it may be killed at any time."""
        self._job = None
        self.stop()

    def stop(self) -> None:
        child, self._child = self._child, None
        if child:
            child.kill()
            child.wait()

    def reply(self, child: "subprocess.Popen[bytes]", raw: bytes) -> ev.Event | None:
        """The event that a line of the child means; b"" means that it has ended."""
        if child is not self._child:
            return None
        if not raw:
            self._child = None
        job = self._job
        if job is None:
            return None
        if not raw:
            self._deaths += 1
            code = child.wait()
            log("trainer_died", device=self._config.device.id, round=job.round, code=code, times=self._deaths)
            if self._deaths < TRAINER_TRIES:
                self._send(job)
                return None
            self._job = None
            return ev.TrainingFailed(job.round, job.attempt, f"the trainer died {self._deaths} times (code {code})")
        said: ev.TrainerWord = msgspec.json.decode(raw, type=ev.TrainerWord)
        if (said.round, said.attempt) != (job.round, job.attempt):
            return None
        if not isinstance(said, ev.Progress):
            self._job = None
        return said

    def _send(self, job: ev.Train) -> None:
        if self._child is None:
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "fleetgrad.edge.trainer"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    process_group=0,  # a terminal's Ctrl-C is for the daemon alone
                )
            except OSError as e:  # a disk that can't be read, or no memory for another process
                self._job = None
                reason = f"the trainer can't be started: {e.strerror}"
                self._inbox.put(ev.TrainingFailed(job.round, job.attempt, reason))
                return
            threading.Thread(target=self._read, args=(self._child,), daemon=True, name="trainer-replies").start()
        device = self._config.device
        here = {"spool": str(self._spool), "data": self._data}
        here |= {"threads": device.threads, "max-rss": device.max_rss_bytes()}
        request = msgspec.to_builtins(job) | here
        try:
            if self._child.stdin:
                self._child.stdin.write(msgspec.json.encode(request) + b"\n")
                self._child.stdin.flush()
        except BrokenPipeError:
            return  # it has just died: its reader says so

    def _read(self, child: "subprocess.Popen[bytes]") -> None:
        if child.stdout:
            for line in child.stdout:
                self._inbox.put((child, line))
        self._inbox.put((child, b""))


class Daemon:
    """Everything that has a handle: lock, session, child, queue."""

    def __init__(self, config: EdgeConfig, folder: Path, *, insecure: bool, timeout: float) -> None:
        self._config = config
        key = signing.load_private_key(folder / config.device.key)
        aggregator = signing.load_public_key(folder / config.federation.aggregator_key)
        samples = npz.count(folder / config.data.path, config.data.x, config.data.y)
        spool = self._spool = folder / config.device.spool
        self._not_connected = standing.read(spool)  # of the life before
        broker = config.broker.endpoint(folder, insecure=insecure, floor=spool / CLOCK)
        self._address, self._sparing = broker.address, Sparing()
        files = self._files = PosixFiles(spool)
        self._lock = lock(spool)
        self._store = SqliteStore(spool)
        seed = random.Random()
        identity = Identity(
            config.federation.name, config.device.id, key, aggregator, samples,
            f"fleetgrad {importlib.metadata.version('fleetgrad')}", beginning(config.federation, folder),
        )  # fmt: skip
        budget, floor = parse_size(config.device.written_a_day), parse_size(config.device.free_space)
        self._wear = Wear(files, self._store, budget, floor, files.free)
        self._participant = Participant(
            identity, self._wear.files, self._wear, seed, config.device.limits(), self._wear.no_room
        )
        self._loop = Loop(
            broker, client_id(broker, config.device.id, key), timeout or config.broker.timeout, self._log,
            will=mqtt.Will(*self._participant.will()), random=seed,
        )  # fmt: skip
        self._session = self._loop.session
        self._trainer = TrainerChild(config, folder, spool, self._loop.inbox)
        self._topics, self._floor = Topics(config.federation.name), Floor(spool / CLOCK)
        self._renewing = Renewing.of(folder, key, folder / config.federation.registrar_key, seed, self._passed)

    def _passed(self) -> float:
        """A time that has passed for certain, unless the clock is ahead."""
        return max(time.time(), self._floor.time)

    def run(self) -> int:
        """Serves until stopped; the exit code."""
        self._log("daemon_started", broker=self._address, pid=os.getpid())
        try:
            return self._loop.run(self._serve, self._spread())
        finally:
            self._trainer.stop()
            self._store.close()
            self._lock.close()

    def _spread(self) -> float:
        """Seconds until the first connection: after a blackout a fleet comes back as after the loss of its broker."""
        backoff = self._session.backoff
        backoff.window = self._participant.reconnect_seconds
        if not self._participant.cut_off or self._loop.patience:
            return 0.0
        seconds = backoff.begin()
        if seconds >= 1:
            self._log("connect_spread", seconds=round(seconds, 1), reason="the last life ended without a goodbye")
        return seconds

    def _serve(self) -> int:
        while True:
            item: Any = self._loop.next(self._wake_at())
            event: ev.Event | None = None
            match item:
                case Stop(code):
                    self._execute(self._participant.goodbye())
                    standing.note(self._spool, "")
                    self._log("daemon_stopped")
                    return code
                case (child, raw):
                    event = self._trainer.reply(child, raw)
                case ev.Message() if item.topic == self._topics.issued(self._config.device.id):
                    if self._renewing:
                        self._renew(self._renewing.take(item.payload))
                case ev.Message() if item.topic == self._topics.member(self._config.device.id):
                    if self._renewing and self._renew(self._renewing.take_member(item.payload)):
                        return EXIT_USAGE
                case ev.Connected() | ev.Disconnected() | ev.Message() | ev.Tick() | ev.TrainingFailed():
                    event = item
                    self._note_link(item)
            if self._renewing and self._loop.connected:
                if isinstance(item, ev.Connected):
                    device = self._config.device.id
                    self._session.subscribe([self._topics.issued(device), self._topics.member(device)])
                    self._renew(self._renewing.connected(time.monotonic()))
                else:
                    self._renew(self._renewing.tick(time.monotonic()))
            if event is not None:
                now = time.monotonic()
                if isinstance(event, ev.Trained):
                    with contextlib.suppress(DiskError, FileNotFoundError):  # then a day's count is a little short
                        self._wear.add(outbox.bytes_of(self._files, event.round, event.attempt))
                self._execute([*self._wear.tick(now), *self._participant.handle(event, now)])
                self._session.backoff.window = self._participant.reconnect_seconds

    def _note_link(self, event: ev.Event) -> None:
        """What `fleetgrad-edge status` says of the link."""
        if isinstance(event, ev.Connected | ev.Disconnected):
            reason = event.reason if isinstance(event, ev.Disconnected) else ""
            if reason != self._not_connected:
                standing.note(self._spool, reason)
                self._not_connected = reason

    def _wake_at(self) -> float | None:
        own = self._renewing.wake_at() if self._renewing and self._loop.connected else None
        return earliest(self._participant.wake_at(), own)

    def _renew(self, step: Step) -> bool:
        """Does a step; whether the device's part has ended."""
        if step.ask is not None:
            self._session.publish(self._topics.renew(self._config.device.id), step.ask)
        if step.event:
            self._sparing(step.event, device=self._config.device.id, reason=step.reason)
        if step.passed:
            self._floor.raise_to(step.passed)
        return step.revoked

    def _execute(self, effects: list[ev.Effect]) -> None:
        for effect in effects:
            match effect:
                case ev.Publish():
                    self._session.publish(effect.topic, effect.payload, retain=effect.retained)
                case ev.Subscribe():
                    self._session.subscribe(effect.filters)
                case ev.Unsubscribe():
                    self._session.unsubscribe(effect.filters)
                case ev.Train():
                    self._trainer.train(effect)
                case ev.CancelTraining():
                    self._trainer.cancel()
                case ev.Log():
                    self._sparing(effect.event, device=self._config.device.id, **effect.fields)

    def _log(self, event: str, **fields: object) -> None:
        log(event, device=self._config.device.id, **fields)


def lock(spool: Path) -> TextIO:
    """Holds the spool for this process alone; raises DaemonError, or DiskError where there can be no lock."""
    try:
        return files.lock(spool / "lock")
    except BlockingIOError as e:
        raise DaemonError(f"spool {spool} is in use by another daemon") from e


def run(config: EdgeConfig, folder: Path, *, insecure: bool = False, timeout: float = 0.0) -> int:
    """Runs a device until SIGTERM or SIGINT; returns the exit code. Paths in `config` are relative to `folder`."""
    try:
        daemon = Daemon(config, folder, insecure=insecure, timeout=timeout)
    except ValueError as e:
        sys.stderr.write(f"fleetgrad-edge: {e}\n")
        return refused(e)
    except DiskError as e:  # a full disk may have room when whoever starts us tries again
        sys.stderr.write(f"fleetgrad-edge: {e.strerror or e}\n")
        return EXIT_FAILED
    return daemon.run()
