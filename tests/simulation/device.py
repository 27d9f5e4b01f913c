"""A simulated device: the real Participant, a trainer that is a function, and the watch over its spool.

I3: an update that was stored and isn't acknowledged stays in the spool, until a receipt, a head that lists its attempt as abandoned, a
select for a later attempt of its round, or the spool's cap ends it, with a log line. It is looked up after every event and every start.
"""

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from fleetgrad.edge import events, feedback
from fleetgrad.edge.link import outbox, residual
from fleetgrad.edge.link.delivery import Limits
from fleetgrad.edge.link.inbox import FOLDER
from fleetgrad.edge.link.trust import HEAD_ROW
from fleetgrad.edge.link.wear import Wear
from fleetgrad.edge.participant import Participant
from fleetgrad.edge.reporting import Identity
from fleetgrad.wire import frames, release
from fleetgrad.wire.chunks import has
from fleetgrad.wire.codecs import read_info
from fleetgrad.wire.files import DiskError, put
from fleetgrad.wire.messages import BIRTH, COMMAND, Birth, Bitmap, Closed, Command, Head, Receipt, Select
from fleetgrad.wire.seal import seal
from fleetgrad.wire.signing import Untrusted, payload_of, verify_message
from tests import invariants
from tests.invariants import Violation
from tests.simulation.book import Book, Entry
from tests.simulation.clock import Timer
from tests.simulation.failing import FailingFiles
from tests.simulation.identities import BoardKey
from tests.simulation.process import Process
from tests.simulation.store import SimulatedStore
from tests.simulation.training import Made, decode, train

if TYPE_CHECKING:
    from tests.simulation.world import World


ROOM, FLOOR = 10**9, 10**8  # bytes: free on a card, and what training needs
WRITTEN_A_DAY = 200_000  # bytes: what some devices write in a run, and others don't


@dataclass(frozen=True, slots=True)
class Owed:
    """A stored update that nothing has ended yet."""

    round: int
    attempt: int
    sha256: str


