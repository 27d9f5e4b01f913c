"""Breaking the seal: each attempt ends in a clear word, nothing is counted for it, and the honest update still is."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fleetgrad.broker import events as ev
from fleetgrad.wire import frames
from fleetgrad.wire.messages import Receipt
from fleetgrad.wire.seal import OVERHEAD, SealKey, seal
from tests.broker.conftest import FEDERATION, KEYS, SEAL, World, ready

OTHER = SealKey.from_bytes(bytes(range(1, 33)))
NOT_SEALED = "isn't sealed to this aggregator's key for this header"


def flipped(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def under_another(world: World, **fields: Any) -> bytes:
    """A payload that dev-1 sealed for another header than it sends it under."""
    return world.sealed("dev-1", world.payload(), **fields)


# What dev-1 signs and sends; it is proven to be its own, so it is told what is wrong.
BROKEN: dict[str, tuple[Callable[[World], bytes], str]] = {
    "not sealed": (lambda w: w.payload(), NOT_SEALED),
    "sealed to another key": (lambda w: w.sealed("dev-1", w.payload(), to=OTHER.public), NOT_SEALED),
    "another device's, copied": (lambda w: w.sealed("dev-2", w.payload(2)), NOT_SEALED),
    "its own of another round": (lambda w: under_another(w, round=7), NOT_SEALED),
    "its own of another attempt": (lambda w: under_another(w, attempt=2), NOT_SEALED),
    "its own for another model": (lambda w: under_another(w, model=bytes(32)), NOT_SEALED),
    "its own under another policy": (lambda w: under_another(w, config=bytes(32)), NOT_SEALED),
    "its own of another federation": (lambda w: under_another(w, federation=bytes(16)), NOT_SEALED),
    "a bit of the key flipped": (lambda w: flipped(w.sealed("dev-1", w.payload()), 5), NOT_SEALED),
    "a bit of the text flipped": (lambda w: flipped(w.sealed("dev-1", w.payload()), 5000), NOT_SEALED),
    "the tag cut": (lambda w: w.sealed("dev-1", w.payload())[:-1], NOT_SEALED),
    "shorter than a seal": (lambda w: bytes(OVERHEAD - 1), "sealed payload of 47 bytes, at least 48"),
    "a point of low order": (lambda w: bytes(200), NOT_SEALED),
    "nothing, sealed": (lambda w: w.sealed("dev-1", b""), "payload of 0 bytes"),
    "sealed twice": (
        lambda w: w.sealed("dev-1", w.sealed("dev-1", w.payload())[: -OVERHEAD or None]),
        "update info of 58000 bytes",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_open_is_refused_with_its_reason_and_costs_nobody_else(name: str) -> None:
    made, reason = BROKEN[name]
    world = ready()
    (receipt,) = world.receipts(world.send("dev-1", world.sent("dev-1", made(world))), "dev-1")
    assert receipt.verdict == "refused"
    assert reason in receipt.reason
    assert "dev-1" in receipt.reason
    assert world.counted() == set()
    (other,) = world.receipts(world.send("dev-2", world.update("dev-2", world.payload(2, device="dev-2"))), "dev-2")
    assert other.verdict == "accepted"


def test_an_update_that_says_that_it_is_not_sealed_is_dropped_at_its_first_chunk() -> None:
    world = ready()
    payload = world.payload()
    header = replace(world.header("dev-1", payload), flags=0)
    made = list(frames.frames(header, payload + frames.sign_body(KEYS["dev-1"], header)))
    notes = [e.fields["reason"] for e in world.send("dev-1", made) if isinstance(e, ev.Log)]
    assert notes
    assert all("flags 0x0: an update is sealed" in str(note) for note in notes)
    (good,) = world.receipts(world.send("dev-1", world.update("dev-1", payload)), "dev-1")
    assert good.verdict == "accepted"


def test_an_update_counts_though_its_key_was_changed_while_it_was_on_its_way() -> None:
    """Sealed before the change, sent and merged after it."""
    world = ready()
    early = world.update("dev-1", world.payload())
    world.rounds._intake.opens = world.rounds._closing.seals = [OTHER, SEAL]
    (receipt,) = world.receipts(world.send("dev-1", early), "dev-1")
    assert receipt.verdict == "accepted"
    late = world.sealed("dev-2", world.payload(2, device="dev-2"), to=OTHER.public)
    effects = world.send("dev-2", world.sent("dev-2", late))
    assert [r.verdict for r in world.receipts(effects, "dev-2")] == ["accepted"]
    assert [e.members for e in world.effects if isinstance(e, ev.Published)] == [2]


def test_the_same_update_sealed_anew_is_a_second_one() -> None:
    world = ready()
    payload = world.payload()
    world.send("dev-1", world.update("dev-1", payload))
    aad = world.header("dev-1", payload).sealed_with()
    again = seal(SEAL.public, payload, aad)
    header = world.header("dev-1", again, frames.QUERY)
    frame = frames.frame(header, 0, frames.sign_body(KEYS["dev-1"], header))
    (receipt,) = world.commands(world.message(world.topics.update("dev-1", 1), frame), "dev-1")
    assert isinstance(receipt, Receipt)
    assert (receipt.verdict, FEDERATION) == ("duplicate", receipt.federation)
