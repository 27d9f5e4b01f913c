"""Ed25519 identities, and signed control messages as JWS in compact form (RFC 7515, RFC 8037).

    BASE64URL({"alg":"EdDSA","typ":"fl1-head","kid":"..."}) . BASE64URL(JSON) . BASE64URL(signature)

`typ` says which kind of message was signed, so a signature made for one kind can't be presented as another;
`kid` is the first 16 hex digits of SHA-256 of the public key. A message is parsed only after its signature holds.
"""

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, overload

import msgspec
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from fleetgrad.wire.strict import MALFORMED, Strict

MAX_JWS_BYTES = 64 * 1024
SIGNATURE_BYTES = 64
MAX_SIGNATURES = 16  # of one message
PUBLIC_BEGINS = b"-----BEGIN PUBLIC KEY"

T = TypeVar("T")


class Untrusted(ValueError):
    """A message that isn't what it claims to be: dropped and counted, never acted on."""


class KeyRefused(ValueError):
    """A key file that can't be used; the message names the file."""


class _Header(Strict, frozen=True):
    alg: Literal["EdDSA"]
    typ: str
    kid: str


class PublicKey:
    """What verifies one party's signatures."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self.raw = key.public_bytes_raw()
        self.kid = hashlib.sha256(self.raw).hexdigest()[:16]

    @classmethod
    def from_hex(cls, text: str) -> "PublicKey":
        """The key of 32 bytes in hex; raises ValueError."""
        return cls(Ed25519PublicKey.from_public_bytes(bytes.fromhex(text)))

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Whether `signature` (64 bytes) over `data` was made by this identity."""
        try:
            self._key.verify(signature, data)
        except InvalidSignature:
            return False
        return True

    def pem(self) -> bytes:
        """SubjectPublicKeyInfo in PEM, as other tools read it."""
        return _public_pem(self._key)


class PrivateKey:
    """One party's identity."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key())

    @classmethod
    def generate(cls) -> "PrivateKey":
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> "PrivateKey":
        """The identity of a 32-byte seed (RFC 8032): for golden vectors and simulations."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    def become(self, other: "PrivateKey") -> None:
        """Whoever holds this identity signs by `other`'s key from now on."""
        self._key, self.public = other._key, other.public

    def sign(self, data: bytes) -> bytes:
        """A 64-byte signature; the same for the same data."""
        return self._key.sign(data)

    def client_id(self, name: str) -> str:
        """`name` and 16 hex digits that only who has this key can tell: an MQTT broker throws off whoever has a client id when another
        connects by it, whatever that one may otherwise do. The same at each start, so that a broker ends what is left of the last."""
        return f"{name}-{hmac.digest(self._key.private_bytes_raw(), b'fl1-client-id', 'sha256')[:8].hex()}"

    def pem(self) -> bytes:
        """PKCS #8 in PEM, not encrypted; then the public key."""
        return pair_pem(self._key)


def save_private_key(key: PrivateKey, path: Path) -> None:
    """Writes a new key file that only its owner may read; raises KeyRefused if there is one."""
    save_private(key.pem(), path)


