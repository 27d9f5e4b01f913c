"""Topics: the table, names that can't reach into another's topics, shards."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetgrad.wire import topics
from fleetgrad.wire.topics import TABLE, NameRefused, Topics, check_name, name_hash, shard_of

SPEC = Path(__file__).parents[2] / "wire" / "SPEC.md"
names = st.from_regex(topics.NAME, fullmatch=True)


def test_every_topic_is_built_from_its_row() -> None:
    t = Topics("demo")
    sha = "ab" * 32
    assert t.head == "fl1/demo/head"
    assert t.object(sha, 17) == "fl1/demo/m/abababababababab/17"
    assert t.birth("dev-1") == "fl1/demo/birth/dev-1"
    assert t.status("dev-1") == "fl1/demo/st/dev-1"
    assert t.command("dev-1") == "fl1/demo/cmd/dev-1"
    assert t.update("dev-1", 1) == "fl1/demo/up/0/dev-1"
    assert (t.want("dev-1"), t.served("dev-1")) == ("fl1/demo/want/dev-1", "fl1/demo/dl/dev-1")
    assert (t.candidate, t.signature("0f" * 8)) == ("fl1/demo/agg/candidate", "fl1/demo/sig/0f0f0f0f0f0f0f0f")
    assert (t.aggregator, t.metrics) == ("fl1/demo/agg/st", "fl1/demo/agg/metrics")


def test_filters_have_a_plus_for_every_name_of_the_row() -> None:
    t = Topics("demo")
    assert {row: t.every(row) for row in TABLE} == {
        "head": "fl1/demo/head",
        "root": "fl1/demo/root/+",
        "object": "fl1/demo/m/+/+",
        "birth": "fl1/demo/birth/+",
        "status": "fl1/demo/st/+",
        "command": "fl1/demo/cmd/+",
        "update": "fl1/demo/up/+/+",
        "want": "fl1/demo/want/+",
        "served": "fl1/demo/dl/+",
        "member": "fl1/demo/reg/+",
        "renew": "fl1/demo/renew/+",
        "issued": "fl1/demo/issued/+",
        "enrol": "fl1/demo/enrol/+",
        "enrolled": "fl1/demo/enrolled/+",
        "candidate": "fl1/demo/agg/candidate",
        "signature": "fl1/demo/sig/+",
        "aggregator": "fl1/demo/agg/st",
        "metrics": "fl1/demo/agg/metrics",
    }


@given(federation=names, device=names, shards=st.integers(1, 256))
def test_parts_give_back_the_row_and_the_device(federation: str, device: str, shards: int) -> None:
    t = Topics(federation)
    assert t.parts(t.birth(device)) == ("birth", device)
    assert t.parts(t.command(device)) == ("cmd", device)
    assert t.parts(t.update(device, shards)) == ("up", device)
    assert t.parts(t.object("0" * 64, 5)) == ("m", "5")


@pytest.mark.parametrize("topic", ["", "fl1", "fl1/other/head", "fl1/demo", "fl2/demo/head", "x/fl1/demo/head"])
def test_topics_of_others_have_no_parts(topic: str) -> None:
    assert Topics("demo").parts(topic) == ("", "")


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "A", "a/b", "+", "#", "a b", "a\n", "ä", "a" * 65, "a.b", "..", "a\0", "a_b"]
)
def test_a_name_that_could_leave_its_topic_is_refused(name: str) -> None:
    with pytest.raises(NameRefused, match="letters a-z"):
        check_name(name, "device id")
    with pytest.raises(NameRefused):
        Topics(name)
    for build in (
        Topics("demo").birth,
        Topics("demo").status,
        Topics("demo").command,
        Topics("demo").want,
        Topics("demo").member,
    ):
        with pytest.raises(NameRefused):
            build(name)
    with pytest.raises(NameRefused):
        Topics("demo").update(name, 1)


@given(names)
def test_names_of_the_pattern_are_taken(name: str) -> None:
    assert check_name(name, "device id") == name
    assert len(name_hash(name)) == 16


@given(names, st.integers(1, 256))
def test_shard_is_the_first_byte_of_the_hash_modulo_shards(name: str, shards: int) -> None:
    assert shard_of(name, shards) == hashlib.sha256(name.encode()).digest()[0] % shards
    assert 0 <= shard_of(name, shards) < shards


def test_the_topics_table_of_the_spec_is_the_code() -> None:
    rows = [
        f"| `fl1/{{federation}}/{t.path}` | {t.sender} | {t.qos} | {'yes' if t.retained else 'no'} | {t.payload} | {t.purpose} |"
        for t in TABLE.values()
    ]
    assert "\n".join(rows) in SPEC.read_text(), "wire/SPEC.md lacks this table:\n" + "\n".join(rows)
