"""Identities and JWS: RFC test vectors, and everything that isn't exactly what was signed."""

import base64
import json
import re
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from fleetgrad.wire import signing
from fleetgrad.wire.messages import BIRTH, COMMAND, HEAD, Command, Receipt, RetryAfter
from fleetgrad.wire.signing import (
    KeyRefused,
    PrivateKey,
    PublicKey,
    Untrusted,
    load_private_key,
    load_public_key,
    parse_private_key,
    save_private_key,
    sign_message,
    verify_message,
)

KEY = PrivateKey.from_seed(bytes(range(32)))
OTHER = PrivateKey.from_seed(bytes(range(1, 33)))
MESSAGE = RetryAfter(federation="demo", device="dev-1", least=1.0, most=2.0)

# RFC 8032 section 7.1, TEST 1 to 3: secret key, public key, message, signature.
RFC8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC8032)
def test_ed25519_gives_the_signatures_of_rfc_8032(secret: str, public: str, message: str, signature: str) -> None:
    key = PrivateKey.from_seed(bytes.fromhex(secret))
    assert key.public.raw.hex() == public
    assert key.sign(bytes.fromhex(message)).hex() == signature
    assert key.public.verify(bytes.fromhex(signature), bytes.fromhex(message))
    assert not key.public.verify(bytes.fromhex(signature), bytes.fromhex(message) + b"x")


def test_compact_form_gives_the_jws_of_rfc_8037() -> None:
    """RFC 8037 appendix A.4: our base64url and our signature over 'header.payload' give its bytes."""
    key = PrivateKey.from_seed(signing._decode(b"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"))
    assert signing._encode(key.public.raw) == b"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    signed = signing._encode(b'{"alg":"EdDSA"}') + b"." + signing._encode(b"Example of Ed25519 signing")
    assert signed == b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
    assert signing._encode(key.sign(signed)) == (
        b"hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
    )


def test_a_message_comes_back_from_its_jws() -> None:
    assert verify_message(KEY.public, COMMAND, sign_message(KEY, COMMAND, MESSAGE), Command) == MESSAGE


def test_another_identity_does_not_verify() -> None:
    with pytest.raises(Untrusted, match="signature doesn't hold"):
        verify_message(OTHER.public, COMMAND, sign_message(KEY, COMMAND, MESSAGE), Command)


@pytest.mark.parametrize("asked", [HEAD, BIRTH, "", "fl1-command2"])
def test_a_message_of_one_kind_is_refused_as_another(asked: str) -> None:
    with pytest.raises(Untrusted, match="expected"):
        verify_message(KEY.public, asked, sign_message(KEY, COMMAND, MESSAGE), Command)


def test_the_kind_cannot_be_rewritten() -> None:
    header, payload, signature = sign_message(KEY, COMMAND, MESSAGE).split(b".")
    fields = json.loads(signing._decode(header)) | {"typ": HEAD}
    forged = signing._encode(json.dumps(fields, separators=(",", ":")).encode()) + b"." + payload + b"." + signature
    with pytest.raises(Untrusted, match="signature doesn't hold"):
        verify_message(KEY.public, HEAD, forged, Command)


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none", "typ": COMMAND, "kid": KEY.public.kid},
        {"alg": "HS256", "typ": COMMAND, "kid": KEY.public.kid},
        {"alg": "EdDSA", "typ": COMMAND},
        {"alg": "EdDSA", "typ": COMMAND, "kid": KEY.public.kid, "crit": ["b64"]},
        {"alg": "EdDSA", "typ": 5, "kid": KEY.public.kid},
        [],
    ],
)
def test_another_jws_header_is_refused_even_when_it_is_signed(header: object) -> None:
    signed = signing._encode(json.dumps(header).encode()) + b"." + signing._encode(msgspec.json.encode(MESSAGE))
    with pytest.raises(Untrusted, match="JWS header"):
        verify_message(KEY.public, COMMAND, signed + b"." + signing._encode(KEY.sign(signed)), Command)


def test_a_signed_message_with_an_unknown_field_is_refused() -> None:
    class Longer(RetryAfter, frozen=True, kw_only=True, tag_field="command", tag="retry-after"):
        extra: int = 1

    longer = Longer(federation="demo", device="dev-1", least=1.0, most=2.0)
    with pytest.raises(Untrusted, match="unknown field `extra`"):
        verify_message(KEY.public, COMMAND, sign_message(KEY, COMMAND, longer), Command)


def test_a_header_that_is_no_utf8_is_refused_like_any_other_malformed_one() -> None:
    raw = signing._encode(b'{"alg":"EdDSA","typ":"\xff","kid":""}') + b".e30." + signing._encode(bytes(64))
    with pytest.raises(Untrusted, match="JWS header"):
        verify_message(KEY.public, COMMAND, raw, Command)


def test_a_message_beyond_the_limit_is_refused_before_it_is_decoded() -> None:
    raw = b"." * (signing.MAX_JWS_BYTES + 1)
    with pytest.raises(Untrusted, match=f"at most {signing.MAX_JWS_BYTES}"):
        verify_message(KEY.public, COMMAND, raw, Command)


@pytest.mark.parametrize("suffix", [b"=", b"\n", b" ", b".", b".e30", b"A"])
def test_bytes_after_a_jws_are_refused(suffix: bytes) -> None:
    with pytest.raises(Untrusted):
        verify_message(KEY.public, COMMAND, sign_message(KEY, COMMAND, MESSAGE) + suffix, Command)


