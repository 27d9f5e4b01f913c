"""Who is here and who is asked: devices as their births tell, and selects, repeated until a birth answers.

idle with the current model --select--> selected --birth (training, uploading)--> answered --update--> member
                                           |--- birth (idle, this attempt) --> out: nothing will come
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from fleetgrad.broker import events as ev
from fleetgrad.broker.announcing import Announcer
from fleetgrad.broker.attempt import Open, RoundSettings
from fleetgrad.broker.sightings import Sightings
from fleetgrad.wire.messages import WINDOW, Birth, Select
from fleetgrad.wire.signing import Untrusted

MAX_WINDOWS = 512  # chunks granted to all devices together
SELECT_SECONDS = 2.0  # first repetition of a select; doubles up to the last
MOST_SELECT_SECONDS = 30.0


@dataclass(slots=True)
class Device:
    """What is known of a device since this boot."""

    birth: Birth
    sightings: Sightings
    selected: bool = False  # for the current attempt, and not given up since
    answered: bool = False
    select_at: float = 0.0
    patience: float = SELECT_SECONDS
    out: bool = False  # of the current attempt


@dataclass(slots=True)
class Cohort:
    """All devices heard of since this boot, by name."""

    settings: RoundSettings
    say: Announcer
    random: random.Random
    is_member: Callable[[str], bool]
    devices: dict[str, Device] = field(default_factory=dict)
    alarms: list[ev.Effect] = field(default_factory=list)  # to be said with the next effects
    clones: dict[str, str] = field(default_factory=dict)  # whose identity two boards seem to use, and why it seems so
    stirred: bool = True  # something has changed since the round was last looked at

    def begin(self) -> None:
        """Another attempt begins: nobody is asked yet."""
        self.stirred = True
        for device in self.devices.values():
            device.selected = device.answered = device.out = False

    def on_birth(self, name: str, birth: Birth, raw: bytes, attempt: Open | None, now: float) -> list[ev.Effect]:
        """Takes a device's verified word on itself, which came as `raw`; raises Untrusted if it isn't newer than its last."""
        device = self.devices.get(name)
        if device is None:
            device = self.devices[name] = Device(birth, Sightings())
        restarted = device.birth.boot != birth.boot
        seen = device.sightings.see(birth.boot, birth.seq, raw, now)
        if (why := device.sightings.clone) and name not in self.clones:
            self.clones[name] = why
            self.alarms.append(ev.Log("clone_suspected", {"device": name, "reason": why}))
        if seen != "new":
            raise Untrusted(f"birth of {name} {'came already' if seen == 'repeated' else 'is of an earlier start'}")
        device.birth, self.stirred = birth, True
        if attempt:
            mine = (birth.round, birth.attempt) == (attempt.round, attempt.attempt)
            busy = birth.state in ("training", "uploading")
            if mine and busy:
                device.selected = device.answered = True
            elif mine and name not in attempt.members:
                device.out, device.selected = True, False
                return [ev.Log("device_out", {"device": name, "round": birth.round, "reason": birth.reason})]
            elif device.selected:
                # It has lost the select: a restarted device is asked again at once, another at the next repetition.
                device.answered, device.selected = False, not restarted
        return []

    def part(self, name: str) -> None:
        """A device is no member any more: nothing is expected of it."""
        if self.devices.pop(name, None):
            self.clones.pop(name, None)
            self.stirred = True

    def is_out(self, name: str) -> bool:
        """Whether nothing more is taken from a device in this attempt."""
        device = self.devices.get(name)
        return device is not None and device.out

    def put_out(self, name: str) -> None:
        """A device's update was refused: nothing more comes from it in this attempt."""
        if name in self.devices:
            self.devices[name].out = self.stirred = True

    def unable(self, attempt: Open) -> int:
        """How many have said that nothing will come from them."""
        others = (d for name, d in self.devices.items() if name not in attempt.members)
        return sum(d.out or d.birth.state == "refused" for d in others)

    def window(self) -> int:
        """Chunks that each device may have under way."""
        return max(1, min(WINDOW, MAX_WINDOWS // max(1, len(self.devices))))

    def wake_at(self, attempt: Open) -> float | None:
        """When the next select is to be repeated."""
        return min((d.select_at for n, d in self.devices.items() if self._waits_for(n, attempt)), default=None)

    def _waits_for(self, name: str, attempt: Open) -> bool:
        """Whether a device's select is to be repeated."""
        device = self.devices[name]
        return device.selected and not device.answered and name not in attempt.members

    def select(self, attempt: Open, goal: int, now: float) -> list[ev.Effect]:
        """Asks who can be asked, and again who hasn't answered; the first select sets the attempt's deadline."""
        while gone := [n for n in self._invite(attempt, goal, now) if not self.is_member(n)]:
            for name in gone:
                self.part(name)
        effects: list[ev.Effect] = []
        for name, device in sorted(self.devices.items()):
            if not self._is_due(name, attempt, now):
                continue
            if attempt.deadline_at is None:
                attempt.deadline_at = now + self.settings.deadline
                attempt.state = "selecting"
            device.select_at = now + device.patience * self.random.uniform(0.75, 1.25)
            device.patience = min(MOST_SELECT_SECONDS, device.patience * 2)
            select = Select(
                federation=self.settings.federation,
                device=name,
                round=attempt.round,
                attempt=attempt.attempt,
                version=attempt.version,
                params=attempt.params,
                config=attempt.config,
                window=self.window(),
                deadline=min(self.settings.deadline, max(0.0, attempt.deadline_at - now)),
            )
            effects.append(self.say.command(name, select))
        return effects

    def _invite(self, attempt: Open, goal: int, now: float) -> list[str]:
        """Marks who is to be asked, as many as are wanted; all of whom a select is due to, the ones who haven't answered too."""
        under_way = [d for n, d in self.devices.items() if d.selected and n not in attempt.members]
        invites = math.ceil(goal * self.settings.over_selection) - len(attempt.members) - len(under_way)
        ready = [
            name
            for name, d in sorted(self.devices.items())
            if not d.selected
            and not d.out
            and name not in attempt.members
            and d.birth.state == "idle"
            and d.birth.params == attempt.params
        ]
        if len(ready) > max(0, invites):
            ready = self.random.sample(ready, max(0, invites))
        for name in ready[: max(0, MAX_WINDOWS - len(under_way))]:
            device = self.devices[name]
            device.selected, device.answered = True, False
            device.select_at, device.patience = now, SELECT_SECONDS
        return [name for name in self.devices if self._is_due(name, attempt, now)]

    def _is_due(self, name: str, attempt: Open, now: float) -> bool:
        return self._waits_for(name, attempt) and now >= self.devices[name].select_at
