"""Updates a second that get from devices into the journal: from memory, and through a mosquitto on loopback beside subscribers that do
nothing; and what uploads under way take of memory.

    frames --> the real round machine: CRC, SHA-256, signature, opened, decoded, added, files synced, one commit a group --> receipts

Updates are of 1.66 million parameters coded as blk8 (1.77 MB), each sealed and signed by a device of its own; those of several come mixed.
Two subscribers do nothing: paho-mqtt as it comes, MQTT 5 at QoS 1 in its own thread, with a callback that counts; and our own session. The
share's bound is for the one that gets more.
"""

import base64
import hashlib
import json
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from fleetgrad.broker import events as ev
from fleetgrad.broker.attempt import RoundSettings
from fleetgrad.broker.journal import SqliteJournal
from fleetgrad.broker.rounds import Rounds
from fleetgrad.broker.server import THREADS
from fleetgrad.hardware.fleet import Fleet, find_mosquitto, free_port
from fleetgrad.native.bench.kernels import COUNT, row
from fleetgrad.wire import frames, mqtt, seeds
from fleetgrad.wire.address import Address
from fleetgrad.wire.codecs import encode_payload
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.files import PosixFiles
from fleetgrad.wire.messages import BIRTH, COMMAND, Birth, Command, Link, ObjectRef, Policy, Receipt, Select
from fleetgrad.wire.seal import SealKey, seal
from fleetgrad.wire.signing import PrivateKey, sign_message, verify_message
from fleetgrad.wire.topics import Topics, name_hash

DEVICES = 64
ABREAST = 8  # uploads at a time
LEAST_UPDATES = 200.0  # updates a second from memory
LEAST_SHARE = 0.6  # of what a subscriber that does nothing gets
PARTIES = (100, 1000, 4000)  # devices half-way through an upload
SMALL = 65536  # parameters of their updates
MOST_GROWTH = 8.0  # kB of memory for each of them
TURNS = 3
OUTSTANDING = 700  # frames that the broker holds for the subscriber: it drops what is over its queue of 1,000
ACK_EVERY = 32
CODEC = CodecSpec(name="blk8")
BITMAP = base64.urlsafe_b64encode(b'{"command":"bitmap')
NAME = "bench"


class Federation:
    """A round machine in a folder, with `devices` that are asked for an update of `count` parameters; it wants one more than there are."""

    def __init__(self, folder: Path, devices: int, count: int, chunk_bytes: int = frames.DATA_BYTES) -> None:
        self.count, self.chunk_bytes = count, chunk_bytes
        self.key, self.seals = PrivateKey.from_seed(bytes(32)), SealKey.generate()
        self.names = [f"dev-{i}" for i in range(devices)]
        self.keys = {name: PrivateKey.from_seed(hashlib.sha256(name.encode()).digest()) for name in self.names}
        self.policy, self.topics = Policy(codec=CODEC), Topics(NAME)
        self.params = ObjectRef(sha256="ab" * 32, size=4 * count)
        publics = {name: key.public for name, key in self.keys.items()}
        settings = RoundSettings(
            NAME, self.policy, rounds=1, goal=devices + 1, over_selection=1.0, link=Link(retained=False)
        )
        self.pool, self.journal = ThreadPoolExecutor(THREADS), SqliteJournal(folder / "journal.sqlite")
        self.rounds = Rounds(
            settings, self.journal, PosixFiles(folder), self.key, [self.seals], publics.get, lambda: devices + 1,
            self.params, self.params, VectorLayout.flat(count), random.Random(1), time.monotonic(), self.pool.map,
        )  # fmt: skip
        self.accepted = 0
        self.asked: set[str] = set()

    def births(self) -> Iterator[tuple[str, bytes]]:
        """What makes the machine ask all of them."""
        for name in self.names:
            birth = Birth(
                federation=NAME, device=name, boot=1, seq=1, version=0, params=self.params.sha256, state="idle", round=None, attempt=None,
                samples=100, software="", reason="",
            )  # fmt: skip
            yield self.topics.birth(name), sign_message(self.keys[name], BIRTH, birth)

    def ask(self) -> None:
        self.handle(ev.Connected())
        for topic, birth in self.births():
            self.handle(ev.Message(topic, birth))
        self.turn()

    def handle(self, event: ev.Event) -> None:
        for effect in self.rounds.handle(event, time.monotonic()):
            if isinstance(effect, ev.Publish) and self.topics.parts(effect.topic)[0] == "cmd":
                if self.asked and effect.payload.split(b".")[1].startswith(BITMAP):
                    continue  # reading it is the device's work
                command = verify_message(self.key.public, COMMAND, effect.payload, Command)
                if isinstance(command, Select):
                    self.asked.add(command.device)
                elif isinstance(command, Receipt):
                    if command.verdict != "accepted":
                        raise ValueError(f"update of {command.device}: {command.verdict}: {command.reason}")
                    self.accepted += 1

    def turn(self) -> None:
        """Wakes the machine if it wants to be."""
        at = self.rounds.wake_at()
        if at is not None and time.monotonic() >= at:
            self.handle(ev.Tick())

    def update(self, name: str, plain: bytes) -> list[bytes]:
        """One device's frames."""
        ids = (
            name_hash(NAME),
            1,
            1,
            name_hash(name),
            bytes.fromhex(self.params.sha256),
            bytes.fromhex(self.policy.sha256()),
        )
        sealed = seal(self.seals.public, plain, frames.sealed_with(*ids))
        header = frames.update_header(
            frames.UPDATE, *ids, len(sealed), hashlib.sha256(sealed).digest(), self.chunk_bytes
        )
        return list(frames.frames(header, sealed + frames.sign_body(self.keys[name], header)))

    def mixed(self) -> Iterator[tuple[str, bytes]]:
        """Topic and frame of all their updates, ABREAST of them on their way at a time, chunk by chunk in turns."""
        plain = payload(self.count)
        waiting = [(self.topics.update(name, 1), iter(self.update(name, plain))) for name in self.names]
        under_way, waiting = waiting[:ABREAST], waiting[ABREAST:]
        while under_way:
            for upload in list(under_way):
                topic, left = upload
                frame = next(left, None)
                if frame is not None:
                    yield topic, frame
                else:
                    under_way.remove(upload)
                    under_way += waiting[:1]
                    del waiting[:1]


