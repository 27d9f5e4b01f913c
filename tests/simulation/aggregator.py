"""The simulated aggregator: the real Rounds, and a journal that checks every commit against what may follow what was committed.

(tests/invariants.py says what must hold.)
"""

import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from fleetgrad.broker import events
from fleetgrad.broker.attempt import RoundSettings
from fleetgrad.broker.journal import ENDED, Attempt, Boot, Contribution, Memory, Row, Version, Withdrawn
from fleetgrad.broker.rounds import Rounds
from fleetgrad.broker.withdrawing import WithdrawalError, withdraw
from fleetgrad.wire import release
from fleetgrad.wire.files import DiskError
from fleetgrad.wire.frames import HEADER_BYTES
from fleetgrad.wire.membership import Member, Revoked
from fleetgrad.wire.messages import COMMAND, Bitmap, Command, ObjectRef, Policy, Receipt, Select
from fleetgrad.wire.signing import PublicKey, verify_message
from tests import invariants
from tests.invariants import Violation
from tests.simulation.identities import key_of
from tests.simulation.process import Process

if TYPE_CHECKING:
    from tests.simulation.world import World


def object_ref(raw: bytes) -> ObjectRef:
    return ObjectRef(sha256=hashlib.sha256(raw).hexdigest(), size=len(raw))


class CheckedJournal:
    """Implements broker.journal.Journal: rows in memory that outlive every crash, checked as they come."""

    def __init__(self, owner: "Aggregator") -> None:
        self.owner, self.world = owner, owner.world
        self.memory = Memory()
        self.models: list[bytes] = []  # by their versions' numbers

    def load(self, *, recent: bool = False) -> Memory:
        memory = Memory()
        memory.boot = self.memory.boot
        memory.configs = dict(self.memory.configs)
        memory.attempts, memory.contributions = dict(self.memory.attempts), dict(self.memory.contributions)
        memory.versions, memory.withdrawn = list(self.memory.versions), list(self.memory.withdrawn)
        if recent:
            memory.keep()
        return memory

    def attempt(self, round_: int, attempt: int) -> Attempt | None:
        self.owner.saw("attempt looked up")
        return self.memory.attempts.get((round_, attempt))

    def counted(self, round_: int, attempt: int, device: str) -> Contribution | None:
        self.owner.saw("contribution looked up")
        return self.memory.contributions.get((round_, attempt, device))

    def commit(self, rows: list[Row]) -> None:
        self.owner.crash_point("before commit")
        if self.owner.disk.full:
            self.owner.saw("commit refused by a full disk")
            raise DiskError("can't commit: database or disk is full")
        for row in rows:
            self._check(row, rows)
        for row in rows:
            self.memory.apply(row)
            self.owner.note(f"commits {str(row)[:120]}")
            if isinstance(row, Attempt) and row.state == "committing":
                self.owner.provoke(0.5, 16)
        counted = sum(isinstance(row, Contribution) for row in rows)
        if counted:
            self.owner.saw("several updates in one commit" if counted > 1 else "one update in a commit")
        self.owner.crash_point("after commit")

    def _check(self, row: Row, rows: list[Row]) -> None:
        match row:
            case Boot():
                if row.number <= self.memory.boot:
                    raise Violation(f"boot {row.number} after {self.memory.boot}")
            case Attempt():
                self._check_attempt(row)
            case Contribution():
                self._check_contribution(row)
            case Version():
                self._check_version(row, rows)
            case Withdrawn():
                self._check_withdrawn(row, rows)

    @property
    def every(self) -> list[Version]:
        """All versions that ever were."""
        return [*self.memory.versions, *self.memory.withdrawn]

    def _check_attempt(self, row: Attempt) -> None:
        self.owner.saw(f"attempt {row.state}")
        if row.state not in ENDED and row.version not in (v.number for v in self.memory.versions):
            raise Violation(f"I15: attempt {row} trains a version that is withdrawn")
        known = self.memory.attempts.get((row.round, row.attempt))
        if known is not None and known.state != "open" and known.config != row.config:
            raise Violation(f"I7: attempt {row} changes its policy after devices were asked")
        if known is not None and known.config != row.config:
            self.owner.saw("policy changed under an open attempt")
        if known is None and any(a.config != row.config for a in self.memory.attempts.values()):
            self.owner.saw("attempt under another policy")
        if known is not None:
            if known.state in ENDED:
                raise Violation(f"I7: attempt {row} after it ended as {known.state}")
            return
        if (row.round, row.attempt) != (due := invariants.following(self.memory.attempts)):
            raise Violation(f"I7: attempt {row} begins, {due} should")

    def _check_contribution(self, row: Contribution) -> None:
        key = (row.round, row.attempt, row.device)
        if key in self.memory.contributions:
            raise Violation(f"I1: {key} is counted a second time")
        attempt = self.memory.attempts.get((row.round, row.attempt))
        if attempt is not None and attempt.state in ENDED:
            raise Violation(f"I7: {key} is counted in an attempt that is {attempt.state}")
        if key[:2] > self.world.revoked.get(row.device, key[:2]):
            raise Violation(f"I14: {key} is counted, and its device was revoked in {self.world.revoked[row.device]}")
        if row.payload not in self.world.made:
            raise Violation(f"I1: {key} counts a payload that no trainer made")
        stored = self.owner.disk.durable(f"spool/{row.round}-{row.attempt}-{row.device}.update") or b""
        if stored[HEADER_BYTES : HEADER_BYTES + row.size] != self.world.made[row.payload].sealed:
            raise Violation(f"I2: {key} is counted, but its payload isn't durable")

    def _check_version(self, row: Version, rows: list[Row]) -> None:
        raw = self.owner.disk.durable(f"objects/{row.params}")
        invariants.check_whole(f"version {row.number}, durably,", raw, row.params, row.size)
        last = self.memory.versions[-1] if self.memory.versions else None
        invariants.check_link(row, last, len(self.models))
        if self.models:
            closed = [a for a in rows if isinstance(a, Attempt) and a.state == "published"]
            if len(closed) != 1 or closed[0].round != json.loads(row.record)["round"]:
                raise Violation(f"I4: version {row.number} is committed without the end of its round")
            counted = invariants.members(self.memory.contributions, closed[0].round, closed[0].attempt)
            invariants.check_members(row, counted)
            invariants.check_sum(
                row.number,
                self.models[self.memory.current.number],
                raw or b"",
                (self.world.made[c.payload] for c in counted),
            )
        self.models.append(raw or b"")

    def _check_withdrawn(self, row: Withdrawn, rows: list[Row]) -> None:
        """What is taken back is the end of the line, never the first version; and what trains it ends with it."""
        gone = {r.number for r in rows if isinstance(r, Withdrawn)}
        ended = {(r.round, r.attempt) for r in rows if isinstance(r, Attempt) and r.state == "abandoned"}
        if [v.number for v in self.memory.versions][-len(gone) :] != sorted(gone) or row.number == 0:
            raise Violation(f"I4: {sorted(gone)} are withdrawn, and not what came from them")
        if left := [k for k, a in self.memory.attempts.items() if a.state not in ENDED and k not in ended]:
            raise Violation(f"I15: version {row.number} is withdrawn, and {left} goes on")


