"""Publishes on their way: queued, let out as the broker allows, in flight until it acknowledges. No socket and no clock in here.

    offer --> queued --take(now): window, bytes in flight, rates--> in flight --acknowledged--> gone
                                                                        |
                                                                  lost (the connection ended): forgotten, its owner repeats it

A publish that a broker answers by hanging up would end every connection. So each publish in flight when a broker hung up is a
suspect; a suspect is sent again alone, with nothing else in flight; and one that was in flight at STRIKES hang-ups running is
refused for PAROLE_SECONDS.
"""

import hashlib
from collections import OrderedDict, deque
from dataclasses import dataclass

from fleetgrad.wire.mqtt.profiles import Limits

QUEUE_LIMIT = 64  # publishes that wait or are in flight, at most
STRIKES = 3
PAROLE_SECONDS = 120.0
SUSPECTS = 64  # remembered at most
LEAST_WAIT = 1e-6  # seconds
BURST_SECONDS = 0.25  # of a rate may be used at once after a pause
PACKET_OVERHEAD = 12  # bytes beside topic and payload: type, length, topic's length, packet id, properties


@dataclass(frozen=True, slots=True, eq=False)
class Outgoing:
    """One publish; `key` is the same for the same topic and payload."""

    topic: str
    payload: bytes
    qos: int
    retain: bool

    @property
    def size(self) -> int:
        """Bytes of its packet, at most."""
        return len(self.topic.encode()) + len(self.payload) + PACKET_OVERHEAD

    @property
    def key(self) -> bytes:
        return hashlib.blake2b(self.payload, digest_size=16, key=hashlib.sha256(self.topic.encode()).digest()).digest()


class Bucket:
    """A token bucket: `rate` tokens a second, and a burst of BURST_SECONDS of them but of one publish at least."""

    def __init__(self, rate: float) -> None:
        self._rate, self._most = rate, rate * BURST_SECONDS
        self._tokens, self._at = self._most, 0.0

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken: a full bucket gives any amount and goes into debt."""
        self._tokens = min(self._most, self._tokens + (now - self._at) * self._rate) if self._at else self._most
        self._at = now
        short = (min(amount, self._most) - self._tokens) / self._rate
        return short if short > LEAST_WAIT else 0.0  # or rounding asks for a wait that no clock can make

    def take(self, amount: float) -> None:
        self._tokens -= amount


class Sending:
    """The publishes of one session; its methods are called under the session's lock."""

    def __init__(self) -> None:
        self._queued: deque[Outgoing] = deque()
        self._in_flight: dict[int, Outgoing] = {}
        self._bytes_in_flight = 0
        self._limits: Limits | None = None
        self._count: Bucket | None = None
        self._bytes: Bucket | None = None
        self._strikes: OrderedDict[bytes, int] = OrderedDict()
        self._barred: OrderedDict[bytes, float] = OrderedDict()

    @property
    def pending(self) -> int:
        """Queued and in flight."""
        return len(self._queued) + len(self._in_flight)

    @property
    def full(self) -> bool:
        return self.pending >= QUEUE_LIMIT

    def opened(self, limits: Limits) -> None:
        """A connection begins, with these limits."""
        self._limits = limits
        self._count = Bucket(limits.publishes_per_second) if limits.publishes_per_second else None
        self._bytes = Bucket(limits.bytes_per_second) if limits.bytes_per_second else None

    def offer(self, publish: Outgoing, now: float) -> str:
        """Takes one publish, or says why it can never be sent here: the reason in words, else ''."""
        if self._limits and self._limits.packet_bytes is not None and publish.size > self._limits.packet_bytes:
            return f"a packet of {publish.size:,} bytes, and the broker takes {self._limits.packet_bytes:,}"
        if self._barred:
            key = publish.key
            if self._barred.get(key, 0.0) > now:
                return f"the broker hung up {STRIKES} times on it; tried again after {PAROLE_SECONDS:.0f} s"
            self._barred.pop(key, None)
        self._queued.append(publish)
        return ""

    def take(self, now: float) -> Outgoing | float | None:
        """The publish that may leave now; or the seconds until a rate lets it; or None until something is acknowledged or offered."""
        if not self._queued or self._limits is None:
            return None
        first = self._queued[0]
        if self._in_flight:
            if len(self._in_flight) >= self._limits.window:
                return None
            most = self._limits.window_bytes
            if most is not None and self._bytes_in_flight + first.size > most:
                return None
            if self._strikes and (first.key in self._strikes or self._suspect_in_flight()):
                return None
        wait = max(
            self._count.wait(1.0, now) if self._count else 0.0,
            self._bytes.wait(float(first.size), now) if self._bytes else 0.0,
        )
        if wait > 0:
            return wait
        if self._count:
            self._count.take(1.0)
        if self._bytes:
            self._bytes.take(float(first.size))
        return self._queued.popleft()

    def sent(self, packet_id: int, publish: Outgoing) -> None:
        """It has been handed to the connection under this id."""
        self._in_flight[packet_id] = publish
        self._bytes_in_flight += publish.size

    def acknowledged(self, packet_id: int) -> Outgoing | None:
        """The broker has it."""
        publish = self._in_flight.pop(packet_id, None)
        if publish:
            self._bytes_in_flight -= publish.size
            if self._strikes:
                self._strikes.pop(publish.key, None)
        return publish

    def lost(self, hung_up: bool, now: float) -> list[Outgoing]:
        """The connection ended: forgets everything, and returns what is refused from now on. `hung_up`: the broker ended it."""
        guilty = []
        if hung_up:
            suspects = OrderedDict((p.key, p) for p in self._in_flight.values())
            strikes = {key: self._strikes.get(key, 0) + 1 for key in suspects}
            self._strikes = OrderedDict(list(strikes.items())[-SUSPECTS:])
            for key in [k for k, n in strikes.items() if n >= STRIKES]:
                self._strikes.pop(key, None)
                self._barred[key] = now + PAROLE_SECONDS
                guilty.append(suspects[key])
            while len(self._barred) > SUSPECTS:
                self._barred.popitem(last=False)
        self._queued.clear()
        self._in_flight.clear()
        self._bytes_in_flight = 0
        self._limits = None
        return guilty

    def _suspect_in_flight(self) -> bool:
        return any(p.key in self._strikes for p in self._in_flight.values())
