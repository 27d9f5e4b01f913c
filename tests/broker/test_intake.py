"""Bad updates: each is dropped or refused with its reason, nothing is counted, and a good one is accepted afterwards."""

import hashlib
import re
import struct
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from fleetgrad.broker import events as ev
from fleetgrad.broker.attempt import RoundSettings
from fleetgrad.wire import seeds
from fleetgrad.wire.codecs import codec_of, encode_payload, payload_bound, read_info
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.messages import HEAD, Bitmap, Head, Policy, Receipt
from fleetgrad.wire.signing import PrivateKey, verify_message
from tests.broker.conftest import BLK8, COUNT, FEDERATION, KEYS, LAYOUT, World, ready

Bad = Callable[[World], list[bytes]]


def flipped(message: bytes, at: int) -> bytes:
    return message[:at] + bytes([message[at] ^ 16]) + message[at + 1 :]


def zeros(codec: CodecSpec, count: int = COUNT) -> bytes:
    layout = LAYOUT if count == COUNT else VectorLayout.flat(count)
    keys = seeds.codec_keys(FEDERATION, "dev-1", 1, 1)
    return encode_payload(codec, layout, np.zeros(count, np.float32), keys=keys, weight=5, steps=1, loss=0.1)


def with_values(values: np.ndarray) -> bytes:
    """A blk8 payload whose first block is replaced by one that decodes to `values`' extremes."""
    payload = bytearray(zeros(BLK8))
    start = len(payload) - codec_of(BLK8).most(LAYOUT)
    payload[start : start + 5] = struct.pack("<fb", float(values[0]), int(values[1]))
    return bytes(payload)


DROPPED: dict[str, tuple[Bad, str]] = {
    "truncated": (lambda w: [w.update("dev-1", w.payload())[0][:-1]], "has 61439 bytes, expected 61440"),
    "bit-flipped header": (lambda w: [flipped(w.update("dev-1", w.payload())[0], 30)], "CRC32C"),
    "bit-flipped data": (lambda w: [flipped(w.update("dev-1", w.payload())[0], 5000)], "CRC32C"),
    "oversize": (lambda w: [w.update("dev-1", bytes(200_000))[0]], "body of 200112 bytes, at most"),
    "empty": (lambda w: [b""], "frame of 0 bytes"),
    "another model": (lambda w: [w.update("dev-1", w.payload(), model=bytes(32))[0]], "another model"),
    "another policy": (lambda w: [w.update("dev-1", w.payload(), config=bytes(32))[0]], "another policy"),
    "another round": (lambda w: [w.update("dev-1", w.payload(), round=2)[0]], "another round"),
    "another attempt": (lambda w: [w.update("dev-1", w.payload(), attempt=2)[0]], "another round"),
    "another federation": (lambda w: [w.update("dev-1", w.payload(), federation=bytes(16))[0]], "of this federation"),
    "another device's frame": (lambda w: w.update("dev-2", w.payload()), "another device"),
    "unsigned": (
        lambda w: w.update("dev-1", w.payload(), key=PrivateKey.from_seed(bytes(32))),
        "hash or signature doesn't hold",
    ),
    "signed by another device": (lambda w: w.update("dev-1", w.payload(), key=KEYS["dev-2"]), "signature doesn't hold"),
    "another payload than its hash": (
        lambda w: w.update("dev-1", w.payload(), payload_sha256=hashlib.sha256(b"").digest()),
        "signature doesn't hold",
    ),
}

REFUSED: dict[str, tuple[Bad, str]] = {
    "NaN": (lambda w: w.update("dev-1", with_values(np.array([np.nan, 1]))), "scale is negative, not finite"),
    "beyond 64": (
        lambda w: w.update("dev-1", with_values(np.array([1.0, 100]))),
        "tensor 'conv.weight', value 0 of 16000 is 100.*range of 64",
    ),
    "code -128": (lambda w: w.update("dev-1", with_values(np.array([0.1, -128]))), "block 0: code"),
    "another codec": (
        lambda w: w.update("dev-1", zeros(CodecSpec(name="raw32"), 10_000)),
        "this round uses blk8",
    ),
    "another size": (
        lambda w: w.update("dev-1", zeros(BLK8, 64)),
        "holds 64 floats, the plan has 70000",
    ),
    "not a payload": (lambda w: w.update("dev-1", b"\xff\xff rubbish"), "update info"),
}


