"""The attempt at a round that is under way, and the settings that attempts are opened by."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from fleetgrad.broker.journal import Attempt, Contribution
from fleetgrad.wire import seeds
from fleetgrad.wire.frames import Header
from fleetgrad.wire.messages import Link, Policy, RoundState

SPOOL, SUFFIX = "spool", ".update"  # folder and file names of the open attempt's updates


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """The policy of a federation's rounds: of those that are yet to be opened. `goal` 0 means every device of the roster; `deadline` in seconds.

    `link` says how the broker is to be used; its reconnect_seconds follow from the roster and `reconnects`, devices a second.
    Whole updates wait `group_seconds` at most for others to be committed with.
    """

    federation: str
    policy: Policy
    rounds: int
    goal: int = 0
    minimum: float = 0.8
    over_selection: float = 1.3
    deadline: float = 600.0
    shards: int = 1
    link: Link = field(default_factory=Link)
    reconnects: float = 50.0
    expires: float = 86400.0
    group_seconds: float = 0.05


@dataclass(slots=True)
class Open:
    """An attempt, which trains version `version` with the params of hash `params` under the policy of hash `config`.

    `began` and `deadline_at` are monotonic, in seconds.
    """

    federation: str
    round: int
    attempt: int
    version: int
    params: str
    policy: Policy
    config: str
    state: RoundState
    began: float
    deadline_at: float | None = None
    members: dict[str, Contribution] = field(default_factory=dict)
    weight: int = 0

    def admit(self, rows: Iterable[Contribution]) -> None:
        """Counts updates that are in the journal."""
        for row in rows:
            self.members[row.device] = row
            self.weight += row.weight

    def has(self, header: Header) -> bool:
        """Whether an update says that it is of this attempt."""
        return (header.round, header.attempt) == (self.round, self.attempt)

    def mismatch(self, header: Header) -> str:
        """What is wrong with an update's model or policy, in words that follow "update"; nothing if both are this attempt's."""
        if header.model != bytes.fromhex(self.params):
            return "to another model"
        return "" if header.config == bytes.fromhex(self.config) else "under another policy"

    def row(self, state: RoundState | None = None) -> Attempt:
        """The attempt as it is now, or in another state."""
        return Attempt(self.round, self.attempt, state or self.state, self.version, self.config)

    def keys(self, device: str) -> seeds.Keys:
        """Keys of the codec for a device's update."""
        return seeds.codec_keys(self.federation, device, self.round, self.attempt)

    def file_of(self, device: str) -> str:
        """File name of a device's update: on its way in, and when it is accepted, sealed as it came."""
        return f"{SPOOL}/{self.round}-{self.attempt}-{device}{SUFFIX}"

    def device_of(self, name: str) -> str | None:
        """Whose update a file of the spool is, or None if it is none of this attempt."""
        mine = f"{self.round}-{self.attempt}-"
        return name[len(mine) : -len(SUFFIX)] if name.startswith(mine) and name.endswith(SUFFIX) else None
