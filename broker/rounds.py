"""Rounds, as a pure state machine: section 5 of wire/SPEC.md.

    open --first select--> selecting --first update--> collecting --goal, or deadline with enough--> committing --> published
                                                            \\-- deadline with too few --> abandoned --> open (attempt + 1)

Time, randomness, the disk, the journal and the roster are passed in. Whatever is promised to a device (a receipt) is in the
journal before; whatever is done between two journal entries can be done again with the same result.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from fleetgrad.broker import events as ev
from fleetgrad.broker.admission import Admission
from fleetgrad.broker.announcing import GENESIS, Announcer, version_record
from fleetgrad.broker.attempt import Open, RoundSettings
from fleetgrad.broker.closing import Closing, report
from fleetgrad.broker.cohort import Cohort
from fleetgrad.broker.gathering import Gathering
from fleetgrad.broker.intake import Intake
from fleetgrad.broker.journal import Attempt, Boot, Config, Journal, Ledger, Row
from fleetgrad.broker.merge import MergeError, Sum
from fleetgrad.broker.offering import Offer
from fleetgrad.broker.releasing import Releasing
from fleetgrad.broker.retained import Retained
from fleetgrad.broker.serving import Serving
from fleetgrad.broker.standing import Standing
from fleetgrad.broker.uploads import Upload, Uploads
from fleetgrad.wire import seal
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.events import earliest
from fleetgrad.wire.files import DiskError, Files
from fleetgrad.wire.membership import Revoked
from fleetgrad.wire.messages import BIRTH, Birth, ObjectRef, Policy
from fleetgrad.wire.pace import Parallel
from fleetgrad.wire.release import implied
from fleetgrad.wire.signing import PrivateKey, PublicKey, Untrusted, verify_message
from fleetgrad.wire.topics import Topics

DISK_RETRY_SECONDS = 2.0  # a round that the disk didn't let close is closed again


class Rounds:
    """The aggregator's machine; see the module's diagram."""

    def __init__(
        self,
        settings: RoundSettings,
        journal: Journal,
        files: Files,
        key: PrivateKey,
        seals: Sequence[seal.SealKey],
        roster: Callable[[str], PublicKey | None],
        roster_size: Callable[[], int],
        plan: ObjectRef,
        initial: ObjectRef,
        layout: VectorLayout,
        random: random.Random,
        now: float,
        parallel: Parallel = map,
        releasing: Releasing | None = None,
    ) -> None:
        """`roster` gives a member's key, None for a stranger, and raises Revoked. `plan` and `initial` are objects (files objects/{sha256}); `initial` is version 0 where the journal has none.

        `layout` is the plan's. `seals` open updates; devices seal to the first. `parallel` maps hashing and syncing over several
        updates: a thread pool's, or one after another. `releasing` None: `key` alone signs heads; where its keys are too few, heads
        wait for other machines' signatures.
        """
        self._settings, self._files = settings, files
        self._roster, self._roster_size = roster, roster_size
        self._topics = Topics(settings.federation)
        self._uploads = self._topics.every("update").partition("+")[0]
        self._policy = settings.policy  # the open attempt's, from _begin on
        releasing = releasing or Releasing(implied(settings.federation, key.public), (key,))
        self._say = Announcer(settings, roster_size, key, seals[0].public, files, plan, releasing.roots)
        self._gathering = Gathering(settings.federation, key, releasing, files, now)
        self._ledger = Ledger(journal)
        self._memory = self._ledger.memory
        rows: list[Row] = [Boot(self._memory.boot + 1)]
        if not self._memory.versions:
            rows.append(version_record(0, initial, GENESIS, settings.policy.sha256(), [], 0))
        self._ledger.commit(rows)
        self._intake = Intake(settings.federation, layout, settings.policy.codec, seals)
        self._cohort = Cohort(settings, self._say, random, self._is_member)
        self._total = Sum(settings.policy.codec, layout)
        self._admission = Admission(
            settings.federation,
            self._ledger,
            files,
            self._say,
            self._cohort,
            self._intake,
            Uploads(files, parallel),
            self._total,
            parallel,
            settings.group_seconds,
        )
        self._closing = Closing(self._ledger, files, seals)
        self._layout = layout
        self._offer = Offer(files, self._memory, plan)
        self._retained = Retained(settings.federation, self._say, self._offer)
        self._serving = Serving(settings.federation, self._say, self._offer, files, self._head, roster_size)
        self._standing = Standing(settings, self._memory, self._cohort, self._admission, self._gathering, random)
        self._connected = False
        self._open: Open | None = None
        self._disk_retry_at: float | None = None
        self._look_at: float | None = None  # when the round is next to be looked at, if nothing happens
        self._goal = 0
        self._begun = False  # whether the attempt that follows from the journal is open
        self._begin(now)

    # --- what the shell calls ---------------------------------------------------------------------------------------
    def handle(self, event: ev.Event, now: float) -> list[ev.Effect]:
        """What to do about an event; `now` is monotonic, in seconds."""
        effects: list[ev.Effect] = []
        match event:
            case ev.Connected():
                self._say.meet(event)
                effects += self._on_connected(now)
                self._cohort.stirred = True
            case ev.Disconnected():
                self._connected, self._cohort.stirred = False, True
                self._serving.disconnected()
            case ev.Message():
                try:
                    effects += self._on_message(event, now)
                except Untrusted as e:
                    self._intake.dropped(str(e))
                    effects.append(ev.Log("message_dropped", {"topic": event.topic, "reason": str(e)}))
                except DiskError as e:
                    effects.append(ev.Log("disk_failed", {"reason": str(e)}))
            case ev.Tick():
                pass
        effects += self._cohort.alarms
        self._cohort.alarms.clear()
        if self._open and self._admission.due is not None and now >= self._admission.due:
            effects += self._admission.commit(self._open, now)
        due = self._cohort.stirred or (self._look_at is not None and now >= self._look_at)
        if due and (self._disk_retry_at is None or now >= self._disk_retry_at):
            self._disk_retry_at = None
            try:
                self._advance(effects, now)
                self._cohort.stirred = False
                self._look_at = self._next_look()
            except DiskError as e:
                self._disk_retry_at = now + DISK_RETRY_SECONDS
                effects.append(ev.Log("disk_failed", {"reason": str(e)}))
        if self._connected:
            try:
                effects += self._serving.pump(now)
            except DiskError as e:
                effects.append(ev.Log("disk_failed", {"reason": str(e)}))
            effects += self._fresh(effects, now)
            chunk = isinstance(event, ev.Message) and event.topic.startswith(self._uploads)
            if effects or due or not chunk:  # a chunk that changes nothing else is no news
                effects += self._standing.news(self._open, self._goal)
        return effects

    def _fresh(self, effects: list[ev.Effect], now: float) -> list[ev.Effect]:
        """The head signed anew, well before devices hold it for stale; where nothing is retained, the roots beside it."""
        due = now >= self._gathering.sign_at
        fresh = self._head(now, fresh=True) if due else self._gathering.repeat(now)
        said = any(isinstance(e, ev.Publish) and e.topic == self._topics.head for e in (*effects, *fresh))
        roots = self._say.roots() if said and not self._settings.link.retained else []
        return [*roots, *fresh]

    def wake_at(self) -> float | None:
        """When to be called with Tick, or None."""
        look = self._look_at if self._disk_retry_at is None else self._disk_retry_at
        sign = self._gathering.wake_at() if self._connected else None
        return earliest(look, self._admission.due, self._serving.wake_at(), sign)

    def _next_look(self) -> float | None:
        if self._open is None:
            return None
        select = self._cohort.wake_at(self._open) if self._may_select(self._open) else None
        return earliest(select, self._open.deadline_at)

    def will(self) -> tuple[str, bytes]:
        """Topic and payload of the last will."""
        return self._topics.aggregator, msgspec.json.encode(self._standing.status(self._open, self._goal, "offline"))

    @property
    def finished(self) -> bool:
        return self._open is None and self._begun and not self._gathering.missing

    @property
    def step_bytes(self) -> int:
        """Size of what brings a device from the version before to the newest."""
        return self._offer.step_bytes

    @property
    def uploads(self) -> dict[str, Upload]:
        """Uploads under way, by device."""
        return self._admission.uploads.held

    def turned_away(self, reason: str, messages: int = 1) -> None:
        """Counts messages that the shell has dropped by itself."""
        self._intake.dropped(reason, messages)

    @property
    def drops(self) -> dict[str, int]:
        """Messages dropped since this boot, by reason."""
        return dict(self._intake.drops)

    # --- events -----------------------------------------------------------------------------------------------------
    def _on_connected(self, now: float) -> list[ev.Effect]:
        """Everything that should be retained is said again, objects before the head."""
        self._connected = True
        self._standing.forget_shown()
        effects: list[ev.Effect] = [ev.Subscribe([self._topics.every(row) for row in ("birth", "update", "want")])]
        effects.append(ev.Subscribe([self._topics.aggregator, *self._gathering.filters]))
        self._serving.head_said(now)
        return [*effects, *self._retained.again(), *self._head(now)]

    def _on_message(self, message: ev.Message, now: float) -> list[ev.Effect]:
        kind, device = self._topics.parts(message.topic)
        if message.topic == self._topics.aggregator:
            return self._standing.on_status(message.payload)
        if kind == "m":
            return self._retained.on_chunk(message.topic, message.payload)
        if kind == "sig":
            signed = self._gathering.on_signature(device, message.payload)
            self._cohort.stirred |= bool(signed)
            return signed
        if kind not in ("birth", "up", "want"):
            return []
        try:
            key = self._roster(device)
        except Revoked as e:
            self._cohort.part(device)
            if kind != "up":
                raise
            return self._admission.dismiss(device, e, message.payload, now)
        if key is None:
            raise Untrusted(f"device {device[:64]!r} isn't in the roster")
        if kind == "birth":
            return self._on_birth(device, key, message.payload, now)
        if kind == "want":
            self._serving.on_want(device, key, message.payload, now)
            return []
        return self._admission.on_frame(device, key, message.payload, self._open, now)

    def _on_birth(self, name: str, key: PublicKey, raw: bytes, now: float) -> list[ev.Effect]:
        birth = verify_message(key, BIRTH, raw, Birth)
        if (birth.federation, birth.device) != (self._settings.federation, name):
            raise Untrusted(f"birth of {birth.device} of {birth.federation} on {name}'s topic")
        if birth.state == "stale" or (
            birth.state in ("idle", "fetching") and birth.version != self._memory.current.number
        ):
            self._serving.lacks_head(now)  # even if the birth is refused: a clone's mustn't keep a device from the head
        return self._cohort.on_birth(name, birth, raw, self._open, now)

    def _head(self, now: float, *, fresh: bool = False) -> list[ev.Effect]:
        head = self._say.compose(self._memory, self._policy, self._offer.deltas)
        return self._gathering.release(head, self._memory.records(), now, fresh=fresh)

    # --- the round --------------------------------------------------------------------------------------------------
    def _begin(self, now: float) -> None:
        """Opens the next attempt, or takes up the one that the journal holds; removes the payloads of all others.

        An attempt that is taken up keeps the policy under which devices were asked: they are training by it.
        """
        last = max(self._memory.attempts, default=None)
        held = self._memory.attempts[last] if last else None
        if held is None or held.state == "published":
            round_, attempt = (held.round + 1 if held else 1), 1
        elif held.state == "abandoned":
            round_, attempt = held.round, held.attempt + 1
        else:
            round_, attempt = held.round, held.attempt
        asked = held is not None and (held.round, held.attempt) == (round_, attempt) and held.state != "open"
        known = self._memory.configs.get(held.config) if held and asked else None
        self._policy = msgspec.json.decode(known, type=Policy) if known else self._settings.policy
        self._intake.begin(self._policy.codec)
        self._total = Sum(self._policy.codec, self._layout)
        if round_ > self._settings.rounds:
            self._admission.begin(None, self._total, now)
            self._begun = True
            return
        current, config = self._memory.current, self._policy.sha256()
        if not held or (held.round, held.attempt) != (round_, attempt):
            held = Attempt(round_, attempt, "open", current.number, "")
        if held.config != config:
            held = replace(held, config=config)
            policy = msgspec.json.encode(self._policy, order="deterministic").decode()
            self._ledger.commit([Config(config, policy), held])
        opened = Open(
            self._settings.federation, round_, attempt, held.version, current.params, self._policy, config, held.state,
            now,
        )  # fmt: skip
        opened.admit(c for (r, a, _), c in self._memory.contributions.items() if (r, a) == (round_, attempt))
        if held.state == "committing":
            opened.deadline_at = now  # it was closing when we were stopped: it has its members
        elif held.state != "open":
            opened.deadline_at = now + self._settings.deadline
        self._admission.begin(opened, self._total, now)
        self._cohort.begin()
        self._open, self._begun = opened, True

    def _advance(self, effects: list[ev.Effect], now: float) -> None:
        """Selects who can be selected; closes the round when it is time and begins the next. Adds to `effects` as it goes."""
        while True:
            if not self._begun:
                self._begin(now)
                if self._connected:
                    effects += self._head(now, fresh=True)
                    self._serving.head_said(now)
                if self._open is None:
                    effects.append(ev.Finished())
            attempt = self._open
            if attempt is None:
                return
            fleet = self._roster_size()
            goal = self._goal = self._settings.goal or max(1, fleet)
            enough = max(1, math.ceil(self._settings.minimum * goal))
            due = attempt.deadline_at is not None and now >= attempt.deadline_at
            if due:
                effects += self._admission.commit(attempt, now)
            # Nobody is waited for who has said that nothing will come.
            coming = fleet - self._cohort.unable(attempt)
            if len(attempt.members) >= (enough if due else min(goal, max(enough, coming))):
                self._close(attempt, effects, now)
            elif due:
                effects += self._abandon(attempt)
            else:
                effects += self._select(attempt, goal, now) if self._may_select(attempt) else []
                return

    def _is_member(self, name: str) -> bool:
        try:
            return self._roster(name) is not None
        except Revoked:
            return False

    def _may_select(self, attempt: Open) -> bool:
        """Whether devices can be asked: they would refuse what the head that they follow doesn't say."""
        gathering, withdrawn = self._gathering, self._memory.taken_back
        return self._connected and gathering.covers(attempt.params, attempt.config, withdrawn)

    def _select(self, attempt: Open, goal: int, now: float) -> list[ev.Effect]:
        effects = self._cohort.select(attempt, goal, now)
        if self._memory.attempts[attempt.round, attempt.attempt] != attempt.row():
            self._ledger.commit([attempt.row()])  # before anyone is asked
        return effects

    def _close(self, attempt: Open, effects: list[ev.Effect], now: float) -> None:
        try:
            members = self._closing.close(attempt, self._total)
        except MergeError as e:
            note = ev.Log("merge_failed", {"round": attempt.round, "reason": str(e)})
            effects += [note, *self._abandon(attempt)]
            return
        self._open, self._begun = None, False
        gone = self._offer.renew(d.birth.params for d in self._cohort.devices.values() if d.birth.params)
        published = report(
            self._memory.current, attempt.round, attempt.policy, members, now - attempt.began, self.step_bytes, self._say.link.chunk_bytes
        )  # fmt: skip
        effects.append(published)
        effects += self._retained.renewed(gone, connected=self._connected)

    def _abandon(self, attempt: Open) -> list[ev.Effect]:
        self._ledger.commit([attempt.row("abandoned")])
        self._open, self._begun = None, False
        members = len(attempt.members)
        return [ev.Log("round_abandoned", {"round": attempt.round, "attempt": attempt.attempt, "members": members})]
