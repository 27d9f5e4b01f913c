"""Heads that another machine must sign as well: what is said until it has, and that rounds wait for nothing else."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from fleetgrad.broker import events as ev
from fleetgrad.broker.cosigner.machine import Cosigner
from fleetgrad.broker.gathering import LAST, REPEAT_SECONDS
from fleetgrad.broker.releasing import Releasing
from fleetgrad.broker.withdrawing import withdraw
from fleetgrad.wire import release
from fleetgrad.wire.files import DiskError
from fleetgrad.wire.messages import CANDIDATE, HEAD, AggregatorStatus, Candidate, Head, Policy
from fleetgrad.wire.release import Role, Root
from fleetgrad.wire.signing import PrivateKey, Untrusted, sign_message, sign_payload, verify_message
from tests.broker.conftest import KEYS, World
from tests.memory_files import MemoryFiles

AGGREGATOR = KEYS["agg"]
OTHERS = [PrivateKey.from_seed(bytes([i]) * 32) for i in (1, 2)]


def root_of(threshold: int, *others: PrivateKey) -> Root:
    keys = tuple(k.public.raw.hex() for k in (AGGREGATOR, *others))
    return Root(
        federation="test", version=1, root=Role(threshold=1, keys=keys[:1]),
        release=Role(threshold=threshold, keys=keys),
    )  # fmt: skip


def releasing(threshold: int, *others: PrivateKey) -> Releasing:
    root = root_of(threshold, *others)
    return Releasing(root, (AGGREGATOR,), (release.sign_root(root, [AGGREGATOR]),))


@pytest.fixture
def world() -> World:
    return World(releasing=releasing(2, OTHERS[0]))


def said(effects: list[Any], topic: str) -> list[bytes]:
    return [e.payload for e in effects if isinstance(e, ev.Publish) and e.topic == topic]


def heads(world: World, effects: list[Any]) -> list[Head]:
    assert world.releasing is not None
    return [release.read_head(world.releasing.root, raw) for raw in said(effects, world.topics.head)]


def candidates(world: World, effects: list[Any]) -> list[Head]:
    found = (
        verify_message(AGGREGATOR.public, CANDIDATE, raw, Candidate)
        for raw in said(effects, world.topics.candidate)
    )  # fmt: skip
    return [msgspec.json.decode(each.head, type=Head) for each in found]


def sign(world: World, *keys: PrivateKey, change: Callable[[bytes], bytes] = bytes) -> list[ev.Effect]:
    """The newest candidate's signatures, by these keys."""
    raw = said(world.effects, world.topics.candidate)[-1]
    payload = change(verify_message(AGGREGATOR.public, CANDIDATE, raw, Candidate).head.encode())
    effects: list[ev.Effect] = []
    for key in keys:
        effects += world.message(world.topics.signature(key.public.kid), sign_payload(key, HEAD, payload))
    return effects


def status(world: World) -> AggregatorStatus:
    return msgspec.json.decode(said(world.effects, world.topics.aggregator)[-1], type=AggregatorStatus)


def finish_round(world: World) -> list[ev.Effect]:
    """Both devices are asked, and send their updates."""
    effects: list[ev.Effect] = []
    for name in ("dev-1", "dev-2"):
        effects += world.birth(name)
    for name in ("dev-1", "dev-2"):
        effects += world.send(name, world.update(name, world.payload(device=name)))
    return effects + world.advance(1.0)


def test_a_head_is_published_when_the_other_machine_has_signed_it(world: World) -> None:
    assert said(world.effects, world.topics.head) == []
    (shown,) = candidates(world, world.effects)
    assert (status(world).signatures_missing, status(world).unsigned_by) == (1, (OTHERS[0].public.kid,))
    effects = sign(world, OTHERS[0])
    assert heads(world, effects) == [shown]
    assert (status(world).signatures_missing, status(world).unsigned_by) == (0, ())
    assert sign(world, OTHERS[0]) == []  # it comes again, since it is retained


def test_two_of_three_signatures_are_enough_and_one_counts_once() -> None:
    world = World(releasing=releasing(3, *OTHERS, KEYS["dev-3"]))
    assert sign(world, OTHERS[0], OTHERS[0]) != []  # the status says so
    assert said(world.effects, world.topics.head) == []
    assert (status(world).signatures_missing, len(status(world).unsigned_by)) == (1, 2)
    assert len(heads(world, sign(world, KEYS["dev-3"]))) == 1


