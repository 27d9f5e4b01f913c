"""A device in a federation, as a pure state machine: what it is told, what it remembers, what it asks for.

    idle --head--> fetching --installed--> idle --select--> training --trained--> uploading --receipt--> idle

It implements section 4 of wire/SPEC.md. Time, randomness and the disk are passed in; the daemon executes effects in order, and
a crash may fall between any two of them, or inside a file operation.
"""

import contextlib
import random
from collections.abc import Callable

import msgspec

from fleetgrad.edge import events as ev
from fleetgrad.edge.attempt import Attempt
from fleetgrad.edge.link import memory, outbox
from fleetgrad.edge.link.delivery import LIMITS, Delivery, Limits
from fleetgrad.edge.link.model import Model
from fleetgrad.edge.link.outbox import Upload
from fleetgrad.edge.link.store import Store
from fleetgrad.edge.reporting import Identity, Reporter
from fleetgrad.edge.speaking import Speaking
from fleetgrad.wire.events import earliest
from fleetgrad.wire.files import DiskError, Files
from fleetgrad.wire.messages import (
    COMMAND,
    REVOKED,
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
        self._notes: list[ev.Effect]
        held = store.load()
        remembered, self._notes = memory.load(held, random)
        self._attempt = Attempt(identity, store, remembered)
        self._attempt.remember(boot=remembered.boot + 1, parted=False)
        self.cut_off = not remembered.parted  # the last life ended without a goodbye
        self._report = Reporter(identity, remembered.boot + 1)
        self._report.reason = NO_MEMBER if remembered.revoked else ""
        self._model = Model(identity, files, store, held, self._report.want)
        self._notes += self._model.notes
        self._delivery = Delivery(identity, files, store, random, limits)
        self._notes += self._delivery.load(held, self._head, self._attempt.last, remembered.ended)
        if upload := self._delivery.upload:
            self._report.rate = upload.record.rate
        self._refused: str | None = None  # the plan that can't be trained here; forgotten by a restart
        self._connected = False
        self._speaking = Speaking(random)

    # --- what the shell calls ---------------------------------------------------------------------------------------
    def handle(self, event: ev.Event, now: float) -> list[ev.Effect]:
        """What to do about an event; `now` is monotonic, in seconds."""
        effects = self._noted()
        self._model.trust.look(now)
        try:
            match event:
                case ev.Connected():
                    effects += self._on_connected(now)
                    # Apart: if the disk refuses it, the rest is asked for all the same.
                    effects += self._end_if_closed(now) + self._delivery.connected(now)
                case ev.Disconnected():
                    self._connected = False
                    self._model.inbox.disconnected()
                case ev.Message():
                    effects += self._on_message(event, now)
                case ev.Progress():
                    if self._attempt.trains(event.round, event.attempt):
                        self._report.steps, self._report.loss = event.steps, event.loss
                case ev.Trained():
                    effects += self._on_trained(event, now)
                case ev.TrainingFailed():
                    effects += self._on_failed(event, now)
                case ev.Tick():
                    effects += self._on_tick(now)
        except DiskError as e:
            # Nothing was promised yet: what the disk refused is asked for again by whoever wants it.
            self._speaking.disk_refused(now)
            effects += [*self._noted(), ev.Log("disk_failed", {"reason": str(e)})]
            self._report.reason = str(e)[:500]
        if self._delivery.lost:
            self._delivery.lost = False
            effects += self._birth()
        return effects + (self._report.news(self._status_now(self.state)) if self._connected else [])

    def wake_at(self) -> float | None:
        """When to be called with Tick, or None."""
        if self._speaking.disk_at is not None:
            return self._speaking.disk_at
        job = self._attempt.job
        times = [self._speaking.birth_at, job.deadline if job else None]
        if self._connected:
            times.append(self._model.inbox.retry_at)
            times.append(self._delivery.wake_at())
            times.append(self._speaking.refresh_at if self.state in RESTING else None)
            times.append(self._model.trust.wake_at() if self.state == "idle" else None)
        return earliest(*times)

    @property
    def _revoked(self) -> bool:
        return self._attempt.memory.revoked

    @property
    def _head(self) -> Head | None:
        return self._model.head

    @property
    def reconnect_seconds(self) -> float:
        """Over how long devices spread when a broker that was lost is back, as the head says."""
        return self._head.link.reconnect_seconds if self._head else 0.0

    def will(self) -> tuple[str, bytes]:
        """Topic and payload of the last will."""
        last = self._report.publish(self._status_now("offline"))
        return last.topic, last.payload

    def goodbye(self) -> list[ev.Effect]:
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
        head = self._model.here
        if head is None:
            return "fetching"
        if head.plan.sha256 == self._refused:
            return "refused"
        return "stale" if self._model.trust.stale else "idle"

    # --- events -----------------------------------------------------------------------------------------------------
    def _on_connected(self, now: float) -> list[ev.Effect]:
        self._connected = True
        self._report.forget_shown()
        self._hear(now)
        return [self._subscribe(), *self._birth(), *self._model.inbox.resume(now)]

    def _subscribe(self) -> ev.Effect:
        """The device's own topics; subscribed again, retained messages are delivered again."""
        own = self._topics.command(self._id.device), self._topics.served(self._id.device)
        return ev.Subscribe([self._model.root_topic, self._topics.head, self._topics.aggregator, *own])

    def _hear(self, now: float) -> None:
        self._speaking.heard(now, seldom=self._revoked)

    def _on_message(self, message: ev.Message, now: float) -> list[ev.Effect]:
        try:
            if message.topic == self._topics.head:
                return self._on_head(message.payload, now)
            if message.topic == self._model.root_topic:
                return self._on_root(message.payload)
            if message.topic == self._topics.aggregator:
                return self._birth() if self._speaking.restarted(message.payload) else []
            if message.topic == self._topics.command(self._id.device):
                command = verify_message(self._id.aggregator, COMMAND, message.payload, Command)
                self._hear(now)
                return self._on_command(command, now)
        except Untrusted as e:
            return [ev.Log("message_dropped", {"topic": message.topic, "reason": str(e)})]
        effects, whole = self._model.take(message.topic, message.payload, now)
        if whole:
            self._notes += [*effects, *self._birth()]  # they hold, whether or not the disk takes the slot now
            self._model.install()
            effects = self._noted()
        return effects

    def _on_head(self, raw: bytes, now: float) -> list[ev.Effect]:
        if self._revoked:
            return []  # nothing is fetched; it comes again when this has ended
        was_stale, held = self._model.trust.stale, self._head
        head = self._model.take_head(raw, now)
        if head is None:
            return []
        if held and msgspec.structs.replace(held, sequence=head.sequence) == head:
            return self._birth() if was_stale else []  # signed anew, and nothing else is new
        self._hear(now)
        self._notes += self._end_if_closed(now)
        self._delivery.cut(head.link.chunk_bytes, now)
        fetch, here = self._model.aim(held, self._connected, now)
        return [*self._noted(), *fetch, *(self._birth() if was_stale or here else [])]

    def _on_root(self, raw: bytes) -> list[ev.Effect]:
        """Follows the chain; the head comes again with the subscription, in case the new keys are what it lacked."""
        root = self._model.trust.take_root(raw)
        return [ev.Log("root_followed", {"version": root.version}), self._subscribe()]

    def _end_if_closed(self, now: float) -> list[ev.Effect]:
        """What the head says of the attempts that something hangs on; nothing new happens when it is asked again."""
        head = self._head
        if head is None or self._revoked:
            return []
        effects = self._delivery.close(head)
        closed = {(c.round, c.attempt): c.outcome for c in head.closed}
        outcome = closed.get(self._attempt.last)
        upload = self._delivery.upload
        if outcome is None or (self._attempt.memory.ended and not (upload or self._attempt.job)):
            return effects
        note = ev.Log("round_closed", {"round": self._attempt.memory.round, "outcome": outcome})
        if outcome == "abandoned" or not upload:
            return [*effects, *self._end(delivered=False), note, *self._birth()]
        if upload.record.residual:
            upload.ask(now)  # only the receipt tells whether it was counted
            return effects
        self._attempt.remember(ended=True)
        self._delivery.wait(now)
        return [*effects, note, *self._birth()]

    def _on_command(self, command: Command, now: float) -> list[ev.Effect]:
        if (command.federation, command.device) != (self._id.federation, self._id.device):
            raise Untrusted(f"command for {command.device} of {command.federation}")
        upload = None
        if isinstance(command, Bitmap | Receipt):
            upload = self._delivery.find(command.round, command.attempt, command.payload)
        if isinstance(command, Receipt) and (command.verdict, command.reason) == ("refused", REVOKED):
            return self._on_revoked(now) if upload else []
        if self._revoked and not isinstance(command, RetryAfter):
            return [*self._readmitted(now), *self._on_command(command, now)]
        match command:
            case Select():
                return self._on_select(command, now)
            case Bitmap() if upload:
                return self._delivery.bitmap(upload, command, now)
            case Receipt() if upload:
                return [self._on_receipt(upload, command), *self._birth()]
            case RetryAfter():
                self._delivery.pause(self._speaking.later(now, command.least, command.most))
        return []

    def _on_revoked(self, now: float) -> list[ev.Effect]:
        """All stays as it is, and rests, in case this is undone."""
        effects = self._end(delivered=None) if self._attempt.job else []
        if not self._revoked:
            self._attempt.remember(revoked=True)
            effects.append(ev.Log("revoked", {"reason": NO_MEMBER}))
        self._hear(now)
        self._delivery.pause(self._speaking.refresh_at)
        self._report.reason = NO_MEMBER
        return effects

    def _readmitted(self, now: float) -> list[ev.Effect]:
        self._attempt.remember(revoked=False)
        self._report.reason = ""
        self._hear(now)
        self._delivery.pause(now)  # no longer: what rested is asked about at once
        return [ev.Log("readmitted", {}), self._subscribe()]

    def _on_receipt(self, upload: Upload, receipt: Receipt) -> ev.Effect:
        accepted = receipt.verdict == "accepted"
        if upload is self._delivery.upload:
            with self._attempt.becoming(ended=True) as row:
                self._delivery.receipt(upload, receipt.verdict, self._head, [row])
        else:
            self._delivery.receipt(upload, receipt.verdict, self._head)
        self._report.updates += accepted
        self._report.reason = "" if accepted else f"{receipt.verdict}: {receipt.reason}"[:500]
        return ev.Log("receipt", {"round": receipt.round, "verdict": receipt.verdict, "reason": receipt.reason})

    def _on_select(self, select: Select, now: float) -> list[ev.Effect]:
        asked, last = (select.round, select.attempt), self._attempt.last
        again = asked == last and self._lost
        head = self._model.here
        ready = head and (select.params, select.config) == (head.params.sha256, head.policy.sha256())
        if head is None or not ready or self.state in ("refused", "stale") or not (asked > last or again):
            return self._birth()
        if undecided := self._delivery.undecided(select.round):
            undecided.ask(now)  # before the next update is made, it must be known what became of this one
            return [*self._birth(), *undecided.tick(now)]
        self._delivery.fates.supersede(select.round)
        declined = self._no_room()
        with self._attempt.becoming(round=select.round, attempt=select.attempt, ended=bool(declined)) as row:
            gone_on = self._delivery.go_on(select.round, now, [row])
        self._notes += [*self._attempt.stop(), *gone_on]
        if declined:
            self._report.reason = declined
            note = ev.Log("training_declined", {"round": select.round, "reason": declined})
            return [*self._noted(), note, *self._birth()]
        self._notes += self._delivery.fates.prepare(head, self._delivery.waiting_records)
        order = self._attempt.begin(select, head, self._delivery.fates.carried, now)
        self._report.reason, self._report.steps, self._report.loss = "", 0, None
        note = ev.Log("training", {"round": select.round, "attempt": select.attempt, "version": select.version})
        return [*self._noted(), *self._birth(), note, order]

    def _on_trained(self, done: ev.Trained, now: float) -> list[ev.Effect]:
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
        told: dict[str, object] = {"bits": round(done.rate, 4), "loss": round(done.loss, 5)}
        note = ev.Log("update_stored", {"round": done.round, "bytes": done.size, **told})
        return [*self._noted(), note, *(upload.tick(now) if self._connected else [])]

    def _on_failed(self, failed: ev.TrainingFailed, now: float) -> list[ev.Effect]:
        if not self._attempt.trains(failed.round, failed.attempt):
            return []
        self._attempt.unstored = failed
        self._notes += self._end(delivered=False)
        self._notes.append(ev.Log("training_failed", {"round": failed.round, "reason": failed.reason}))
        self._report.reason = failed.reason[:500]
        damage = self._model.check(self._connected, now)
        if not damage and failed.lasting and self._head:  # a file that rotted is no reason to refuse the plan
            self._refused = self._head.plan.sha256
        return [*self._noted(), *damage, *self._birth()]

    def _on_tick(self, now: float) -> list[ev.Effect]:
        """What is done is noted at once: it holds, whatever the disk does to what comes after."""
        if self._speaking.disk_waits(now):
            return []
        job = self._attempt.job
        if job and now >= job.deadline:
            self._report.reason = f"not done within {job.select.deadline:g} s"
            note = ev.Log("deadline_passed", {"round": job.select.round})
            self._note(*self._end(delivered=False), note, *self._birth())
        self._note(*self._end_if_closed(now))
        self._model.install()
        unstored = self._attempt.unstored
        if isinstance(unstored, ev.Trained):
            self._note(*self._on_trained(unstored, now))
        elif unstored:
            self._note(*self._on_failed(unstored, now))
        if self._connected and self.state in RESTING and self._speaking.silent(now):
            self._note(self._subscribe(), *self._birth())
        if self._speaking.birth_due(now):
            self._note(*self._birth())
        if self._connected:
            self._note(*self._model.inbox.tick(now))
            self._note(*self._delivery.tick(now))
        return self._noted()

    def _note(self, *done: ev.Effect) -> None:
        self._notes += done  # not where they are made: that may hand out the notes

    def _noted(self) -> list[ev.Effect]:
        """Log lines of what was done already, whatever became of what followed it."""
        notes, self._notes = self._notes, []
        return notes

    def _end(self, delivered: bool | None) -> list[ev.Effect]:
        """Nothing more is owed for the current attempt."""
        with self._attempt.becoming(ended=True) as row:
            self._delivery.drop(delivered, [row])
        return self._attempt.stop()

    @property
    def _lost(self) -> bool:
        """Whether something is owed for the attempt, and there is nothing to make or send it from."""
        return not (self._attempt.memory.ended or self._attempt.job or self._delivery.upload)

    # --- what it says of itself ---------------------------------------------------------------------------------------
    def _birth(self) -> list[ev.Effect]:
        if not self._connected:
            return []
        last = (None, None) if self._lost else self._attempt.named
        return [self._report.birth(self.state, self._model.here, *last)]

    def _status_now(self, state: DeviceState) -> DeviceStatus:
        version = self._head.version if self._head else None
        return self._report.status(state, version, *self._attempt.named, self._delivery, self._model.inbox.bytes_down)
