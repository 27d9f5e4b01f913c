"""A co-signer, as a pure state machine: it signs the aggregator's head to be if that follows from all it has signed or heard before.

    candidate --by the rules below--> remembered durably --> signed
    head, signed by as many as the root demands --> remembered

What it holds is the last of these, by sequence. A candidate is signed if it has a higher sequence, descends from what is held by the
records of versions, and has the same terms: what devices run, how they train, whom they seal to. Other terms, a withdrawal of
versions (what is held must descend from what it goes back to), and the first that this co-signer is ever to sign, an operator allows by hand. The bytes that are held are signed again when asked for.
"""

from collections.abc import Callable

import msgspec

from fleetgrad.wire import release
from fleetgrad.wire.events import Connected, Disconnected, Log, Message, Publish, Subscribe, Tick
from fleetgrad.wire.files import DiskError
from fleetgrad.wire.messages import CANDIDATE, HEAD, Candidate, Head
from fleetgrad.wire.release import Root
from fleetgrad.wire.signing import PrivateKey, PublicKey, Untrusted, payload_of, sign_payload, verify_message
from fleetgrad.wire.strict import MALFORMED, Strict
from fleetgrad.wire.topics import Topics

TERMS = ("plan", "policy", "seal", "shards", "expires")  # fields of a head; beside them the size of the params
ALLOW = "--allow-policy-change"

Event = Connected | Disconnected | Message | Tick
Effect = Publish | Subscribe | Log


class StateError(ValueError):
    """What a co-signer remembers can't be read; the message says what to do."""


class State(Strict, frozen=True, kw_only=True):
    """What must outlive the process: the root that was followed to, and the JSON of the last head, byte for byte ("": none yet)."""

    root: Root
    head: str = ""


def read_state(raw: bytes, federation: str) -> State:
    """What was remembered; raises StateError."""
    try:
        state = msgspec.json.decode(raw, type=State)
        if state.head:
            msgspec.json.decode(state.head, type=Head)
    except MALFORMED as e:
        raise StateError(
            f"it is damaged ({e}): without it another head could be signed under a sequence once more"
        ) from e
    if state.root.federation != federation:
        raise StateError(f"it is of the federation {state.root.federation!r}, expected {federation!r}")
    return state