@pytest.mark.parametrize("name", DROPPED)
def test_an_unproven_update_is_dropped_and_a_good_one_still_counts(name: str) -> None:
    bad, reason = DROPPED[name]
    world = ready()
    effects = world.send("dev-1", bad(world))
    assert world.receipts(effects, "dev-1") == []
    notes = [e.fields["reason"] for e in effects if isinstance(e, ev.Log) and e.event == "message_dropped"]
    assert any(reason in str(n) for n in notes), notes
    assert world.counted() == set()
    good = world.receipts(world.send("dev-1", world.update("dev-1", world.payload())), "dev-1")
    assert [r.verdict for r in good] == ["accepted"]
    assert world.counted() == {"dev-1"}
    assert sum(world.rounds.drops.values()) == len(notes)


@pytest.mark.parametrize("name", REFUSED)
def test_a_proven_update_that_does_not_decode_is_refused_with_its_reason(name: str) -> None:
    bad, reason = REFUSED[name]
    world = ready()
    (receipt,) = world.receipts(world.send("dev-1", bad(world)), "dev-1")
    assert receipt.verdict == "refused"
    assert re.search(reason, receipt.reason), receipt.reason
    assert "dev-1" in receipt.reason
    assert world.counted() == set()
    (other,) = world.receipts(world.send("dev-2", world.update("dev-2", world.payload(2))), "dev-2")
    assert other.verdict == "accepted"


def test_a_weight_that_takes_the_sum_over_its_limit_is_refused() -> None:
    world = ready()
    world.send("dev-1", world.update("dev-1", world.payload(weight=2**24 - 10)))
    (receipt,) = world.receipts(world.send("dev-2", world.update("dev-2", world.payload(weight=11))), "dev-2")
    assert receipt.verdict == "refused"
    assert "weight 11" in receipt.reason


def test_a_replayed_update_counts_once_and_its_receipt_is_given_again() -> None:
    world = ready()
    payload = world.payload()
    messages = world.update("dev-1", payload)
    world.send("dev-1", messages)
    assert world.receipts(world.send("dev-1", messages), "dev-1") == []
    (again,) = world.query("dev-1", payload)
    assert isinstance(again, Receipt)
    assert again.verdict == "accepted"
    (other,) = world.query("dev-1", world.payload(9))
    assert isinstance(other, Receipt)
    assert other.verdict == "duplicate"
    assert len(world.journal.load().contributions) == 1


def test_chunks_may_come_in_any_order_and_twice() -> None:
    world = ready()
    messages = world.update("dev-1", world.payload())
    effects = world.send("dev-1", [messages[1], messages[1], messages[0]])
    assert [r.verdict for r in world.receipts(effects, "dev-1")] == ["accepted"]


def test_a_query_is_answered_by_the_bitmap_of_what_has_arrived() -> None:
    world = ready()
    payload = world.payload()
    messages = world.update("dev-1", payload)
    (bitmap,) = world.query("dev-1", payload)
    assert isinstance(bitmap, Bitmap)
    assert bitmap.received == ""
    world.send("dev-1", messages[1:])
    (bitmap,) = world.query("dev-1", payload)
    assert isinstance(bitmap, Bitmap)
    assert bitmap.received == "02"


@pytest.mark.parametrize("device", ["dev-3", "nobody"])
def test_a_stranger_is_not_heard(device: str) -> None:
    world = ready()
    KEYS.setdefault("nobody", PrivateKey.from_seed(bytes(32)))
    effects = world.send(device, world.update(device, world.payload()))
    assert [e.event for e in effects if isinstance(e, ev.Log)] == ["message_dropped"] * 2
    assert world.counted() == set()


def test_reasons_of_drops_take_bounded_memory() -> None:
    world = ready()
    for i in range(1000):
        world.message(world.topics.birth(f"x-{i}"), b"")
    assert len(world.rounds.drops) <= 257
    assert sum(world.rounds.drops.values()) == 1000


HOSTILE = (
    CodecSpec(name="raw32"), CodecSpec(name="fp16"), CodecSpec(name="blk4"), CodecSpec(name="rot-2"), CodecSpec(name="ec-dither"),
    CodecSpec(name="ec-dz"), CodecSpec(name="topk"), CodecSpec(name="lossless"), CodecSpec(name="ring", bits=20),
    CodecSpec(name="auto"),
)  # fmt: skip