def test_nobody_is_asked_and_nothing_ends_until_the_head_of_the_round_is_signed(world: World) -> None:
    world.birth("dev-1")
    world.birth("dev-2")
    assert world.commands(world.effects, "dev-1") == []
    world.advance(3600.0)
    assert world.commands(world.effects, "dev-1") == []
    assert {a.state for a in world.journal.load().attempts.values()} == {"open"}
    sign(world, OTHERS[0])
    assert world.selects(world.effects, "dev-1")
    assert world.selects(world.effects, "dev-2")


def test_the_next_version_waits_for_its_signature_and_the_head_before_stays(world: World) -> None:
    (first,) = heads(world, sign(world, OTHERS[0]))
    effects = finish_round(world)
    assert world.counted() == {"dev-1", "dev-2"}
    assert heads(world, effects) == []
    assert candidates(world, effects)[-1].version == 1
    world.handle(ev.Disconnected("cut"))
    again = world.handle(ev.Connected())
    assert heads(world, again) == [first]
    assert candidates(world, again)[-1].version == 1
    assert [h.version for h in heads(world, sign(world, OTHERS[0]))] == [1]


def test_a_candidate_is_said_again_until_it_is_signed_and_no_faster(world: World) -> None:
    first = candidates(world, world.effects)
    for _ in range(3):
        wake = world.rounds.wake_at()
        assert wake is not None
        assert wake - world.now == pytest.approx(REPEAT_SECONDS)
        assert candidates(world, world.advance(REPEAT_SECONDS / 2)) == []
        assert candidates(world, world.advance(REPEAT_SECONDS / 2)) == first
    sign(world, OTHERS[0])
    assert candidates(world, world.advance(REPEAT_SECONDS)) == []


def test_a_new_sequence_alone_is_signed_the_same_way(world: World) -> None:
    (first,) = heads(world, sign(world, OTHERS[0]))
    wake = world.rounds.wake_at()
    assert wake is not None
    assert wake == pytest.approx(first.expires / 4)
    effects = world.advance(wake - world.now)
    assert (heads(world, effects), len(candidates(world, effects))) == ([], 1)
    (second,) = heads(world, sign(world, OTHERS[0]))
    assert second.sequence > first.sequence
    assert msgspec.structs.replace(second, sequence=first.sequence) == first


def test_while_a_sequence_alone_waits_devices_are_asked(world: World) -> None:
    (first,) = heads(world, sign(world, OTHERS[0]))
    world.advance(first.expires / 4)
    world.birth("dev-1")
    assert world.selects(world.effects, "dev-1")


def test_after_a_withdrawal_nobody_is_asked_before_a_head_has_said_so_though_the_last_one_names_the_model() -> None:
    world = World(releasing=releasing(2, OTHERS[0]))
    sign(world, OTHERS[0])
    finish_round(world)
    assert (
        candidates(world, world.effects)[-1].version == 1
    )  # another machine may have signed this, and the signature be under way
    withdraw(world.journal, world.files)
    world.start()
    world.effects.clear()
    world.birth("dev-1")
    world.advance(REPEAT_SECONDS)
    assert world.commands(world.effects, "dev-1") == []
    (back,) = heads(world, sign(world, OTHERS[0]))
    assert (back.version, back.withdrawn) == (0, 1)
    assert world.selects(world.effects, "dev-1")


def test_after_a_restart_a_round_that_the_last_head_covers_goes_on(world: World) -> None:
    sign(world, OTHERS[0])
    world.effects.clear()
    world.start()
    assert len(heads(world, world.effects)) == 1  # as it was; the next one waits
    assert candidates(world, world.effects)[-1].boot == 2
    world.birth("dev-1")
    assert world.selects(world.effects, "dev-1")


def test_after_a_change_of_policy_the_round_waits(world: World) -> None:
    sign(world, OTHERS[0])
    world.settings = replace(world.settings, policy=Policy(local_epochs=9))
    world.effects.clear()
    world.start()
    world.birth("dev-1")
    assert world.selects(world.effects, "dev-1") == []
    sign(world, OTHERS[0])
    assert world.selects(world.effects, "dev-1")


def test_a_last_head_that_the_root_vouches_for_no_more_or_that_is_damaged_counts_for_nothing(world: World) -> None:
    sign(world, OTHERS[0])
    for spoil in ("key", "file"):
        world.effects.clear()
        if spoil == "key":
            world.releasing = releasing(2, OTHERS[1])
        else:
            world.files.write(LAST, b"{")
        world.start()
        assert said(world.effects, world.topics.head) == []
        assert len(candidates(world, world.effects)) == 1