def save_private(pem: bytes, path: Path) -> None:
    """Writes the PEM text of a private key to a new file that only its owner may read; raises KeyRefused if there is one, or no
    place for one."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise KeyRefused(f"key file {path} exists: a new key would lock out whoever uses the old one") from None
    except (FileNotFoundError, NotADirectoryError, PermissionError) as e:
        raise KeyRefused(f"key file {path} can't be made: {e.strerror}") from e
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())


def load_private_key(path: Path) -> PrivateKey:
    """Reads a PEM file with an Ed25519 private key."""
    return parse_private_key(_read(path), str(path))


def parse_private_key(pem: bytes, where: str) -> PrivateKey:
    """The Ed25519 key in a PEM text; `where` names it in the error."""
    return PrivateKey(_parse_private(pem, where, Ed25519PrivateKey, "a board that has none needs a new kit"))  # type: ignore[type-abstract]


def load_private(path: Path, kind: type[T], without: str) -> T:
    """Reads a PEM file with a private key of this kind; raises KeyRefused. `without` says what to do where a damaged one has no copy."""
    return _parse_private(_read(path), str(path), kind, without)


def pair_pem(key: Any) -> bytes:
    """A private key of `cryptography`'s as PKCS #8 in PEM, not encrypted; then the public key. Any 32 bytes are a private key: by the
    second one, damage is seen."""
    private: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + _public_pem(key.public_key())


def _public_pem(key: Any) -> bytes:
    raw: bytes = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return raw


def _parse_private(pem: bytes, where: str, kind: type[T], without: str) -> T:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as e:
        raise KeyRefused(f"{where} isn't an unencrypted private key in PEM{_why(e)}") from e
    if not isinstance(key, kind):
        needed = kind.__name__.removesuffix("PrivateKey")
        raise KeyRefused(f"{where} holds a {type(key).__name__}, an {needed} key is needed")
    begins = pem.find(PUBLIC_BEGINS)
    if begins >= 0 and _public_pem(_read_public(pem[begins:], where)) != _public_pem(key.public_key()):
        raise KeyRefused(
            f"{where} is damaged: its private key isn't the one of the public key beside it. Put the file back from a copy; {without}"
        )
    return key


def load_public_key(path: Path) -> PublicKey:
    """Reads a PEM file with an Ed25519 public key."""
    return parse_public_key(_read(path), str(path))


def parse_public_key(pem: bytes, where: str) -> PublicKey:
    """The key in a PEM text; `where` names it in the error."""
    if b"PRIVATE KEY" in pem:  # which holds the public one as well, but isn't to be handed around
        raise KeyRefused(f"{where} isn't a public key in PEM: it is a private key")
    return _parse_public(pem, where)


def _why(error: Exception) -> str:
    """What the library says of a text, unless that is no more than that it is no PEM."""
    said = str(error)
    return "" if "Unable to load PEM" in said else f": {said}"


def _read_public(pem: bytes, where: str) -> object:
    try:
        return serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm, InternalError) as e:
        raise KeyRefused(f"{where} isn't a public key in PEM{_why(e)}") from e


def _parse_public(pem: bytes, where: str) -> PublicKey:
    key = _read_public(pem, where)
    if not isinstance(key, Ed25519PublicKey):
        raise KeyRefused(f"{where} holds a {type(key).__name__}, an Ed25519 key is needed")
    return PublicKey(key)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise KeyRefused(f"key file {path}: {e.strerror}") from e


def sign_message(key: PrivateKey, typ: str, message: msgspec.Struct) -> bytes:
    """`message` as a compact JWS."""
    return sign_payload(key, typ, msgspec.json.encode(message))


def sign_payload(key: PrivateKey, typ: str, payload: bytes) -> bytes:
    """A message's JSON, byte for byte as somebody else has written it, as a compact JWS."""
    header = msgspec.json.encode(_Header(alg="EdDSA", typ=typ, kid=key.public.kid))
    signed = _encode(header) + b"." + _encode(payload)
    return signed + b"." + _encode(key.sign(signed))


def payload_of(raw: bytes) -> bytes:
    """The JSON inside a message that was verified, in compact or in general form."""
    return _decode(
        msgspec.json.decode(raw, type=_General).payload.encode() if raw.startswith(b"{") else raw.split(b".")[1]
    )


