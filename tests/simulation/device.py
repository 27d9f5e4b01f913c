"""A simulated device: the real Participant, a trainer that is a function, and the watch over its spool.

I3: an update that was stored and isn't acknowledged stays in the spool, until a receipt, a head that closes its attempt or a
select for a newer one ends it. It is looked up on the disk after every event and after every start.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from fleetgrad.edge import events
from fleetgrad.edge.link import outbox
from fleetgrad.edge.participant import Identity, Participant
from fleetgrad.wire.codecs import read_info
from fleetgrad.wire.files import DiskError, put
from fleetgrad.wire.messages import BIRTH, COMMAND, HEAD, Birth, Bitmap, Command, Head, Receipt, Select
from fleetgrad.wire.signing import Untrusted, verify_message
from tests.simulation.clock import Timer
from tests.simulation.process import Process, Violation
from tests.simulation.training import Made, train

if TYPE_CHECKING:
    from tests.simulation.world import World


@dataclass(frozen=True, slots=True)
class Owed:
    """A stored update that nothing has ended yet."""

    round: int
    attempt: int
    sha256: str


class Device(Process):
    """One board."""

    def __init__(self, world: "World", index: int, *, clone: bool = False) -> None:
        self.device = f"dev-{index}"
        super().__init__(world, f"clone of {self.device}" if clone else self.device, self.device)
        self.samples = world.scenario.samples[index] + (1000 if clone else 0)
        self.mad = index == world.scenario.mad and not clone
        self.slow = 50.0 if index == world.scenario.straggler and not clone else 1.0
        self.clone = clone
        self.owed: Owed | None = None
        self.excused = False  # a crash fell into the handling of what ends the update: gone or not, both are right
        self.version = -1
        self.job: events.Train | None = None
        self._timer: Timer | None = None
        self._will: tuple[str, bytes] | None = None

    def make(self) -> Participant:
        world = self.world
        machine = Participant(
            Identity(world.federation, self.device, world.device_key(self.device), world.key.public, self.samples),
            self.disk,
            self.random,
        )
        self._will = machine.will()
        if self.life > 1:
            self.saw(f"restart {machine.state}")
        return machine

    def on_up(self) -> None:
        self.feed(events.Connected())

    def on_down(self, reason: str) -> None:
        self.feed(events.Disconnected(reason))

    def on_message(self, topic: str, payload: bytes) -> None:
        self.note(f"< {topic} {hashlib.sha256(payload).hexdigest()[:8]}")
        before = self.owed
        ends = before is not None and self._ends(before, topic, payload)
        if ends:
            self.provoke(0.2, 12)
        life = self.life
        self.feed(events.Message(topic, payload))
        if ends and self.machine is None and life == self.life:
            self.excused = True

    def tick(self) -> events.Tick:
        return events.Tick()

    def will(self) -> tuple[str, bytes] | None:
        return self._will

    # --- effects -----------------------------------------------------------------------------------------------------
    def execute(self, effect: events.Effect) -> None:
        network = self.world.network
        match effect:
            case events.Publish(topic, payload, retained):
                self.note(f"> {topic} {hashlib.sha256(payload).hexdigest()[:8]}")
                self._watch(topic, payload)
                network.publish(self.client, topic, payload, retain=retained)
            case events.Subscribe(filters):
                network.subscribe(self.client, tuple(filters))
            case events.Unsubscribe(filters):
                network.unsubscribe(self.client, tuple(filters))
            case events.Train():
                self.job = effect
                self.saw("training started")
                self._start_trainer()
            case events.CancelTraining():
                self.saw("training cancelled")
                self._stop_trainer()
            case events.Log(event, fields):
                self.note(f"log {event} {fields}")
                self.saw(f"device {event}")

    def _watch(self, topic: str, payload: bytes) -> None:
        parts = self.world.topics.parts(topic)
        if parts[0] == "birth":
            birth = verify_message(self.world.device_key(self.device).public, BIRTH, payload, Birth)
            self.saw(f"birth {birth.state}")
            if birth.version is not None:
                if birth.version < self.version:
                    raise Violation(f"I8: {self.name} went back from version {self.version} to {birth.version}")
                self.version = birth.version
            self.note(f"birth {birth.state} v{birth.version} {birth.round}/{birth.attempt}")

    # --- the trainer -------------------------------------------------------------------------------------------------
    def _start_trainer(self) -> None:
        """A trainer child reads the model and works; it dies now and then, and is started again."""
        job = self.job
        if job is None:
            return
        params = self.disk.read(job.params)
        if hashlib.sha256(params).hexdigest() != job.params.rpartition("/")[2]:
            raise Violation(f"I6: {self.name} trains a model whose bytes aren't what its name says")
        seconds = self.world.scenario.train_seconds * self.slow * self.random.lognormvariate(0, 0.4)
        deaths = self.world.scenario.faults.trainer_deaths if self.world.storm else 0.0
        if self.random.random() < deaths * seconds:
            self._timer = self.world.clock.after(seconds * self.random.random(), self._trainer_dies)
        else:
            self._timer = self.world.clock.after(seconds, lambda: self._trainer_done(job, params))

    def _trainer_dies(self) -> None:
        self.saw("trainer died")
        self.note("trainer dies, and is started again")
        self._start_trainer()

    def _trainer_done(self, job: events.Train, params: bytes) -> None:
        world = self.world
        payload, steps, loss = train(
            params, self.device, self.samples, job.policy, job.seed, job.keys, world.layout, mad=self.mad
        )
        self.provoke(0.1, 16)
        world.made[hashlib.sha256(payload).hexdigest()] = Made(payload, job.policy.codec, job.keys, world.layout)
        done: list[events.Event] = []

        def act() -> None:
            try:
                put(self.disk, job.output, payload)
            except DiskError as e:
                self.saw("disk full under the trainer")
                self._timer = world.clock.after(5.0, lambda: self._trainer_done(job, params))
                self.note(f"trainer: {e}")
                return
            sha = hashlib.sha256(payload).hexdigest()
            self.job = None
            done.append(
                events.Trained(
                    job.round,
                    job.attempt,
                    job.output,
                    len(payload),
                    sha,
                    self.samples,
                    steps,
                    loss,
                    read_info(payload)[0].rate,
                )
            )

        self.guard(act)
        for event in done:
            self.feed(event)

    def _stop_trainer(self) -> None:
        self.job = None
        if self._timer:
            self._timer.cancel()

    def died(self) -> None:
        self._stop_trainer()

    def where(self) -> str:
        """A word for whoever reads a failure."""
        machine = self.machine
        return f"{machine.state} v{self.version}" if isinstance(machine, Participant) else "dead"

    def at_rest_with(self, version: int) -> bool:
        """Whether it is idle, owes nothing and has reported that it holds a version."""
        machine = self.machine
        return (
            isinstance(machine, Participant) and machine.state == "idle" and self.version == version and not self.owed
        )

    # --- I3, I6, I8 --------------------------------------------------------------------------------------------------
    def spooled(self) -> Owed | None:
        """The update whose record is on the disk."""
        try:
            record = msgspec.json.decode(self.disk.read(outbox.RECORD), type=outbox.Record)
        except FileNotFoundError:
            return None
        return Owed(record.round, record.attempt, record.sha256)

    def checked(self, event: Any) -> None:
        if event is None:
            self._check_start()
        found = self.spooled()
        if self.owed is not None and found != self.owed and not self._justified(event):
            raise Violation(f"I3: {self.name} gave up {self.owed} at {event!r}, the spool now holds {found}")
        self.owed, self.excused = (found if found and self._uploading() else None), False

    def _check_start(self) -> None:
        if self.owed is None or self.excused:
            return
        found = self.spooled()
        if found != self.owed:
            raise Violation(f"I3: after a restart {self.name} has {found} in its spool, it owed {self.owed}")
        record = msgspec.json.decode(self.disk.read(outbox.RECORD), type=outbox.Record)
        if hashlib.sha256(self.disk.read(record.payload)).hexdigest() != record.sha256:
            raise Violation(f"I6: after a restart the payload of {self.name} isn't what its record says")

    def _uploading(self) -> bool:
        return isinstance(self.machine, Participant) and self.machine.state == "uploading"

    def _justified(self, event: Any) -> bool:
        if event is None:
            return self.excused
        if isinstance(event, events.Message) and self.owed is not None:
            return self._ends(self.owed, event.topic, event.payload)
        return False

    def _ends(self, owed: Owed, topic: str, payload: bytes) -> bool:
        """Whether a message is a reason to give the update up."""
        world = self.world
        try:
            if topic == world.topics.head:
                head = verify_message(world.key.public, HEAD, payload, Head)
                return any((c.round, c.attempt) == (owed.round, owed.attempt) for c in head.closed)
            if topic == world.topics.command(self.device):
                command = verify_message(world.key.public, COMMAND, payload, Command)
                if isinstance(command, Receipt):
                    self.saw(f"receipt {command.verdict}")
                    return (command.round, command.attempt, command.payload) == (
                        owed.round,
                        owed.attempt,
                        owed.sha256,
                    )
                if isinstance(command, Bitmap):
                    self.saw("bitmap")
                return isinstance(command, Select) and (command.round, command.attempt) > (owed.round, owed.attempt)
        except Untrusted:
            self.saw("message refused by a device")
        return False
