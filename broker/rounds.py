"""Rounds, as a pure state machine: section 5 of wire/SPEC.md.

    open --first select--> selecting --first update--> collecting --goal, or deadline with enough--> committing --> published
                                                            \\-- deadline with too few --> abandoned --> open (attempt + 1)

Time, randomness, the disk, the journal and the roster are passed in. Whatever is promised to a device (a receipt) is in the
journal before; whatever is done between two journal entries can be done again with the same result.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256

import msgspec

from fleetgrad.broker import events as ev
from fleetgrad.broker.announcing import GENESIS, Announcer, object_name, version_record
from fleetgrad.broker.intake import Intake
from fleetgrad.broker.journal import Attempt, Boot, Config, Contribution, Journal, Row, Version
from fleetgrad.broker.merge import merge
from fleetgrad.wire import frames, seeds
from fleetgrad.wire.codecs import CodecError
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.files import DiskError, Files, put
from fleetgrad.wire.messages import (
    BIRTH,
    MAX_WEIGHT_SUM,
    WINDOW,
    AggregatorStatus,
    Birth,
    ObjectRef,
    Policy,
    RoundState,
    Select,
    Verdict,
)
from fleetgrad.wire.signing import SIGNATURE_BYTES, PrivateKey, PublicKey, Untrusted, verify_message
from fleetgrad.wire.topics import Topics

MAX_WINDOWS = 512  # chunks granted to all devices together
SELECT_SECONDS = 2.0  # first repetition of a select; doubles up to the last
MOST_SELECT_SECONDS = 30.0
DISK_RETRY_SECONDS = 2.0  # a round that the disk didn't let close is closed again
SPOOL = "spool"  # folder of the open attempt's payloads
KEPT_VERSIONS = 8  # whose params stay on disk; the last two are also on the broker


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """The policy of a federation's rounds: of those that are yet to be opened. `goal` 0 means every device of the roster; `deadline` in seconds."""

    federation: str
    policy: Policy
    rounds: int
    goal: int = 0
    minimum: float = 0.8
    over_selection: float = 1.3
    deadline: float = 600.0
    shards: int = 1


@dataclass(slots=True)
class Device:
    """What is known of a device since this boot."""

    birth: Birth
    selected: bool = False  # for the current attempt, and not given up since
    answered: bool = False
    select_at: float = 0.0
    patience: float = SELECT_SECONDS
    out: bool = False  # of the current attempt


@dataclass(slots=True)
class Open:
    """The attempt under way."""

    round: int
    attempt: int
    version: int
    state: RoundState
    began: float
    deadline_at: float | None = None
    members: dict[str, Contribution] = field(default_factory=dict)