@pytest.mark.parametrize("text", [b"_-8=", b"_-8", b"+/8", b"A", b"_-9", b"aa a", b"aaa\n", "ä".encode()])
def test_base64url_has_one_spelling(text: bytes) -> None:
    raw = b"\xff\xef"
    assert signing._encode(raw) == b"_-8"
    if text == b"_-8":
        assert signing._decode(text) == raw
    else:
        with pytest.raises(Untrusted, match="base64url"):
            signing._decode(text)


@given(st.data())
def test_a_changed_byte_never_verifies(data: st.DataObject) -> None:
    raw = bytearray(sign_message(KEY, COMMAND, MESSAGE))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] = data.draw(st.integers(0, 255).filter(lambda b: b != raw[place]))
    with pytest.raises(Untrusted):
        verify_message(KEY.public, COMMAND, bytes(raw), Command)


@given(st.one_of(st.binary(max_size=300), st.lists(st.binary(max_size=80), min_size=3, max_size=3).map(b".".join)))
def test_random_bytes_are_untrusted_and_nothing_else(raw: bytes) -> None:
    with pytest.raises(Untrusted):
        verify_message(KEY.public, COMMAND, raw, Command)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=10,
)


@given(header=json_values, payload=json_values, signature=st.binary(max_size=70))
def test_random_json_in_a_jws_is_untrusted_and_nothing_else(header: object, payload: object, signature: bytes) -> None:
    parts = [json.dumps(header).encode(), json.dumps(payload).encode(), signature]
    with pytest.raises(Untrusted):
        verify_message(KEY.public, COMMAND, b".".join(map(signing._encode, parts)), Command)


@given(st.one_of(json_values.map(lambda v: json.dumps(v).encode()), st.binary(max_size=60)))
def test_a_signed_payload_that_is_no_message_is_untrusted(payload: bytes) -> None:
    header = signing._encode(json.dumps({"alg": "EdDSA", "typ": COMMAND, "kid": ""}).encode())
    signed = header + b"." + signing._encode(payload)
    with pytest.raises(Untrusted, match=COMMAND):
        verify_message(KEY.public, COMMAND, signed + b"." + signing._encode(KEY.sign(signed)), Receipt)


@pytest.mark.parametrize("length", [0, 1, 63, 65, 1000])
def test_a_signature_of_another_length_does_not_verify(length: int) -> None:
    assert not KEY.public.verify(bytes(length), b"data")


def test_keys_come_back_from_their_files_and_only_the_owner_may_read_them(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    save_private_key(KEY, path)
    (tmp_path / "device.pub").write_bytes(KEY.public.pem())
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_private_key(path).sign(b"x") == KEY.sign(b"x")
    assert load_public_key(tmp_path / "device.pub").raw == KEY.public.raw
    with pytest.raises(KeyRefused, match="exists"):
        save_private_key(OTHER, path)
    assert load_private_key(path).public.raw == KEY.public.raw
    for nowhere in (tmp_path / "none" / "new.key", path / "new.key"):
        with pytest.raises(KeyRefused, match=re.escape(f"{nowhere} can't be made")):
            save_private_key(KEY, nowhere)


def test_a_bit_that_flips_in_a_key_file_is_never_taken_for_another_key(tmp_path: Path) -> None:
    path, pem = tmp_path / "device.key", KEY.pem()
    begin, end = pem.index(b"-----\n") + 6, pem.index(b"\n-----END PRIVATE")
    other = bytearray(pem)
    other[end - 20] = ord("A") if pem[end - 20] != ord("A") else ord("B")
    path.write_bytes(other)
    with pytest.raises(KeyRefused, match=r"device\.key is damaged.*new kit"):
        load_private_key(path)
    for at in range(begin, end):
        for bit in range(8):
            flipped = bytearray(pem)
            flipped[at] ^= 1 << bit
            try:
                assert parse_private_key(bytes(flipped), "flipped").public.raw == KEY.public.raw
            except KeyRefused:
                continue
    path.write_bytes(pem)
    with pytest.raises(KeyRefused, match="private key"):
        load_public_key(path)


def test_key_files_that_cannot_be_used_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(KeyRefused, match="No such file"):
        load_private_key(tmp_path / "none.key")
    (tmp_path / "text").write_text("not a key")
    curve = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "ec.key").write_bytes(
        curve.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (tmp_path / "ec.pub").write_bytes(
        curve.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    for load in (load_private_key, load_public_key):
        with pytest.raises(KeyRefused, match="text"):
            load(tmp_path / "text")
    with pytest.raises(KeyRefused, match="Ed25519"):
        load_private_key(tmp_path / "ec.key")
    with pytest.raises(KeyRefused, match="Ed25519"):
        load_public_key(tmp_path / "ec.pub")


def test_a_client_id_is_the_same_at_each_start_and_untold_by_the_public_key() -> None:
    one, other = PrivateKey.from_seed(bytes(32)), PrivateKey.from_seed(bytes([1] * 32))
    assert one.client_id("aggregator-a") == PrivateKey.from_seed(bytes(32)).client_id("aggregator-a")
    name, secret = one.client_id("aggregator-a").rsplit("-", 1)
    assert (name, len(secret)) == ("aggregator-a", 16)
    assert other.client_id("aggregator-a") != one.client_id("aggregator-a")
    assert secret not in one.public.raw.hex() + one.public.kid


def test_generated_identities_differ_and_carry_their_key_id() -> None:
    one, two = PrivateKey.generate(), PrivateKey.generate()
    assert one.public.raw != two.public.raw
    header = json.loads(signing._decode(sign_message(one, COMMAND, MESSAGE).split(b".")[0]))
    assert header == {"alg": "EdDSA", "typ": COMMAND, "kid": one.public.kid}
    assert base64.urlsafe_b64decode(sign_message(one, COMMAND, MESSAGE).split(b".")[2] + b"==")
    assert isinstance(one.public, PublicKey)
