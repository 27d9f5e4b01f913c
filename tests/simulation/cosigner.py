"""A simulated co-signer: the real machine on a disk that fails, and an operator who allows by hand what it asks about."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fleetgrad.broker.cosigner.machine import ALLOW, Cosigner, Effect, Event, read_state
from fleetgrad.broker.releasing import Releasing
from fleetgrad.wire import release
from fleetgrad.wire.events import Log
from fleetgrad.wire.files import put
from fleetgrad.wire.messages import HEAD, Head
from fleetgrad.wire.release import Role, Root
from fleetgrad.wire.signing import PrivateKey, payload_of, verify_message
from tests.invariants import Violation
from tests.simulation.process import Process

if TYPE_CHECKING:
    from tests.simulation.world import World

MEMORY = "signed.json"


def releasing_with(federation: str, aggregator: PrivateKey, others: Sequence[PrivateKey]) -> Releasing:
    """Heads need two signatures: the aggregator has one key."""
    keys = tuple(key.public.raw.hex() for key in (aggregator, *others))
    root = Root(
        federation=federation, version=1, root=Role(threshold=1, keys=keys[:1]), release=Role(threshold=2, keys=keys)
    )
    return Releasing(root, (aggregator,), (release.sign_root(root, [aggregator]),))


class Hosted:
    """The machine as a process has it: it wants to be woken at no time."""

    def __init__(self, machine: Cosigner) -> None:
        self.machine = machine

    def handle(self, event: Event, now: float) -> list[Effect]:
        return self.machine.handle(event)

    def wake_at(self) -> float | None:
        return None


class CosignerProcess(Process):
    """One co-signer's process. A damaged memory is for people: it refuses to start with it."""

    role = "cosigner"

    def __init__(self, world: "World", name: str, key: PrivateKey) -> None:
        super().__init__(world, name, name)
        self.key = key
        self.allowed = False
        self.signed: dict[int, bytes] = {}  # JSON of heads by sequence, over all lives

    def make(self) -> Hosted:
        names = self.disk.names("")
        state = read_state(self.disk.read(MEMORY), self.world.federation) if MEMORY in names else None
        machine = Cosigner(self.key, self.world.key.public, self.world.root, state, self._keep, allowed=self.allowed)
        held = machine.held.sequence if machine.held else -1
        if self.signed and held < max(self.signed):
            raise Violation(f"{self.name} remembers the sequence {held}, and has signed {max(self.signed)}")
        return Hosted(machine)

    def _keep(self, raw: bytes) -> None:
        put(self.disk, MEMORY, raw)

    def execute(self, effect: Any) -> None:
        super().execute(effect)
        if isinstance(effect, Log):
            if ALLOW in str(effect.fields.get("reason", "")):
                self.world.clock.after(self.random.uniform(1, 20), self._allow)
            elif "allowed" in effect.fields:
                self.allowed = False

    def watch(self, topic: str, payload: bytes) -> None:
        head, text = verify_message(self.key.public, HEAD, payload, Head), payload_of(payload)
        if (before := self.signed.setdefault(head.sequence, text)) != text:
            raise Violation(f"{self.name} signs two heads with the sequence {head.sequence}: {before!r}, {text!r}")
        if head.sequence < max(self.signed):
            raise Violation(f"{self.name} signs a head with the sequence {head.sequence} after {max(self.signed)}")
        if self.signed and max(self.signed) == head.sequence and before is not text:
            self.saw("co-signer signs again")

    def _allow(self) -> None:
        """The operator starts it anew with the flag."""
        self.saw("co-signer allowed by hand")
        self.allowed = True
        if self.machine is not None:
            self.die("started again by hand", power_cut=False)
