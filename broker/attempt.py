"""The attempt at a round that is under way, and the settings that attempts are opened by."""

from dataclasses import dataclass, field

from fleetgrad.broker.journal import Attempt, Contribution
from fleetgrad.wire import frames, seeds
from fleetgrad.wire.frames import Header
from fleetgrad.wire.messages import Link, Policy, RoundState
from fleetgrad.wire.topics import name_hash

SPOOL = "spool"  # folder of the open attempt's payloads


@dataclass(frozen=True, slots=True)
class RoundSettings:
    """The policy of a federation's rounds: of those that are yet to be opened. `goal` 0 means every device of the roster; `deadline` in seconds.

    `link` says how the broker is to be used; its reconnect_seconds follow from the roster and `reconnects`, devices a second.
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

    def has(self, header: Header) -> bool:
        """Whether an update says that it is of this attempt."""
        return (header.round, header.attempt) == (self.round, self.attempt)

    def row(self, state: RoundState | None = None) -> Attempt:
        """The attempt as it is now, or in another state."""
        return Attempt(self.round, self.attempt, state or self.state, self.version, self.config)

    def keys(self, device: str) -> seeds.Keys:
        """Keys of the codec for a device's update."""
        return seeds.codec_keys(self.federation, device, self.round, self.attempt)

    def sealed_with(self, device: str) -> bytes:
        """What a device's update opens with."""
        ids = name_hash(self.federation), self.round, self.attempt, name_hash(device)
        return frames.sealed_with(*ids, bytes.fromhex(self.params), bytes.fromhex(self.config))

    def payload_name(self, device: str) -> str:
        """File name of a device's accepted payload, sealed as it came."""
        return f"{SPOOL}/{self.round}-{self.attempt}-{device}.payload"
