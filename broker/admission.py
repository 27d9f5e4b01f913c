"""What becomes of an update: its chunks taken, then with others proven, added, stored and counted; and what a device that asks is told.

    chunks --whole--> in the group --commit: hash, signature, opened, decoded and added, files synced, one transaction--> counted --> receipt

A group is of up to GROUP updates, and waits 50 ms at most, if anyone else is uploading at all. Meanwhile its files are synced, and the
first AT_ONCE proven, beside the thread that takes chunks. A receipt is given for what is in the journal, and for nothing else.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from fleetgrad.broker import events as ev
from fleetgrad.broker.announcing import Announcer
from fleetgrad.broker.attempt import SPOOL, Open
from fleetgrad.broker.cohort import Cohort
from fleetgrad.broker.intake import Intake
from fleetgrad.broker.journal import Contribution, Ledger, Row
from fleetgrad.broker.merge import Sum
from fleetgrad.broker.uploads import NoRoom, Upload, Uploads
from fleetgrad.wire import frames
from fleetgrad.wire.codecs import CodecError
from fleetgrad.wire.files import DiskError, Files
from fleetgrad.wire.membership import Revoked
from fleetgrad.wire.messages import MAX_WEIGHT_SUM, REVOKED, RetryAfter, Verdict
from fleetgrad.wire.pace import Pace, Parallel
from fleetgrad.wire.seal import SealError
from fleetgrad.wire.signing import SIGNATURE_BYTES, PublicKey, Untrusted

GROUP = 64
AT_ONCE = 8  # bodies in memory
DISK_RETRY_SECONDS = 2.0  # after a commit that the disk refused
# What a device may do that brings nothing new, in an attempt: a repeated chunk or a question costs 1, a body begun anew RESTART.
IDLE_RATE, IDLE_BURST, RESTART = 20.0, 256.0, 32.0
RETRY_SECONDS = (5.0, 30.0)  # of a device that there is no room for
HUSH_SECONDS = 1.0  # between two retry-afters to one device

Proof = bytes | Untrusted | SealError  # the payload as its device made it, or what is wrong with the upload


@dataclass(slots=True)
class Admission:
    """Lets updates into the open attempt, whose sum is `total`."""

    federation: str
    ledger: Ledger
    files: Files
    say: Announcer
    cohort: Cohort
    intake: Intake
    uploads: Uploads
    total: Sum
    parallel: Parallel
    group_seconds: float
    verdicts: Counter[Verdict] = field(default_factory=Counter)  # of receipts, since this boot
    due: float | None = None  # when the group is to be committed
    _group: dict[str, tuple[Upload, PublicKey]] = field(default_factory=dict)
    _proofs: dict[str, Iterator[Proof]] = field(default_factory=dict)  # one of each that has been begun
    _syncs: dict[str, Iterator[None]] = field(default_factory=dict)
    _judged: dict[str, Contribution] = field(default_factory=dict)  # those of the group that are in the sum
    _pace: dict[str, Pace] = field(default_factory=dict)
    _hushed: dict[str, float] = field(default_factory=dict)

    def begin(self, attempt: Open | None, total: Sum, now: float) -> None:
        """Another attempt begins, or after a start goes on."""
        self.total, self.due = total, None
        self._forget_group()
        self._pace, self._hushed = {}, {}
        self.uploads.begin(attempt, self.intake.most_bytes, now)

    @property
    def turned_away(self) -> dict[str, int]:
        """Since this boot: messages that were dropped, and updates that weren't accepted, by verdict."""
        counts: dict[str, int] = {"dropped": sum(self.intake.drops.values())}
        counts.update({verdict: count for verdict, count in self.verdicts.items() if verdict != "accepted"})
        return {kind: count for kind, count in sorted(counts.items()) if count}

    def on_frame(self, name: str, key: PublicKey, raw: bytes, attempt: Open | None, now: float) -> list[ev.Effect]:
        """A frame on a device's topic; raises Untrusted."""
        header, chunk = self.intake.parse(raw, name)
        if header.type == frames.QUERY:
            if not self._may(name, 1, now):
                return self._hush(name, now)
            self.intake.query(header, chunk, key)
            return self._answer(name, key, header, attempt, now)
        return self._on_chunk(name, key, header, chunk, attempt, now)

    def dismiss(self, name: str, revoked: Revoked, raw: bytes, now: float) -> list[ev.Effect]:
        """Answers the question of a device that is no member any more, so that it stops; raises `revoked` for all else that it sends."""
        header, chunk = self.intake.parse(raw, name)
        if header.type != frames.QUERY or not self._may(name, 1, now):
            raise revoked
        self.intake.query(header, chunk, revoked.key)
        self.verdicts["refused"] += 1
        return [
            self.say.receipt(name, header, "refused", REVOKED),
            ev.Log("dismissed", {"device": name, "reason": str(revoked)}),
        ]

    def _on_chunk(
        self, name: str, key: PublicKey, header: frames.Header, chunk: memoryview, attempt: Open | None, now: float
    ) -> list[ev.Effect]:
        if attempt is None or not attempt.has(header):
            raise Untrusted("chunk of another round than the open one")
        if wrong := attempt.mismatch(header):
            raise Untrusted(f"chunk of an update {wrong}")
        if name in attempt.members or name in self._group:
            return []
        if self.cohort.is_out(name):
            raise Untrusted(f"{name} is out of this attempt")
        held = self.uploads.get(name)
        if held is not None and not held.takes(header) and not self._may(name, RESTART, now):
            return self._hush(name, now)
        try:
            upload, new = self.uploads.take(attempt, name, header, chunk, now)
        except NoRoom as e:
            self.intake.dropped("no room for another upload")
            return [*self._hush(name, now), ev.Log("upload_put_off", {"device": name, "reason": str(e)})]
        if upload.complete:
            return self._gather(name, key, upload, attempt, now)
        if not new:
            return [] if self._may(name, 1, now) else self._hush(name, now)
        arrived = header.nchunks - upload.missing
        return [self._bitmap(name, header)] if arrived % (self.cohort.window() // 2 or 1) == 0 else []

    def _gather(self, name: str, key: PublicKey, upload: Upload, attempt: Open, now: float) -> list[ev.Effect]:
        """A whole body waits for others, if there are any."""
        self._group[name] = upload, key
        self._syncs[name] = iter(self.parallel(self.files.fsync, [upload.name]))
        if len(self._proofs) < AT_ONCE:
            self._begin_proof(name)
        if self.due is None:
            self.due = now + self.group_seconds
        full = len(self._group) >= GROUP or self.uploads.only(len(self._group))
        return self.commit(attempt, now) if full else []

    def commit(self, attempt: Open, now: float) -> list[ev.Effect]:
        """Judges the group, makes what is good durable, and only then says so."""
        effects: list[ev.Effect] = []
        try:
            while waiting := [name for name in self._group if name not in self._judged][:AT_ONCE]:
                for name in waiting:
                    self._begin_proof(name)
                for name in waiting:
                    effects += self._judge(name, next(self._proofs.pop(name)), attempt)
            if self._judged:
                effects += self._count(attempt)
        except DiskError as e:
            self.due = now + DISK_RETRY_SECONDS
            return [*effects, ev.Log("disk_failed", {"reason": str(e)})]
        self._forget_group()
        self.due = None
        return effects

    def _forget_group(self) -> None:
        self._group, self._proofs, self._syncs, self._judged = {}, {}, {}, {}

    def _begin_proof(self, name: str) -> None:
        if name not in self._proofs:
            self._proofs[name] = iter(self.parallel(self._prove, [name]))

    def _prove(self, name: str) -> Proof:
        upload, key = self._group[name]
        try:
            return self.intake.open(upload.header, self.intake.prove(upload.header, self.uploads.body(upload), key))
        except (Untrusted, SealError) as e:
            return e
        except FileNotFoundError:
            return Untrusted(f"update whose file {upload.name} was removed")

    def _judge(self, name: str, payload: Proof, attempt: Open) -> list[ev.Effect]:
        """Decodes and adds a proven payload; what isn't proven, doesn't open or doesn't decode is forgotten."""
        header = self._group[name][0].header
        reason = f"update from {name} refused: {payload}" if isinstance(payload, SealError) else ""
        if isinstance(payload, bytes):
            left = MAX_WEIGHT_SUM - attempt.weight - sum(row.weight for row in self._judged.values())
            try:
                info = self.total.add(name, payload, attempt.keys(name), left)
            except CodecError as e:
                reason = f"update from {name} refused: {e}"
            else:
                self._judged[name] = Contribution(
                    attempt.round, attempt.attempt, name, header.payload_sha256.hex(),
                    header.total_len - SIGNATURE_BYTES, info.weight, info.steps,
                    info.loss, info.rate,
                )  # fmt: skip
                return []
        self._drop(name)
        if isinstance(payload, Untrusted):
            self.intake.dropped(str(payload))
            return [ev.Log("message_dropped", {"device": name, "reason": str(payload)})]
        self.cohort.put_out(name)
        self.verdicts["refused"] += 1
        note = ev.Log("update_refused", {"device": name, "round": attempt.round, "reason": reason})
        return [note, self.say.receipt(name, header, "refused", reason)]

    def _count(self, attempt: Open) -> list[ev.Effect]:
        """The judged updates become durable, then members; raises DiskError."""
        try:
            for name in self._judged:
                list(self._syncs[name])
        except (DiskError, FileNotFoundError) as e:
            # What a failed sync has left of the files is anyone's guess: the devices send them again.
            names = list(self._judged)
            self._judged = {}
            self.total.clear()
            for name in names:
                self._drop(name)
            raise e if isinstance(e, DiskError) else DiskError(f"an upload's file was removed: {e}") from e
        self.files.fsync_directory(SPOOL)
        rows: list[Row] = [*self._judged.values()]
        if attempt.state != "collecting":
            rows.append(attempt.row("collecting"))
        self.ledger.commit(rows)
        attempt.state = "collecting"
        attempt.admit(self._judged.values())
        self.cohort.stirred = True
        effects: list[ev.Effect] = []
        for name, row in self._judged.items():
            fields: dict[str, object] = {
                "device": name,
                "round": attempt.round,
                "bytes": row.size,
                "bits": round(row.rate, 4),
                "weight": row.weight,
            }
            receipt = self.say.receipt(name, self._group[name][0].header, "accepted")
            effects += [receipt, ev.Log("update_accepted", fields)]
            self.uploads.settle(name)
        return effects

    def _drop(self, name: str) -> None:
        """The device will have to send it again, if at all."""
        del self._group[name], self._syncs[name]
        self.uploads.forget(name)

    def _may(self, name: str, cost: float, now: float) -> bool:
        return self._pace.setdefault(name, Pace(IDLE_RATE, IDLE_BURST)).take(cost, now)

    def _hush(self, name: str, now: float) -> list[ev.Effect]:
        """Tells a device to come later, though not at each of its messages."""
        self.intake.dropped("device over its allowance")
        if now < self._hushed.get(name, now):
            return []
        self._hushed[name] = now + HUSH_SECONDS
        least, most = RETRY_SECONDS
        return [self.say.command(name, RetryAfter(federation=self.federation, device=name, least=least, most=most))]

    def _answer(
        self, name: str, key: PublicKey, header: frames.Header, attempt: Open | None, now: float
    ) -> list[ev.Effect]:
        """What a device that asks is told: the receipt if there is one, else what has arrived."""
        if verdict := self._verdict(name, header, attempt):
            self.verdicts[verdict[0]] += 1
            return [self.say.receipt(name, header, *verdict)]
        upload = self.uploads.get(name)
        if attempt and upload and upload.complete and name not in self._group:
            # It was whole when the aggregator was stopped, or couldn't be read when its last chunk came.
            return self._gather(name, key, upload, attempt, now)
        return [self._bitmap(name, header)]

    def _bitmap(self, name: str, header: frames.Header) -> ev.Effect:
        return self.say.bitmap(name, header, self.uploads.received(name, header))

    def _verdict(self, name: str, header: frames.Header, attempt: Open | None) -> tuple[Verdict, str] | None:
        """The last word on an update and its reason; None while there is none."""
        counted = self.ledger.counted(header.round, header.attempt, name)
        if counted:
            same = counted.payload == header.payload_sha256.hex()
            return ("accepted", "") if same else ("duplicate", "another update was counted")
        if attempt is None or not attempt.has(header):
            known = self.ledger.attempt(header.round, header.attempt)
            if known is None:
                return "refused", f"round {header.round} was never opened"
            if known.state == "abandoned":
                return "stale", f"attempt {header.attempt} was abandoned"
            return "late", f"round {header.round} is closed"
        if wrong := attempt.mismatch(header):
            return "stale" if "model" in wrong else "refused", f"update {wrong} than this round's"
        if self.cohort.is_out(name):
            return "refused", "the device is out of this attempt"
        return None
