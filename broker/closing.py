"""The end of a round: its members' payloads become the next version, durably, and only then is it anyone's to see."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

from fleetgrad.broker import events as ev
from fleetgrad.broker.announcing import object_name, version_record
from fleetgrad.broker.attempt import Open
from fleetgrad.broker.journal import Contribution, Ledger, Version
from fleetgrad.broker.merge import MergeError, Sum, complete
from fleetgrad.broker.uploads import stored_payload
from fleetgrad.wire import frames
from fleetgrad.wire.files import DiskError, Files, put
from fleetgrad.wire.messages import ObjectRef, Policy
from fleetgrad.wire.seal import SealError, SealKey, open_with
from fleetgrad.wire.signing import SIGNATURE_BYTES

KEPT_VERSIONS = 8  # whose params stay on disk; the last two are also on the broker


def report(
    version: Version, round_: int, policy: Policy | None, members: list[Contribution], seconds: float | None, step_bytes: int,
    chunk_bytes: int,
) -> ev.Published:  # fmt: skip
    """What there is to say of the round that made `version`, to which an object of `step_bytes` brings each member; bytes as they travel
    in chunks of this length."""
    weight = sum(c.weight for c in members)
    up = sum(frames.wire_bytes(c.size + SIGNATURE_BYTES, chunk_bytes) for c in members)
    down = frames.wire_bytes(step_bytes, chunk_bytes) * len(members)
    return ev.Published(
        round_, version.number, version.params, len(members), sum(c.loss * c.weight for c in members) / weight, up, down,
        seconds, str(policy.codec) if policy else "", sum(c.rate for c in members) / len(members),
    )  # fmt: skip


@dataclass(slots=True)
class Closing:
    """Merges and commits. Until the last commit, a crash anywhere leaves a round that closes again, the same."""

    ledger: Ledger
    files: Files
    seals: Sequence[SealKey]

    def close(self, attempt: Open, total: Sum) -> list[Contribution]:
        """Makes the new version, of these members' updates; raises MergeError where an update can't be read any more, DiskError.

        `total` may lack members: those that were counted before the aggregator was started.
        """
        memory = self.ledger.memory
        if attempt.state != "committing":
            attempt.state = "committing"
            self.ledger.commit([attempt.row()])
        members = sorted(attempt.members)
        if not total.devices <= attempt.members.keys():
            total.clear()  # of updates that a failing disk has kept out
        complete(total, self._stored(attempt, [n for n in members if n not in total.devices]), attempt.keys)
        params = total.apply(self._base(attempt))
        ref = ObjectRef(sha256=sha256(params).hexdigest(), size=len(params))
        put(self.files, object_name(ref.sha256), params)
        counted = [attempt.members[n] for n in members]
        parent = memory.versions[-1]
        version = version_record(memory.highest + 1, ref, parent.sha256, attempt.config, counted, attempt.round)
        self.ledger.commit([version, attempt.row("published")])
        for old in memory.versions[:-KEPT_VERSIONS][-1:]:
            if old.params not in (v.params for v in memory.versions[-KEPT_VERSIONS:]):
                self.files.unlink(object_name(old.params))
        return counted

    def _base(self, attempt: Open) -> bytes:
        """The params that the attempt trains; raises DiskError where they aren't those of their name any more.

        No attempt could be closed then, so the updates are kept for when the file is put back.
        """
        try:
            raw = self.files.read(object_name(attempt.params))
        except FileNotFoundError:
            raw = b""
        if sha256(raw).hexdigest() != attempt.params:
            raise DiskError(
                f"params of version {attempt.version} have changed on disk: put {object_name(attempt.params)} back, or no model can follow"
            )
        return raw

    def _stored(self, attempt: Open, devices: list[str]) -> Iterator[tuple[str, bytes]]:
        """Payloads of members, one in memory at a time."""
        for device in devices:
            try:
                header, sealed = stored_payload(self.files, attempt.file_of(device))
            except (FileNotFoundError, ValueError) as e:
                raise MergeError(f"update of {device} can't be read: {e}") from e
            if sha256(sealed).hexdigest() != attempt.members[device].payload:
                raise MergeError(f"update of {device} has changed on disk: its SHA-256 isn't the one that was accepted")
            try:
                payload = open_with(self.seals, sealed, header.sealed_with())
            except SealError as e:
                raise MergeError(f"update of {device} can't be opened: {e}") from e
            yield device, payload
