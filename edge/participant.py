"""A device in a federation, as a pure state machine: what it is told, what it remembers, what it asks for.

    idle --head--> fetching --installed--> idle --select--> training --trained--> uploading --receipt--> idle

It implements section 4 of wire/SPEC.md. Time, randomness and the disk are passed in; the daemon executes effects in order, and
a crash may fall between any two of them, or inside a file operation.
"""

import contextlib
import random
from collections.abc import Callable

import msgspec

from fleetgrad.edge.attempt import Attempt
from fleetgrad.edge.events import (
    Connected,
    Disconnected,
    Effect,
    Event,
    Log,
    Message,
    Progress,
    Subscribe,
    Tick,
    Trained,
    TrainingFailed,
)  # fmt: skip
from fleetgrad.edge.link import memory, outbox
from fleetgrad.edge.link.delivery import LIMITS, Delivery, Limits
from fleetgrad.edge.link.inbox import Inbox
from fleetgrad.edge.link.outbox import Upload
from fleetgrad.edge.link.slots import Slots
from fleetgrad.edge.link.store import Store
from fleetgrad.edge.link.trust import Trust
from fleetgrad.edge.reporting import Identity, Reporter
from fleetgrad.edge.speaking import Speaking
from fleetgrad.wire.events import earliest
from fleetgrad.wire.files import DiskError, Files
from fleetgrad.wire.messages import (
    COMMAND,
    REVOKED,
    AggregatorStatus,
    Bitmap,
    Command,
    DeviceState,
    DeviceStatus,
    Head,
    Receipt,
    RetryAfter,
    Select,
)  # fmt: skip
from fleetgrad.wire.signing import Untrusted, verify_message
from fleetgrad.wire.strict import MALFORMED
from fleetgrad.wire.topics import Topics

NO_MEMBER = "the registrar has revoked this device: nothing is sent but a question a day, and nothing here is removed"
RESTING = ("idle", "fetching", "refused", "stale")


