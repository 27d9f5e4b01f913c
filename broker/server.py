"""The aggregator's shell: one thread, one queue. MQTT and signals put events in; the round machine says what to do."""

import os
import queue
import random
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from fleetgrad.broker import events as ev
from fleetgrad.broker import releasing
from fleetgrad.broker import settings as settings_file
from fleetgrad.broker.journal import JournalError, SqliteJournal
from fleetgrad.broker.monitor import Monitor
from fleetgrad.broker.registry import objects
from fleetgrad.broker.results import Results
from fleetgrad.broker.roster import Roster
from fleetgrad.broker.rounds import Rounds
from fleetgrad.wire import mqtt, seal, signing
from fleetgrad.wire.codecs import shortfall
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.exits import EXIT_FAILED, EXIT_OK
from fleetgrad.wire.files import DiskError, PosixFiles
from fleetgrad.wire.frames import check_chunks
from fleetgrad.wire.log import Sparing, log
from fleetgrad.wire.loop import Loop, Stop
from fleetgrad.wire.messages import WINDOW, Metrics
from fleetgrad.wire.mqtt.profiles import KIB, OVERHEAD
from fleetgrad.wire.settings import SettingsError
from fleetgrad.wire.topics import Topics

THREADS = 8  # that hash and sync updates: more than processors, as syncing waits
MOST_CHUNKS = (
    4 * WINDOW
)  # of one device, that wait unread: it may have a window under way, and one more after a lost connection
JOURNAL, KEY = "journal.sqlite", "keys/aggregator.key"
SEAL, OLD_SEAL = "keys/seal.key", "keys/seal-before.key"  # the second opens what was sealed before a rotation


class Server:
    """Everything that has a handle: journal, session, monitor, queue."""

    def __init__(self, directory: Path, *, insecure: bool, timeout: float, exit_when_done: bool) -> None:
        config = settings_file.load(directory)
        check_no_authority(directory)
        broker = config.broker.endpoint(directory, insecure=insecure)
        self._address = broker.address
        self._link = config.broker.link()
        self._exit_when_done = exit_when_done
        key = signing.load_private_key(directory / KEY)
        files = PosixFiles(directory)
        registrar = signing.load_public_key(directory / settings_file.REGISTRAR_KEY)
        self._roster = roster = Roster(directory, registrar, config.name)
        journal = SqliteJournal(directory / JOURNAL)
        plan, bundle, initial = objects.initial(files, directory)
        for ref in (bundle, initial):
            check_chunks(ref.size, self._link.chunk_bytes)
        self._largest = max(bundle.size, initial.size)
        memory, results = journal.load(recent=True), Results(directory)
        results.check(memory)
        for version in memory.versions[-1:]:
            objects.fitting(files, version.params, plan)
        layout = VectorLayout.of(plan.manifest)
        if reason := shortfall(config.codec, layout):
            log("codec_over_budget", reason=reason)
        seed = random.Random()
        self._rounds = Rounds(
            config.round_settings(),
            journal,
            files,
            key,
            _seal_keys(directory),
            roster.key,
            roster.size,
            bundle,
            initial,
            layout,
            seed,
            time.monotonic(),
            ThreadPoolExecutor(THREADS, "intake").map,
            releasing.load(directory, config.name, key),
        )
        self._topics = Topics(config.name)
        client = key.client_id(f"aggregator-{config.name}")
        self._loop = Loop(broker, client, timeout, log, will=mqtt.Will(*self._rounds.will()), random=seed)
        self._loop.inbox.limit(self._topics.every("update").partition("+")[0], MOST_CHUNKS)
        self._session = self._loop.session
        self._monitor = Monitor(directory, plan, config.data, results, self._loop.inbox.put)
        reported = results.versions()
        missing = (journal.origin(number) for number in journal.line() if number and number not in reported)
        self._monitor.catch_up(memory, missing, self._rounds.step_bytes, self._link.chunk_bytes)
        self._backlog: deque[ev.Publish] = deque()
        self._sparing = Sparing()

    def run(self) -> int:
        """Serves until stopped; the exit code."""
        log("aggregator_started", broker=self._address, pid=os.getpid())
        try:
            return self._loop.run(self._serve)
        except JournalError as e:
            log("journal_failed", reason=e)
            return EXIT_FAILED
        finally:
            self._monitor.close()

    def _serve(self) -> int:
        while True:
            item = self._loop.next(self._rounds.wake_at())
            now = time.monotonic()
            match item:
                case Stop(code):
                    self._leave("aggregator_stopped")
                    return code
                case Metrics():
                    self._backlog.append(ev.Publish(self._topics.metrics, msgspec.json.encode(item), retained=True))
                case ev.Disconnected():
                    self._backlog.clear()
                    self._execute(self._rounds.handle(item, now))
                case ev.Message() if self._topics.parts(item.topic)[0] == "reg":
                    self._on_member(item)
                    self._execute(self._rounds.handle(ev.Tick(), now))
                case mqtt.Crowded():
                    self._on_crowded(item)
                    self._execute(self._rounds.handle(ev.Tick(), now))
                case ev.Connected() | ev.Message() | ev.Tick():
                    if isinstance(item, ev.Connected):
                        if reason := misfit(item.chunk_bytes, self._largest):
                            log("broker_unfit", broker=self._address, reason=reason)
                            return EXIT_FAILED
                        self._compare(item)
                        self._session.subscribe([self._topics.every("member")])
                    self._execute(self._rounds.handle(item, now))
            self._drain()
            if self._rounds.finished and self._exit_when_done and not self._backlog and self._loop.connected:
                return self._leave("finished")

    def _compare(self, broker: ev.Connected) -> None:
        """Says what this broker has just said that the settings expect otherwise."""
        if broker.chunk_bytes < self._link.chunk_bytes:
            log("chunks_shortened", chunk_bytes=self._link.chunk_bytes, broker_takes=broker.chunk_bytes)
        if self._link.retained and not broker.retained:
            log("broker_retains_nothing", broker=self._address, so="devices ask for chunks")

    def _on_crowded(self, crowded: mqtt.Crowded) -> None:
        """A device sent more than was granted to it."""
        reason = f"more than {MOST_CHUNKS} messages of the device wait unread"
        self._rounds.turned_away(reason, crowded.messages)
        self._sparing("messages_left_out", topic=crowded.topic, messages=crowded.messages, reason=reason)

    def _on_member(self, message: ev.Message) -> None:
        """The registrar's word on a device."""
        device = self._topics.parts(message.topic)[1]
        try:
            said = self._roster.take(device, message.payload)
        except (signing.Untrusted, DiskError) as e:
            self._rounds.turned_away(str(e))
            self._sparing("statement_dropped", topic=message.topic, reason=str(e))
            return
        if said:
            log(
                "device_revoked" if said.revoked else "device_enrolled",
                device=device,
                serial=said.serial,
                reason=said.reason,
            )

    def _leave(self, event: str) -> int:
        self._monitor.close()
        self._drain_metrics()
        if not self._rounds.finished:
            topic, payload = self._rounds.will()
            self._session.publish(topic, payload, retain=True)
        log(event)
        return EXIT_OK

    def _drain_metrics(self) -> None:
        """Publishes what the monitor has reported since the queue was last read."""
        while True:
            try:
                item = self._loop.inbox.get_nowait()
            except queue.Empty:
                return
            if isinstance(item, Metrics):
                self._session.publish(self._topics.metrics, msgspec.json.encode(item), retain=True)

    def _execute(self, effects: list[ev.Effect]) -> None:
        for effect in effects:
            match effect:
                case ev.Publish():
                    self._backlog.append(effect)
                case ev.Subscribe():
                    self._session.subscribe(effect.filters)
                case ev.Published():
                    log("version_published", round=effect.round, version=effect.version, members=effect.members)
                    self._monitor.add(effect)
                case ev.Finished():
                    log("federation_finished")
                case ev.Log():
                    self._sparing(effect.event, **effect.fields)

    def _drain(self) -> None:
        """Hands publishes over in order, as many as the connection takes; the rest follow when it is ready."""
        while self._backlog:
            first = self._backlog[0]
            if not self._session.publish(first.topic, first.payload, retain=first.retained):
                return
            self._backlog.popleft()


