"""Downloads of content-addressed objects: verified, stored, at most WINDOW chunk topics subscribed at a time.

An object is used only under the hash and size that a signed head gave it; until then it is bytes in memory.
"""

import hashlib
from dataclasses import dataclass, field

from fleetgrad.edge.events import Effect, Log, Subscribe, Unsubscribe
from fleetgrad.wire import frames
from fleetgrad.wire.chunks import Assembly, absent
from fleetgrad.wire.files import DiskError, Files, put
from fleetgrad.wire.messages import ObjectRef
from fleetgrad.wire.signing import Untrusted
from fleetgrad.wire.topics import Topics

FOLDER = "objects"
WINDOW = 8  # chunk topics subscribed at a time: a thousand retained chunks at once overrun a broker's queue
RETRY_SECONDS = 5.0


def object_name(sha256: str) -> str:
    """File name of an object."""
    return f"{FOLDER}/{sha256}"


@dataclass(slots=True)
class Inbox:
    """Objects held and the one being fetched."""

    topics: Topics
    files: Files
    held: set[str] = field(default_factory=set)
    wanted: list[ObjectRef] = field(default_factory=list)
    chunk_bytes: int = frames.DATA_BYTES
    bytes_down: int = 0
    retry_at: float | None = None
    _assembly: Assembly | None = None
    _open: list[str] = field(default_factory=list)

    def load(self, refs: list[ObjectRef]) -> None:
        """Takes stock of what is stored of `refs`; what doesn't match its hash is thrown away."""
        for ref in refs:
            try:
                raw = self.files.read(object_name(ref.sha256))
            except FileNotFoundError:
                continue
            if len(raw) == ref.size and hashlib.sha256(raw).hexdigest() == ref.sha256:
                self.held.add(ref.sha256)
            else:
                self.files.unlink(object_name(ref.sha256))

    def want(self, refs: list[ObjectRef], chunk_bytes: int, connected: bool, now: float) -> list[Effect]:
        """Sets what is needed, in chunks of which length; objects that no one needs any more are removed by `keep`."""
        before = (self.wanted[0].sha256, self.chunk_bytes) if self.wanted else None
        self.wanted, self.chunk_bytes = [r for r in refs if r.sha256 not in self.held], chunk_bytes
        if self.wanted and before == (self.wanted[0].sha256, chunk_bytes):
            return []
        effects = self._close()
        self._assembly = None
        return effects + (self.resume(now) if connected else [])

    def keep(self, needed: set[str]) -> None:
        """Removes stored objects but those needed."""
        for sha256 in self.files.names(FOLDER):
            if sha256 not in needed:
                self.files.unlink(f"{FOLDER}/{sha256}")
        self.held &= needed

    def resume(self, now: float) -> list[Effect]:
        """Subscribes anew to the next missing chunks: retained messages are delivered again."""
        if not self.wanted:
            self.retry_at = None
            return []
        effects = self._close()
        self._open = self._next_topics()
        self.retry_at = now + RETRY_SECONDS
        return [*effects, Subscribe(list(self._open))]

    def disconnected(self) -> None:
        self._open, self.retry_at = [], None

    def take(self, topic: str, payload: bytes, now: float) -> tuple[list[Effect], bool]:
        """One chunk; (effects, whether an object has just been completed and stored)."""
        if not self.wanted or topic not in self._open or not payload:
            return [], False
        ref = self.wanted[0]
        try:
            header, chunk = frames.parse(payload, most=ref.size)
            expected = frames.object_header(ref.size, bytes.fromhex(ref.sha256), self.chunk_bytes)
            if header.whole() != expected.whole():
                raise Untrusted("chunk of another object")
            if self._assembly is None:
                self._assembly = Assembly(expected)
            new = self._assembly.add(header, chunk)
        except Untrusted as e:
            return [Log("chunk_dropped", {"object": ref.sha256[:16], "reason": str(e)})], False
        self.bytes_down += len(payload)
        if not new:
            return [], False
        self.retry_at = now + RETRY_SECONDS
        if self._assembly.complete:
            return self._complete(ref, self._assembly, now)
        self._open.remove(topic)
        effects: list[Effect] = [Unsubscribe([topic])]
        if more := [t for t in self._next_topics() if t not in self._open][:1]:
            self._open += more
            effects.append(Subscribe(more))
        return effects, False

    def _complete(self, ref: ObjectRef, assembly: Assembly, now: float) -> tuple[list[Effect], bool]:
        self._assembly = None
        effects = self._close()
        if hashlib.sha256(assembly.body).hexdigest() != ref.sha256:
            self.retry_at = now + RETRY_SECONDS
            return [
                *effects,
                Log("object_dropped", {"object": ref.sha256[:16], "reason": "SHA-256 doesn't match"}),
            ], False
        try:
            put(self.files, object_name(ref.sha256), assembly.body)
        except DiskError as e:
            self.retry_at = now + RETRY_SECONDS
            return [*effects, Log("disk_failed", {"reason": str(e)})], False
        self.held.add(ref.sha256)
        self.wanted = self.wanted[1:]
        return [*effects, *self.resume(now)], True

    def _next_topics(self) -> list[str]:
        ref = self.wanted[0]
        count = frames.chunks_of(ref.size, self.chunk_bytes)
        missing = absent(self._assembly.received if self._assembly else b"", count)
        return [self.topics.object(ref.sha256, i) for i in missing[:WINDOW]]

    def _close(self) -> list[Effect]:
        topics, self._open = self._open, []
        return [Unsubscribe(topics)] if topics else []
