"""What becomes of an update: its chunks taken, the whole proven, checked, stored, counted and receipted; and what a device that asks is told.

A receipt is given for what is in the journal, and for nothing else.
"""

from dataclasses import dataclass

from fleetgrad.broker import events as ev
from fleetgrad.broker.announcing import Announcer
from fleetgrad.broker.attempt import Open
from fleetgrad.broker.cohort import Cohort
from fleetgrad.broker.intake import Intake
from fleetgrad.broker.journal import Contribution, Ledger, Row
from fleetgrad.wire import frames
from fleetgrad.wire.codecs import CodecError
from fleetgrad.wire.files import Files, put
from fleetgrad.wire.messages import MAX_WEIGHT_SUM, Verdict
from fleetgrad.wire.seal import SealError
from fleetgrad.wire.signing import PublicKey, Untrusted


@dataclass(slots=True)
class Admission:
    """Lets updates into the open attempt."""

    ledger: Ledger
    files: Files
    say: Announcer
    cohort: Cohort
    intake: Intake

    def on_frame(self, name: str, key: PublicKey, raw: bytes, attempt: Open | None, now: float) -> list[ev.Effect]:
        """A frame on a device's topic; raises Untrusted."""
        header, chunk = self.intake.parse(raw, name)
        if header.type == frames.QUERY:
            self.intake.query(header, chunk, key)
            return self._answer(name, header, attempt)
        return self._on_chunk(name, key, header, chunk, attempt, now)

    def _on_chunk(
        self, name: str, key: PublicKey, header: frames.Header, chunk: memoryview, attempt: Open | None, now: float
    ) -> list[ev.Effect]:
        if attempt is None or not attempt.has(header):
            raise Untrusted("chunk of another round than the open one")
        if header.model != bytes.fromhex(attempt.params):
            raise Untrusted("chunk of an update to another model")
        if header.config != bytes.fromhex(attempt.config):
            raise Untrusted("chunk of an update under another policy")
        if name in attempt.members:
            return []
        if self.cohort.is_out(name):
            raise Untrusted(f"{name} is out of this attempt")
        assembly, new = self.intake.chunk(header, chunk, name, now)
        if assembly.complete:
            return self._accept(name, key, attempt)
        arrived = header.nchunks - assembly.missing
        return (
            [self.say.bitmap(name, header, self.intake.received(name, header.payload_sha256))]
            if new and arrived % (self.cohort.window() // 2 or 1) == 0
            else []
        )

    def _accept(self, name: str, key: PublicKey, attempt: Open) -> list[ev.Effect]:
        """Proven, checked, on disk, in the journal, and only then receipted."""
        whole = self.intake.finish(name, key)
        left = MAX_WEIGHT_SUM - sum(c.weight for c in attempt.members.values())
        try:
            info = self.intake.check(self.intake.open(whole), attempt.keys(name), left)
        except (CodecError, SealError) as e:
            self.cohort.put_out(name)
            reason = f"update from {name} refused: {e}"
            note = ev.Log("update_refused", {"device": name, "round": attempt.round, "reason": reason})
            self.intake.dropped("refused after verification")
            return [note, self.say.receipt(name, whole.header, "refused", reason)]
        put(self.files, attempt.payload_name(name), whole.payload)
        row = Contribution(
            attempt.round, attempt.attempt, name, whole.header.payload_sha256.hex(), len(whole.payload), info.weight,
            info.steps, info.loss, info.rate,
        )  # fmt: skip
        rows: list[Row] = [row]
        if attempt.state != "collecting":
            attempt.state = "collecting"
            rows.append(attempt.row())
        self.ledger.commit(rows)
        attempt.members[name] = row
        fields = {
            "device": name,
            "round": attempt.round,
            "bytes": row.size,
            "bits": round(row.rate, 4),
            "weight": row.weight,
        }
        return [self.say.receipt(name, whole.header, "accepted"), ev.Log("update_accepted", fields)]

    def _answer(self, name: str, header: frames.Header, attempt: Open | None) -> list[ev.Effect]:
        """What a device that asks is told: the receipt if there is one, else what has arrived."""
        verdict = self._verdict(name, header, attempt)
        if verdict:
            return [self.say.receipt(name, header, *verdict)]
        return [self.say.bitmap(name, header, self.intake.received(name, header.payload_sha256))]

    def _verdict(self, name: str, header: frames.Header, attempt: Open | None) -> tuple[Verdict, str] | None:
        """The last word on an update and its reason; None while there is none."""
        memory = self.ledger.memory
        counted = memory.contributions.get((header.round, header.attempt, name))
        if counted:
            same = counted.payload == header.payload_sha256.hex()
            return ("accepted", "") if same else ("duplicate", "another update was counted")
        if attempt is None or not attempt.has(header):
            known = memory.attempts.get((header.round, header.attempt))
            if known is None:
                return "refused", f"round {header.round} was never opened"
            if known.state == "abandoned":
                return "stale", f"attempt {header.attempt} was abandoned"
            return "late", f"round {header.round} is closed"
        if header.model != bytes.fromhex(attempt.params):
            return "stale", "update to another model than this round's"
        if header.config != bytes.fromhex(attempt.config):
            return "refused", "update under another policy than this round's"
        if self.cohort.is_out(name):
            return "refused", "the device is out of this attempt"
        return None
