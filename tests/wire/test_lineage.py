"""A head is of the version that is held, or comes from it by a chain of records; and one message is made of several parties' signatures."""

import hashlib
from typing import Any

import msgspec
import pytest

from fleetgrad.wire import release
from fleetgrad.wire.messages import HEAD
from fleetgrad.wire.release import Role, Root, check_descends
from fleetgrad.wire.signing import PrivateKey, Untrusted, combine, payload_of, sign_by, sign_message, sign_payload
from tests.wire.lineage import chain

KEYS = [PrivateKey.from_seed(bytes([i]) * 32) for i in range(3)]


def test_a_version_comes_from_the_one_that_is_held_by_the_records_between() -> None:
    heads, records = chain(5)
    for held in range(5):
        for version in range(held, 5):
            check_descends(heads[version], heads[held], records[:version])
            check_descends(heads[version], heads[held], records[held:version])


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (lambda own, other: own[2:4], "version 4 isn't shown to come from version 1"),
        (lambda own, other: own[1:2] + own[3:4], "isn't shown to come from"),
        (lambda own, other: [], "isn't shown to come from"),
        (lambda own, other: [*own[1:3], own[3].replace('"version":3', '"version":4')], "isn't shown to come from"),
        (lambda own, other: other[:4], "isn't shown to come from"),
    ],
)
def test_a_record_that_lacks_or_was_changed_shows_nothing(records: Any, message: str) -> None:
    heads, own = chain(5)
    with pytest.raises(Untrusted, match=message):
        check_descends(heads[4], heads[1], records(own, chain(5, "other")[1]))


def test_another_line_of_versions_is_refused_whatever_its_records() -> None:
    heads, _ = chain(5)
    others, records = chain(5, "other")
    with pytest.raises(Untrusted, match="version 4 comes from another version 1"):
        check_descends(others[4], heads[1], records)
    with pytest.raises(Untrusted, match="two models are called version 2"):
        check_descends(others[2], heads[2], records)


def test_a_chain_of_records_that_counts_wrongly_or_is_none_is_refused() -> None:
    heads, records = chain(3)
    for text, message in (
        (records[1].replace('"version":1', '"version":7'), "record of version 7 stands for what version 2 comes from"),
        ("no record", "record of what version 2 comes from: "),
    ):
        head = msgspec.structs.replace(heads[2], parent=hashlib.sha256(text.encode()).hexdigest())
        with pytest.raises(Untrusted, match=message):
            check_descends(head, heads[0], [records[0], text])


def test_withdrawn_versions_leave_gaps_but_no_way_round_what_is_held() -> None:
    heads, records = chain(6)
    onward = msgspec.structs.replace(heads[5], parent=heads[3].parent)  # comes from version 2, as 3 did
    check_descends(onward, heads[1], records)
    with pytest.raises(Untrusted, match="record of version 2 stands for what version 5 comes from, after version 4"):
        check_descends(onward, heads[4], records)
    with pytest.raises(Untrusted, match="version 2 can't come from version 4"):
        check_descends(heads[2], heads[4], records)


def test_signatures_of_the_same_bytes_made_apart_are_those_made_together() -> None:
    (head, *_), _ = chain(1)
    payload = msgspec.json.encode(head)
    apart = [sign_payload(key, HEAD, payload) for key in KEYS]
    assert combine(apart) == sign_by(KEYS, HEAD, head)
    assert combine(apart[:1]) == sign_message(KEYS[0], HEAD, head)
    assert payload_of(combine(apart)) == payload_of(apart[0]) == payload
    role = Role(threshold=2, keys=tuple(k.public.raw.hex() for k in KEYS))
    root = Root(federation="test", version=1, root=role, release=role)
    assert release.read_head(root, combine(apart[1:])) == head
    with pytest.raises(Untrusted, match=r"1 of the keys .* signed, 2 must"):
        release.read_head(root, combine([apart[0], apart[0]]))
    other = sign_payload(KEYS[1], HEAD, payload.replace(b'"boot":1', b'"boot":2'))
    with pytest.raises(Untrusted, match=r"1 of the keys .* signed, 2 must"):
        release.read_head(root, combine([apart[0], other]))
