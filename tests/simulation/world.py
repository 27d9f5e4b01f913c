"""One run: a federation of real state machines under a storm of simulated faults, from one seed.

python -m tests.simulation.world SEED     repeats a run and prints all that happened
"""

import argparse
import hashlib
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fleetgrad.broker.closing import KEPT_VERSIONS
from fleetgrad.broker.offering import MAX_DELTAS
from fleetgrad.wire.codecs import payload_bound
from fleetgrad.wire.events import Tick
from fleetgrad.wire.release import implied
from fleetgrad.wire.seal import OVERHEAD, SealKey
from fleetgrad.wire.topics import Topics
from tests import invariants
from tests.invariants import Violation
from tests.simulation.aggregator import Aggregator
from tests.simulation.clock import Clock
from tests.simulation.cosigner import CosignerProcess, releasing_with
from tests.simulation.device import Device
from tests.simulation.failing import Fault
from tests.simulation.identities import key_of
from tests.simulation.network import Network, Weather
from tests.simulation.process import Process
from tests.simulation.scenario import Scenario, draw
from tests.simulation.trace import Trace
from tests.simulation.training import Made, initial_params, layout_of

PLAN = b"a plan, which no state machine opens" * 100
MOST_STEPS = 400_000  # events: a run that needs more isn't getting anywhere
RENEWAL_SECONDS = 20.0  # until all have heard of a device's next identity
SETTLE_SECONDS = 300.0  # after the last round, until everybody is idle with the last model


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    final: bytes
    digest: str
    sometimes: Counter[str]
    attempts: int
    steps: int
    seconds: float