def misfit(chunk_bytes: int, largest: int) -> str:
    """Why an object of `largest` bytes can't be moved on a broker that takes chunks of `chunk_bytes`; nothing if it can."""
    try:
        if chunk_bytes == 0:
            raise ValueError(f"no packet has room for {KIB} bytes of a chunk and {OVERHEAD} around it")
        check_chunks(largest, chunk_bytes)
    except ValueError as e:
        return f"{e}; raise the broker's limit on packets"
    return ""


def _seal_keys(directory: Path) -> list[seal.SealKey]:
    """What updates are sealed to, and what they were before the last rotation."""
    before = directory / OLD_SEAL
    return [seal.load_seal_key(p) for p in (directory / SEAL, before) if p != before or p.exists()]


def check_no_authority(directory: Path) -> None:
    """Raises SettingsError where this process can read the fleet's CA key: who has both can make up devices."""
    for key in (directory / "ca.key", directory.resolve().parent / "registrar" / "ca.key"):
        if os.access(key, os.R_OK):
            raise SettingsError(
                f"serve refused: it could read the fleet's CA key {key}, and an aggregator that is broken into must not be able to make "
                f"up devices. Move {key.parent} to another machine or user, as 'fleetgrad new --registrar PATH' does"
            )


def serve(directory: Path, *, insecure: bool = False, timeout: float = 0.0, exit_when_done: bool = False) -> int:
    """Runs the aggregator of a federation's directory until SIGTERM or SIGINT, or to the end; returns the exit code.

    Raises ValueError where settings, keys or memory don't let it begin, DiskError where the disk doesn't, which it may when whoever
    starts us tries again.
    """
    home = settings_file.home(directory)
    return Server(home, insecure=insecure, timeout=timeout, exit_when_done=exit_when_done).run()