def payload(count: int) -> bytes:
    delta = np.random.default_rng(0).standard_normal(count).astype(np.float32) * np.float32(0.01)
    keys = seeds.codec_keys(NAME, "dev-0", 1, 1)
    return encode_payload(CODEC, VectorLayout.flat(count), delta, keys=keys, weight=100, steps=10, loss=0.5)


def from_memory(folder: Path) -> float:
    """Updates a second: the fastest of some rounds."""
    best = 0.0
    for turn in range(TURNS):
        place = folder / f"memory-{turn}"
        place.mkdir()
        federation = Federation(place, DEVICES, COUNT)
        federation.ask()
        messages = list(federation.mixed())
        began = time.perf_counter()
        for topic, frame in messages:
            federation.handle(ev.Message(topic, frame))
        while federation.accepted < DEVICES:
            federation.turn()
        best = max(best, DEVICES / (time.perf_counter() - began))
    return best


# --- through a broker ----------------------------------------------------------------------------------------------------
def through_broker(folder: Path) -> dict[str, float]:
    """Updates a second, by turns: that are `accepted`; that are `delivered` to paho-mqtt, and to our `session`, doing nothing."""
    fleet, port = Fleet(folder / "logs"), free_port()
    fleet.broker(port)
    best = {"delivered": 0.0, "session": 0.0, "accepted": 0.0}
    try:
        for turn in range(TURNS):
            place = folder / f"broker-{turn}"
            place.mkdir()
            federation = Federation(place, DEVICES, COUNT)
            federation.ask()
            messages = list(federation.mixed())
            file = place / "frames"
            with file.open("wb") as out:
                for topic, frame in messages:
                    out.write(json.dumps([topic, len(frame)]).encode() + b"\n" + frame)

            def accept(topic: str, frame: bytes, federation: Federation = federation) -> bool:
                federation.handle(ev.Message(topic, frame))
                return federation.accepted == DEVICES

            frames_left = iter(range(len(messages) - 1, -1, -1))

            def ignore(_topic: str, _frame: bytes, left: Iterator[int] = frames_left) -> bool:
                return not next(left)

            def turn_now(federation: Federation = federation) -> bool:
                federation.turn()
                return federation.accepted == DEVICES

            took = {
                "delivered": _deliver(port, file, len(messages)),
                "session": _receive(port, file, ignore, lambda: False),
                "accepted": _receive(port, file, accept, turn_now),
            }
            best = {kind: max(rate, DEVICES / took[kind]) for kind, rate in best.items()}
    finally:
        fleet.stop()
    return best