class Aggregator(Process):
    """The aggregator's process."""

    role = "aggregator"

    def __init__(self, world: "World", plan: bytes, initial: bytes) -> None:
        super().__init__(world, "aggregator", "aggregator")
        self.plan, self.initial = object_ref(plan), object_ref(initial)
        for raw in (plan, initial):
            self.disk.install(f"objects/{object_ref(raw).sha256}", raw)
        scenario = world.scenario
        self.settings = RoundSettings(
            federation=world.federation,
            policy=Policy(codec=scenario.codec),
            rounds=scenario.rounds,
            goal=scenario.goal,
            minimum=scenario.minimum,
            over_selection=scenario.over_selection,
            deadline=scenario.deadline,
            expires=scenario.expires,
            group_seconds=scenario.group_seconds,
            link=scenario.link,
        )
        self.journal = CheckedJournal(self)
        self.accepted: set[tuple[int, int, str, str]] = set()
        self.to_withdraw = False
        self._will: tuple[str, bytes] | None = None

    def make(self) -> Rounds:
        if self.to_withdraw:
            self._withdraw()
        roster, revoked = self.world.roster, self.world.revoked

        def known(name: str) -> PublicKey | None:
            key = key_of(name, roster[name]).public if name in roster else None
            if key is not None and name in revoked:
                raise Revoked(
                    Member(federation=self.world.federation, device=name, key=key.raw.hex(), serial=9, not_after=0, revoked=True)
                )  # fmt: skip
            return key

        attempts = self.journal.memory.attempts
        if attempts:
            self.saw(f"restart in {attempts[max(attempts)].state}")
        before = {k: a.state for k, a in attempts.items() if a.state not in ENDED}
        then = self.world.scenario.then
        if then is not None and self.world.clock.now >= self.world.scenario.switch_at:
            self.settings = replace(self.settings, policy=Policy(codec=then))
        scenario = self.world.scenario
        if self.world.clock.now >= scenario.cut_at:
            self.settings = replace(
                self.settings, link=msgspec.structs.replace(scenario.link, chunk_bytes=scenario.cut)
            )
        machine = Rounds(
            self.settings, self.journal, self.disk, self.world.key, [self.world.seal], known, lambda: len(roster) - len(revoked), self.plan, self.initial,
            self.world.layout, self.random, self.now(), releasing=self.world.releasing,
        )  # fmt: skip
        after = {k: a.state for k, a in self.journal.memory.attempts.items() if a.state not in ENDED}
        if before and before.keys() != after.keys():
            raise Violation(f"I7: a restart went from {before} to {after}")
        if any(u.missing < u.header.nchunks for u in machine.uploads.values()):
            self.saw("upload taken up after a restart")
        self._will = machine.will()
        return machine

    def _withdraw(self) -> None:
        """What the operator does while nothing runs; a crash may fall into it, and it isn't done again."""
        self.to_withdraw = False
        self.provoke(0.3, 3)
        older = [v.number for v in self.journal.memory.versions if self.random.random() < 0.2]
        try:
            done = withdraw(self.journal, self.disk, older[0] if older else None)
        except (WithdrawalError, DiskError) as e:
            self.saw("withdrawal refused")
            self.note(f"withdraws nothing: {e}")
            return
        self.saw("version withdrawn")
        if done.abandoned:
            self.saw("attempt abandoned by a withdrawal")

    def published(self, payload: str) -> bool:
        """Whether an update was counted in a round that was published."""
        memory = self.journal.memory
        return any(
            c.payload == payload and memory.attempts[c.round, c.attempt].state == "published"
            for c in memory.contributions.values()
        )

    @property
    def finished(self) -> bool:
        return isinstance(self.machine, Rounds) and self.machine.finished

    def will(self) -> tuple[str, bytes] | None:
        return self._will

    def execute(self, effect: events.Effect) -> None:
        super().execute(effect)
        match effect:
            case events.Published(round_, version, params):
                self.saw("published")
                if [v.params for v in self.journal.every if v.number == version] != [params]:
                    raise Violation(
                        f"I4: {params} is reported as version {version} of round {round_}, the journal has another"
                    )
            case events.Finished():
                self.saw("finished")

    def watch(self, topic: str, payload: bytes) -> None:
        kind, device = self.world.topics.parts(topic)
        if kind == "head":
            release.read_head(self.world.root, payload)
        if kind == "dl":
            self.saw("chunk served")
        if kind != "cmd":
            return
        command = verify_message(self.world.key.public, COMMAND, payload, Command)
        if isinstance(command, Receipt):
            self.saw(f"receipt {command.verdict} sent")
            if command.verdict == "accepted":
                key = (command.round, command.attempt, device)
                counted = self.journal.memory.contributions.get(key)
                if counted is None or counted.payload != command.payload:
                    raise Violation(f"I2: {key} is acknowledged without being counted")
                self.accepted.add((*key, command.payload))
        elif isinstance(command, Bitmap):
            self.saw("bitmap sent")
            if any(bytes.fromhex(command.received)):
                self.saw("bitmap of a part sent")
        elif isinstance(command, Select):
            self.saw("select sent")
            if device in self.world.revoked:
                raise Violation(f"I14: {device} is asked, and was revoked in {self.world.revoked[device]}")

    def damage(self) -> None:
        """A bit of an upload rots, whether it is under way or counted already."""
        names = [f"spool/{name}" for name in self.disk.names("spool")]
        names = [name for name in names if self.disk.read(name)]
        if names:
            name = self.random.choice(names)
            self.saw("upload damaged")
            self.note(f"disk damages {name}")
            self.disk.flip(name)

    def check_end(self) -> None:
        """I1, I2 and I7 at the end of the run, when no attempt is open."""
        memory = self.journal.memory
        invariants.check_chain(memory.versions, memory.withdrawn)
        invariants.check_attempts(memory.attempts)
        invariants.check_counted_once(memory.contributions)
        invariants.check_acknowledged(self.accepted, memory.attempts, memory.contributions)
