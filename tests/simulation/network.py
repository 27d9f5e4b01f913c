"""A simulated MQTT broker between clients whose links lose, repeat, delay and reorder messages.

Each hop (client to broker, broker to client) drops a message with probability `drop`, delivers it twice with `repeat`, flips
one bit of it with `flip`, and delays it by a log-normal time, so that messages overtake each other. What a client publishes as
retained reaches the broker whole and in order while the connection holds. Sessions are clean: what is under
way when a connection ends is lost, and nothing is subscribed afterwards. Retained messages live in the broker's memory; an amnesia
loses them. A second client with the same id takes the first one's session over, as brokers do.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from tests.simulation.clock import Clock


@dataclass(slots=True)
class Weather:
    """How links behave now. Delays are exp(normal(log(median), sigma)) seconds, at most `longest`."""

    drop: float = 0.0
    repeat: float = 0.0
    flip: float = 0.0
    replay: float = 0.0
    median: float = 0.01
    sigma: float = 0.3
    longest: float = 120.0


@dataclass(eq=False, slots=True)
class Client:
    """One MQTT client; its owner is told by the callbacks. `epoch` counts connections."""

    id: str
    up: Callable[[], None]
    down: Callable[[str], None]
    message: Callable[[str, bytes], None]
    will: Callable[[], tuple[str, bytes] | None]
    filters: set[str] = field(default_factory=set)
    connected: bool = False
    wanted: bool = False
    reachable: bool = True
    mute: str = ""  # what it publishes to topics with this in them is lost
    epoch: int = 0
    stored_at: float = 0.0
    promised: int = 0  # messages for it that the broker has sent off
    newest: int = 0  # the last of these that has arrived


class Network:
    """The broker and all links."""

    def __init__(
        self, clock: Clock, rng: random.Random, weather: Weather, note: Callable[[str], None], saw: Callable[[str], None],
        *, retains: bool = True,
    ) -> None:  # fmt: skip
        self.clock, self.random, self.weather, self.retains = clock, rng, weather, retains
        self.note, self.saw = note, saw
        self.clients: list[Client] = []
        self.retained: dict[str, bytes] = {}
        self.up = True
        self.past: deque[tuple[str, bytes]] = deque(maxlen=500)
        self.delivered = 0
        self.bytes = 0

    # --- connections -------------------------------------------------------------------------------------------------
    def start(self, client: Client) -> None:
        """The owner is alive and wants a connection; it is tried until it holds."""
        if client not in self.clients:
            self.clients.append(client)
        client.wanted = True
        self._connect_later(client)

    def stop(self, client: Client) -> None:
        """The owner died: the connection ends without a word, the broker publishes the will."""
        client.wanted = False
        self._end(client, "owner died", tell=False)

    def cut(self, client: Client) -> None:
        """Takes a client off the network; it learns so after a while."""
        client.reachable = False
        self._end(client, "partition")

    def heal(self, client: Client) -> None:
        client.reachable = True

    def amnesia(self) -> None:
        """The broker dies and comes back with nothing."""
        self.note("network amnesia")
        self.retained.clear()
        for client in self.clients:
            self._end(client, "broker died", will=False)

    def forget(self) -> None:
        """The broker goes on, without some of what it retained, or without all of it."""
        share = self.random.choice([0.3, 1.0])
        for topic in [t for t in self.retained if self.random.random() < share]:
            del self.retained[topic]

    def _connect_later(self, client: Client) -> None:
        epoch = client.epoch
        self.clock.after(self.random.uniform(0.05, 2.0), lambda: self._try(client, epoch))

    def _try(self, client: Client, epoch: int) -> None:
        if client.epoch != epoch or client.connected or not client.wanted:
            return
        if not client.reachable:
            self._connect_later(client)
            return
        for other in self.clients:
            if other.id == client.id and other.connected:
                self._end(other, "session taken over")
        client.epoch += 1
        client.connected = True
        client.filters.clear()
        self.note(f"network up {client.id}")
        client.up()

    def _end(self, client: Client, reason: str, *, tell: bool = True, will: bool = True) -> None:
        if not client.connected:
            return
        client.connected = False
        client.epoch += 1
        client.filters.clear()
        self.note(f"network down {client.id}: {reason}")
        said = client.will() if will else None
        if said is not None:
            self._route(said[0], said[1], retain=True)
        if tell and client.wanted:
            epoch = client.epoch

            def learn() -> None:
                if client.epoch == epoch and client.wanted:
                    client.down(reason)
                    self._connect_later(client)

            self.clock.after(self.random.uniform(0, 1.0), learn)

    # --- messages ----------------------------------------------------------------------------------------------------
    def publish(self, client: Client, topic: str, payload: bytes, *, retain: bool) -> bool:
        """As Session.publish: False when there is no connection, and nothing is kept."""
        if not client.connected:
            return False
        epoch = client.epoch

        def arrive(copy: bytes) -> None:
            if client.epoch == epoch:
                self._route(topic, copy, retain=retain)

        if retain:
            # One publisher's messages to one topic keep their order while the connection lives, and a broker that is
            # alive stores each: MQTT does promise that.
            client.stored_at = max(client.stored_at, self.clock.now + self._delay())
            self.clock.at(client.stored_at, partial(arrive, payload))
            return True
        if client.mute and client.mute in topic:
            self.saw("upload of a mute device lost")
            return True
        for copy in self._hop(payload):
            self.clock.after(self._delay(), partial(arrive, copy))
        return True

    def subscribe(self, client: Client, filters: tuple[str, ...]) -> None:
        """Subscribes; a retained message of a matching topic comes (again), as MQTT has it."""
        if not client.connected:
            return
        for wanted in filters:
            client.filters.add(wanted)
            for topic in sorted(self.retained) if "+" in wanted else [wanted]:
                if topic in self.retained and matches(wanted, topic):
                    self._deliver(client, topic, self.retained[topic])

    def unsubscribe(self, client: Client, filters: tuple[str, ...]) -> None:
        client.filters.difference_update(filters)

    def _route(self, topic: str, payload: bytes, *, retain: bool) -> None:
        if self.past and self.random.random() < self.weather.replay:
            # Whoever runs the broker can say again what was said before.
            self.note("network replays an old message")
            self.saw("old message said again")
            old, said = self.past[self.random.randrange(len(self.past))]
            for client in self.clients:
                if client.connected and any(matches(f, old) for f in client.filters):
                    self._deliver(client, old, said)
        self.past.append((topic, payload))
        if retain and payload and self.retains:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for client in self.clients:
            if client.connected and any(matches(f, topic) for f in client.filters):
                self._deliver(client, topic, payload)

    def _deliver(self, client: Client, topic: str, payload: bytes) -> None:
        epoch = client.epoch
        for copy in self._hop(payload):
            client.promised += 1
            self.clock.after(self._delay(), partial(self._arrive, client, epoch, topic, copy, client.promised))

    def _arrive(self, client: Client, epoch: int, topic: str, payload: bytes, number: int) -> None:
        if client.epoch == epoch and client.connected:
            if number < client.newest:
                self.saw("message overtaken")
            client.newest = max(number, client.newest)
            self.delivered += 1
            self.bytes += len(payload)
            client.message(topic, payload)

    def _hop(self, payload: bytes) -> list[bytes]:
        """What one hop makes of a message: none, one or two copies, perhaps with a bit flipped."""
        if self.random.random() < self.weather.drop:
            self.saw("message lost")
            return []
        copies = 2 if self.random.random() < self.weather.repeat else 1
        if copies == 2:
            self.saw("message doubled")
        return [self._flipped(payload) for _ in range(copies)]

    def _flipped(self, payload: bytes) -> bytes:
        if not payload or self.random.random() >= self.weather.flip:
            return payload
        self.saw("bit of a message flipped")
        bit = self.random.randrange(8 * len(payload))
        raw = bytearray(payload)
        raw[bit // 8] ^= 1 << bit % 8
        return bytes(raw)

    def _delay(self) -> float:
        drawn = self.weather.median * self.random.lognormvariate(0.0, self.weather.sigma)
        return min(drawn, self.weather.longest)


def matches(wanted: str, topic: str) -> bool:
    """Whether an MQTT filter (with +, without #) takes a topic."""
    if "+" not in wanted:
        return wanted == topic
    left, right = wanted.split("/"), topic.split("/")
    return len(left) == len(right) and all(a in ("+", b) for a, b in zip(left, right, strict=True))
