"""A device in a federation, as a pure state machine: what it is told, what it remembers, what it asks for.

    idle --head--> fetching --installed--> idle --select--> training --trained--> uploading --receipt--> idle

It implements section 4 of wire/SPEC.md. Time, randomness and the disk are passed in; the daemon executes effects in order, and
a crash may fall between any two of them, or inside a file operation.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from fleetgrad.edge.events import (
    CancelTraining,
    Connected,
    Disconnected,
    Effect,
    Event,
    Log,
    Message,
    Progress,
    Subscribe,
    Tick,
    Train,
    Trained,
    TrainingFailed,
)  # fmt: skip
from fleetgrad.edge.link import memory, outbox
from fleetgrad.edge.link.delivery import LIMITS, Delivery, Limits
from fleetgrad.edge.link.inbox import Inbox, object_name
from fleetgrad.edge.link.outbox import Record, Upload, payload_name, plain_name
from fleetgrad.edge.link.residual import residual_name
from fleetgrad.edge.link.slots import Slots
from fleetgrad.edge.link.store import Store
from fleetgrad.edge.link.trust import Trust
from fleetgrad.edge.reporting import Identity, Reporter
from fleetgrad.wire import frames, seeds
from fleetgrad.wire.coding.spec import CodecSpec
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
from fleetgrad.wire.topics import Topics, name_hash

DISK_RETRY_SECONDS = 5.0
REFRESH_SECONDS, MOST_REFRESH_SECONDS = 15.0, 120.0  # silence after which an idle device reports again; doubles
REVOKED_SECONDS = 86400.0  # between two times that a device which was revoked asks whether it still is
NO_MEMBER = "the registrar has revoked this device: nothing is sent but a question a day, and nothing here is removed"
RESTING = ("idle", "fetching", "refused", "stale")


@dataclass(slots=True)
class Job:
    """The attempt being trained for."""

    select: Select
    began: float
    plan: str
    codec: CodecSpec


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
        self._id, self._store, self._random, self._no_room = identity, store, random, no_room
        self._topics = Topics(identity.federation)
        self._notes: list[Effect]
        held = store.load()
        self._memory, self._notes = memory.load(held, random)
        self._remember(boot=self._memory.boot + 1)
        self._trust = Trust(store, held, identity.federation, identity.aggregator, identity.root)
        self._notes += self._trust.notes
        self._report = Reporter(identity, self._memory.boot)
        self._report.reason = NO_MEMBER if self._memory.revoked else ""
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
        self._job: Job | None = None
        self._delivery = Delivery(identity, files, store, random, limits)
        last = self._memory.round, self._memory.attempt
        self._notes += self._delivery.load(held, self._head, last, self._memory.ended)
        if upload := self._delivery.upload:
            self._report.rate = upload.record.rate
        self._unstored: Trained | TrainingFailed | None = None  # the trainer's word, while the disk has no room for it
        self._refused: str | None = None  # the plan that can't be trained here; forgotten by a restart
        self._disk_retry_at: float | None = None
        self._connected = False
        self._refresh_at, self._silence = 0.0, REFRESH_SECONDS
        self._aggregator_boot: int | None = None
        self._birth_at: float | None = None

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
                    if self._job and self._is(event.round, event.attempt):
                        self._report.steps, self._report.loss = event.steps, event.loss
                case Trained():
                    effects += self._on_trained(event, now)
                case TrainingFailed():
                    effects += self._on_failed(event, now)
                case Tick():
                    effects += self._on_tick(now)
        except DiskError as e:
            # Nothing was promised yet: what the disk refused is asked for again by whoever wants it.
            # It isn't tried again at once: whatever is due waits for the disk.
            self._birth_at = self._disk_retry_at = now + DISK_RETRY_SECONDS
            effects += [*self._noted(), Log("disk_failed", {"reason": str(e)})]
            self._report.reason = str(e)[:500]
        if self._delivery.lost:
            self._delivery.lost = False
            effects += self._birth()
        return effects + (self._report.news(self._status_now(self.state)) if self._connected else [])

    def wake_at(self) -> float | None:
        """When to be called with Tick, or None."""
        if self._disk_retry_at is not None:
            return self._disk_retry_at
        times = [self._birth_at]
        if self._connected:
            times.append(self._inbox.retry_at)
            times.append(self._delivery.wake_at())
            times.append(self._refresh_at if self.state in RESTING else None)
            times.append(self._trust.wake_at() if self.state == "idle" else None)
        if self._job:
            times.append(self._job.began + self._job.select.deadline)
        return min((t for t in times if t is not None), default=None)

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
        """What a device that stops by itself says."""
        return [self._report.publish(self._status_now("offline"))]

    @property
    def state(self) -> DeviceState:
        if self._memory.revoked:
            return "refused"
        if self._delivery.upload:
            return "uploading"
        if self._job:
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
        self._heard(now)
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

    def _heard(self, now: float) -> None:
        """The aggregator has said something new: silence is counted from here."""
        self._silence = REVOKED_SECONDS if self._memory.revoked else REFRESH_SECONDS
        self._refresh_at = now + self._silence * self._random.uniform(0.5, 1.0)

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
                self._heard(now)
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
        if self._memory.revoked:
            return []  # nothing is fetched; it comes again when this has ended
        was_stale, held = self._trust.stale, self._head
        head = self._trust.take_head(raw, now)
        if head is None:
            return []
        if held and msgspec.structs.replace(held, sequence=head.sequence) == head:
            return self._birth() if was_stale else []  # signed anew, and nothing else is new
        self._heard(now)
        effects = self._end_if_closed(head, now)
        effects += self._inbox.want(head, self._connected, now)
        self._install(head)  # where the release has another version of the same model
        return effects + (self._birth() if was_stale else [])

    def _on_root(self, raw: bytes) -> list[Effect]:
        """Follows the chain; the head comes again with the subscription, in case the new keys are what it lacked."""
        root = self._trust.take_root(raw)
        return [Log("root_followed", {"version": root.version}), self._subscribe()]

    def _end_if_closed(self, head: Head, now: float) -> list[Effect]:
        """What the head says of the attempts that something hangs on; nothing new happens when it is asked again."""
        if self._memory.revoked:
            return []
        effects = self._delivery.close(head)
        closed = {(c.round, c.attempt): c.outcome for c in head.closed}
        outcome = closed.get((self._memory.round, self._memory.attempt))
        upload = self._delivery.upload
        if outcome is None or (self._memory.ended and not (upload or self._job)):
            return effects
        note = Log("round_closed", {"round": self._memory.round, "outcome": outcome})
        if outcome == "abandoned" or not upload:
            return [*effects, *self._end(delivered=False), note, *self._birth()]
        if upload.record.residual:
            upload.ask(now)  # only the receipt tells whether it was counted
            return effects
        self._remember(ended=True)
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
        if self._memory.revoked and not isinstance(command, RetryAfter):
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
                self._birth_at = now + self._random.uniform(command.least, max(command.least, command.most))
                self._delivery.pause(self._birth_at)
        return []

    def _on_revoked(self, now: float) -> list[Effect]:
        """All stays as it is, and rests, in case this is undone."""
        effects = self._end(delivered=None) if self._job else []
        if not self._memory.revoked:
            self._remember(revoked=True)
            effects.append(Log("revoked", {"reason": NO_MEMBER}))
        self._heard(now)
        self._delivery.pause(self._refresh_at)
        self._report.reason = NO_MEMBER
        return effects

    def _readmitted(self, now: float) -> list[Effect]:
        self._remember(revoked=False)
        self._report.reason = ""
        self._heard(now)
        return [Log("readmitted", {}), self._subscribe()]

    def _on_receipt(self, upload: Upload, receipt: Receipt) -> Effect:
        accepted = receipt.verdict == "accepted"
        if upload is self._delivery.upload:
            ended = msgspec.structs.replace(self._memory, ended=True)
            self._delivery.receipt(upload, receipt.verdict, self._head, [ended.row()])
            self._memory = ended
        else:
            self._delivery.receipt(upload, receipt.verdict, self._head)
        self._report.updates += accepted
        self._report.reason = "" if accepted else f"{receipt.verdict}: {receipt.reason}"[:500]
        return Log("receipt", {"round": receipt.round, "verdict": receipt.verdict, "reason": receipt.reason})

    def _on_select(self, select: Select, now: float) -> list[Effect]:
        asked, last = (select.round, select.attempt), (self._memory.round, self._memory.attempt)
        again = asked == last and not self._memory.ended and not self._job and not self._delivery.upload
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
        effects: list[Effect] = [CancelTraining()] if self._job else []
        self._delivery.fates.supersede(select.round)
        declined = self._no_room()
        taken_up = msgspec.structs.replace(
            self._memory, round=select.round, attempt=select.attempt, ended=bool(declined)
        )
        effects += self._delivery.go_on(select.round, now, [taken_up.row()])
        self._memory = taken_up
        if declined:
            self._job, self._report.reason = None, declined
            note = Log("training_declined", {"round": select.round, "reason": declined})
            return [*effects, note, *self._birth()]
        effects += self._delivery.fates.prepare(head, self._delivery.waiting_records)
        self._job, self._unstored = Job(select, now, head.plan.sha256, head.policy.codec), None
        self._report.reason, self._report.steps, self._report.loss = "", 0, None
        name, device = self._id.federation, self._id.device
        return [
            *effects,
            *self._birth(),
            Log("training", {"round": select.round, "attempt": select.attempt, "version": select.version}),
            Train(
                *asked,
                object_name(head.plan.sha256),
                object_name(head.params.sha256),
                head.policy,
                seeds.derive("fl1-seed", name, device, *asked),
                seeds.codec_keys(name, device, *asked),
                payload_name(*asked),
                head.seal,
                frames.sealed_with(
                    name_hash(name),
                    *asked,
                    name_hash(device),
                    bytes.fromhex(select.params),
                    bytes.fromhex(select.config),
                ).hex(),
                residual_name(*asked) if head.policy.codec.feedback else "",
                plain_name(*asked) if head.policy.codec.feedback else "",
                self._delivery.fates.carried,
            ),
        ]

    def _on_trained(self, done: Trained, now: float) -> list[Effect]:
        if not self._job or not self._is(done.round, done.attempt):
            return []
        select = self._job.select
        name, device = self._id.federation, self._id.device
        record = Record(
            round=done.round, attempt=done.attempt, version=select.version, params=select.params, config=select.config,
            payload=done.payload, size=done.size, sha256=done.sha256, weight=done.weight, steps=done.steps,
            loss=done.loss, rate=done.rate, plan=self._job.plan, codec=self._job.codec,
            keys=seeds.codec_keys(name, device, done.round, done.attempt), residual=done.residual, plain=done.plain,
        )  # fmt: skip
        self._unstored = done
        self._notes += self._delivery.make_room(done.size)
        self._store.commit([outbox.row(record)])
        self._unstored = None
        self._job = None
        self._report.steps, self._report.loss, self._report.rate = done.steps, done.loss, done.rate
        upload = self._delivery.begin(record, self._head, select.window, now + select.slot)
        note = Log(
            "update_stored",
            {"round": done.round, "bytes": done.size, "bits": round(done.rate, 4), "loss": round(done.loss, 5)},
        )
        return [*self._noted(), note, *(upload.tick(now) if self._connected else [])]

    def _on_failed(self, failed: TrainingFailed, now: float) -> list[Effect]:
        if not self._job or not self._is(failed.round, failed.attempt):
            return []
        self._unstored = failed
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
        if self._disk_retry_at is not None and now < self._disk_retry_at:
            return effects
        self._disk_retry_at = None
        if self._job and now >= self._job.began + self._job.select.deadline:
            self._report.reason = f"not done within {self._job.select.deadline:g} s"
            effects += [
                *self._end(delivered=False),
                Log("deadline_passed", {"round": self._memory.round}),
                *self._birth(),
            ]
        if self._head:
            effects += self._end_if_closed(self._head, now)
            self._install(self._head)
        if isinstance(self._unstored, Trained):
            effects += self._on_trained(self._unstored, now)
        elif self._unstored:
            effects += self._on_failed(self._unstored, now)
        if self._connected and self.state in RESTING and now >= self._refresh_at:
            self._silence = max(self._silence, min(MOST_REFRESH_SECONDS, self._silence * 2))
            self._refresh_at = now + self._silence * self._random.uniform(0.5, 1.0)
            effects += [self._subscribe(), *self._birth()]
        if self._birth_at is not None and now >= self._birth_at:
            self._birth_at = None
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

    # --- memory -----------------------------------------------------------------------------------------------------
    def _remember(self, **fields: Any) -> None:
        changed = msgspec.structs.replace(self._memory, **fields)
        self._store.commit([changed.row()])
        self._memory = changed

    def _is(self, round_: int, attempt: int) -> bool:
        return (round_, attempt) == (self._memory.round, self._memory.attempt)

    def _end(self, delivered: bool | None) -> list[Effect]:
        """Nothing more is owed for the current attempt."""
        ended = msgspec.structs.replace(self._memory, ended=True)
        self._delivery.drop(delivered, [ended.row()])
        self._memory = ended
        effects: list[Effect] = [CancelTraining()] if self._job else []
        self._job = self._unstored = None
        return effects

    # --- what it says of itself ---------------------------------------------------------------------------------------
    def _birth(self) -> list[Effect]:
        if not self._connected:
            return []
        holds = self._head if self._head and not self._inbox.wanted else None
        lost = not (self._memory.ended or self._job or self._delivery.upload)
        last = (None, None) if lost else (self._memory.round or None, self._memory.attempt or None)
        return [self._report.birth(self.state, holds, *last)]

    def _status_now(self, state: DeviceState) -> DeviceStatus:
        version = self._head.version if self._head else None
        last = self._memory.round or None, self._memory.attempt or None
        return self._report.status(state, version, *last, self._delivery, self._inbox.bytes_down)
