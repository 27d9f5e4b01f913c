"""Statements on members, and the bytes that a later version must still read and make."""

import msgspec
import pytest

from fleetgrad.wire.enrolment import derive
from fleetgrad.wire.membership import (
    ISSUED,
    RENEWAL,
    Issued,
    Member,
    Renewal,
    check_device,
    sign_member,
    verify_member,
)
from fleetgrad.wire.signing import PrivateKey, Untrusted, sign_by, sign_message, verify_message
from fleetgrad.wire.topics import NameRefused

REGISTRAR, DEVICE = PrivateKey.from_seed(b"r" * 32), PrivateKey.from_seed(b"d" * 32)
MEMBER = Member(
    federation="demo", device="dev-1", key=DEVICE.public.raw.hex(), serial=3, not_after=1_800_000_000, revoked=True, reason="lost"
)  # fmt: skip
RENEWED = Renewal(federation="demo", device="dev-1", instance="a" * 32, count=2, request="csr")
FOLLOWING = PrivateKey.from_seed(b"f" * 32)
RENAMED = msgspec.structs.replace(RENEWED, identity=FOLLOWING.public.raw.hex())
GIVEN = Issued(federation="demo", device="dev-1", now=1_800_000_000, count=2, certificate="pem")


def test_a_statement_is_read_back_by_who_knows_the_registrar() -> None:
    raw = sign_member(REGISTRAR, MEMBER)
    assert verify_member(REGISTRAR.public, "demo", raw, "dev-1") == MEMBER
    assert MEMBER.public().raw == DEVICE.public.raw
    for key, federation, device in (
        (DEVICE, "demo", "dev-1"),
        (REGISTRAR, "other", "dev-1"),
        (REGISTRAR, "demo", "dev-2"),
    ):
        with pytest.raises(Untrusted):
            verify_member(key.public, federation, raw, device)


def test_a_statement_of_one_kind_is_none_of_another() -> None:
    raw = sign_message(REGISTRAR, ISSUED, GIVEN)
    assert verify_message(REGISTRAR.public, ISSUED, raw, Issued) == GIVEN
    with pytest.raises(Untrusted, match="expected 'fl1-member'"):
        verify_member(REGISTRAR.public, "demo", raw, "dev-1")


@pytest.mark.parametrize("name", ["aggregator", "registrar", "operator", "Dev", "a/b", ""])
def test_names_that_no_device_may_have(name: str) -> None:
    with pytest.raises(NameRefused):
        check_device(name)


def test_the_bytes_are_as_they_were() -> None:
    assert {
        "member": sign_member(REGISTRAR, MEMBER).decode(),
        "renewal": sign_message(DEVICE, RENEWAL, RENEWED).decode(),
        "another identity": sign_by([DEVICE, FOLLOWING], RENEWAL, RENAMED).decode(),
        "issued": sign_message(REGISTRAR, ISSUED, GIVEN).decode(),
    } == GOLDEN


def test_a_code_gives_the_key_that_it_gave() -> None:
    id_, key = derive("0123-4567-89AB-CDE4", "demo")
    assert (id_, key.hex()) == CODE


GOLDEN = {
    "member": (
        "eyJhbGciOiJFZERTQSIsInR5cCI6ImZsMS1tZW1iZXIiLCJraWQiOiJjMDc0MmE3OTdiZDUzNzQzIn0.eyJmZWRlcmF0aW9uIjoiZGVtbyIsIm"
        "RldmljZSI6ImRldi0xIiwia2V5IjoiMmJjMjgwMGIzMzE2ZTAwOTIwOWZmZDc1N2RhYjE5Y2NmMGFlODRiYzdhZTkwNjU0ZTFlODE3MTJkMjcw"
        "ZjY1MyIsInNlcmlhbCI6Mywibm90LWFmdGVyIjoxODAwMDAwMDAwLCJyZXZva2VkIjp0cnVlLCJyZWFzb24iOiJsb3N0In0.52Bsud4AlsEKcK"
        "ZhSDCLesEQjU5hrVBIaWrkTpU2cWxEsaX_u9W3STfTiSWSpC7k3i31asYTH1zBRU04N9nUDg"
    ),
    "renewal": (
        "eyJhbGciOiJFZERTQSIsInR5cCI6ImZsMS1yZW5ld2FsIiwia2lkIjoiYjZmYzk2MTkxYWJkMjdhZiJ9.eyJmZWRlcmF0aW9uIjoiZGVtbyIsI"
        "mRldmljZSI6ImRldi0xIiwiaW5zdGFuY2UiOiJhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYSIsImNvdW50IjoyLCJyZXF1ZXN0Ijo"
        "iY3NyIiwibGVhdmVzIjpmYWxzZX0.sLTu1MJZeF9fRx0y5XMRsWq4KAbo2BsDl8ChFfnclmqWEQL76tukl5HMqajaWY6WUrzDQyLLAFfSYcMFX"
        "hq-Bg"
    ),
    "another identity": (
        '{"payload":"eyJmZWRlcmF0aW9uIjoiZGVtbyIsImRldmljZSI6ImRldi0xIiwiaW5zdGFuY2UiOiJhYWFhYWFhYWFhYWFhYWFhYWFhYWFh'
        "YWFhYWFhYWFhYSIsImNvdW50IjoyLCJyZXF1ZXN0IjoiY3NyIiwiaWRlbnRpdHkiOiIzNGI0ZDkwNDMxNTZjYjZkY2YwYmViMGEyOTQ5Yjc1"
        'NTljOTQwZDJiY2I2ZGJlOGM1M2E5YjMwMjc4ZTNhNzQ2IiwibGVhdmVzIjpmYWxzZX0","signatures":[{"protected":"eyJhbGciOiJ'
        'FZERTQSIsInR5cCI6ImZsMS1yZW5ld2FsIiwia2lkIjoiYjZmYzk2MTkxYWJkMjdhZiJ9","signature":"tNZHb4J55CartZaIiqf_GohI'
        'Vm8rG3LD7_HBQNGJGFFT1hfSzJZPr1JFjDLTutPnGVptF1M4j2rPSPFIQ9kVAA"},{"protected":"eyJhbGciOiJFZERTQSIsInR5cCI6I'
        'mZsMS1yZW5ld2FsIiwia2lkIjoiZjdiNzY3NmM5NGRmN2U4ZiJ9","signature":"lpSTLNuDfJp8CbFGxJ68WQX-J0yz1oAxf0Q51mp3qG'
        'iFwwMDE1DRwRfYp1NZf8lMDMBjoBx84SOr6QvEaf5_BA"}]}'
    ),
    "issued": (
        "eyJhbGciOiJFZERTQSIsInR5cCI6ImZsMS1pc3N1ZWQiLCJraWQiOiJjMDc0MmE3OTdiZDUzNzQzIn0.eyJmZWRlcmF0aW9uIjoiZGVtbyIsIm"
        "RldmljZSI6ImRldi0xIiwibm93IjoxODAwMDAwMDAwLCJjb3VudCI6MiwiY2VydGlmaWNhdGUiOiJwZW0iLCJkdWUiOmZhbHNlfQ.VghfmO5Uc"
        "laDBFwN2RMmetAzvbGJqDGFkLh-EJbRxpMhHty7iQ50EuWYhRwB5LCrpmlEY2bZ2cdrGrrvGfsZCA"
    ),
}
CODE = ("f038a462429dba3fa88e", "64941dcbabbaa7598789b6de6e6f39ab4c86c52df04b7c054c21f5f53a574a55")