class World:
    """Everything that a run consists of."""

    def __init__(self, scenario: Scenario, *, keep_all: bool = False) -> None:
        self.scenario = scenario
        self.clock, self.trace = Clock(), Trace(keep_all)
        self.random = random.Random(f"{scenario.seed} world")
        self.storm_ends = scenario.storm_ends
        self.network = Network(
            self.clock,
            random.Random(f"{scenario.seed} network"),
            scenario.weather,
            self._note_network,
            self.trace.saw,
            retains=scenario.link.retained,
        )
        self.federation = "sim"
        self.topics = Topics(self.federation)
        self.key = key_of("aggregator")
        self.seal = SealKey.from_bytes(hashlib.sha256(b"seal").digest())
        self.made: dict[str, Made] = {}
        self.layout = layout_of(scenario.length)
        self.devices = [Device(self, i) for i in range(scenario.devices)]
        self.revoked: dict[str, tuple[int, int]] = {}  # with the attempt in which the aggregator heard of it
        self.roster = {d.device: 0 for d in self.devices}  # the generation of each identity, as the aggregator knows it
        if scenario.clone:
            self.devices.append(Device(self, self.random.randrange(scenario.devices), clone=True))
        names = [f"cosigner-{i}" for i in range(scenario.cosigners)]
        self.releasing = releasing_with(self.federation, self.key, [key_of(name) for name in names]) if names else None
        self.root = self.releasing.root if self.releasing else implied(self.federation, self.key.public)
        self.cosigners = [CosignerProcess(self, name, key_of(name)) for name in names]
        self.aggregator = Aggregator(self, PLAN, initial_params(scenario.length, scenario.seed))

    @property
    def storm(self) -> bool:
        return self.clock.now < self.storm_ends

    @property
    def processes(self) -> list[Process]:
        return [self.aggregator, *self.devices, *self.cosigners]

    def _note_network(self, line: str) -> None:
        self.trace.note(self.clock.now, line)

    # --- the storm ---------------------------------------------------------------------------------------------------
    def _every_now_and_then(self, rate: float, act: Callable[[], object]) -> None:
        """Strikes at random times while the storm rages, `rate` times a second on average."""
        if rate <= 0:
            return

        def again() -> None:
            if self.storm:
                act()
                self.clock.after(self.random.expovariate(rate), again)

        self.clock.after(self.random.expovariate(rate), again)

    def _begin(self) -> None:
        faults = self.scenario.faults
        for process in self.processes:
            self.clock.after(self.random.uniform(0, 5), process.boot)
            self._every_now_and_then(faults.kills, partial(_strike, process))
            self._every_now_and_then(faults.partitions, partial(self._partition, process))
            self._every_now_and_then(faults.full_disks, partial(self._fill, process))
            self._every_now_and_then(faults.damages, process.damage)
            if isinstance(process, Device):
                self._every_now_and_then(faults.full_cards, partial(self._fill_card, process))
                self._every_now_and_then(faults.failing_disks, partial(self._fail_disk, process))
                if not process.clone:
                    self._every_now_and_then(faults.renewals, partial(self._renew, process))
        if len(self.cosigners) > 1:
            self._every_now_and_then(faults.losses, self._lose_cosigner)
        self._every_now_and_then(faults.withdrawals, self._withdraw)
        self._every_now_and_then(faults.revocations, self._revoke)
        self._every_now_and_then(faults.amnesias, self._amnesia)
        self._every_now_and_then(faults.forgettings, self._forget)
        self.clock.at(self.storm_ends, self._calm)

    def _amnesia(self) -> None:
        self.trace.saw("broker amnesia")
        self.network.amnesia()

    def _forget(self) -> None:
        self.trace.saw("broker forgets what it retained")
        self.network.forget()

    def _partition(self, process: Process) -> None:
        self.trace.saw("partition")
        self.network.cut(process.client)
        self.clock.after(self.random.uniform(2, 60), lambda: self.network.heal(process.client))

    def _fill(self, process: Process) -> None:
        self.trace.saw("disk full")
        process.note("disk full")
        process.disk.full = True

        def empty() -> None:
            process.note("disk has room again")
            process.disk.full = False

        self.clock.after(self.random.uniform(2, 40), empty)

    def _fill_card(self, device: Device) -> None:
        self.trace.saw("no room to train")
        device.free = 0
        self.clock.after(self.random.uniform(2, 40), device.empty_card)

    def _fail_disk(self, device: Device) -> None:
        fault: Fault = self.random.choice(("read-only", "errors"))
        self.trace.saw(f"disk with {fault}" if fault == "errors" else "disk read-only")
        device.note(f"disk fails: {fault}")
        device.files.fault = fault
        self.clock.after(self.random.uniform(2, 40), device.mend_disk)

    def _renew(self, device: Device) -> None:
        """The registrar names a device's next identity; aggregator and device hear of it in either order."""
        following = device.key.generation + 1
        if device.renewing or device.revoked or self.roster[device.device] != device.key.generation:
            return
        device.renewing = True

        def aggregator_hears() -> None:
            self.trace.saw("identity renewed")
            device.note(f"has the identity {following} to the aggregator")
            self.roster[device.device] = following

        self.clock.after(self.random.uniform(0, RENEWAL_SECONDS), aggregator_hears)
        self.clock.after(self.random.uniform(0, RENEWAL_SECONDS), device.renew)

    def _withdraw(self) -> None:
        """The operator stops the aggregator, takes a version back, and starts it again."""
        if len(self.aggregator.journal.memory.versions) == 1 and self.random.random() < 0.9:
            return
        self.aggregator.to_withdraw = True
        if self.aggregator.machine is not None:
            self.aggregator.die("stopped to withdraw a version", power_cut=False)

    def _revoke(self) -> None:
        """The registrar revokes a device: one, since the others must be enough for the goal. It is told when it asks, if it ever does."""
        device = self.devices[self.random.randrange(self.scenario.devices)]
        if self.revoked or device.renewing:
            return
        self.trace.saw("identity revoked")
        if device.owed:
            self.trace.saw("identity revoked under an upload")
        device.note("is revoked")
        self.revoked[device.device] = max(self.aggregator.journal.memory.attempts, default=(0, 0))
        self.aggregator.feed(Tick())

    def _lose_cosigner(self) -> None:
        """One machine never comes back: the other one's signature is enough."""
        if not any(c.gone for c in self.cosigners):
            self.trace.saw("co-signer lost for good")
            self.random.choice(self.cosigners).leave("lost for good")

    def _calm(self) -> None:
        """Faults stop here: the rest of the run must get somewhere."""
        self.storm_ends = self.clock.now
        self.trace.note(self.clock.now, "the storm is over")
        self.network.weather = Weather()
        for process in self.processes:
            process.disk.full = False
            process.fuse = None
            process.client.mute = ""
            self.network.heal(process.client)
            if isinstance(process, Device):
                process.empty_card()
                process.mend_disk()
                if process.clone:
                    process.leave("the clone is found and switched off")

    # --- the run -----------------------------------------------------------------------------------------------------
    def _bound(self) -> float:
        """I10: seconds after the storm within which the rounds must be over."""
        s = self.scenario
        slow = 50.0 if s.straggler is not None and s.goal == s.devices else 1.0
        per_round = 120 + 8 * s.train_seconds * slow + (0 if s.patient else 2 * s.deadline)
        return 300 + s.rounds * per_round

    def run(self) -> Outcome:
        """Runs until everybody is done, or raises Violation."""
        self._begin()
        while not (self.aggregator.finished and self.aggregator.machine is not None):
            self._step()
            if not self.storm and self.clock.now > self.storm_ends + self._bound():
                raise Violation(f"I10: {self._bound():.0f} s after the storm the rounds aren't over: {self._where()}")
        if self.storm:
            self._calm()
        settle_by = self.clock.now + SETTLE_SECONDS + 50 * self.scenario.train_seconds * 8
        while not self._settled():
            self._step()
            if self.clock.now > settle_by:
                raise Violation(f"I10: devices don't come to rest: {self._where()}")
        self._check_end()
        return Outcome(
            self.aggregator.journal.models[self.aggregator.journal.memory.current.number], self.trace.digest(), self.trace.sometimes,
            len(self.aggregator.journal.memory.attempts), self.clock.steps, self.clock.now,
        )  # fmt: skip

    def _step(self) -> None:
        if not self.clock.step():
            raise Violation(f"I10: nothing is going to happen any more: {self._where()}")
        if self.clock.steps > MOST_STEPS:
            raise Violation(f"I10: {MOST_STEPS} events and no end: {self._where()}")

    def _settled(self) -> bool:
        if (
            not self.aggregator.finished
        ):  # as after a version that was withdrawn when all was over: a co-signer must say so first
            return False
        last = self.aggregator.journal.memory.current.number
        return all(d.clone or d.at_rest_with(last) or d.at_rest_apart() for d in self.devices)

    def _where(self) -> str:
        states = ", ".join(f"{d.name} {d.where()}" for d in self.devices)
        attempts = self.aggregator.journal.memory.attempts
        return f"attempt {attempts.get(max(attempts, default=(0, 0)))}, {states}"

    def _check_end(self) -> None:
        s = self.scenario
        self.aggregator.check_end()
        for device in self.devices:
            device.check_book()
        journal = self.aggregator.journal
        if len(journal.models) != s.rounds + 1:
            raise Violation(f"I4: {len(journal.models) - 1} versions after {s.rounds} rounds")
        if s.patient and len(journal.memory.attempts) != s.rounds:
            raise Violation("an attempt was abandoned though nothing could make it so")
        codecs = (s.codec, s.then or s.codec)
        payload = max(payload_bound(codec, self.layout) for codec in codecs) + OVERHEAD
        model = 4 * s.length
        for process, cap in [
            *(
                (d, len(PLAN) + (8 if any(c.feedback for c in codecs) else 5) * model + (s.spool + 2) * payload + 65536)
                for d in self.devices
            ),
            (
                self.aggregator,
                len(PLAN)
                + (min(KEPT_VERSIONS, s.rounds + 1) + MAX_DELTAS + 2) * model
                + 2 * s.devices * payload
                + 65536,
            ),
        ]:
            invariants.check_within(f"bytes of disk of {process.name}", process.disk.most_bytes, cap)
        if left := self.aggregator.disk.names("spool"):
            raise Violation(f"I9: payloads of closed rounds are left in the aggregator's spool: {left}")


def _strike(process: Process) -> None:
    if process.machine is not None:
        process.die("struck")


def replay(seed: int) -> str:
    """The command that repeats a run."""
    return f"python -m tests.simulation.world {seed}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--calm", action="store_true", help="the same federation without faults")
    parser.add_argument("--quiet", action="store_true", help="only the outcome")
    options = parser.parse_args()
    scenario = draw(options.seed)
    world = World(scenario.calm() if options.calm else scenario, keep_all=True)
    print(world.scenario)
    try:
        outcome = world.run()
    except BaseException:
        print("\n".join(world.trace.lines))
        raise
    if not options.quiet:
        print("\n".join(world.trace.lines))
    print(
        f"{outcome.digest} {outcome.attempts} attempts, {outcome.steps} events, {outcome.seconds:.0f} simulated seconds"
    )
    for name, count in sorted(outcome.sometimes.items()):
        print(f"{count:6d}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