class Participant:
    """One device; see the module's diagram."""

    def __init__(
        self,
        identity: Identity,
        files: Files,
        store: Store,
        random: random.Random,
        limits: Limits = LIMITS,
        no_room: Callable[[], str] = str,
    ) -> None:
        """`no_room` gives a reason why nothing can be trained now, or an empty text."""
        self._id, self._store, self._no_room = identity, store, no_room
        self._topics = Topics(identity.federation)
        self._notes: list[Effect]
        held = store.load()
        remembered, self._notes = memory.load(held, random)
        self._attempt = Attempt(identity, store, remembered)
        self._attempt.remember(boot=remembered.boot + 1, parted=False)
        self.cut_off = not remembered.parted  # the last life ended without a goodbye
        self._trust = Trust(store, held, identity.federation, identity.aggregator, identity.root)
        self._notes += self._trust.notes
        self._report = Reporter(identity, remembered.boot + 1)
        self._report.reason = NO_MEMBER if remembered.revoked else ""
        self._inbox = Inbox(self._topics, identity.device, files, self._report.want)
        self._slots = Slots(store, self._inbox)
        self._notes += self._slots.load(held)
        if self._head:
            for ref in (self._head.plan, self._head.params):
                if ref.sha256 not in self._inbox.held:
                    self._inbox.load(ref)  # whole, though a power cut came before it was committed
            self._notes += self._inbox.want(self._head, connected=False, now=0.0)
            self._inbox.keep(self._slots.needed | {self._head.plan.sha256, self._head.params.sha256})
            self._install(self._head)
        self._delivery = Delivery(identity, files, store, random, limits)
        self._notes += self._delivery.load(held, self._head, self._attempt.last, remembered.ended)
        if upload := self._delivery.upload:
            self._report.rate = upload.record.rate
        self._refused: str | None = None  # the plan that can't be trained here; forgotten by a restart
        self._connected = False
        self._speaking = Speaking(random)
        self._aggregator_boot: int | None = None

    # --- what the shell calls ---------------------------------------------------------------------------------------
    def handle(self, event: Event, now: float) -> list[Effect]:
        """What to do about an event; `now` is monotonic, in seconds."""
        effects = self._noted()
        self._trust.look(now)
        try:
            match event:
                case Connected():
                    effects += self._on_connected(now)
                    effects += self._go_on(now)  # apart: if the disk refuses it, the rest is asked for all the same
                case Disconnected():
                    self._connected = False
                    self._inbox.disconnected()
                case Message():
                    effects += self._on_message(event, now)
                case Progress():
                    if self._attempt.trains(event.round, event.attempt):
                        self._report.steps, self._report.loss = event.steps, event.loss
                case Trained():
                    effects += self._on_trained(event, now)
                case TrainingFailed():
                    effects += self._on_failed(event, now)
                case Tick():
                    effects += self._on_tick(now)
        except DiskError as e:
            # Nothing was promised yet: what the disk refused is asked for again by whoever wants it.
            self._speaking.disk_refused(now)
            effects += [*self._noted(), Log("disk_failed", {"reason": str(e)})]
            self._report.reason = str(e)[:500]
        if self._delivery.lost:
            self._delivery.lost = False
            effects += self._birth()
        return effects + (self._report.news(self._status_now(self.state)) if self._connected else [])

    def wake_at(self) -> float | None:
        """When to be called with Tick, or None."""
        if self._speaking.disk_at is not None:
            return self._speaking.disk_at
        times = [self._speaking.birth_at, self._attempt.deadline]
        if self._connected:
            times.append(self._inbox.retry_at)
            times.append(self._delivery.wake_at())
            times.append(self._speaking.refresh_at if self.state in RESTING else None)
            times.append(self._trust.wake_at() if self.state == "idle" else None)
        return earliest(*times)

    @property
    def _revoked(self) -> bool:
        return self._attempt.memory.revoked

    @property
    def _head(self) -> Head | None:
        return self._trust.head

    @property
    def reconnect_seconds(self) -> float:
        """Over how long devices spread when a broker that was lost is back, as the head says."""
        return self._head.link.reconnect_seconds if self._head else 0.0

    def will(self) -> tuple[str, bytes]:
        """Topic and payload of the last will."""
        last = self._report.publish(self._status_now("offline"))
        return last.topic, last.payload

    def goodbye(self) -> list[Effect]:
        """What a device that stops by itself says; it need not spread its return."""
        with contextlib.suppress(DiskError):
            self._attempt.remember(parted=True)
        return [self._report.publish(self._status_now("offline"))]

    @property
    def state(self) -> DeviceState:
        if self._revoked:
            return "refused"
        if self._delivery.upload:
            return "uploading"
        if self._attempt.job:
            return "training"
        if self._inbox.wanted or not self._head:
            return "fetching"
        if self._head.plan.sha256 == self._refused:
            return "refused"
        return "stale" if self._trust.stale else "idle"

    # --- events -----------------------------------------------------------------------------------------------------
    def _on_connected(self, now: float) -> list[Effect]:
        self._connected = True
        self._report.forget_shown()
        self._hear(now)
        return [self._subscribe(), *self._birth(), *self._inbox.resume(now)]

    def _go_on(self, now: float) -> list[Effect]:
        """The upload, unless its attempt has been closed meanwhile."""
        effects = self._end_if_closed(self._head, now) if self._head else []
        return effects + self._delivery.connected(now)

    def _subscribe(self) -> Effect:
        """The device's own topics; subscribed again, retained messages are delivered again."""
        device = self._id.device
        return Subscribe(
            [
                self._topics.root(self._trust.root.version + 1), self._topics.head, self._topics.aggregator,
                self._topics.command(device), self._topics.served(device),
            ]
        )  # fmt: skip

    def _hear(self, now: float) -> None:
        self._speaking.heard(now, seldom=self._revoked)

    def _on_message(self, message: Message, now: float) -> list[Effect]:
        try:
            if message.topic == self._topics.head:
                return self._on_head(message.payload, now)
            if message.topic == self._topics.root(self._trust.root.version + 1):
                return self._on_root(message.payload)
            if message.topic == self._topics.aggregator:
                return self._on_aggregator(message.payload)
            if message.topic == self._topics.command(self._id.device):
                command = verify_message(self._id.aggregator, COMMAND, message.payload, Command)
                self._hear(now)
                return self._on_command(command, now)
        except Untrusted as e:
            return [Log("message_dropped", {"topic": message.topic, "reason": str(e)})]
        effects, installed = self._inbox.take(message.topic, message.payload, now)
        if installed and not self._inbox.wanted and self._head:
            effects += [Log("model_installed", {"version": self._head.version}), *self._birth()]
            self._notes += effects  # they hold, whether or not the disk takes the slot now
            self._install(self._head)
            effects = self._noted()
        return effects

    def _install(self, head: Head) -> None:
        """Commits the head's model, once all of it is here."""
        current = self._slots.current
        if not self._inbox.wanted and not (current and current.is_of(head)):
            self._slots.install(head)

    def _on_head(self, raw: bytes, now: float) -> list[Effect]:
        if self._revoked:
            return []  # nothing is fetched; it comes again when this has ended
        was_stale, held = self._trust.stale, self._head
        head = self._trust.take_head(raw, now)
        if head is None:
            return []
        if held and msgspec.structs.replace(held, sequence=head.sequence) == head:
            return self._birth() if was_stale else []  # signed anew, and nothing else is new
        self._hear(now)
        effects = self._end_if_closed(head, now)
        self._delivery.cut(head.link.chunk_bytes, now)
        effects += self._inbox.want(head, self._connected, now)
        self._install(head)  # where the release has another version of the same model, or goes back to one that is here
        here = held is not None and head.params != held.params and not self._inbox.wanted
        effects += [Log("model_installed", {"version": head.version})] if here else []
        return effects + (self._birth() if was_stale or here else [])

    def _on_root(self, raw: bytes) -> list[Effect]:
        """Follows the chain; the head comes again with the subscription, in case the new keys are what it lacked."""
        root = self._trust.take_root(raw)
        return [Log("root_followed", {"version": root.version}), self._subscribe()]

    def _end_if_closed(self, head: Head, now: float) -> list[Effect]:
        """What the head says of the attempts that something hangs on; nothing new happens when it is asked again."""
        if self._revoked:
            return []
        effects = self._delivery.close(head)
        closed = {(c.round, c.attempt): c.outcome for c in head.closed}
        outcome = closed.get(self._attempt.last)
        upload = self._delivery.upload
        if outcome is None or (self._attempt.memory.ended and not (upload or self._attempt.job)):
            return effects
        note = Log("round_closed", {"round": self._attempt.memory.round, "outcome": outcome})
        if outcome == "abandoned" or not upload:
            return [*effects, *self._end(delivered=False), note, *self._birth()]
        if upload.record.residual:
            upload.ask(now)  # only the receipt tells whether it was counted
            return effects
        self._attempt.remember(ended=True)
        self._delivery.wait(now)
        return [*effects, note, *self._birth()]

    def _on_aggregator(self, raw: bytes) -> list[Effect]:
        if not raw:
            return []
        try:
            boot = msgspec.json.decode(raw, type=AggregatorStatus).boot
        except MALFORMED as e:
            raise Untrusted(f"aggregator's status: {e}") from e
        known, self._aggregator_boot = self._aggregator_boot, boot
        return self._birth() if known is not None and known != boot else []

    def _on_command(self, command: Command, now: float) -> list[Effect]:
        if (command.federation, command.device) != (self._id.federation, self._id.device):
            raise Untrusted(f"command for {command.device} of {command.federation}")
        if isinstance(command, Receipt) and (command.verdict, command.reason) == ("refused", REVOKED):
            known = self._delivery.find(command.round, command.attempt, command.payload)
            return self._on_revoked(now) if known else []
        if self._revoked and not isinstance(command, RetryAfter):
            return [*self._readmitted(now), *self._on_command(command, now)]
        match command:
            case Select():
                return self._on_select(command, now)
            case Bitmap():
                if upload := self._delivery.find(command.round, command.attempt, command.payload):
                    return self._delivery.bitmap(upload, command, now)
            case Receipt():
                if upload := self._delivery.find(command.round, command.attempt, command.payload):
                    return [self._on_receipt(upload, command), *self._birth()]
            case RetryAfter():
                self._delivery.pause(self._speaking.later(now, command.least, command.most))
        return []

    def _on_revoked(self, now: float) -> list[Effect]:
        """All stays as it is, and rests, in case this is undone."""
        effects = self._end(delivered=None) if self._attempt.job else []
        if not self._revoked:
            self._attempt.remember(revoked=True)
            effects.append(Log("revoked", {"reason": NO_MEMBER}))
        self._hear(now)
        self._delivery.pause(self._speaking.refresh_at)
        self._report.reason = NO_MEMBER
        return effects

    def _readmitted(self, now: float) -> list[Effect]:
        self._attempt.remember(revoked=False)
        self._report.reason = ""
        self._hear(now)
        return [Log("readmitted", {}), self._subscribe()]

    def _on_receipt(self, upload: Upload, receipt: Receipt) -> Effect:
        accepted = receipt.verdict == "accepted"
        if upload is self._delivery.upload:
            ended = self._attempt.but(ended=True)
            self._delivery.receipt(upload, receipt.verdict, self._head, [ended.row()])
            self._attempt.memory = ended
        else:
            self._delivery.receipt(upload, receipt.verdict, self._head)
        self._report.updates += accepted
        self._report.reason = "" if accepted else f"{receipt.verdict}: {receipt.reason}"[:500]
        return Log("receipt", {"round": receipt.round, "verdict": receipt.verdict, "reason": receipt.reason})

    def _on_select(self, select: Select, now: float) -> list[Effect]:
        asked, last = (select.round, select.attempt), self._attempt.last
        again = asked == last and self._lost
        head = self._head
        ready = (
            head is not None
            and not self._inbox.wanted
            and select.params == head.params.sha256
            and select.config == head.policy.sha256()
        )
        if head is None or not ready or self.state in ("refused", "stale") or not (asked > last or again):
            return self._birth()
        if undecided := self._delivery.undecided(select.round):
            undecided.ask(now)  # before the next update is made, it must be known what became of this one
            return [*self._birth(), *undecided.tick(now)]
        self._delivery.fates.supersede(select.round)
        declined = self._no_room()
        taken_up = self._attempt.but(round=select.round, attempt=select.attempt, ended=bool(declined))
        gone_on = self._delivery.go_on(select.round, now, [taken_up.row()])
        self._attempt.memory = taken_up
        self._notes += [*self._attempt.stop(), *gone_on]
        if declined:
            self._report.reason = declined
            note = Log("training_declined", {"round": select.round, "reason": declined})
            return [*self._noted(), note, *self._birth()]
        self._notes += self._delivery.fates.prepare(head, self._delivery.waiting_records)
        order = self._attempt.begin(select, head, self._delivery.fates.carried, now)
        self._report.reason, self._report.steps, self._report.loss = "", 0, None
        note = Log("training", {"round": select.round, "attempt": select.attempt, "version": select.version})
        return [*self._noted(), *self._birth(), note, order]

    def _on_trained(self, done: Trained, now: float) -> list[Effect]:
        job = self._attempt.job
        if not job or not self._attempt.trains(done.round, done.attempt):
            return []
        record = self._attempt.record(job, done)
        self._attempt.unstored = done
        self._notes += self._delivery.make_room(done.size)
        self._store.commit([outbox.row(record)])
        self._attempt.job = self._attempt.unstored = None
        self._report.steps, self._report.loss, self._report.rate = done.steps, done.loss, done.rate
        upload = self._delivery.begin(record, self._head, job.select.window, now + job.select.slot)
        note = Log(
            "update_stored",
            {"round": done.round, "bytes": done.size, "bits": round(done.rate, 4), "loss": round(done.loss, 5)},
        )
        return [*self._noted(), note, *(upload.tick(now) if self._connected else [])]

    def _on_failed(self, failed: TrainingFailed, now: float) -> list[Effect]:
        if not self._attempt.trains(failed.round, failed.attempt):
            return []
        self._attempt.unstored = failed
        ended = self._end(delivered=False)
        self._report.reason = failed.reason[:500]
        damage = self._slots.check()  # a file that rotted is fetched again, and no reason to refuse the plan
        if damage and self._head:
            damage += self._inbox.want(self._head, self._connected, now)
        elif failed.lasting and self._head:
            self._refused = self._head.plan.sha256
        note = Log("training_failed", {"round": failed.round, "reason": failed.reason})
        return [*ended, note, *damage, *self._birth()]

    def _on_tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._speaking.disk_waits(now):
            return effects
        job = self._attempt.job
        if job and now >= job.began + job.select.deadline:
            self._report.reason = f"not done within {job.select.deadline:g} s"
            effects += [
                *self._end(delivered=False),
                Log("deadline_passed", {"round": self._attempt.memory.round}),
                *self._birth(),
            ]
        if self._head:
            effects += self._end_if_closed(self._head, now)
            self._install(self._head)
        unstored = self._attempt.unstored
        if isinstance(unstored, Trained):
            effects += self._on_trained(unstored, now)
        elif unstored:
            effects += self._on_failed(unstored, now)
        if self._connected and self.state in RESTING and self._speaking.silent(now):
            effects += [self._subscribe(), *self._birth()]
        if self._speaking.birth_due(now):
            effects += self._birth()
        if self._connected:
            if self._inbox.retry_at is not None and now >= self._inbox.retry_at:
                effects += self._inbox.resume(now)
            effects += self._delivery.tick(now)
        return effects

    def _noted(self) -> list[Effect]:
        """Log lines of what was done already, whatever became of what followed it."""
        notes, self._notes = self._notes, []
        return notes

    def _end(self, delivered: bool | None) -> list[Effect]:
        """Nothing more is owed for the current attempt."""
        ended = self._attempt.but(ended=True)
        self._delivery.drop(delivered, [ended.row()])
        self._attempt.memory = ended
        return self._attempt.stop()

    @property
    def _lost(self) -> bool:
        """Whether something is owed for the attempt, and there is nothing to make or send it from."""
        return not (self._attempt.memory.ended or self._attempt.job or self._delivery.upload)

    # --- what it says of itself ---------------------------------------------------------------------------------------
    def _birth(self) -> list[Effect]:
        if not self._connected:
            return []
        holds = self._head if self._head and not self._inbox.wanted else None
        last = (None, None) if self._lost else self._attempt.named
        return [self._report.birth(self.state, holds, *last)]

    def _status_now(self, state: DeviceState) -> DeviceStatus:
        version = self._head.version if self._head else None
        return self._report.status(state, version, *self._attempt.named, self._delivery, self._inbox.bytes_down)