class Cosigner:
    """One key's. `keep` makes a state durable, or raises DiskError; `allowed` is for one change of terms, or the first head."""

    def __init__(
        self, key: PrivateKey, aggregator: PublicKey, pinned: Root, state: State | None, keep: Callable[[bytes], None],
        *, allowed: bool = False,
    ) -> None:  # fmt: skip
        self._key, self._aggregator, self._keep, self._allowed = key, aggregator, keep, allowed
        self._topics = Topics(pinned.federation)
        newer = state is None or pinned.version > state.root.version
        self.root = pinned if state is None or newer else state.root
        self._payload = state.head.encode() if state else b""
        self.held: Head | None = msgspec.json.decode(self._payload, type=Head) if self._payload else None
        self._kept = False  # in this life: what a killed one left may lie in the page cache alone
        self._refused: Log | None = None

    def handle(self, event: Event) -> list[Effect]:
        """What to do about an event."""
        match event:
            case Connected():
                return [self._subscribe()]
            case Message(topic, payload) if payload:
                try:
                    return self._on_message(topic, payload)
                except Untrusted as e:
                    what = "candidate_refused" if topic == self._topics.candidate else "message_dropped"
                    return self._once(Log(what, {"topic": topic, "reason": str(e)}))
                except DiskError as e:
                    return [Log("disk_failed", {"reason": str(e)})]
        return []

    def _once(self, note: Log) -> list[Effect]:
        """A refusal, unless it was the last one as well: what is refused is said again, and again."""
        before, self._refused = self._refused, note
        return [] if note == before else [note]

    def _subscribe(self) -> Effect:
        """The next root before the head that it vouches for; what is retained comes again."""
        t = self._topics
        return Subscribe([t.root(self.root.version + 1), t.head, t.candidate])

    def _on_message(self, topic: str, raw: bytes) -> list[Effect]:
        if topic == self._topics.candidate:
            return self._on_candidate(raw)
        if topic == self._topics.head:
            return self._on_head(raw)
        if topic == self._topics.root(self.root.version + 1):
            root = release.succeed(self.root, raw)
            self._remember(root, self._payload)
            return [Log("root_followed", {"version": root.version}), self._subscribe()]
        return []

    def _on_candidate(self, raw: bytes) -> list[Effect]:
        candidate = verify_message(self._aggregator, CANDIDATE, raw, Candidate)
        if candidate.federation != self.root.federation:
            raise Untrusted(f"candidate of the federation {candidate.federation!r}")
        if self._key.public.raw.hex() not in self.root.release.keys:
            raise Untrusted(
                f"key {self._key.public.kid} isn't one of those that sign heads by root {self.root.version}"
            )
        payload = candidate.head.encode()
        if payload == self._payload:
            if not self._kept:
                self._remember(self.root, payload)
            return [self._signed(payload)]
        try:
            head = msgspec.json.decode(payload, type=Head)
        except MALFORMED as e:
            raise Untrusted(f"candidate: {e}") from e
        changed = self._check(head, candidate.records)
        self._remember(self.root, payload)
        self._allowed = self._allowed and not changed
        note = {"version": head.version, "sequence": head.sequence, "params": head.params.sha256}
        return [self._signed(payload), Log("head_signed", note | ({"allowed": ",".join(changed)} if changed else {}))]

    def _check(self, head: Head, records: tuple[str, ...]) -> list[str]:
        """What is new in a candidate's terms, and was allowed; raises Untrusted for what isn't to be signed."""
        if head.federation != self.root.federation:
            raise Untrusted(f"head of the federation {head.federation!r}")
        held = self.held
        if held is None:
            if not self._allowed:
                raise Untrusted(
                    f"it would be the first head that is signed here: version {head.version}, plan {head.plan.sha256}, {head.policy}; "
                    f"if that is right, start once with {ALLOW}"
                )
            return ["first"]
        release.check_follows(head, held)
        if head.sequence == held.sequence:
            raise Untrusted(f"two texts of a head have the sequence {head.sequence}")
        back = head.version < held.version
        release.check_descends(held if back else head, head if back else held, records)
        changed = [name for name in TERMS if getattr(head, name) != getattr(held, name)]
        changed += ["params' size"] if head.params.size != held.params.size else []
        changed += ["withdrawn"] if head.withdrawn not in (None, held.withdrawn) else []
        if changed and not self._allowed:
            was = "; ".join(
                f"{name} was {getattr(held, name)}, is {getattr(head, name)}"
                for name in changed
                if name in (*TERMS, "withdrawn")
            )
            raise Untrusted(f"other {', '.join(changed)} ({was}); if that is right, start once with {ALLOW}")
        return changed

    def _on_head(self, raw: bytes) -> list[Effect]:
        """What enough keys have signed is the federation's, whether this one was among them or not."""
        head, payload, held = release.read_head(self.root, raw), payload_of(raw), self.held
        if held is not None:
            if payload == self._payload or head.sequence < held.sequence:
                return []
            release.check_follows(head, held)
            if head.sequence == held.sequence:
                return []
        self._remember(self.root, payload)
        return [Log("head_heard", {"version": head.version, "sequence": head.sequence})]

    def _remember(self, root: Root, payload: bytes) -> None:
        self._keep(msgspec.json.encode(State(root=root, head=payload.decode())))
        self.root, self._payload, self._kept = root, payload, True
        self.held = msgspec.json.decode(payload, type=Head) if payload else None

    def _signed(self, payload: bytes) -> Effect:
        return Publish(
            self._topics.signature(self._key.public.kid), sign_payload(self._key, HEAD, payload), retained=True
        )
