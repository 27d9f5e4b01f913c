"""What brokers allow, one row each, and what of it holds on one connection: the row and the broker's CONNACK, whichever is less.

`auto`, the default, takes the row that the host's name tells (two clouds have names of their own), else `generic`: values that
every known broker takes. Rates can't be seen in a CONNACK, so `generic` has none: name the profile of a cloud broker.
docs/brokers.md is made from this table.
"""

from dataclasses import dataclass
from typing import Literal

from fleetgrad.wire.address import Address

KIB = 1024
OVERHEAD = 512  # bytes of a packet around a chunk's data at most: MQTT's, topic, frame header, signature
MOST_CHUNK = 120 * KIB  # that a head may ask for
RATE_MARGIN = 0.9  # of what a broker counts we use so much: its seconds aren't ours

Name = Literal[
    "auto",
    "generic",
    "mosquitto",
    "emqx",
    "emqx-serverless",
    "hivemq",
    "aws-iot",
    "azure-eventgrid",
    "nats",
    "rabbitmq",
]
Retained = Literal["all", "exact", "none"]  # exact: not delivered to a filter with a wildcard


@dataclass(frozen=True, slots=True)
class Profile:
    """One broker. Bytes are of whole packets except `chunk_bytes`, a chunk's data; None is no limit, or one that its CONNACK tells."""

    name: Name
    chunk_bytes: int = 60 * KIB
    window: int = 8  # publishes of QoS 1 in flight
    window_bytes: int | None = None
    packet_bytes: int | None = None
    publishes_per_second: float | None = None
    bytes_per_second: float | None = None
    filters_per_subscribe: int = 64
    retained: Retained = "all"
    hosts: tuple[str, ...] = ()  # how its hosts' names end
    named: bool = False  # a client's id must be the name that its certificate stands for
    note: str = ""
    source: str = ""


PROFILES: dict[str, Profile] = {
    p.name: p
    for p in (
        Profile("generic", packet_bytes=128 * KIB, filters_per_subscribe=8, note="what all below take, rates apart"),
        Profile("mosquitto", note="2.1 refuses packets above 2 MB and says so in its CONNACK", source="mosquitto.conf(5)"),
        Profile("emqx", packet_bytes=1024 * KIB, source="docs.emqx.com: mqtt.max_packet_size 1MB"),
        Profile(
            "emqx-serverless", packet_bytes=1024 * KIB, publishes_per_second=10, hosts=(".emqxsl.com", ".emqxsl.cn"),
            note="a client publishes 10 messages a second", source="docs.emqx.com, serverless quotas",
        ),
        Profile("hivemq", packet_bytes=5 * 1024 * KIB, note="receive maximum 10", source="docs.hivemq.com: 5 MB in its cloud"),
        Profile(
            "aws-iot", packet_bytes=128 * KIB, publishes_per_second=100, bytes_per_second=512 * KIB,
            filters_per_subscribe=8, hosts=(".amazonaws.com", ".amazonaws.com.cn"), named=True,
            note="at most 7 slashes in a topic; ours have 4; a device's client id is its thing's name: with a domain of your own name the profile",
            source="AWS IoT Core endpoints and quotas",
        ),
        Profile(
            "azure-eventgrid", chunk_bytes=28 * KIB, window_bytes=64 * KIB, packet_bytes=512 * KIB, publishes_per_second=1000,
            bytes_per_second=1024 * KIB, filters_per_subscribe=10, retained="none", hosts=(".eventgrid.azure.net",),
            note="no retained messages: devices ask for chunks", source="Azure Event Grid quotas and limits",
        ),
        Profile("nats", packet_bytes=1024 * KIB, note="MQTT 3.1.1 on JetStream; needs a server_name", source="docs.nats.io: max_payload 1MB"),
        Profile("rabbitmq", retained="exact", note="MQTT 3.1.1 up to 3.12", source="rabbitmq.com/docs/mqtt"),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Connack:
    """What a broker says of itself in MQTT 5; as 3.1.1 leaves it, nothing is said."""

    receive_maximum: int | None = None
    maximum_packet_size: int | None = None
    maximum_qos: int | None = None
    retain_available: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds on one connection; units as in Profile, rates with their margin taken off. `chunk_bytes` is the most that packets
    have room for, whatever the row has by default; 0 where they have none."""

    chunk_bytes: int
    window: int
    window_bytes: int | None
    packet_bytes: int | None
    publishes_per_second: float | None
    bytes_per_second: float | None
    filters_per_subscribe: int
    retained: bool
    qos: int


def profile_for(name: Name, address: Address) -> Profile:
    """The row of a name; for `auto` the one that the host belongs to, or `generic`."""
    if name != "auto":
        return PROFILES[name]
    return next((p for p in PROFILES.values() if p.hosts and address.host.endswith(p.hosts)), PROFILES["generic"])


def limits(profile: Profile, said: Connack) -> Limits:
    """The stricter of table and CONNACK, column by column."""
    sizes = [n for n in (profile.packet_bytes, said.maximum_packet_size) if n is not None]
    # The generic row's guess must not forbid what a broker has said it takes.
    packet = (
        said.maximum_packet_size if profile.name == "generic" and said.maximum_packet_size else min(sizes, default=None)
    )
    room = min(n for n in (packet, profile.window_bytes, MOST_CHUNK + OVERHEAD) if n is not None)
    return Limits(
        chunk_bytes=max(0, (room - OVERHEAD) // KIB * KIB),
        window=min(profile.window, said.receive_maximum or profile.window),
        window_bytes=profile.window_bytes,
        packet_bytes=packet,
        publishes_per_second=_margin(profile.publishes_per_second),
        bytes_per_second=_margin(profile.bytes_per_second),
        filters_per_subscribe=profile.filters_per_subscribe,
        retained=profile.retained != "none" and said.retain_available,
        qos=1 if said.maximum_qos is None else min(1, said.maximum_qos),
    )


def _margin(rate: float | None) -> float | None:
    return None if rate is None else rate * RATE_MARGIN


def table() -> str:
    """The profiles as Markdown: docs/brokers.md holds it."""

    def size(count: int | None) -> str:
        return "" if count is None else f"{count // KIB} KiB"

    lines = [
        "| profile | chunk | window | packet | publishes/s | bytes/s | filters | retained | note |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for p in PROFILES.values():
        window = f"{p.window}, {size(p.window_bytes)}" if p.window_bytes else str(p.window)
        rate = "" if p.publishes_per_second is None else f"{p.publishes_per_second:g}"
        most = None if p.bytes_per_second is None else int(p.bytes_per_second)
        note = p.note + (f" ({p.source})" if p.note and p.source else p.source)
        lines.append(
            f"| `{p.name}` | {size(p.chunk_bytes)} | {window} | {size(p.packet_bytes)} | {rate} | {size(most)} | "
            f"{p.filters_per_subscribe} | {p.retained} | {note} |"
        )
    return "\n".join(lines)
