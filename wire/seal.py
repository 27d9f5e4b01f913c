"""Sealing: an update's payload is encrypted to the aggregator by HPKE in base mode (RFC 9180), so that the broker reads nothing.

    DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305     (processors without AES instructions are quick at it)

    sealed = ephemeral public key (32) | ciphertext (as long as the plain text) | tag (16)

The associated data are the frame's header fields (frames.Header.sealed_with), so that what is sealed for one round, model or
device opens for no other. Each message has a key pair of its own, so there is one message a context and no counter.
"""

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from fleetgrad.wire.signing import load_private, pair_pem, save_private

OVERHEAD = 32 + 16  # bytes that sealing adds
INFO = b"fl1-seal"
_KEM = b"KEM\x00\x20"
_SUITE = b"HPKE\x00\x20\x00\x01\x00\x03"
_BASE = b"\x00"


class SealError(ValueError):
    """A sealed payload that no key here opens, or a key that nothing can be sealed to."""


class SealKey:
    """What opens payloads: the aggregator's X25519 key."""

    def __init__(self, key: X25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> "SealKey":
        return cls(X25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, raw: bytes) -> "SealKey":
        """The key of 32 bytes (RFC 7748): for golden vectors and simulations."""
        return cls(X25519PrivateKey.from_private_bytes(raw))

    def open(self, sealed: bytes | memoryview, aad: bytes, info: bytes = INFO) -> bytes:
        """The plain text; raises SealError unless `sealed` was made for this key and for exactly this `aad`."""
        view = memoryview(sealed)
        if len(view) < OVERHEAD:
            raise SealError(f"sealed payload of {len(view)} bytes, at least {OVERHEAD}")
        try:
            encapsulated = bytes(view[:32])
            shared = self._key.exchange(X25519PublicKey.from_public_bytes(encapsulated))
            key, nonce = _schedule(shared, encapsulated, self.public, info)
            return ChaCha20Poly1305(key).decrypt(nonce, view[32:], aad)
        except (InvalidTag, ValueError) as e:  # ValueError: a point of low order
            raise SealError("payload isn't sealed to this aggregator's key for this header") from e

    def pem(self) -> bytes:
        """PKCS #8 in PEM, not encrypted; then the public key."""
        return pair_pem(self._key)


def save_seal_key(key: SealKey, path: Path) -> None:
    """Writes a new key file that only its owner may read; raises KeyRefused if there is one."""
    save_private(key.pem(), path)


def load_seal_key(path: Path) -> SealKey:
    """Reads a PEM file with an X25519 private key; raises KeyRefused."""
    return SealKey(load_private(path, X25519PrivateKey, "without one, make another"))  # type: ignore[type-abstract]


def open_with(keys: Sequence[SealKey], sealed: bytes | memoryview, aad: bytes) -> bytes:
    """The plain text by the first key that opens it: the current one, then those before it. Raises SealError."""
    for key in keys[:-1]:
        try:
            return key.open(sealed, aad)
        except SealError:
            continue
    return keys[-1].open(sealed, aad)


def seal(
    public: bytes, plain: bytes | memoryview, aad: bytes, *, ephemeral: bytes | None = None, info: bytes = INFO
) -> bytes:
    """`plain` sealed to the key with the 32 bytes `public`, OVERHEAD bytes longer; raises SealError for a key of low order.

    `ephemeral`, 32 bytes, must never be used twice; it is drawn from the system unless a test or a simulation gives it.
    """
    own = X25519PrivateKey.from_private_bytes(ephemeral) if ephemeral else X25519PrivateKey.generate()
    encapsulated = own.public_key().public_bytes_raw()
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as e:
        raise SealError(f"can't seal to the key {public.hex()[:16]}...: {e}") from e
    key, nonce = _schedule(shared, encapsulated, public, info)
    return encapsulated + ChaCha20Poly1305(key).encrypt(nonce, plain, aad)


def _schedule(dh: bytes, encapsulated: bytes, public: bytes, info: bytes) -> tuple[bytes, bytes]:
    """Key and nonce of the one message (RFC 9180, sections 4.1 and 5.1)."""
    prk = _extract(_KEM, b"", b"eae_prk", dh)
    shared = _expand(_KEM, prk, b"shared_secret", encapsulated + public, 32)
    context = _BASE + _extract(_SUITE, b"", b"psk_id_hash", b"") + _extract(_SUITE, b"", b"info_hash", info)
    secret = _extract(_SUITE, shared, b"secret", b"")
    return _expand(_SUITE, secret, b"key", context, 32), _expand(_SUITE, secret, b"base_nonce", context, 12)


def _extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt or bytes(hashlib.sha256().digest_size), b"HPKE-v1" + suite + label + ikm, "sha256")


def _expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """At most 32 bytes: one block of HKDF-Expand."""
    text = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(prk, text + b"\x01", "sha256")[:length]
