"""Heads that keys on other machines must sign as well: the head to be is shown to them, and published when enough have signed.

    compose --keys at hand suffice--> head
       \\-- they don't --> candidate, said again until --as many signatures as lack--> head
                              \\-- something changes, or it is time for a new sequence --> the next candidate

The head before stays the federation's meanwhile. It is on disk, so that it is known after a restart as well, and rounds that it
covers go on.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from fleetgrad.broker import events as ev
from fleetgrad.broker.releasing import Releasing
from fleetgrad.wire import release
from fleetgrad.wire.files import Files, put
from fleetgrad.wire.messages import CANDIDATE, HEAD, Candidate, Head
from fleetgrad.wire.signing import (
    PrivateKey,
    Untrusted,
    combine,
    payload_of,
    sign_by,
    sign_message,
    sign_payload,
    verify_message,
)
from fleetgrad.wire.topics import Topics

LAST = "head.jws"  # the last head that was published, where others sign
REPEAT_SECONDS = 30.0  # between two times that a candidate is said
SIGNED_AN_EXPIRY = 4  # times that a head is signed anew within what makes it stale
RECORDS = 8  # of versions that a candidate shows, at most: a co-signer that is further behind hears the last head first


@dataclass(slots=True)
class Proposal:
    """A head that isn't signed by enough; `signatures` by key id, each a whole message."""

    head: Head
    payload: bytes
    raw: bytes
    signatures: dict[str, bytes] = field(default_factory=dict)


class Gathering:
    """Of one federation. `sign_at` is when the next sequence is due, whatever happens; `now` is monotonic, in seconds."""

    def __init__(self, federation: str, key: PrivateKey, releasing: Releasing, files: Files, now: float) -> None:
        self._topics, self._key, self._files = Topics(federation), key, files
        self._releasing = releasing
        own = {each.public.kid for each in releasing.keys}
        self._others = {each.kid: each for each in releasing.root.release.public() if each.kid not in own}
        self._lacking = max(0, releasing.root.release.threshold - len(own))
        self._proposal: Proposal | None = None
        self._last: Head | None = None
        self._raw = b""
        self._repeat_at = self.sign_at = now
        with suppress(FileNotFoundError, Untrusted):  # no root vouches for it any more, or it was damaged
            self._raw = files.read(LAST) if self._lacking else b""
            self._last = release.read_head(releasing.root, self._raw) if self._raw else None

    @property
    def filters(self) -> list[str]:
        """What is to be subscribed to."""
        return [self._topics.every("signature")] if self._lacking else []

    @property
    def missing(self) -> int:
        """How many signatures the newest head waits for."""
        return self._lacking - len(self._proposal.signatures) if self._proposal else 0

    @property
    def unsigned_by(self) -> tuple[str, ...]:
        """Ids of the keys that could give them."""
        return tuple(sorted(self._others.keys() - self._proposal.signatures)) if self._proposal else ()

    def covers(self, params: str, config: str, withdrawn: int | None) -> bool:
        """Whether devices that follow the last head hold this model and train by this policy, and what is `withdrawn` was said.

        Versions that follow don't say that again: who had signed a withdrawn one that wasn't published would sign none of them.
        """
        if not self._lacking:
            return True
        last = self._last
        due = (params, config, withdrawn)
        return last is not None and (last.params.sha256, last.policy.sha256(), last.withdrawn) == due

    def release(self, head: Head, records: Sequence[str], now: float, *, fresh: bool) -> list[ev.Effect]:
        """Publishes the head, or shows it to those who must sign. Not `fresh`: the last head will do where this one is no news."""
        if not self._lacking:
            self.sign_at = now + head.expires / SIGNED_AN_EXPIRY
            return [self._head(sign_by(self._releasing.keys, HEAD, head), head)]
        effects: list[ev.Effect] = []
        if self._last and not fresh:
            effects.append(self._head(self._raw, head))
        held, news = self._proposal, self._last is None or not _same(head, self._last)
        if held is None and not fresh and not news:
            return effects
        if fresh or held is None:
            self.sign_at = now + head.expires / SIGNED_AN_EXPIRY
        if held is None or not _same(head, held.head):
            held = self._proposal = self._propose(head, records)
            wait = {"version": head.version, "sequence": head.sequence, "missing": self.missing}
            effects.append(ev.Log("signatures_awaited", {**wait, "of": ",".join(self.unsigned_by)}))
        return [*effects, self._say(held, now)]

    def repeat(self, now: float) -> list[ev.Effect]:
        """Says the candidate again when it is time."""
        return [self._say(self._proposal, now)] if self._proposal and now >= self._repeat_at else []

    def wake_at(self) -> float:
        """When `repeat` or a new sequence is due."""
        return min(self.sign_at, self._repeat_at) if self._proposal else self.sign_at

    def on_signature(self, kid: str, raw: bytes) -> list[ev.Effect]:
        """Takes a co-signer's signature; with the last that lacks comes the head. Raises Untrusted, DiskError."""
        key, held = self._others.get(kid), self._proposal
        if key is None:
            raise Untrusted(f"signature of key {kid[:64]!r}, which is none of those that sign heads elsewhere")
        if held is None:
            return []
        verify_message(key, HEAD, raw, Head)
        if payload_of(raw) != held.payload:
            return []  # of another candidate: of one before, as a rule
        signatures = {**held.signatures, kid: raw}
        if len(signatures) < self._lacking:
            held.signatures = signatures
            return []
        mine = [sign_payload(each, HEAD, held.payload) for each in self._releasing.keys]
        signed = combine([*mine, *signatures.values()])
        put(self._files, LAST, signed)
        self._last, self._raw, self._proposal = held.head, signed, None
        by = ",".join(sorted(signatures))
        note = ev.Log("head_signed", {"version": held.head.version, "sequence": held.head.sequence, "by": by})
        return [self._head(signed, held.head), note]

    def _propose(self, head: Head, records: Sequence[str]) -> Proposal:
        payload = msgspec.json.encode(head)
        candidate = Candidate(federation=head.federation, head=payload.decode(), records=tuple(records[-RECORDS:]))
        return Proposal(head, payload, sign_message(self._key, CANDIDATE, candidate))

    def _say(self, held: Proposal, now: float) -> ev.Effect:
        self._repeat_at = now + REPEAT_SECONDS
        return ev.Publish(self._topics.candidate, held.raw, retained=held.head.link.retained)

    def _head(self, raw: bytes, head: Head) -> ev.Effect:
        return ev.Publish(self._topics.head, raw, retained=head.link.retained)


def _same(a: Head, b: Head) -> bool:
    """Whether two heads differ by their sequence at most."""
    return msgspec.structs.replace(a, sequence=0) == msgspec.structs.replace(b, sequence=0)
