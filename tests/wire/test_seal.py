"""Sealed payloads: the bytes of RFC 9180, and what opens nothing."""

from pathlib import Path

import pytest

from fleetgrad.wire import seal
from fleetgrad.wire.seal import OVERHEAD, SealError, SealKey, load_seal_key, open_with, save_seal_key
from fleetgrad.wire.signing import KeyRefused, PrivateKey, save_private_key

# RFC 9180 appendix A.2.1: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305, base mode, sequence number 0.
RFC = {
    "info": "4f6465206f6e2061204772656369616e2055726e",
    "skEm": "f4ec9b33b792c372c1d2c2063507b684ef925b8c75a42dbcbf57d63ccd381600",
    "pkEm": "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a",
    "skRm": "8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb",
    "pkRm": "4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a",
    "pt": "4265617574792069732074727574682c20747275746820626561757479",
    "aad": "436f756e742d30",
    "ct": "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db21993c62ce81883d2dd1b51a28",
}
VECTOR = {name: bytes.fromhex(value) for name, value in RFC.items()}
KEY = SealKey.from_bytes(bytes(range(32)))


def test_sealing_gives_the_bytes_of_rfc_9180() -> None:
    v = VECTOR
    assert seal.seal(v["pkRm"], v["pt"], v["aad"], ephemeral=v["skEm"], info=v["info"]) == v["pkEm"] + v["ct"]
    key = SealKey.from_bytes(v["skRm"])
    assert key.public == v["pkRm"]
    assert key.open(v["pkEm"] + v["ct"], v["aad"], v["info"]) == v["pt"]


@pytest.mark.needs("hpke")  # of newer versions of cryptography
def test_another_implementation_opens_it_and_is_opened() -> None:
    from cryptography.hazmat.primitives import hpke
    from cryptography.hazmat.primitives.asymmetric import x25519

    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
    theirs = x25519.X25519PrivateKey.from_private_bytes(bytes(range(32)))
    sealed = seal.seal(KEY.public, b"an update", b"", info=b"how")
    assert suite.decrypt(sealed, theirs, b"how") == b"an update"
    assert KEY.open(suite.encrypt(b"another", theirs.public_key(), b"how"), b"", b"how") == b"another"


def test_what_is_sealed_is_longer_by_its_overhead_and_never_the_same_twice() -> None:
    plain = bytes(1000)
    first, second = (seal.seal(KEY.public, plain, b"header") for _ in range(2))
    assert len(first) == len(second) == len(plain) + OVERHEAD
    assert first[:32] != second[:32]
    assert first[32:] != second[32:]
    assert KEY.open(first, b"header") == KEY.open(second, b"header") == plain


def test_a_changed_bit_another_header_or_another_key_opens_nothing() -> None:
    sealed = seal.seal(KEY.public, b"an update", b"header")
    for at in range(len(sealed)):
        with pytest.raises(SealError):
            KEY.open(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :], b"header")
    for other in (b"", b"Header", b"header "):
        with pytest.raises(SealError, match="isn't sealed to this aggregator's key for this header"):
            KEY.open(sealed, other)
    with pytest.raises(SealError):
        SealKey.generate().open(sealed, b"header")


@pytest.mark.parametrize("size", [0, 1, 31, 32, OVERHEAD - 1])
def test_a_truncated_payload_is_refused_with_its_length(size: int) -> None:
    with pytest.raises(SealError, match=f"sealed payload of {size} bytes, at least 48"):
        KEY.open(bytes(size), b"")


def test_a_point_of_low_order_is_refused_on_both_sides() -> None:
    with pytest.raises(SealError, match="can't seal to the key 0000000000000000"):
        seal.seal(bytes(32), b"an update", b"")
    with pytest.raises(SealError, match="isn't sealed"):
        KEY.open(bytes(OVERHEAD), b"")


def test_the_key_before_the_last_still_opens_what_was_sealed_to_it() -> None:
    old, new = SealKey.generate(), SealKey.generate()
    for key in (old, new):
        assert open_with([new, old], seal.seal(key.public, b"an update", b"h"), b"h") == b"an update"
    with pytest.raises(SealError):
        open_with([new, old], seal.seal(KEY.public, b"an update", b"h"), b"h")


def test_a_seal_key_whose_file_was_damaged_is_never_taken_for_another_key(tmp_path: Path) -> None:
    pem, other = KEY.pem(), SealKey.generate().pem()
    begins = pem.index(b"-----BEGIN PUBLIC")
    (tmp_path / "seal.key").write_bytes(other[:begins] + pem[begins:])
    with pytest.raises(KeyRefused, match=r"seal\.key is damaged.*make another"):
        load_seal_key(tmp_path / "seal.key")


def test_a_key_file_is_read_again_and_one_of_another_kind_refused(tmp_path: Path) -> None:
    save_seal_key(KEY, tmp_path / "seal.key")
    assert load_seal_key(tmp_path / "seal.key").public == KEY.public
    assert (tmp_path / "seal.key").stat().st_mode & 0o777 == 0o600
    openssl = KEY.pem().partition(b"-----BEGIN PUBLIC")[0]
    (tmp_path / "plain.key").write_bytes(openssl)
    assert load_seal_key(tmp_path / "plain.key").public == KEY.public
    save_private_key(PrivateKey.generate(), tmp_path / "other.key")
    with pytest.raises(KeyRefused, match="holds a Ed25519PrivateKey, an X25519 key is needed"):
        load_seal_key(tmp_path / "other.key")