@overload
def verify_message(key: PublicKey, typ: str, raw: bytes, type: type[T]) -> T: ...
@overload
def verify_message(key: PublicKey, typ: str, raw: bytes, type: UnionType) -> Any: ...
def verify_message(key: PublicKey, typ: str, raw: bytes, type: Any) -> Any:  # noqa: A002
    """The struct inside a JWS of kind `typ` signed by `key`; raises Untrusted with the reason."""
    if len(raw) > MAX_JWS_BYTES:
        raise Untrusted(f"message of {len(raw)} bytes, at most {MAX_JWS_BYTES}")
    parts = raw.split(b".")
    if len(parts) != 3:
        raise Untrusted("not a JWS in compact form")
    try:
        header = msgspec.json.decode(_decode(parts[0]), type=_Header)
    except MALFORMED as e:
        raise Untrusted(f"JWS header: {e}") from e
    if header.typ != typ:
        raise Untrusted(f"message is a {header.typ[:32]!r}, expected {typ!r}")
    if not key.verify(_decode(parts[2]), parts[0] + b"." + parts[1]):
        raise Untrusted(f"signature doesn't hold (key {header.kid[:16]!r}, expected {key.kid})")
    try:
        return msgspec.json.decode(_decode(parts[1]), type=type)
    except MALFORMED as e:
        raise Untrusted(f"{typ}: {e}") from e


class _Signature(Strict, frozen=True):
    protected: str
    signature: str


class _General(Strict, frozen=True):
    """JWS in general JSON form (RFC 7515, section 7.2.1): one payload, several signatures."""

    payload: str
    signatures: Annotated[tuple[_Signature, ...], Meta(min_length=1, max_length=MAX_SIGNATURES)]


def sign_by(keys: Sequence[PrivateKey], typ: str, message: msgspec.Struct) -> bytes:
    """`message` signed by several keys; a compact JWS where it is one."""
    return combine([sign_message(key, typ, message) for key in keys])


def combine(signed: Sequence[bytes]) -> bytes:
    """One message of several compact ones that have the same payload; the first itself where there is no second."""
    if len(signed) == 1:
        return signed[0]
    parts = [raw.split(b".") for raw in signed]
    signatures = tuple(_Signature(protected.decode(), signature.decode()) for protected, _, signature in parts)
    return msgspec.json.encode(_General(parts[0][1].decode(), signatures))


def verify_by(keys: Sequence[PublicKey], threshold: int, typ: str, raw: bytes, type: type[T]) -> T:  # noqa: A002
    """The struct that at least `threshold` of `keys` signed as a message of kind `typ`; raises Untrusted with the reason.

    Signatures by other keys are passed over, and several by one key count once. Nothing is parsed before enough of them hold.
    """
    if len(raw) > MAX_JWS_BYTES:
        raise Untrusted(f"message of {len(raw)} bytes, at most {MAX_JWS_BYTES}")
    if not raw.startswith(b"{"):
        parts = raw.split(b".")
        if len(parts) != 3:
            raise Untrusted("not a JWS")
        payload, signatures = parts[1], [(parts[0], parts[2])]
    else:
        try:
            general = msgspec.json.decode(raw, type=_General)
        except MALFORMED as e:
            raise Untrusted(f"JWS: {e}") from e
        payload = general.payload.encode()
        signatures = [(each.protected.encode(), each.signature.encode()) for each in general.signatures]
    by_kid = {key.kid: key for key in keys}
    good: set[str] = set()
    for protected, signature in signatures:
        try:
            header = msgspec.json.decode(_decode(protected), type=_Header)
        except MALFORMED as e:
            raise Untrusted(f"JWS header: {e}") from e
        if header.typ != typ:
            raise Untrusted(f"message is a {header.typ[:32]!r}, expected {typ!r}")
        key = by_kid.get(header.kid)
        if key and key.verify(_decode(signature), protected + b"." + payload):
            good.add(key.kid)
    if not 0 < threshold <= len(good):
        raise Untrusted(
            f"signature doesn't hold: {len(good)} of the keys {', '.join(sorted(by_kid))} signed, {threshold} must"
        )
    try:
        return msgspec.json.decode(_decode(payload), type=type)
    except MALFORMED as e:
        raise Untrusted(f"{typ}: {e}") from e


def _encode(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def _decode(text: bytes) -> bytes:
    try:
        raw = base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as e:
        raise Untrusted(f"base64url: {e}") from e
    if _encode(raw) != text:
        raise Untrusted("base64url isn't canonical")
    return raw
