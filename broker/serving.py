"""What a device lacks is sent again: chunks that it wants, on its own topic, and the head, to all.

    want --> waiting, one a device, the newest --as the pace of all allows--> at most WINDOW chunks on dl/{device}
    birth that lacks the newest version --> the head again, not more often than the fleet's size allows

So a federation gets along with a broker that retains nothing, or that has lost what it retained.
"""

from collections.abc import Callable

from fleetgrad.broker import events as ev
from fleetgrad.broker.announcing import Announcer, object_name
from fleetgrad.broker.offering import Offer
from fleetgrad.wire import frames
from fleetgrad.wire.chunks import absent
from fleetgrad.wire.events import earliest
from fleetgrad.wire.files import Files
from fleetgrad.wire.messages import WANT, WINDOW, Want
from fleetgrad.wire.pace import Pace
from fleetgrad.wire.signing import PublicKey, Untrusted, verify_message

DEVICE_RATE, DEVICE_BURST = 200.0, 32.0  # chunks a second to one device
FLEET_RATE, FLEET_BURST = 500.0, 64.0  # and to all together: 30 MB/s
HEAD_SECONDS = 1.0  # between two heads on a broker that retains none
RETAINED_HEAD_SECONDS = 60.0  # on one that should have it
HEADS_RATE = 100.0  # devices a second that a head goes to, on the average


class Serving:
    """Of one federation; `head` gives the head as it is at a time, to be published."""

    def __init__(
        self, federation: str, say: Announcer, offer: Offer, files: Files, head: Callable[[float], list[ev.Effect]],
        roster_size: Callable[[], int],
    ) -> None:  # fmt: skip
        self._federation, self._say, self._offer, self._files = federation, say, offer, files
        self._head, self._roster_size = head, roster_size
        self._waiting: dict[str, Want] = {}
        self._last: dict[str, tuple[int, int]] = {}
        self._paces: dict[str, Pace] = {}
        self._all = Pace(FLEET_RATE, FLEET_BURST)
        self._said_at = 0.0
        self._head_at: float | None = None

    def on_want(self, name: str, key: PublicKey, raw: bytes, now: float) -> None:
        """Takes a device's want; raises Untrusted."""
        want = verify_message(key, WANT, raw, Want)
        if (want.federation, want.device) != (self._federation, name):
            raise Untrusted(f"want of {want.device} of {want.federation} on {name}'s topic")
        # An older one isn't refused: it costs a few chunks, and a clone that counts higher must not keep a device from its model.
        if (want.boot, want.seq) == self._last.get(name):
            raise Untrusted(f"want of {name} came already")
        self._last[name] = want.boot, want.seq
        if want.object not in self._offer.refs():
            self.lacks_head(now)  # it goes by one that is out of date
            raise Untrusted("want of an object that isn't offered")
        if want.chunk_bytes != self._say.link.chunk_bytes:
            self.lacks_head(now)
            raise Untrusted("want of chunks of another length than is offered")
        if not self._paces.setdefault(name, Pace(DEVICE_RATE, DEVICE_BURST)).take(WINDOW, now):
            raise Untrusted("want of a device over its allowance")
        self._waiting[name] = want

    def lacks_head(self, now: float) -> None:
        """A device doesn't know the newest release."""
        if self._head_at is None:
            least = RETAINED_HEAD_SECONDS if self._say.link.retained else HEAD_SECONDS
            self._head_at = max(now, self._said_at + max(least, self._roster_size() / HEADS_RATE))

    def head_said(self, now: float) -> None:
        """The head has just been published."""
        self._said_at, self._head_at = now, None

    def disconnected(self) -> None:
        """What was asked for is asked for again."""
        self._waiting, self._head_at = {}, None

    def pump(self, now: float) -> list[ev.Effect]:
        """Sends what is due; raises DiskError."""
        effects: list[ev.Effect] = []
        if self._head_at is not None and now >= self._head_at:
            effects += self._head(now)
            self.head_said(now)
        while self._waiting and self._all.take(WINDOW, now):
            name = next(iter(self._waiting))
            effects += self._chunks(name, self._waiting.pop(name))
        return effects

    def _chunks(self, name: str, want: Want) -> list[ev.Effect]:
        header = frames.object_header(want.object.size, bytes.fromhex(want.object.sha256), self._say.link.chunk_bytes)
        effects: list[ev.Effect] = []
        for seq in absent(bytes.fromhex(want.received), header.nchunks)[:WINDOW]:
            span = header.span(seq)
            try:
                chunk = self._files.read_at(object_name(want.object.sha256), span.start, span.stop - span.start)
            except FileNotFoundError:
                return []  # another version has just come, and with it another head
            effects.append(self._say.served(name, frames.frame(header, seq, chunk)))
        return effects

    def wake_at(self) -> float | None:
        """When there is something to send."""
        return earliest(self._head_at, self._all.ready_at(WINDOW) if self._waiting else None)