def _receive(port: int, file: Path, take: Callable[[str, bytes], bool], idle: Callable[[], bool]) -> float:
    """Seconds from the first message to the one for which `take`, or `idle` between two, says that all is done."""
    inbox = mqtt.Inbox()
    session = mqtt.Session(Address("127.0.0.1", port), "bench-aggregator", inbox=inbox, random=random.Random(1))
    session.start()
    topics = Topics(NAME)
    publisher: subprocess.Popen[bytes] | None = None
    taken, began = 0, 0.0
    try:
        while True:
            try:
                item = inbox.get(timeout=0.01)
            except queue.Empty:
                if idle():
                    return time.perf_counter() - began
                continue
            if isinstance(item, mqtt.Connected):
                session.subscribe([topics.every("update")])
                time.sleep(0.3)  # for the subscription
                publisher = _publisher(port, file)
            elif isinstance(item, mqtt.Message):
                began = began or time.perf_counter()
                taken += 1
                if taken % ACK_EVERY == 0:
                    session.publish("bench/taken", str(taken).encode(), qos=0)
                if take(item.topic, item.payload):
                    return time.perf_counter() - began
    finally:
        session.stop()
        if publisher:
            publisher.wait()


def _deliver(port: int, file: Path, count: int) -> float:
    """Seconds from the first message to the last that paho-mqtt gets, with a callback that counts."""
    times: list[float] = []
    done, subscribed = threading.Event(), threading.Event()

    def on_message(client: paho.Client, _user: Any, _message: paho.MQTTMessage) -> None:
        times.append(time.perf_counter())
        if len(times) % ACK_EVERY == 0:
            client.publish("bench/taken", str(len(times)).encode(), qos=0)
        if len(times) == count:
            done.set()

    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="bench-paho", protocol=MQTTProtocolVersion.MQTTv5)
    client.on_connect = lambda c, *_: c.subscribe(Topics(NAME).every("update"), qos=1)
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = on_message
    client.connect("127.0.0.1", port)
    client.loop_start()
    subscribed.wait()
    publisher = _publisher(port, file)
    done.wait()
    client.disconnect()
    client.loop_stop()
    publisher.wait()
    return times[-1] - times[0]


def _publisher(port: int, file: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", __name__, str(port), str(file)])


def publish(port: int, file: Path) -> None:
    """The devices, as one client that sends what they would: at most OUTSTANDING frames ahead of the subscriber."""
    taken = [0]
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="bench-devices")
    client.max_inflight_messages_set(20)
    client.on_message = lambda _c, _u, m: taken.__setitem__(0, int(m.payload))
    client.connect("127.0.0.1", port)
    client.subscribe("bench/taken")
    client.loop_start()
    with file.open("rb") as source:
        sent = 0
        while line := source.readline():
            topic, length = json.loads(line)
            while sent - taken[0] > OUTSTANDING:
                time.sleep(0.0005)
            last = client.publish(topic, source.read(length), qos=1)
            sent += 1
    last.wait_for_publish(30)
    client.disconnect()


# --- memory --------------------------------------------------------------------------------------------------------------
def memory(devices: int) -> float:
    """MB that the process has grown by when so many devices are half-way through an upload."""
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(Path(folder), devices, SMALL, chunk_bytes=1024)
        plain = payload(SMALL)
        federation.ask()
        before = _rss()
        for name in federation.names:
            update = federation.update(name, plain)
            for frame in update[: len(update) // 2]:
                federation.handle(ev.Message(federation.topics.update(name, 1), frame))
        return (_rss() - before) / 1e6


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def rows() -> list[dict[str, Any]]:
    """Rates, the share of what the broker delivers, and the memory for each upload under way."""
    with tempfile.TemporaryDirectory() as folder:
        table = [
            row(
                "from memory: proven, added, synced, committed",
                from_memory(Path(folder)),
                "updates/s",
                "",
                LEAST_UPDATES,
            )
        ]
        if find_mosquitto():
            rate = through_broker(Path(folder))
            name, accepted = "through mosquitto", rate["accepted"]
            most = max(rate["delivered"], rate["session"])
            peer = f"doing nothing: paho-mqtt {rate['delivered']:.0f}/s, our own session {rate['session']:.0f}/s"
            table += [
                row(name, accepted, "updates/s", ""),
                row(name, accepted / most, "of what is delivered", peer, LEAST_SHARE),
            ]
    grown = {n: _memory_apart(n) for n in PARTIES}
    for n, megabytes in grown.items():
        table.append(
            row(f"memory for {n:,} uploads half-way", megabytes, "MB", f"{n * SMALL * 68 / 64 / 2e6:.0f} MB have come")
        )
    least, *_, most = PARTIES
    each = (grown[most] - grown[least]) * 1e3 / (most - least)
    table.append(
        {
            **row("memory for each upload more", each, "kB", ""),
            "bound": MOST_GROWTH,
            "most": True,
            "holds": each <= MOST_GROWTH,
        }
    )
    return table


def _memory_apart(devices: int) -> float:
    """In a process of its own."""
    code = f"from {__name__} import memory; print(memory({devices}))"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    publish(int(sys.argv[1]), Path(sys.argv[2]))
