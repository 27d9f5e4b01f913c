"""One-time codes: what people mistype is found, and nobody between can read the code or change what it vouches for."""

import random

import msgspec
import pytest

from fleetgrad.wire.enrolment import (
    ALPHABET,
    MAX_BYTES,
    Answer,
    Ask,
    CodeRefused,
    derive,
    new_code,
    open_proven,
    parse_code,
    prove,
)
from fleetgrad.wire.signing import Untrusted

ASK = Ask(federation="fed", name=None, key="0" * 64, request="csr", nonce="1" * 32)
KEY = b"k" * 32


def test_a_code_is_as_it_was_typed_give_or_take_case_and_dashes() -> None:
    code = new_code()
    assert len(code) == 19
    plain = code.replace("-", "")
    for typed in (code, plain, code.lower(), f" {plain[:7]} {plain[7:]} ", code.replace("0", "O").replace("1", "l")):
        assert parse_code(typed) == plain
    assert len({new_code() for _ in range(50)}) == 50


def test_a_wrong_letter_or_two_swapped_are_always_found(seed: int) -> None:
    print(f"seed {seed}")
    dice, plain = random.Random(seed), parse_code(new_code())
    for i in range(len(plain)):
        other = dice.choice([c for c in ALPHABET if c != plain[i]])
        with pytest.raises(CodeRefused, match="mistyped"):
            parse_code(plain[:i] + other + plain[i + 1 :])
    for i in range(len(plain) - 2):
        if plain[i] != plain[i + 1]:
            with pytest.raises(CodeRefused, match="mistyped"):
                parse_code(plain[:i] + plain[i + 1] + plain[i] + plain[i + 2 :])


@pytest.mark.parametrize("typed", ["", "ABCD", "A" * 17, "Z" * 16, "é" * 16, "A" * 15 + "!"])
def test_what_is_no_code_is_refused_with_the_reason(typed: str) -> None:
    with pytest.raises(CodeRefused, match="code refused"):
        parse_code(typed)


def test_the_id_and_key_of_a_code_are_the_federations_and_tell_nothing_of_it() -> None:
    code = new_code()
    id_, key = derive(code, "fed")
    assert derive(code.lower(), "fed") == (id_, key)
    assert derive(code, "other") != (id_, key)
    assert len(key) == 32
    assert parse_code(code)[:8] not in id_.upper()


def test_what_was_changed_on_the_way_or_made_without_the_code_is_refused() -> None:
    raw = prove(KEY, ASK)
    assert open_proven(KEY, raw, Ask) == ASK
    swapped = raw.replace(b"0" * 64, b"2" * 64)
    assert swapped != raw
    for what in (swapped, prove(b"x" * 32, ASK)):
        with pytest.raises(Untrusted, match="hasn't the code"):
            open_proven(KEY, what, Ask)
    with pytest.raises(Untrusted, match="hasn't the code"):  # an ask sent back is no answer
        open_proven(KEY, raw, Answer)


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[]", b"\xff", b'{"body":"{}","mac":"00"}', b'{"body":"\\ud800","mac":"' + b"0" * 64 + b'"}', b" " * (MAX_BYTES + 1)]
)  # fmt: skip
def test_noise_is_refused(raw: bytes) -> None:
    with pytest.raises(Untrusted):
        open_proven(KEY, raw, Ask)


def test_a_body_that_is_proven_but_no_ask_is_refused() -> None:
    class Odd(msgspec.Struct):
        x: int

    with pytest.raises(Untrusted):
        open_proven(KEY, prove(KEY, Odd(1)), Ask)  # type: ignore[arg-type]
