"""A simulated process: it hosts a state machine, executes its effects, dies in the middle of things and starts again.

Crash points are every file operation (before, inside, after), every journal commit (before, after) and the gap before each
effect. A life may be given a fuse: the number of crash points that it survives. A crash is a kill (the disk keeps all that was
written) or a power cut (the disk keeps what was promised). The monotonic clock starts anywhere in each life.
"""

import hashlib
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from fleetgrad.wire.events import Connected, Disconnected, Log, Message, Publish, Subscribe, Tick
from fleetgrad.wire.files import DiskError
from tests.invariants import Violation
from tests.simulation.clock import Timer
from tests.simulation.disk import Crashed, Disk
from tests.simulation.network import Client

if TYPE_CHECKING:
    from tests.simulation.world import World

HOT = 50  # ticks at one moment of the clock that can't be work


class Machine(Protocol):
    """What both state machines look like from outside."""

    def handle(self, event: Any, now: float) -> list[Any]: ...
    def wake_at(self) -> float | None: ...


class Process(ABC):
    """One process with its disk and its MQTT client; subclasses make the machine and know its effects."""

    role: str  # in counters

    def __init__(self, world: "World", name: str, client_id: str) -> None:
        self.world, self.name = world, name
        self.random = random.Random(f"{world.scenario.seed} {name}")
        self.disk = Disk(random.Random(f"{world.scenario.seed} {name} disk"), self.crash_point)
        self.client = Client(client_id, self.on_up, self.on_down, self.on_message, self.will)
        self.machine: Machine | None = None
        self.life = 0
        self.offset = 0.0
        self.fuse: int | None = None
        self.gone = False
        self._wake: Timer | None = None
        self._hot = 0
        self._hot_at = -1.0

    # --- what subclasses give ----------------------------------------------------------------------------------------
    @abstractmethod
    def make(self) -> Machine: ...

    @abstractmethod
    def watch(self, topic: str, payload: bytes) -> None:
        """Looks at what is about to be published."""

    def will(self) -> tuple[str, bytes] | None:
        return None

    def died(self) -> None:  # noqa: B027  (not all have something to do)
        """The machine is gone; subclasses stop what ran beside it."""

    def damage(self) -> None:  # noqa: B027  (not all have something to do)
        """Something on the disk rots, where a subclass knows what."""

    def checked(self, event: Any) -> None:  # noqa: B027  (not all have something to do)
        """Called after an event was handled to its end."""

    # --- the broker --------------------------------------------------------------------------------------------------
    def on_up(self) -> None:
        self.feed(Connected())

    def on_down(self, reason: str) -> None:
        self.feed(Disconnected(reason))

    def on_message(self, topic: str, payload: bytes) -> None:
        self.note(f"< {topic} {hashlib.sha256(payload).hexdigest()[:8]}")
        self.feed(Message(topic, payload))

    def execute(self, effect: Any) -> None:
        """Does what all machines ask for; subclasses do the rest of it."""
        network = self.world.network
        match effect:
            case Publish(topic, payload, retained):
                self.note(f"> {topic} {hashlib.sha256(payload).hexdigest()[:8]}")
                self.watch(topic, payload)
                network.publish(self.client, topic, payload, retain=retained)
            case Subscribe(filters):
                network.subscribe(self.client, tuple(filters))
            case Log(event, fields):
                self.note(f"log {event} {fields}")
                self.saw(f"{self.role} {event}")

    # --- life and death ----------------------------------------------------------------------------------------------
    def now(self) -> float:
        """This life's monotonic clock."""
        return self.world.clock.now + self.offset

    def note(self, line: str) -> None:
        self.world.trace.note(self.world.clock.now, f"{self.name} {line}")

    def saw(self, what: str) -> None:
        self.world.trace.saw(what)

    def boot(self) -> None:
        if self.gone or self.machine is not None:
            return
        self.life += 1
        self.offset = self.random.uniform(0, 1e6)
        faults = self.world.scenario.faults
        self.fuse = None
        if self.world.storm and self.random.random() < faults.crash_points:
            self.fuse = self.random.randrange(faults.within)
        self.note(f"boots, life {self.life}")
        if self.life > 1:
            self.saw("clock elsewhere after a restart")

        def act() -> None:
            self.machine = self.make()
            self.checked(None)
            self.world.network.start(self.client)
            self.schedule()

        try:
            self.guard(act)
        except DiskError as e:
            self.saw("start refused by a full disk")
            self.note(f"can't start: {e}")
            self.die("disk full at start", power_cut=False)

    def feed(self, event: Any) -> None:
        """Hands one event to the machine and executes what it answers."""
        machine = self.machine
        if machine is None:
            return

        def act() -> None:
            effects = machine.handle(event, self.now())
            for effect in effects:
                self.crash_point(f"before effect {type(effect).__name__}")
                self.execute(effect)
            self.checked(event)
            self.schedule()

        self.guard(act)

    def guard(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Crashed as e:
            self.saw(f"crash {str(e).split()[0]} {str(e).split()[1]}")
            self.die(str(e))

    def crash_point(self, act: str) -> None:
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.fuse = None
                raise Crashed(act)

    def provoke(self, chance: float, within: int) -> None:
        """Makes a crash likely here, where there is something to break."""
        if self.world.storm and self.fuse is None and self.random.random() < chance:
            self.fuse = self.random.randrange(within)

    def die(self, reason: str, *, power_cut: bool | None = None) -> None:
        """The end of this life; the next begins after a while."""
        if power_cut is None:
            power_cut = self.random.random() < self.world.scenario.faults.power_cuts
        self.note(f"dies ({'power cut' if power_cut else 'killed'}): {reason}")
        if self.machine is not None:
            self.saw(f"{type(self).__name__.lower()} died")
        self.machine = None
        if self._wake:
            self._wake.cancel()
        self.world.network.stop(self.client)
        self.died()
        if power_cut:
            self.saw("power cut")
            before = self.disk.torn
            self.disk.power_cut()
            if self.disk.torn > before:
                self.saw("file torn by a power cut")
        if not self.gone:
            self.world.clock.after(self.random.uniform(0.1, 10.0), self.boot)

    def leave(self, reason: str) -> None:
        """It dies, and never starts again."""
        self.gone = True
        self.die(reason)

    def schedule(self) -> None:
        """Wakes the machine when it wants; refuses one that wants it now for ever."""
        if self._wake:
            self._wake.cancel()
            self._wake = None
        at = self.machine.wake_at() if self.machine else None
        if at is not None:
            when = at - self.offset
            while when + self.offset < at:  # rounded down: it would be woken before its time, for ever
                when += math.ulp(at)
            self._wake = self.world.clock.at(when, self._tick)

    def _tick(self) -> None:
        clock = self.world.clock
        self._hot = self._hot + 1 if clock.now == self._hot_at else 0
        self._hot_at = clock.now
        if self._hot > HOT:
            raise Violation(f"{self.name} wants to be woken at once, again and again: a busy loop")
        self.feed(Tick())
