"""What the broker is to retain of a federation's objects: the chunks of what is offered, and nothing of what was.

Chunks that were shorter once were more: what lies after an object's last chunk is left of those, says how many there were, and is cleared.
"""

from fleetgrad.broker import events as ev
from fleetgrad.broker.announcing import Announcer
from fleetgrad.broker.offering import Offer
from fleetgrad.wire import frames
from fleetgrad.wire.messages import ObjectRef
from fleetgrad.wire.signing import Untrusted
from fleetgrad.wire.topics import Topics


class Retained:
    """Follows an offer; what the last start has left on the broker is cleared with the first connection."""

    def __init__(self, federation: str, say: Announcer, offer: Offer) -> None:
        self._topics, self._say, self._offer = Topics(federation), say, offer
        self._left = offer.sweep()
        self._ends: dict[str, tuple[ObjectRef, int]] = {}  # by topic: the index after an object's last chunk

    def again(self) -> list[ev.Effect]:
        """On a new connection: all of it, objects before the head that names them."""
        effects = self._say.roots()
        offered, gone = self._offer.refs(), (*self._offer.former(), *self._left)
        for ref in offered:
            effects += self._say.chunks(ref)
        for ref in gone:
            effects += self._say.clear(ref)
        self._left, self._ends = [], {}
        if self._say.link.retained:
            for ref in (*offered, *gone):
                end = frames.chunks_of(ref.size, self._say.link.chunk_bytes)
                self._ends[self._topics.object(ref.sha256, end)] = ref, end
            effects.append(ev.Subscribe(list(self._ends)))
        return effects

    def on_chunk(self, topic: str, payload: bytes) -> list[ev.Effect]:
        """What the broker has where there should be no chunk: it and all after it are cleared."""
        if topic not in self._ends or not payload:
            return []
        ref, end = self._ends[topic]
        try:
            count = frames.parse(payload, most=ref.size)[0].nchunks
        except Untrusted:
            count = 0  # nobody's chunk
        rest = range(end, max(end + 1, count))
        return [ev.Publish(self._topics.object(ref.sha256, i), b"", retained=True) for i in rest]

    def renewed(self, gone: list[ObjectRef], *, connected: bool) -> list[ev.Effect]:
        """The offer is of a new version now, and these are no more in it. Without a connection all is left to `again`."""
        effects: list[ev.Effect] = []
        if connected:
            for new in self._offer.newest():
                effects += self._say.chunks(new)
            for old in (*gone, *self._offer.former()[-1:]):
                effects += self._say.clear(old)
        return effects