class Device(Process):
    """One board."""

    role = "device"

    def __init__(self, world: "World", index: int, *, clone: bool = False) -> None:
        self.device = f"dev-{index}"
        super().__init__(world, f"clone of {self.device}" if clone else self.device, self.device)
        self.samples = world.scenario.samples[index] + (1000 if clone else 0)
        self.mad = index == world.scenario.mad and not clone
        self.slow = 50.0 if index == world.scenario.straggler and not clone else 1.0
        self.clone = clone
        self.key, self.renewing = BoardKey(self.device), False
        self.owed: dict[str, Owed] = {}
        self.book = Book(self.name)
        self.excused: set[str] = set()  # a crash fell into the handling of what ends these: gone or not, both are right
        self.expired: set[tuple[int, int]] = set()
        self.sent: dict[tuple[bytes, int], set[int]] = {}  # chunks by payload and length, over all lives
        self.signers: dict[bytes, int] = {}  # the generation that signed a payload last
        self.confirmed: dict[tuple[bytes, int], bytes] = {}  # the last bitmap by the same, of this life
        self.rotten: set[str] = set()  # objects and, by their hash, payloads that the disk has damaged
        self.versions: list[int] = []  # as it reported them
        self.files = FailingFiles(self.disk, random.Random(f"{world.scenario.seed} {self.name} failing disk"))
        self.store = SimulatedStore(self)
        self.limits = Limits(world.scenario.spool)
        self.free = ROOM
        self.wear = self._worn()
        if index == world.scenario.mute and not clone:
            self.client.mute = "/up/"
        self.job: events.Train | None = None
        self._timer: Timer | None = None
        self._will: tuple[str, bytes] | None = None

    def make(self) -> Participant:
        world = self.world
        self._keep_book()
        self.wear = self._worn()
        machine = Participant(
            Identity(world.federation, self.device, self.key, world.key.public, self.samples),
            self.wear.files,
            self.wear,
            self.random,
            self.limits,
            self.wear.no_room,
        )
        self._will = machine.will()
        if self.life > 1:
            self.saw(f"restart {machine.state}")
        return machine

    def _worn(self) -> Wear:
        return Wear(self.files, self.store, WRITTEN_A_DAY, FLOOR, lambda: self.free)

    def renew(self) -> None:
        """It signs by its next identity from now on."""
        self.key.renew()
        self.renewing = False
        self.note(f"signs by the identity {self.key.generation}")

    def empty_card(self) -> None:
        self.free = ROOM

    def mend_disk(self) -> None:
        if self.files.fault:
            self.note(f"disk is well again, after {self.files.refused} refusals")
            self.files.fault = ""

    def on_message(self, topic: str, payload: bytes) -> None:
        self._heard(topic, payload)
        ends = {sha for sha, owed in self.owed.items() if self._ends(owed, topic, payload)}
        if ends:
            self.provoke(0.2, 12)
        life, drops = self.life, self._drops_what_is_carried()
        super().on_message(topic, payload)
        if self.machine is None and life == self.life:
            self.excused |= ends
            self.book.doubtful |= drops

    def feed(self, event: Any) -> None:
        """As every process; a crash may fall between the end of an update that the spool has no room for and the log line of it."""
        full, life = len(self.owed) >= self.limits.updates, self.life
        for note in self.wear.tick(self.now()) if self.machine else []:
            self.execute(note)
        super().feed(event)
        if full and self.machine is None and life == self.life:
            self.excused |= set(self.owed)

    def _drops_what_is_carried(self) -> bool:
        """Whether an attempt that began now would drop it, by rule; a crash may fall between that and the trainer's start."""
        machine = self.machine
        return (
            isinstance(machine, Participant) and machine._head is not None and not machine._head.policy.codec.feedback
        )

    def will(self) -> tuple[str, bytes] | None:
        return self._will

    # --- effects -----------------------------------------------------------------------------------------------------
    def execute(self, effect: events.Effect) -> None:
        super().execute(effect)
        match effect:
            case events.Unsubscribe(filters):
                self.world.network.unsubscribe(self.client, tuple(filters))
            case events.Train():
                self.job = effect
                self._check_job()
                self.saw("training started")
                if self.slow > 1 or self.clone:
                    self.saw("clone trains" if self.clone else "straggler trains")
                if not effect.policy.codec.feedback:
                    self.book.close()
                self._start_trainer()
            case events.CancelTraining():
                self.saw("training cancelled")
                if self.job and not self._usable(self.job):
                    self.saw("training of a withdrawn version called off")
                self._stop_trainer()
            case events.Log(event, fields):
                if event == "model_damaged" and fields["fell_back_to"] is not None:
                    self.saw("fell back to the other slot")
                if event == "update_expired":
                    self.expired.add((int(str(fields["round"])), int(str(fields["attempt"]))))
                    self.saw("update expired: over the cap" if "holds" in str(fields["reason"]) else "update expired")

    def watch(self, topic: str, payload: bytes) -> None:
        parts = self.world.topics.parts(topic)
        if parts[0] == "up":
            self._watch_chunk(frames.parse(payload, most=1 << 30)[0])
        if parts[0] == "birth":
            birth = verify_message(self.key.public, BIRTH, payload, Birth)
            self.saw(f"birth {birth.state}")
            if birth.version is not None:
                self._check_version(birth.version)
            self.note(f"birth {birth.state} v{birth.version} {birth.round}/{birth.attempt}")

    @property
    def version(self) -> int:
        return self.versions[-1] if self.versions else -1

    @property
    def revoked(self) -> bool:
        return self.device in self.world.revoked

    def _taken_back(self) -> set[int]:
        """The versions that it knows to be withdrawn, by the head on its disk."""
        raw = self.store.rows.get((HEAD_ROW, ""))
        head = msgspec.json.decode(payload_of(raw), type=Head) if raw else None  # by a root that it may have left since
        return invariants.taken_back(head, self.world.aggregator.journal.every) if head else set()

    def _check_version(self, version: int) -> None:
        gone = self._taken_back()
        if version in gone:
            raise Violation(f"I15: {self.name} says that it holds version {version}, which it knows to be withdrawn")
        if version < self.version:
            self.saw("device went back")
        if version != self.version:
            self.versions.append(version)
            invariants.check_forward(self.name, self.versions, gone)

    def _usable(self, job: events.Train) -> bool:
        """Whether what is trained isn't withdrawn, as far as it knows."""
        of = {v.number for v in self.world.aggregator.journal.every if v.params == job.params.rpartition("/")[2]}
        return not of or not of <= self._taken_back()

    def _check_job(self) -> None:
        """I15 for what is being trained, whenever it begins or a head has come."""
        if self.job and not self._usable(self.job):
            raise Violation(f"I15: {self.name} trains {self.job.params}, of a version that it knows to be withdrawn")

    def _watch_chunk(self, header: frames.Header) -> None:
        """A chunk goes out again only if the last word on it is that it hasn't arrived: a power cut costs what was in flight."""
        if header.type != frames.UPDATE:
            return
        body = header.payload_sha256, header.chunk_bytes
        if self.signers.setdefault(body[0], self.key.generation) != self.key.generation:
            self.saw("upload signed anew")
            self.signers[body[0]] = self.key.generation
        if any(payload == body[0] and length != body[1] for payload, length in self.sent):
            self.saw("upload cut anew")
        sent, bitmap = self.sent.setdefault(body, set()), self.confirmed.get(body)
        if header.seq in sent:
            self.saw("chunk sent again")
            if bitmap is None or has(bitmap, header.seq):
                raise Violation(
                    f"{self.name} sends chunk {header.seq} again, which {'is confirmed' if bitmap else 'nobody missed'}"
                )
        if self.life > 1 and bitmap and any(bitmap):
            self.saw("upload resumed from a bitmap")
        sent.add(header.seq)

    def _heard(self, topic: str, payload: bytes) -> None:
        if topic != self.world.topics.command(self.device):
            return
        try:
            command = verify_message(self.world.key.public, COMMAND, payload, Command)
        except Untrusted:
            return
        if isinstance(command, Bitmap):
            self.confirmed[bytes.fromhex(command.payload), command.chunk_bytes] = bytes.fromhex(command.received)

    # --- the trainer -------------------------------------------------------------------------------------------------
    def _start_trainer(self) -> None:
        """A trainer child reads the model and works; it dies now and then, and is started again."""
        job = self.job
        if job is None:
            return
        params = self.disk.read(job.params)
        for name, raw in ((job.params, params), (job.plan, self.disk.read(job.plan))):
            if hashlib.sha256(raw).hexdigest() != name.rpartition("/")[2]:
                if name not in self.rotten:
                    raise Violation(f"I6: {self.name} trains a model whose bytes aren't what its name says")
                self._timer = self.world.clock.after(1.0, lambda: self._trainer_fails(job))
                return
        seconds = self.world.scenario.train_seconds * self.slow * self.random.lognormvariate(0, 0.4)
        deaths = self.world.scenario.faults.trainer_deaths if self.world.storm else 0.0
        if self.random.random() < deaths * seconds:
            self._timer = self.world.clock.after(seconds * self.random.random(), self._trainer_dies)
        else:
            self._timer = self.world.clock.after(seconds, lambda: self._trainer_done(job, params))

    def _trainer_fails(self, job: events.Train) -> None:
        self.job = None
        self.feed(
            events.TrainingFailed(job.round, job.attempt, "an object isn't what its name says: damaged on the disk")
        )

    def _trainer_dies(self) -> None:
        self.saw("trainer died")
        self.note("trainer dies, and is started again")
        self._start_trainer()

    def _trainer_done(self, job: events.Train, params: bytes) -> None:
        world = self.world
        try:
            carried = feedback.carried(self.disk.read, job.carried, world.layout) if job.carried else None
        except feedback.ResidualLost:
            self.saw("residual lost")
            carried = None
        if job.policy.codec.feedback and self.kept_by_the_book:
            self.book.check(carried, world.aggregator.published)
            self.saw(
                "residual of an undelivered update" if job.carried and job.carried.undelivered else "residual checked"
            )
        update = train(
            params, self.device, self.samples, job.policy, job.seed, job.keys, world.layout, carried, mad=self.mad
        )
        self.provoke(0.1, 16)
        payload = update.payload
        aad, ephemeral = bytes.fromhex(job.sealed_with), self.random.randbytes(32)
        sealed = seal(bytes.fromhex(job.seal), payload, aad, ephemeral=ephemeral)
        sha = hashlib.sha256(sealed).hexdigest()
        world.made[sha] = Made(sealed, payload, job.policy.codec, job.keys, world.layout, update.delta)
        raw = b"" if update.residual is None else update.residual.astype("<f4").tobytes()
        done: list[events.Event] = []

        def act() -> None:
            try:
                if job.residual_output:
                    put(self.files, job.residual_output, raw)
                    put(self.files, job.plain_output, payload)
                put(self.files, job.output, sealed)
            except DiskError as e:
                self.saw("disk full under the trainer")
                self._timer = world.clock.after(5.0, lambda: self._trainer_done(job, params))
                self.note(f"trainer: {e}")
                return
            self.job = None
            done.append(
                events.Trained(
                    job.round, job.attempt, job.output, len(sealed), sha, self.samples, update.steps, update.loss,
                    read_info(payload)[0].rate, hashlib.sha256(raw).hexdigest() if raw else "",
                    hashlib.sha256(payload).hexdigest(),
                )
            )  # fmt: skip

        self.guard(act)
        for event in done:
            self.feed(event)

    def _stop_trainer(self) -> None:
        self.job = None
        if self._timer:
            self._timer.cancel()

    def died(self) -> None:
        self._stop_trainer()
        self.confirmed.clear()

    def where(self) -> str:
        """A word for whoever reads a failure."""
        machine = self.machine
        return f"{machine.state} v{self.version}" if isinstance(machine, Participant) else "dead"

    def at_rest_with(self, version: int) -> bool:
        """Whether it is idle, owes nothing and has reported that it holds a version."""
        machine = self.machine
        return (
            isinstance(machine, Participant)
            and machine.state == "idle"
            and self.version == version
            and not self.owed
            and not (machine._delivery.fates.pending and self.kept_by_the_book)
        )

    def at_rest_apart(self) -> bool:
        """Whether it was revoked, and has been told so, or has nothing to ask about."""
        machine = self.machine
        return (
            self.revoked
            and isinstance(machine, Participant)
            and (machine.state == "refused" or not (self.owed or self.job))
        )

    # --- I3, I6, I8 --------------------------------------------------------------------------------------------------
    def _records(self) -> list[outbox.Record]:
        """The updates whose records are in the store."""
        return list(self.store.load().all(outbox.UPDATE, outbox.Record).values())

    def spooled(self) -> dict[str, Owed]:
        """Those that no receipt has accepted, by the payload's hash."""
        return {r.sha256: Owed(r.round, r.attempt, r.sha256) for r in self._records() if not r.accepted}

    def checked(self, event: Any) -> None:
        if event is None:
            self._check_start()
        if (
            isinstance(event, events.Message)
            and event.topic == self.world.topics.head
            and not (self.disk.full or self.files.fault)
        ):
            self._check_job()
        self._keep_book()
        found = self.spooled()
        for sha, owed in self.owed.items():
            if sha not in found and not self._justified(owed, event):
                raise Violation(f"I3: {self.name} gave up {owed} at {event!r}, the spool now holds {sorted(found)}")
        if len(found) > self.limits.updates:
            raise Violation(f"I9: {self.name} has {len(found)} updates in its spool")
        if len(found) > 1:
            self.saw(f"spool of {len(found)}")
        self.owed = found
        self.excused.clear()
        self.expired.clear()

    @property
    def kept_by_the_book(self) -> bool:
        """Two boards with one identity, and one whose updates can't be summed, have no books that could agree."""
        return not self.mad and sum(d.device == self.device for d in self.world.devices) == 1

    def _keep_book(self) -> None:
        """Enters an update once its record is in the store: from then on it exists."""
        for found in self._records():
            made = self.world.made.get(found.sha256)
            if made and made.codec.feedback and found.sha256 not in self.book.stored:
                self.book.store(found.sha256, Entry(made.delta, decode(made)[1]))

    def check_book(self) -> None:
        """The books at the end of a run, when every round is closed and every device has heard of it."""
        machine = self.machine
        if not isinstance(machine, Participant) or not self.kept_by_the_book or self.clone or self.revoked:
            return
        if machine._delivery.fates.pending:
            raise Violation(f"I13: {self.name} still waits for the fate of {machine._delivery.fates.pending}")
        carried = machine._delivery.fates.carried
        if carried is not None or self.book.stored:
            try:
                values = feedback.carried(self.disk.read, carried, self.world.layout) if carried else None
            except feedback.ResidualLost:
                values = None
            self.book.check(values, self.world.aggregator.published)

    def damage(self) -> None:
        """A fault of the disk: what is carried, or is to be, is gone or rotten, or an object or an update is."""
        act = self.random.choice([self._damage_carried, self.damage_object, self._damage_payload])
        act()

    def _damage_payload(self) -> None:
        """A bit of a stored update rots: the device sees it at its next start, the aggregator when all of it has come."""
        records = [r for r in self._records() if self.disk.durable(r.payload)]
        if records:
            record = self.random.choice(records)
            self.saw("payload damaged")
            self.note(f"disk damages {record.payload}")
            self.book.doubtful = True
            self.rotten.add(record.sha256)
            self.disk.flip(record.payload)

    def _damage_carried(self) -> None:
        names = [f"{residual.FOLDER}/{n}" for n in self.disk.names(residual.FOLDER)]
        names = [n for n in names if self.disk.durable(n) is not None]
        if (residual.CARRIED, "") in self.store.rows:
            names.append(residual.CARRIED)
        if names:
            name = self.random.choice(names)
            self.saw("residual damaged")
            self.note(f"disk damages {name}")
            self.book.doubtful = True
            if name == residual.CARRIED:
                self.store.damage(name, "")
            else:
                self.disk.install(name, b"" if self.random.random() < 0.5 else bytes(20))

    def damage_object(self) -> None:
        """A fault of the disk: bytes of an object change, and whoever reads it next sees that."""
        name = f"{FOLDER}/{self.random.choice(self.disk.names(FOLDER) or [''])}"
        if self.disk.durable(name):
            self.saw("object damaged")
            self.note(f"disk damages {name}")
            self.rotten.add(name)
            self.disk.install(name, bytes(20))

    def _check_start(self) -> None:
        for record in self._records():
            if (
                record.sha256 in self.owed
                and record.sha256 not in self.rotten
                and hashlib.sha256(self.disk.read(record.payload)).hexdigest() != record.sha256
            ):
                raise Violation(f"I6: after a restart the payload of {self.name} isn't what its record says")

    def _justified(self, owed: Owed, event: Any) -> bool:
        if (
            owed.sha256 in self.excused | self.rotten
            or (owed.round, owed.attempt) in self.expired
            or self._head_ends(owed)
        ):
            return True
        return isinstance(event, events.Message) and self._ends(owed, event.topic, event.payload)

    def _head_ends(self, owed: Owed) -> bool:
        """Whether the head on the disk is the reason: it was stored when there was no room, or no time, for the rest."""
        raw = self.store.rows.get((HEAD_ROW, ""))
        return raw is not None and self._ends(owed, self.world.topics.head, raw)

    def _ends(self, owed: Owed, topic: str, payload: bytes) -> bool:
        """Whether a message is a reason to give the update up."""
        world = self.world
        try:
            if topic == world.topics.head:
                head = release.read_head(world.root, payload)
                return Closed(round=owed.round, attempt=owed.attempt, outcome="abandoned") in head.closed
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
                return isinstance(command, Select) and command.round == owed.round and command.attempt > owed.attempt
        except Untrusted:
            self.saw("message refused by a device")
        return False
