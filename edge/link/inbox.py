"""Downloads of content-addressed objects: chunks are checked as they come, stored in parts, and the whole before it is used.

    retained chunks   at most WINDOW topics subscribed at a time; the broker delivers them
    wanted chunks     where a broker retains nothing, or has lost them: a want names what is missing, the aggregator sends the next
                      WINDOW of it on the device's own topic; then the device asks again

Where the head names a delta from params that are held, that is fetched in place of the snapshot. An object is used only under the hash and
size that a signed head gave it.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from fleetgrad.edge.events import Effect, Log, Subscribe, Unsubscribe
from fleetgrad.edge.link import partial
from fleetgrad.wire import deltas, frames
from fleetgrad.wire.chunks import Assembly, absent
from fleetgrad.wire.files import DiskError, Files, discard, put
from fleetgrad.wire.frames import Header
from fleetgrad.wire.messages import Delta, Head, Link, ObjectRef
from fleetgrad.wire.signing import Untrusted
from fleetgrad.wire.topics import Topics

FOLDER = "objects"
WINDOW = 8  # chunks on their way at a time: a thousand retained ones at once overrun a broker's queue
RETRY_SECONDS, MOST_RETRY_SECONDS = 5.0, 60.0
PATIENCE = 2  # times that a broker which should retain chunks is asked in vain, before the aggregator is


def object_name(sha256: str) -> str:
    """File name of an object."""
    return f"{FOLDER}/{sha256}"


@dataclass(slots=True)
class Fetch:
    """The object under way; with `delta`, what it will be applied to, for params of the hash `result`."""

    ref: ObjectRef
    assembly: Assembly
    delta: Delta | None = None
    parts: int = 0
    unstored: list[bytes] = field(default_factory=list)
    unanswered: int = 0  # times that it was asked for since something came
    wanting: bool = False  # the aggregator is asked, though the broker should have retained it
    served: int = 0  # chunks that came for the last want


@dataclass(slots=True)
class Inbox:
    """Objects held and the one being fetched; `ask` makes a signed want of an object, with the length of chunks and those that have come."""

    topics: Topics
    device: str
    files: Files
    ask: Callable[[ObjectRef, int, bytes], Effect]
    held: set[str] = field(default_factory=set)
    wanted: list[ObjectRef] = field(default_factory=list)
    bytes_down: int = 0
    retry_at: float | None = None
    _link: Link = field(default_factory=Link)
    _deltas: tuple[Delta, ...] = ()
    _params: str = ""
    _aimed: bool = True
    _spoiled: set[str] = field(default_factory=set)  # deltas that came whole and led nowhere
    _fetch: Fetch | None = None
    _open: list[str] = field(default_factory=list)

    def load(self, ref: ObjectRef) -> bool:
        """Takes stock of a stored object; one that doesn't match its hash is thrown away, one that can't be read is fetched again."""
        name = object_name(ref.sha256)
        try:
            raw = self.files.read(name)
        except (FileNotFoundError, DiskError):
            self.held.discard(ref.sha256)
            return False
        if len(raw) == ref.size and hashlib.sha256(raw).hexdigest() == ref.sha256:
            self.held.add(ref.sha256)
            return True
        self.held.discard(ref.sha256)
        discard(self.files, name)
        return False

    def need(self, head: Head) -> None:
        """Sets what is needed, which no disk can refuse; `go_on` is to follow. Objects that no one needs any more are removed by `keep`."""
        self._link, self._deltas, self._params = head.link, head.deltas, head.params.sha256
        self.wanted = [r for r in (head.plan, head.params) if r.sha256 not in self.held]
        self._aimed = False

    def keep(self, needed: set[str]) -> None:
        """Removes stored objects but those needed."""
        for sha256 in self.files.names(FOLDER):
            if sha256 not in needed:
                discard(self.files, f"{FOLDER}/{sha256}")
        self.held &= needed

    # --- which object -------------------------------------------------------------------------------------------------
    def go_on(self, connected: bool, now: float) -> list[Effect]:
        """Goes after the next object that is wanted; the one under way is kept if it still is. What a disk that fails has kept from
        it, `tick` makes up for."""
        self._aimed = False
        effects = self._go_after(*self._next(), connected, now)
        self._aimed = True
        return effects

    def _go_after(self, ref: ObjectRef | None, delta: Delta | None, connected: bool, now: float) -> list[Effect]:
        fetch = self._fetch
        if fetch and (fetch.ref, fetch.delta, fetch.assembly.header.chunk_bytes) == (
            ref,
            delta,
            self._link.chunk_bytes,
        ):
            return []
        effects = self._close()
        self._fetch = None
        if ref is None:
            partial.sweep(self.files)
            self.retry_at = None
            return effects
        header = frames.object_header(ref.size, bytes.fromhex(ref.sha256), self._link.chunk_bytes)
        fetch = Fetch(ref, Assembly(header), delta)
        effects += self._restore(fetch, header)
        self._fetch = fetch
        return effects + (self.resume(now) if connected else [])

    def _next(self) -> tuple[ObjectRef | None, Delta | None]:
        if not self.wanted:
            return None, None
        ref = self.wanted[0]
        for delta in self._deltas if ref.sha256 == self._params else ():
            usable = delta.base in self.held and delta.object.sha256 not in self._spoiled
            if usable and delta.object.size < ref.size:
                return delta.object, delta
        return ref, None

    def _restore(self, fetch: Fetch, header: Header) -> list[Effect]:
        partial.sweep(self.files, fetch.ref.sha256)
        for found, chunk in partial.load(self.files, fetch.ref.sha256, header.whole()):
            fetch.assembly.add(found, chunk)
        names = self.files.names(partial.FOLDER)
        fetch.parts = max((int(n.rpartition(".")[2]) + 1 for n in names), default=0)
        came = header.nchunks - fetch.assembly.missing
        fields: dict[str, object] = {"object": fetch.ref.sha256[:16], "chunks": came, "of": header.nchunks}
        return [Log("download_resumed", fields)] if came else []

    # --- chunks -------------------------------------------------------------------------------------------------------
    def resume(self, now: float) -> list[Effect]:
        """Asks for the next missing chunks: subscribed anew, retained messages are delivered again."""
        fetch = self._fetch
        if fetch is None:
            self.retry_at = None
            return []
        if fetch.assembly.complete:  # from its parts, or the disk had no room for the whole
            return self._complete(fetch, now)[0]
        effects = self._close()
        self.retry_at = now + min(MOST_RETRY_SECONDS, RETRY_SECONDS * 2.0 ** min(max(0, fetch.unanswered - 1), 5))
        if self._link.retained:
            self._open = self._next_topics(fetch)
            effects.append(Subscribe(list(self._open)))
        fetch.wanting |= not self._link.retained or fetch.unanswered >= PATIENCE
        if fetch.wanting:
            fetch.served = 0
            effects.append(self.ask(fetch.ref, fetch.assembly.header.chunk_bytes, bytes(fetch.assembly.received)))
        fetch.unanswered += 1
        return effects

    def tick(self, now: float) -> list[Effect]:
        """While connected: asks again for chunks that are overdue."""
        effects = [] if self._aimed else self.go_on(connected=True, now=now)
        due = self.retry_at is not None and now >= self.retry_at
        return effects + (self.resume(now) if due else [])

    def disconnected(self) -> None:
        self._open, self.retry_at = [], None
        if self._fetch:
            self._fetch.unanswered = 0

    def take(self, topic: str, payload: bytes, now: float) -> tuple[list[Effect], bool]:
        """One chunk; (effects, whether an object has just been completed and stored)."""
        served = topic == self.topics.served(self.device)
        fetch = self._fetch
        if fetch is None or not payload or not (served or topic in self._open):
            return [], False
        try:
            header, chunk = frames.parse(payload, most=fetch.ref.size)
            if header.whole() != fetch.assembly.header:
                raise Untrusted("chunk of another object")
            new = fetch.assembly.add(header, chunk)
        except Untrusted as e:
            return [Log("chunk_dropped", {"object": fetch.ref.sha256[:16], "reason": str(e)})], False
        self.bytes_down += len(payload)
        if not new:
            return [], False
        fetch.unanswered = 0
        self.retry_at = now + RETRY_SECONDS
        if fetch.assembly.complete:
            return self._complete(fetch, now)
        effects = self._store_part(fetch, payload)
        if served:
            fetch.served += 1
            return effects + (self.resume(now) if fetch.served >= WINDOW else []), False
        self._open.remove(topic)
        effects.append(Unsubscribe([topic]))
        if more := [t for t in self._next_topics(fetch) if t not in self._open][:1]:
            self._open += more
            effects.append(Subscribe(more))
        return effects, False

    def _store_part(self, fetch: Fetch, frame: bytes) -> list[Effect]:
        """A part that the disk refuses is fetched again after a restart; nothing else hangs on it."""
        fetch.unstored.append(frame)
        if len(fetch.unstored) < partial.SEGMENT:
            return []
        segment, fetch.unstored = fetch.unstored, []
        try:
            partial.store(self.files, fetch.ref.sha256, fetch.parts, segment)
        except DiskError as e:
            return [Log("disk_failed", {"reason": str(e)})]
        fetch.parts += 1
        return []

    def _complete(self, fetch: Fetch, now: float) -> tuple[list[Effect], bool]:
        effects = self._close()
        raw: bytes | bytearray = fetch.assembly.body  # not copied: it may be as large as the model
        reason = "" if hashlib.sha256(raw).hexdigest() == fetch.ref.sha256 else "SHA-256 doesn't match"
        if not reason and fetch.delta:
            try:
                raw = deltas.apply(self.files.read(object_name(fetch.delta.base)), bytes(raw))
            except (deltas.DeltaError, OSError) as e:
                reason = f"delta: {e}"
            if not reason and hashlib.sha256(raw).hexdigest() != self._params:
                reason = "delta to other params than the head's"
        if reason:
            partial.sweep(self.files)
            if fetch.delta:
                self._spoiled.add(fetch.ref.sha256)
            self._fetch = None
            effects.append(Log("object_dropped", {"object": fetch.ref.sha256[:16], "reason": reason}))
            effects += self.go_on(connected=False, now=now)
            self.retry_at = now + RETRY_SECONDS
            return effects, False
        got = self._params if fetch.delta else fetch.ref.sha256
        self.retry_at = now  # should the disk refuse it
        put(self.files, object_name(got), raw)
        if fetch.delta:
            effects.append(Log("delta_applied", {"object": got[:16], "bytes": fetch.ref.size, "of": len(raw)}))
        self.held.add(got)
        self.wanted = [r for r in self.wanted if r.sha256 != got]
        return [*effects, *self.go_on(connected=True, now=now)], True

    def _next_topics(self, fetch: Fetch) -> list[str]:
        missing = absent(fetch.assembly.received, fetch.assembly.header.nchunks)
        return [self.topics.object(fetch.ref.sha256, i) for i in missing[:WINDOW]]

    def _close(self) -> list[Effect]:
        topics, self._open = self._open, []
        return [Unsubscribe(topics)] if topics else []
