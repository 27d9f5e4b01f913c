"""Enrolment by a one-time code: a board makes its own keys, and the code proves both sides to each other.

    code    15 letters and digits drawn at random (74 bits) and one that checks them, in groups of four: no 0/O, 1/I/L, U/V, Z
    key     scrypt(code, salt = federation): what both sides have; too slow to be found by trying, for who records the messages
    id      hash of the key, in the topics; says nothing of the code

    device    -> enrol/{id}      {"body": Ask as JSON, "mac": HMAC-SHA256(key, "fl1-enrol" || body)}
    registrar -> enrolled/{id}   {"body": Answer as JSON, "mac": HMAC-SHA256(key, "fl1-enrolled" || body)}

Whoever carries the messages can drop them, but neither read the code nor put other keys in. The ask is repeated until it is
answered, and bound to one board by its keys: the same ask gives the same answer, another with the same code is refused.
"""

import hashlib
import hmac
import secrets
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from fleetgrad.wire.kit import Data
from fleetgrad.wire.membership import Nonce, Pem
from fleetgrad.wire.messages import Count, Name, RawKey, Reason, Sha256
from fleetgrad.wire.signing import Untrusted
from fleetgrad.wire.strict import MALFORMED, Strict

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXY"  # 31, a prime: one wrong letter, or two swapped, never keep the sum
DRAWN, GROUP = 15, 4
MISREAD = str.maketrans("OILU", "011V")
SCRYPT_N, SCRYPT_R = 2**14, 8  # 16 MiB and about 50 ms on a desktop, 0.3 s on a board
MAX_BYTES = 32 * 1024

T = TypeVar("T", bound=msgspec.Struct)


class CodeRefused(ValueError):
    """A code that was mistyped."""


class Ask(Strict, frozen=True, kw_only=True):
    """`key` is the board's Ed25519 key, `request` its certificate request, `proof` the signature by `key` over `signed()`."""

    federation: Name
    name: Name | None
    key: RawKey
    request: Pem
    nonce: Nonce
    proof: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")] = "0" * 128

    def signed(self) -> bytes:
        """What the proof is over: everything else."""
        return b"fl1-enrol-proof" + msgspec.json.encode(msgspec.structs.replace(self, proof="0" * 128))


class Answer(Strict, frozen=True, kw_only=True):
    """`nonce` is the ask's; the rest, when `status` is enrolled, is what a kit holds. `now` in Unix seconds."""

    nonce: Nonce
    status: Literal["pending", "enrolled", "refused"]
    now: Count
    reason: Reason = ""
    device: Name | None = None
    certificate: Pem | None = None
    ca: Pem | None = None
    aggregator: Pem | None = None
    registrar: Pem | None = None
    url: Annotated[str, Meta(max_length=1024)] = ""
    insecure: bool = False
    data: Data = Data()
    root: Annotated[str, Meta(max_length=16 * 1024)] | None = None  # of trust, where it isn't the aggregator's key


class _Proven(Strict, frozen=True):
    body: str
    mac: Sha256


def new_code() -> str:
    """A fresh code, as it is written on paper."""
    drawn = [secrets.randbelow(len(ALPHABET)) for _ in range(DRAWN)]
    text = "".join(ALPHABET[v] for v in [*drawn, _check(drawn)])
    return "-".join(text[i : i + GROUP] for i in range(0, len(text), GROUP))


def parse_code(typed: str) -> str:
    """The code's letters, without what people put between them; raises CodeRefused."""
    text = "".join(c for c in typed.upper() if c not in "- \t").translate(MISREAD)
    if len(text) != DRAWN + 1:
        raise CodeRefused(f"code refused: it has {len(text)} letters, a code has {DRAWN + 1}")
    if odd := sorted(set(text) - set(ALPHABET)):
        raise CodeRefused(f"code refused: {', '.join(map(repr, odd))} is in no code")
    values = [ALPHABET.index(c) for c in text]
    if _check(values[:DRAWN]) != values[DRAWN]:
        raise CodeRefused("code refused: its last letter doesn't fit the others, so one was mistyped")
    return text


def _check(values: list[int]) -> int:
    return sum(i * v for i, v in enumerate(values, 1)) % len(ALPHABET)


def derive(code: str, federation: str) -> tuple[str, bytes]:
    """(id, key) of a code; raises CodeRefused."""
    salt = b"fl1-enrol|" + federation.encode()
    key = hashlib.scrypt(parse_code(code).encode(), salt=salt, n=SCRYPT_N, r=SCRYPT_R, p=1, dklen=32)
    return hashlib.sha256(b"fl1-enrol-id" + key).hexdigest()[:20], key


def prove(key: bytes, message: Ask | Answer) -> bytes:
    """A message as it travels."""
    body = msgspec.json.encode(message)
    return msgspec.json.encode(_Proven(body.decode(), _mac(key, type(message), body)))


def open_proven(key: bytes, raw: bytes, type_: type[T]) -> T:
    """The message whose sender has the code; raises Untrusted. Nothing of it is read before that is shown."""
    if len(raw) > MAX_BYTES:
        raise Untrusted(f"enrolment message of {len(raw)} bytes, at most {MAX_BYTES}")
    try:
        outer = msgspec.json.decode(raw, type=_Proven)
        body = outer.body.encode()
    except (*MALFORMED, UnicodeEncodeError) as e:
        raise Untrusted(f"enrolment message: {e}") from e
    if not hmac.compare_digest(outer.mac, _mac(key, type_, body)):
        raise Untrusted("enrolment message whose sender hasn't the code")
    try:
        return msgspec.json.decode(body, type=type_)
    except MALFORMED as e:
        raise Untrusted(f"enrolment message: {e}") from e


def _mac(key: bytes, kind: type, body: bytes) -> str:
    label = b"fl1-enrol" if kind is Ask else b"fl1-enrolled"
    return hmac.new(key, label + b"\0" + body, hashlib.sha256).hexdigest()
