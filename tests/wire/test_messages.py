"""Control messages: round trips, and what a strict reader refuses."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetgrad.wire import messages, topics
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.messages import (
    AggregatorStatus,
    Birth,
    Bitmap,
    Candidate,
    Closed,
    Command,
    Delta,
    DeviceStatus,
    Head,
    Link,
    Metrics,
    ObjectRef,
    Policy,
    Receipt,
    RetryAfter,
    Select,
    UpdateInfo,
    Want,
)

SHA = "ab" * 32
HEAD = Head(
    federation="demo",
    version=3,
    plan=ObjectRef(sha256=SHA, size=10),
    params=ObjectRef(sha256=SHA, size=20),
    parent="0" * 64,
    policy=Policy(),
    seal=SHA,
    boot=1,
    sequence=7,
    expires=600.0,
    closed=(Closed(round=1, attempt=1, outcome="published"), Closed(round=2, attempt=1, outcome="abandoned")),
    link=Link(chunk_bytes=32768, reconnect_seconds=20.0, retained=False),
    deltas=(Delta(base=SHA, object=ObjectRef(sha256=SHA, size=5)),),
)
BIRTH = Birth(federation="demo", device="dev-1", boot=1, seq=2, version=0, params=SHA, state="idle", samples=7)
WANT = Want(
    federation="demo",
    device="dev-1",
    boot=1,
    seq=3,
    object=ObjectRef(sha256=SHA, size=20),
    chunk_bytes=4096,
    received="01",
)
SELECT = Select(
    federation="demo", device="dev-1", round=4, attempt=1, version=3, params=SHA, config=SHA, window=8, deadline=600.0
)
RECEIPT = Receipt(federation="demo", device="dev-1", round=4, attempt=1, payload=SHA, verdict="accepted")
BITMAP = Bitmap(federation="demo", device="dev-1", round=4, attempt=1, payload=SHA, chunk_bytes=61440, received="0f")
RETRY = RetryAfter(federation="demo", device="dev-1", least=1.0, most=2.5)
COMMANDS: tuple[Command, ...] = (SELECT, RECEIPT, BITMAP, RETRY)
ALL: tuple[msgspec.Struct, ...] = (
    HEAD,
    Candidate(federation="demo", head="{}", records=("{}", "{}")),
    BIRTH,
    WANT,
    *COMMANDS,
    DeviceStatus(state="offline", device="dev-1", boot=1),
    AggregatorStatus(state="collecting", federation="demo", boot=1),
    Metrics(round=1, version=1, members=2, accuracy=None, loss=0.5, bytes_up=1, bytes_down=2, seconds=1.5),
    UpdateInfo(codec=3, parameter=8, rate=8.5, count=5, weight=10, steps=4, loss=0.25),
)


def ids(value: object) -> str:
    return type(value).__name__


@pytest.mark.parametrize("message", ALL, ids=ids)
def test_a_message_survives_json_and_msgpack(message: msgspec.Struct) -> None:
    assert msgspec.json.decode(msgspec.json.encode(message), type=type(message)) == message
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=type(message)) == message


@pytest.mark.parametrize("message", COMMANDS, ids=ids)
def test_the_command_field_tells_commands_apart(message: Command) -> None:
    read: Command = msgspec.json.decode(msgspec.json.encode(message), type=Command)
    assert type(read) is type(message)
    assert read == message


@pytest.mark.parametrize("message", ALL, ids=ids)
def test_an_unknown_field_is_refused(message: msgspec.Struct) -> None:
    fields = {**msgspec.to_builtins(message), "extra": 1}
    with pytest.raises(msgspec.ValidationError, match="unknown field `extra`"):
        msgspec.json.decode(msgspec.json.encode(fields), type=type(message))


@pytest.mark.parametrize("message", ALL, ids=ids)
def test_each_field_refuses_a_value_of_another_type(message: msgspec.Struct) -> None:
    fields = msgspec.to_builtins(message)
    for name in fields:
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(msgspec.json.encode({**fields, name: [["wrong"]]}), type=type(message))


@pytest.mark.parametrize("message", ALL, ids=ids)
def test_each_required_field_is_missed(message: msgspec.Struct) -> None:
    fields = msgspec.to_builtins(message)
    required = {f.encode_name for f in msgspec.structs.fields(message) if f.required}
    assert required
    for name in required:
        with pytest.raises(msgspec.ValidationError, match="missing required field"):
            msgspec.json.decode(msgspec.json.encode({k: v for k, v in fields.items() if k != name}), type=type(message))


OUT_OF_RANGE = [
    (SELECT, "round", 0), (SELECT, "round", 2**32), (SELECT, "attempt", 0), (SELECT, "attempt", 2**16),
    (SELECT, "window", 0), (SELECT, "window", 9), (SELECT, "slot", -0.5), (SELECT, "deadline", 1e9),
    (SELECT, "params", "AB" * 32), (SELECT, "params", SHA + "\n"), (SELECT, "params", SHA[:-1]), (SELECT, "device", "a/b"),
    (SELECT, "device", "dev-1\n"), (SELECT, "federation", "+"), (BITMAP, "received", "0"), (BITMAP, "received", "0F"),
    (BITMAP, "received", "00\n"), (BITMAP, "received", "00" * 8193), (HEAD, "version", -1), (HEAD, "protocol", 2),
    (HEAD, "shards", 0), (HEAD, "shards", 257), (HEAD, "boot", -1), (HEAD, "closed", [{"round": 1}] * 65),
    (BIRTH, "samples", -1), (BIRTH, "samples", True), (BIRTH, "samples", 1.5), (BIRTH, "state", "asleep"),
    (HEAD, "link", {"chunk-bytes": 1023}), (HEAD, "link", {"chunk-bytes": 122881}), (HEAD, "link", {"reconnect-seconds": -1}),
    (HEAD, "deltas", [msgspec.to_builtins(HEAD)["deltas"][0]] * 5), (WANT, "received", "0"), (WANT, "device", "a/b"),
    (BIRTH, "software", "x" * 65), (BIRTH, "reason", "x" * 501), (RECEIPT, "verdict", "maybe"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "field", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused(message: msgspec.Struct, field: str, value: object) -> None:
    raw = msgspec.json.encode({**msgspec.to_builtins(message), field: value})
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.json.decode(raw, type=type(message))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weight", 0),
        ("weight", 2**24 + 1),
        ("count", 0),
        ("count", 2**28 + 1),
        ("parameter", 256),
        ("steps", 0),
        ("codec", 256),
    ],
)
def test_update_info_is_bounded(field: str, value: int) -> None:
    fields = {**msgspec.to_builtins(ALL[-1]), field: value}
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=UpdateInfo)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"null", b"{", b'{"command":"erase"}', b'{"command":1}', b"1 2"])
def test_what_is_no_command_is_refused(raw: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        msgspec.json.decode(raw, type=Command)


def test_names_in_messages_are_the_names_of_topics() -> None:
    pattern = messages.Name.__metadata__[0].pattern  # type: ignore[attr-defined]
    assert pattern == "^" + topics.NAME.pattern + r"\Z"


@given(st.sampled_from([1, 2, 5]))
def test_a_policy_with_whole_numbers_hashes_as_the_reader_will(rate: int) -> None:
    policy = Policy(learning_rate=rate, momentum=0, weight_decay=0)
    read = msgspec.json.decode(msgspec.json.encode(policy), type=Policy)
    assert policy.sha256() == read.sha256() == Policy(learning_rate=float(rate), momentum=0.0).sha256()


def test_every_field_of_a_policy_changes_its_hash() -> None:
    changed = [
        Policy(local_epochs=5), Policy(batch_size=17), Policy(learning_rate=0.051), Policy(momentum=0.91),
        Policy(weight_decay=1e-4), Policy(codec=CodecSpec(name="raw32")), Policy(),
    ]  # fmt: skip
    assert len(changed) == len(msgspec.structs.fields(Policy)) + 1
    assert len({p.sha256() for p in changed}) == len(changed)