def with_codec(codec: CodecSpec) -> World:
    world = World(settings=RoundSettings(FEDERATION, Policy(codec=codec), rounds=2, goal=2, minimum=0.5, deadline=60.0))
    world.birth("dev-1")
    world.birth("dev-2")
    return world


def recoded(payload: bytes, coded: bytes) -> bytes:
    """The payload with another coded vector, and a rate that is true of it."""
    info = msgspec.structs.replace(read_info(payload)[0], rate=8.0 * len(coded) / COUNT)
    raw = msgspec.msgpack.encode(info)
    return struct.pack("<H", len(raw)) + raw + coded


@pytest.mark.parametrize("codec", HOSTILE, ids=str)
@pytest.mark.parametrize("hostile", ["ones", "cut", "longer", "noise"])
def test_a_hostile_vector_in_any_codec_is_refused_in_words_and_the_round_goes_on(
    codec: CodecSpec, hostile: str
) -> None:
    """All bits set, an end cut off or added, random bytes: signed by an enrolled device, so the decoders themselves are asked."""
    world = with_codec(codec)
    good = world.payload(codec=codec)
    coded = bytes(read_info(good)[1])
    if hostile == "ones":
        bad = b"\xff" * len(coded)
    elif hostile == "noise":
        bad = np.random.default_rng(1).bytes(len(coded))
    else:
        bad = coded[:-7] if hostile == "cut" else coded + bytes(7)
    (receipt,) = world.receipts(world.send("dev-1", world.update("dev-1", recoded(good, bad))), "dev-1")
    if receipt.verdict == "accepted":
        # Every bit pattern of the ring's integers is one: what can be said of it is that it is bounded.
        assert (codec.name, hostile) in {("ring", "ones"), ("ring", "noise")}
    else:
        assert receipt.verdict == "refused"
        assert re.search(r"update from dev-1 refused: .{10}", receipt.reason), receipt.reason
        assert world.counted() == set()
    good = world.payload(2, codec=codec, device="dev-2")
    (other,) = world.receipts(world.send("dev-2", world.update("dev-2", good)), "dev-2")
    assert other.verdict == "accepted"


@pytest.mark.parametrize("codec", HOSTILE, ids=str)
def test_a_body_beyond_the_rounds_codec_is_dropped_at_its_first_chunk(codec: CodecSpec) -> None:
    world = with_codec(codec)
    most = payload_bound(codec, LAYOUT)
    frames = world.update("dev-1", bytes(most + 1))
    effects = world.send("dev-1", frames[:1])
    (note,) = [e.fields["reason"] for e in effects if isinstance(e, ev.Log) and e.event == "message_dropped"]
    assert f"body of {most + 113} bytes, at most {most + 112}" in str(note)  # sealed (48) and signed (64)
    assert world.files.names("spool") == [], "nothing is kept of it"


def test_a_policy_changed_over_a_restart_judges_each_attempt_by_its_own() -> None:
    """Devices asked under the old policy finish under it; the next round, and an attempt that nobody was asked for, has the new one."""
    world = ready()
    old, rot = world.settings, Policy(codec=CodecSpec(name="rot-4"))
    world.settings = replace(old, policy=rot)
    world.start()
    for device in ("dev-1", "dev-2"):
        world.birth(device, state="training", round=1, attempt=1)
    world.settings = old  # what the devices' frames say
    (receipt,) = world.receipts(world.send("dev-1", world.update("dev-1", world.payload())), "dev-1")
    assert receipt.verdict == "accepted"
    world.settings = replace(old, policy=rot)
    (refused,) = world.query("dev-2", world.payload(2))
    assert isinstance(refused, Receipt)
    assert "another policy" in refused.reason
    world.settings = old
    world.send("dev-2", world.update("dev-2", world.payload(2, device="dev-2")))
    heads = [e.payload for e in world.effects if isinstance(e, ev.Publish) and e.topic == world.topics.head]
    head = verify_message(KEYS["agg"].public, HEAD, heads[-1], Head)
    assert (head.version, head.policy) == (1, rot)
    published = [e for e in world.effects if isinstance(e, ev.Published)]
    assert [(p.codec, round(p.bits or 0, 2)) for p in published] == [("blk8", 8.5)]
    fresh = World()
    fresh.settings = replace(fresh.settings, policy=rot)
    fresh.start()
    heads = [e.payload for e in fresh.effects if isinstance(e, ev.Publish) and e.topic == fresh.topics.head]
    assert verify_message(KEYS["agg"].public, HEAD, heads[-1], Head).policy == rot
