"""The table [broker] of edge.toml and federation.toml, and what a session makes of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from fleetgrad.wire.address import Address, AddressRefused, check_plain, parse
from fleetgrad.wire.mqtt.profiles import Name, Profile, profile_for
from fleetgrad.wire.strict import Strict
from fleetgrad.wire.tls import Credentials, context

MAINS_KEEPALIVE = 60  # seconds; 1200 on a battery


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A broker, how to show who we are, and what it allows; `keepalive` in seconds; `floor` is the file of a time that has passed."""

    address: Address
    credentials: Credentials = field(default_factory=Credentials)
    profile: Name = "auto"
    keepalive: int = MAINS_KEEPALIVE
    floor: Path | None = None


class BrokerSettings(Strict, frozen=True, kw_only=True):
    """`ca`, `certificate` and `key` are PEM files, relative to the settings' folder; `keepalive` in seconds."""

    url: str
    insecure: bool = False
    profile: Name = "auto"
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    keepalive: Annotated[int, Meta(ge=5, le=3600)] = MAINS_KEEPALIVE

    def row(self) -> Profile:
        """The row of the table of brokers that holds; raises AddressRefused."""
        return profile_for(self.profile, parse(self.url))

    def endpoint(self, folder: Path, *, insecure: bool = False, floor: Path | None = None) -> Endpoint:
        """The broker that is meant; raises AddressRefused and tls.CredentialsRefused."""
        address = parse(self.url)
        check_plain(address, insecure or self.insecure)
        ca, certificate, key = (folder / name if name else None for name in (self.ca, self.certificate, self.key))
        credentials = Credentials(ca, certificate, key)
        if address.tls:
            context(credentials)
        elif ca or certificate or key:
            raise AddressRefused(
                f"broker address {self.url!r}: certificates are of no use without TLS: mqtts:// or wss://"
            )
        return Endpoint(address, credentials, self.profile, self.keepalive, floor)
