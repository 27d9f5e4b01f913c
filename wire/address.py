"""Where the broker is: SCHEME://host[:port][/path]. What can be read on the way leaves this machine only when someone typed --insecure.

mqtt   1883   plain                    ws   80    plain, in WebSocket frames
mqtts  8883   TLS                      wss  443   TLS, in WebSocket frames; path /mqtt unless told
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

Scheme = Literal["mqtt", "mqtts", "ws", "wss"]
PORTS: dict[str, int] = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
PATH = "/mqtt"  # where brokers serve MQTT over WebSocket, by custom
FORM = "mqtt, mqtts, ws or wss://host[:port]"


class AddressRefused(ValueError):
    """A broker address that can't or mustn't be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Address:
    """A broker's address; `path` is that of a WebSocket, and empty without one."""

    host: str
    port: int
    scheme: Scheme = "mqtt"
    path: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    @property
    def tls(self) -> bool:
        return self.scheme in ("mqtts", "wss")

    @property
    def websocket(self) -> bool:
        return self.scheme in ("ws", "wss")

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
    if parts.scheme not in PORTS or not parts.hostname:
        raise AddressRefused(f"broker address {url!r}: expected {FORM}")
    if "@" in parts.netloc:
        raise AddressRefused("broker address: user name and password can't be given in it")
    websocket = parts.scheme in ("ws", "wss")
    if parts.query or parts.fragment or (parts.path.strip("/") and not websocket):
        what = "a host, a port and a path" if websocket else "a host and a port"
        raise AddressRefused(f"broker address {url!r}: only {what} can be given")
    if websocket and not re.fullmatch(r"[!-~]*", parts.path):  # it goes into an HTTP request line as it is
        raise AddressRefused(f"broker address {url!r}: a path is printable ASCII without spaces")
    if port == 0:
        raise AddressRefused(f"broker address {url!r}: port 0")
    path = (parts.path if parts.path.strip("/") else PATH) if websocket else ""
    scheme: Scheme = parts.scheme  # type: ignore[assignment]  # one of PORTS
    return Address(parts.hostname, port or PORTS[scheme], scheme, path)


def check_plain(address: Address, insecure: bool) -> None:
    """Raises AddressRefused if what can be read on the way would leave this machine without being asked for."""
    if not address.tls and not address.loopback and not insecure:
        safe = "wss" if address.websocket else "mqtts"
        raise AddressRefused(
            f"{address} isn't this machine, and {address.scheme} can be read on the way: use {safe}://, or "
            "give --insecure if you trust the network between"
        )
