"""Where the broker is: mqtt://host[:port]. Plain MQTT leaves this machine only when someone typed --insecure."""

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

PORT = 1883


class AddressRefused(ValueError):
    """A broker address that can't or mustn't be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Address:
    """A broker's TCP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"mqtt://[{self.host}]:{self.port}" if ":" in self.host else f"mqtt://{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether messages stay on this machine."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse(url: str) -> Address:
    """The address in a URL; raises AddressRefused."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as e:
        raise AddressRefused(f"broker address {url!r}: {e}") from e
    if parts.scheme in ("mqtts", "ssl", "tls"):
        raise AddressRefused(f"broker address {url!r}: TLS isn't supported yet, use mqtt://host:port")
    if parts.scheme != "mqtt" or not parts.hostname:
        raise AddressRefused(f"broker address {url!r}: expected mqtt://host:port")
    if "@" in parts.netloc:
        raise AddressRefused("broker address: user name and password can't be given in it")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise AddressRefused(f"broker address {url!r}: only a host and a port can be given")
    if port == 0:
        raise AddressRefused(f"broker address {url!r}: port 0")
    return Address(parts.hostname, port or PORT)


def check_plain(address: Address, insecure: bool) -> None:
    """Raises AddressRefused if plain MQTT would leave this machine without being asked for."""
    if not address.loopback and not insecure:
        raise AddressRefused(
            f"{address} isn't this machine, and plain MQTT can be read on the way: "
            "give --insecure if you trust the network between"
        )