def test_signatures_of_other_bytes_other_keys_and_other_kinds_make_no_head(world: World) -> None:
    def refused(kid: str, raw: bytes, reason: str) -> None:
        (note,) = [e for e in world.message(world.topics.signature(kid), raw) if isinstance(e, ev.Log)]
        assert note.event == "message_dropped"
        assert reason in str(note.fields["reason"])

    (shown,) = candidates(world, world.effects)
    kid = OTHERS[0].public.kid
    refused(
        OTHERS[1].public.kid, sign_message(OTHERS[1], HEAD, shown), "which is none of those that sign heads elsewhere"
    )
    refused(AGGREGATOR.public.kid, sign_message(AGGREGATOR, HEAD, shown), "which is none of those")
    refused(kid, sign_message(OTHERS[1], HEAD, shown), "signature doesn't hold")
    refused(kid, sign_message(OTHERS[0], CANDIDATE, shown), "expected 'fl1-head'")
    refused(kid, b"{}", "not a JWS in compact form")
    old = sign(world, OTHERS[0], change=lambda raw: raw.replace(b'"boot":1', b'"boot":7'))
    assert old == []
    assert said(world.effects, world.topics.head) == []
    assert len(heads(world, sign(world, OTHERS[0]))) == 1


def test_a_head_that_the_disk_cant_keep_is_published_at_the_next_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: MemoryFiles, name: str, data: bytes) -> None:
        raise DiskError(f"can't write {name}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFiles, "write", full)
        assert [e.event for e in sign(world, OTHERS[0]) if isinstance(e, ev.Log)] == ["disk_failed"]
    assert said(world.effects, world.topics.head) == []
    world.advance(REPEAT_SECONDS)
    assert len(heads(world, sign(world, OTHERS[0]))) == 1


def test_where_nothing_is_retained_neither_is_a_candidate(world: World) -> None:
    world.handle(ev.Disconnected("cut"))
    effects = world.handle(ev.Connected(retained=False))
    shown = [e for e in effects if isinstance(e, ev.Publish) and e.topic == world.topics.candidate]
    assert [e.retained for e in shown] == [False]
    (head,) = [e for e in sign(world, OTHERS[0]) if isinstance(e, ev.Publish) and e.topic == world.topics.head]
    assert not head.retained


def test_the_last_head_of_all_is_waited_for_before_the_end(world: World) -> None:
    world.settings = replace(world.settings, rounds=1)
    world.effects.clear()
    world.start()
    sign(world, OTHERS[0])
    finish_round(world)
    assert not world.rounds.finished
    sign(world, OTHERS[0])
    assert world.rounds.finished


def test_an_aggregator_with_all_keys_at_hand_asks_nobody() -> None:
    root = root_of(2, OTHERS[0])
    world = World(releasing=Releasing(root, (AGGREGATOR, OTHERS[0])))
    assert said(world.effects, world.topics.candidate) == []
    assert len(heads(world, world.effects)) == 1
    filters = [f for e in world.effects if isinstance(e, ev.Subscribe) for f in e.filters]
    assert world.topics.every("signature") not in filters


def test_a_real_co_signer_goes_along_with_two_rounds(world: World) -> None:
    kept: list[bytes] = []
    machine = Cosigner(OTHERS[0], AGGREGATOR.public, root_of(2, OTHERS[0]), None, kept.append, allowed=True)
    machine.handle(ev.Connected())

    def exchange() -> None:
        """Passes candidates, heads and signatures on until nothing more comes."""
        at = 0
        while at < len(world.effects):
            effect = world.effects[at]
            at += 1
            if isinstance(effect, ev.Publish):
                for answer in machine.handle(ev.Message(effect.topic, effect.payload)):
                    if isinstance(answer, ev.Publish):
                        world.message(answer.topic, answer.payload)

    exchange()
    finish_round(world)
    exchange()
    assert [h.version for h in heads(world, world.effects)][-1] == 1
    assert machine.held is not None
    assert machine.held.version == 1
    with pytest.raises(Untrusted):  # no device takes what one of the two has signed
        release.read_head(root_of(2, OTHERS[0]), sign_message(AGGREGATOR, HEAD, machine.held))