class Rounds:
    """The aggregator's machine; see the module's diagram."""

    def __init__(
        self,
        settings: RoundSettings,
        journal: Journal,
        files: Files,
        key: PrivateKey,
        roster: Callable[[str], PublicKey | None],
        roster_size: Callable[[], int],
        plan: ObjectRef,
        initial: ObjectRef,
        layout: VectorLayout,
        random: random.Random,
        now: float,
    ) -> None:
        """`plan` and `initial` are objects (files objects/{sha256}); `initial` is version 0 where the journal has none.

        `layout` is the plan's.
        """
        self._settings, self._journal, self._files = settings, journal, files
        self._roster, self._roster_size, self._random = roster, roster_size, random
        self._topics = Topics(settings.federation)
        self._policy, self._config = settings.policy, settings.policy.sha256()  # the open attempt's, from _begin on
        self._say = Announcer(settings.federation, settings.shards, key, files, plan)
        self._memory = journal.load()
        rows: list[Row] = [Boot(self._memory.boot + 1)]
        if not self._memory.versions:
            rows.append(version_record(0, initial, GENESIS, self._config, [], 0))
        self._commit(rows)
        self._layout = layout
        self._intake = Intake(settings.federation, layout, settings.policy.codec)
        self._devices: dict[str, Device] = {}
        self._connected = False
        self._open: Open | None = None
        self._shown = b""
        self._disk_retry_at: float | None = None
        self._begin(now)

    # --- what the shell calls ---------------------------------------------------------------------------------------
    def handle(self, event: ev.Event, now: float) -> list[ev.Effect]:
        """What to do about an event; `now` is monotonic, in seconds."""
        effects: list[ev.Effect] = []
        match event:
            case ev.Connected():
                effects += self._on_connected()
            case ev.Disconnected():
                self._connected = False
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
        if self._disk_retry_at is None or now >= self._disk_retry_at:
            self._disk_retry_at = None
            try:
                effects += self._advance(now)
            except DiskError as e:
                self._disk_retry_at = now + DISK_RETRY_SECONDS
                effects.append(ev.Log("disk_failed", {"reason": str(e)}))
        return effects + self._status()

    def wake_at(self) -> float | None:
        """When to be called with Tick, or None."""
        if self._open is None:
            return None
        if self._disk_retry_at is not None:
            return self._disk_retry_at
        times = [d.select_at for n, d in self._devices.items() if self._connected and self._waits_for(n)]
        if self._open.deadline_at is not None:
            times.append(self._open.deadline_at)
        return min(times, default=None)

    def _waits_for(self, name: str) -> bool:
        """Whether a device's select is to be repeated."""
        device = self._devices[name]
        return device.selected and not device.answered and self._open is not None and name not in self._open.members

    def will(self) -> tuple[str, bytes]:
        """Topic and payload of the last will."""
        return self._topics.aggregator, self._status_bytes("offline")

    @property
    def finished(self) -> bool:
        return self._open is None

    @property
    def drops(self) -> dict[str, int]:
        """Messages dropped since this boot, by reason."""
        return dict(self._intake.drops)

    @property
    def _current(self) -> Version:
        return self._memory.versions[-1]

    # --- events -----------------------------------------------------------------------------------------------------
    def _on_connected(self) -> list[ev.Effect]:
        self._connected = True
        self._shown = b""
        effects: list[ev.Effect] = [ev.Subscribe([self._topics.every("birth"), self._topics.every("update")])]
        return effects + self._say.everything(self._memory, self._policy, KEPT_VERSIONS)

    def _on_message(self, message: ev.Message, now: float) -> list[ev.Effect]:
        kind, device = self._topics.parts(message.topic)
        if kind not in ("birth", "up"):
            return []
        key = self._roster(device)
        if key is None:
            raise Untrusted(f"device {device[:64]!r} isn't in the roster")
        if kind == "birth":
            return self._on_birth(device, key, message.payload)
        header, chunk = self._intake.parse(message.payload, device)
        if header.type == frames.QUERY:
            self._intake.query(header, chunk, key)
            return self._answer(device, header)
        return self._on_chunk(device, key, header, chunk, now)

    def _on_birth(self, name: str, key: PublicKey, raw: bytes) -> list[ev.Effect]:
        birth = verify_message(key, BIRTH, raw, Birth)
        if (birth.federation, birth.device) != (self._settings.federation, name):
            raise Untrusted(f"birth of {birth.device} of {birth.federation} on {name}'s topic")
        device = self._devices.get(name)
        restarted = device is not None and device.birth.boot != birth.boot
        if device and (birth.boot, birth.seq) <= (device.birth.boot, device.birth.seq):
            raise Untrusted(f"birth of {name} is older than its last")
        if device is None:
            device = self._devices[name] = Device(birth)
        device.birth = birth
        if self._open:
            mine = (birth.round, birth.attempt) == (self._open.round, self._open.attempt)
            busy = birth.state in ("training", "uploading")
            if mine and busy:
                device.selected = device.answered = True
            elif mine and name not in self._open.members:
                device.out, device.selected = True, False
                return [ev.Log("device_out", {"device": name, "round": birth.round, "reason": birth.reason})]
            elif device.selected:
                # It has lost the select: a restarted device is asked again at once, another at the next repetition.
                device.answered, device.selected = False, not restarted
        return []

    def _on_chunk(
        self, name: str, key: PublicKey, header: frames.Header, chunk: memoryview, now: float
    ) -> list[ev.Effect]:
        attempt = self._open
        if attempt is None or (header.round, header.attempt) != (attempt.round, attempt.attempt):
            raise Untrusted("chunk of another round than the open one")
        if header.model != bytes.fromhex(self._current.params):
            raise Untrusted("chunk of an update to another model")
        if header.config != bytes.fromhex(self._config):
            raise Untrusted("chunk of an update under another policy")
        if name in attempt.members:
            return []
        if (device := self._devices.get(name)) and device.out:
            raise Untrusted(f"{name} is out of this attempt")
        assembly, new = self._intake.chunk(header, chunk, name, now)
        if assembly.complete:
            return self._accept(name, key, attempt)
        arrived = header.nchunks - assembly.missing
        return (
            [self._say.bitmap(name, header, self._intake.received(name, header.payload_sha256))]
            if new and arrived % (self._window() // 2 or 1) == 0
            else []
        )

    def _accept(self, name: str, key: PublicKey, attempt: Open) -> list[ev.Effect]:
        """Proven, checked, on disk, in the journal, and only then receipted."""
        whole = self._intake.finish(name, key)
        left = MAX_WEIGHT_SUM - sum(c.weight for c in attempt.members.values())
        try:
            info = self._intake.check(whole.payload, self._keys(attempt, name), left)
        except CodecError as e:
            if name in self._devices:
                self._devices[name].out = True
            reason = f"update from {name} refused: {e}"
            note = ev.Log("update_refused", {"device": name, "round": attempt.round, "reason": reason})
            self._intake.dropped("refused after verification")
            return [note, self._say.receipt(name, whole.header, "refused", reason)]
        put(self._files, self._spool(attempt.round, attempt.attempt, name), whole.payload)
        row = Contribution(
            attempt.round, attempt.attempt, name, whole.header.payload_sha256.hex(), len(whole.payload), info.weight,
            info.steps, info.loss, info.rate,
        )  # fmt: skip
        rows: list[Row] = [row]
        if attempt.state != "collecting":
            attempt.state = "collecting"
            rows.append(self._row(attempt))
        self._commit(rows)
        attempt.members[name] = row
        fields = {
            "device": name,
            "round": attempt.round,
            "bytes": row.size,
            "bits": round(row.rate, 4),
            "weight": row.weight,
        }
        return [self._say.receipt(name, whole.header, "accepted"), ev.Log("update_accepted", fields)]

    def _answer(self, name: str, header: frames.Header) -> list[ev.Effect]:
        """What a device that asks is told: the receipt if there is one, else what has arrived."""
        payload = header.payload_sha256.hex()
        counted = self._memory.contributions.get((header.round, header.attempt, name))
        attempt = self._open
        if counted:
            verdict: Verdict = "accepted" if counted.payload == payload else "duplicate"
            return [
                self._say.receipt(name, header, verdict, "" if verdict == "accepted" else "another update was counted")
            ]
        if attempt is None or (header.round, header.attempt) != (attempt.round, attempt.attempt):
            known = self._memory.attempts.get((header.round, header.attempt))
            older = known is not None and known.state == "abandoned"
            if older:
                return [self._say.receipt(name, header, "stale", f"attempt {header.attempt} was abandoned")]
            if known is None:
                return [self._say.receipt(name, header, "refused", f"round {header.round} was never opened")]
            return [self._say.receipt(name, header, "late", f"round {header.round} is closed")]
        if header.model != bytes.fromhex(self._current.params):
            return [self._say.receipt(name, header, "stale", "update to another model than this round's")]
        if header.config != bytes.fromhex(self._config):
            return [self._say.receipt(name, header, "refused", "update under another policy than this round's")]
        if (device := self._devices.get(name)) and device.out:
            return [self._say.receipt(name, header, "refused", "the device is out of this attempt")]
        return [self._say.bitmap(name, header, self._intake.received(name, header.payload_sha256))]

    # --- the round --------------------------------------------------------------------------------------------------
    def _begin(self, now: float) -> None:
        """Opens the next attempt, or takes up the one that the journal holds; removes the payloads of all others.

        An attempt that is taken up keeps the policy under which devices were asked: they are training by it.
        """
        for device in self._devices.values():
            device.selected = device.answered = device.out = False
        last = max(self._memory.attempts, default=None)
        held = self._memory.attempts[last] if last else None
        if held is None or held.state == "published":
            round_, attempt = (held.round + 1 if held else 1), 1
        elif held.state == "abandoned":
            round_, attempt = held.round, held.attempt + 1
        else:
            round_, attempt = held.round, held.attempt
        mine = f"{round_}-{attempt}-"
        for name in self._files.names(SPOOL):
            if not name.startswith(mine):
                self._files.unlink(f"{SPOOL}/{name}")
        asked = held is not None and (held.round, held.attempt) == (round_, attempt) and held.state != "open"
        known = self._memory.configs.get(held.config) if held and asked else None
        self._use(msgspec.json.decode(known, type=Policy) if known else self._settings.policy)
        if round_ > self._settings.rounds:
            self._open = None
            return
        if not held or (held.round, held.attempt) != (round_, attempt):
            held = Attempt(round_, attempt, "open", self._current.number, "")
        if held.config != self._config:
            held = replace(held, config=self._config)
            policy = msgspec.json.encode(self._policy, order="deterministic").decode()
            self._commit([Config(self._config, policy), held])
        members = {c.device: c for (r, a, _), c in self._memory.contributions.items() if (r, a) == (round_, attempt)}
        self._open = Open(round_, attempt, held.version, held.state, now, members=members)
        if held.state == "committing":
            self._open.deadline_at = now  # it was closing when we were stopped: it has its members
        elif held.state != "open":
            self._open.deadline_at = now + self._settings.deadline

    def _goal(self) -> int:
        return self._settings.goal or max(1, self._roster_size())

    def _advance(self, now: float) -> list[ev.Effect]:
        """Selects who can be selected; closes the round when it is time."""
        effects: list[ev.Effect] = []
        attempt = self._open
        if attempt is None:
            return effects
        goal = self._goal()
        enough = max(1, math.ceil(self._settings.minimum * goal))
        due = attempt.deadline_at is not None and now >= attempt.deadline_at
        # Nobody is waited for who has said that nothing will come.
        unable = sum(d.out or d.birth.state == "refused" for n, d in self._devices.items() if n not in attempt.members)
        complete = len(attempt.members) >= min(goal, max(enough, self._roster_size() - unable))
        if complete or (due and len(attempt.members) >= enough):
            effects += self._close(attempt, now)
            return effects + self._advance(now)
        if due:
            effects += self._abandon(attempt, now)
            return effects + self._advance(now)
        return effects + self._select(attempt, goal, now)

    def _select(self, attempt: Open, goal: int, now: float) -> list[ev.Effect]:
        if not self._connected:
            return []
        effects: list[ev.Effect] = []
        under_way = [d for n, d in self._devices.items() if d.selected and n not in attempt.members]
        invites = math.ceil(goal * self._settings.over_selection) - len(attempt.members) - len(under_way)
        ready = [
            name
            for name, d in sorted(self._devices.items())
            if not d.selected
            and not d.out
            and name not in attempt.members
            and d.birth.state == "idle"
            and d.birth.params == self._current.params
        ]
        if len(ready) > max(0, invites):
            ready = self._random.sample(ready, max(0, invites))
        for name in ready[: max(0, MAX_WINDOWS - len(under_way))]:
            device = self._devices[name]
            device.selected, device.answered = True, False
            device.select_at, device.patience = now, SELECT_SECONDS
        rows: list[Row] = []
        for name, device in sorted(self._devices.items()):
            if not self._waits_for(name) or now < device.select_at:
                continue
            if attempt.deadline_at is None:
                attempt.deadline_at = now + self._settings.deadline
                attempt.state = "selecting"
                rows = [self._row(attempt)]
            device.select_at = now + device.patience * self._random.uniform(0.75, 1.25)
            device.patience = min(MOST_SELECT_SECONDS, device.patience * 2)
            select = Select(
                federation=self._settings.federation,
                device=name,
                round=attempt.round,
                attempt=attempt.attempt,
                version=self._current.number,
                params=self._current.params,
                config=self._config,
                window=self._window(),
                deadline=min(self._settings.deadline, max(0.0, attempt.deadline_at - now)),
            )
            effects.append(self._say.command(name, select))
        if rows:
            self._commit(rows)
        return effects

    def _window(self) -> int:
        return max(1, min(WINDOW, MAX_WINDOWS // max(1, len(self._devices))))

    def _close(self, attempt: Open, now: float) -> list[ev.Effect]:
        """Merges and publishes. Until the last commit, a crash anywhere leaves a round that closes again, the same."""
        if attempt.state != "committing":
            attempt.state = "committing"
            self._commit([self._row(attempt)])
        members = sorted(attempt.members)
        payloads = ((n, self._files.read(self._spool(attempt.round, attempt.attempt, n))) for n in members)
        params = merge(
            self._files.read(object_name(self._current.params)), payloads, self._policy.codec, self._layout,
            lambda device: self._keys(attempt, device),
        )  # fmt: skip
        ref = ObjectRef(sha256=sha256(params).hexdigest(), size=len(params))
        put(self._files, object_name(ref.sha256), params)
        contributions = [attempt.members[n] for n in members]
        version = version_record(
            self._current.number + 1, ref, self._current.sha256, self._config, contributions, attempt.round
        )
        self._commit([version, self._row(attempt, "published")])
        for old in self._memory.versions[:-KEPT_VERSIONS][-1:]:
            if old.params not in (v.params for v in self._memory.versions[-KEPT_VERSIONS:]):
                self._files.unlink(object_name(old.params))
        weight = sum(c.weight for c in contributions)
        down = frames.wire_bytes(ref.size) * len(members)
        effects: list[ev.Effect] = [
            ev.Published(
                attempt.round, version.number, ref.sha256, len(members),
                sum(c.loss * c.weight for c in contributions) / weight,
                sum(frames.wire_bytes(c.size + SIGNATURE_BYTES) for c in contributions), down, now - attempt.began,
                str(self._policy.codec), sum(c.rate for c in contributions) / len(contributions),
            )
        ]  # fmt: skip
        self._begin(now)
        if self._connected:
            effects += self._say.chunks(ref)
            effects.append(self._say.head(self._memory, self._policy))
            for old in self._memory.versions[-3:-2]:
                effects += self._say.clear(old, self._memory)
        if self._open is None:
            effects.append(ev.Finished())
        return effects

    def _abandon(self, attempt: Open, now: float) -> list[ev.Effect]:
        self._commit([self._row(attempt, "abandoned")])
        fields: dict[str, object] = {
            "round": attempt.round,
            "attempt": attempt.attempt,
            "members": len(attempt.members),
        }
        self._begin(now)
        return [
            ev.Log("round_abandoned", fields),
            *([self._say.head(self._memory, self._policy)] if self._connected else []),
        ]

    # --- durable ----------------------------------------------------------------------------------------------------
    def _commit(self, rows: list[Row]) -> None:
        self._journal.commit(rows)
        for row in rows:
            self._memory.apply(row)

    def _row(self, attempt: Open, state: RoundState | None = None) -> Attempt:
        """The attempt as it is now, or in another state."""
        return Attempt(attempt.round, attempt.attempt, state or attempt.state, attempt.version, self._config)

    def _use(self, policy: Policy) -> None:
        """Judges updates by this policy from here on."""
        self._policy, self._config = policy, policy.sha256()
        self._intake.begin(policy.codec)

    def _keys(self, attempt: Open, device: str) -> seeds.Keys:
        return seeds.codec_keys(self._settings.federation, device, attempt.round, attempt.attempt)

    @staticmethod
    def _spool(round_: int, attempt: int, device: str) -> str:
        return f"{SPOOL}/{round_}-{attempt}-{device}.payload"

    # --- status ------------------------------------------------------------------------------------------------------
    def _status_bytes(self, state: RoundState | None = None) -> bytes:
        attempt = self._open
        status = AggregatorStatus(
            state=state or (attempt.state if attempt else "finished"),
            federation=self._settings.federation,
            boot=self._memory.boot,
            version=self._current.number,
            round=attempt.round if attempt else None,
            attempt=attempt.attempt if attempt else None,
            members=len(self._devices),
            received=len(attempt.members) if attempt else 0,
            goal=self._goal(),
            rounds=self._settings.rounds,
        )
        return msgspec.json.encode(status)

    def _status(self) -> list[ev.Effect]:
        if not self._connected:
            return []
        raw = self._status_bytes()
        if raw == self._shown:
            return []
        self._shown = raw
        return [ev.Publish(self._topics.aggregator, raw, retained=True)]
