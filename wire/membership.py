"""What the registrar says of devices, and what members ask of it, as strict structs inside JWS (wire/signing.py).

    member    registrar -> aggregator   this device has that key; or it was revoked (kind MEMBER)
    renewal   device -> registrar       a request for the next certificate and key (kind RENEWAL, by the device's key and the next)
    issued    registrar -> device       the next certificate, or that one is due (kind ISSUED)

A member's statements are numbered: the highest holds, so that an old one says nothing when it is sent again.
"""

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from fleetgrad.wire.messages import Count, Name, RawKey, Reason
from fleetgrad.wire.signing import PrivateKey, PublicKey, Untrusted, sign_message, verify_by, verify_message
from fleetgrad.wire.strict import Strict
from fleetgrad.wire.topics import NAME, NameRefused, check_name

MEMBER, RENEWAL, ISSUED = "fl1-member", "fl1-renewal", "fl1-issued"
ROLES = ("aggregator", "registrar", "cosigner", "operator")  # common names of certificates that no device may have
MAX_PEM = 16 * 1024

Pem = Annotated[str, Meta(min_length=1, max_length=MAX_PEM)]
Nonce = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]


class Member(Strict, frozen=True, kw_only=True):
    """`key` is the device's Ed25519 key; `not_after` is when its certificate ends, in Unix seconds, for people to read."""

    federation: Name
    device: Name
    key: RawKey
    serial: Count
    not_after: Count
    revoked: bool = False
    reason: Reason = ""

    def public(self) -> PublicKey:
        return PublicKey.from_hex(self.key)


class Revoked(Untrusted):
    """Of a device that was a member; `key` is what it signed by, for an answer that says so and nothing else."""

    def __init__(self, member: Member) -> None:
        why = f": {member.reason}" if member.reason else ""
        super().__init__(f"device {member.device!r} was revoked{why}")
        self.key = member.public()


class Renewal(Strict, frozen=True, kw_only=True):
    """What a member asks: the next certificate by a certificate request, or to be let go.

    `instance` is drawn where a kit is installed: two of one device are two boards. `count` grows with each request of a device.
    `identity` is the device's next Ed25519 key; the message is then signed by both keys, the old one first. `until` is when the
    certificate ends that the board has, in Unix seconds: it may have lost the key of a later one.
    """

    federation: Name
    device: Name
    instance: Nonce
    count: Count
    request: Pem | None = None
    identity: RawKey | UnsetType = UNSET  # left out where there is none
    leaves: bool = False
    until: Count | UnsetType = UNSET


class Issued(Strict, frozen=True, kw_only=True):
    """`certificate` for the request with that `count`; without one: the device's certificate is `due`, whatever its clock says.

    `now` is the registrar's time in Unix seconds: signed, so it has passed.
    """

    federation: Name
    device: Name
    now: Count
    count: Count = 0
    certificate: Pem | None = None
    due: bool = False


def verify_renewal(key: PublicKey, raw: bytes) -> Renewal:
    """What the member with that key asks: signed by it, and by the key that it names as its next. Raises Untrusted.

    A request that names a next key holds before and after that key has become the member's.
    """
    ask = verify_by([key], 1, RENEWAL, raw, Renewal)
    if ask.identity and ask.identity != key.raw.hex():
        try:
            proven = PublicKey.from_hex(ask.identity)
        except ValueError as e:
            raise Untrusted(f"next key of {ask.device}: {e}") from e
        verify_by([key, proven], 2, RENEWAL, raw, Renewal)
    return ask


def check_device(name: str) -> str:
    """Returns `name`, or raises NameRefused: as a topic's part, and for the names of the federation's own roles."""
    check_name(name, "device id")
    if name in ROLES:
        raise NameRefused(
            f"device id {name!r} refused: it is the name of a role of the federation ({', '.join(ROLES)})"
        )
    return name


def sign_member(key: PrivateKey, member: Member) -> bytes:
    """The statement as the registrar publishes it."""
    return sign_message(key, MEMBER, member)


def verify_member(key: PublicKey, federation: str, raw: bytes, device: str) -> Member:
    """The registrar's statement on `device`; raises Untrusted."""
    member = verify_message(key, MEMBER, raw, Member)
    if (member.federation, member.device) != (federation, device) or not NAME.fullmatch(device):
        raise Untrusted(f"statement on {member.device} of {member.federation}, expected {device[:64]} of {federation}")
    return member
