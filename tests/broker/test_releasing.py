"""The root of trust from the operator's side: keys, the chain in a federation's folder, and heads signed anew before they go stale."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from fleetgrad.broker import events as ev
from fleetgrad.broker import releasing
from fleetgrad.broker.releasing import ReleaseError, chain, load, make_key, rotate
from fleetgrad.broker.serving import RETAINED_HEAD_SECONDS
from fleetgrad.wire import release
from fleetgrad.wire.messages import HEAD, Head
from fleetgrad.wire.release import Role
from fleetgrad.wire.signing import PrivateKey, Untrusted, load_private_key, sign_by, verify_by, verify_message
from tests.broker.conftest import KEYS, World

AGGREGATOR = KEYS["agg"]


def role(*keys: PrivateKey, threshold: int = 1) -> Role:
    return Role(threshold=threshold, keys=tuple(k.public.raw.hex() for k in keys))


def test_without_roots_the_aggregators_key_alone_signs(tmp_path: Path) -> None:
    found = load(tmp_path, "test", AGGREGATOR)
    assert (found.root.version, [k.public.kid for k in found.keys], found.roots) == (0, [AGGREGATOR.public.kid], ())


def test_keys_rotate_to_others_and_the_chain_is_followed(tmp_path: Path) -> None:
    make_key(tmp_path / "offline", "root-1")
    offline = load_private_key(tmp_path / "offline" / "root-1.key")
    make_key(tmp_path / "keys", "release-2")
    second = load_private_key(tmp_path / "keys" / "release-2.key")
    rotate(tmp_path, "test", AGGREGATOR, [offline], root=role(offline))
    with pytest.raises(ReleaseError, match=r"root 2 isn't signed by enough keys.*--sign-with"):
        rotate(tmp_path, "test", AGGREGATOR, [], release_role=role(second))
    rotate(tmp_path, "test", AGGREGATOR, [offline], release_role=role(AGGREGATOR, second, threshold=2))
    found = load(tmp_path, "test", AGGREGATOR)
    assert (found.root.version, len(found.keys), len(found.roots)) == (2, 2, 2)
    followed = release.implied("test", AGGREGATOR.public)
    for raw in found.roots:
        followed = release.succeed(followed, raw)
    assert followed == found.root
    (tmp_path / "keys" / "release-2.key").unlink()
    assert [k.public.kid for k in load(tmp_path, "test", AGGREGATOR).keys] == [AGGREGATOR.public.kid]


def test_a_root_that_was_changed_on_disk_is_named(tmp_path: Path) -> None:
    rotate(tmp_path, "test", AGGREGATOR, [], release_role=role(KEYS["dev-1"]))
    path = tmp_path / release.ROOTS / "1.json"
    path.write_bytes(path.read_bytes().replace(b".", b".A", 1))
    with pytest.raises(ReleaseError, match=r"1\.json: "):
        chain(tmp_path, "test", AGGREGATOR.public)


def test_several_signatures_are_counted_by_key() -> None:
    first, second, third = KEYS["dev-1"], KEYS["dev-2"], KEYS["dev-3"]
    message = release.implied("test", first.public)
    keys = [first.public, second.public]
    for signers, good in (
        ([first, second], True),
        ([first, first], False),
        ([first, third], False),
        ([third, second, first], True),
    ):
        raw = sign_by(signers, release.ROOT, message)
        if good:
            assert verify_by(keys, 2, release.ROOT, raw, release.Root) == message
        else:
            with pytest.raises(Untrusted, match=r"1 of the keys .* signed, 2 must"):
                verify_by(keys, 2, release.ROOT, raw, release.Root)
    raw = sign_by([first, second], release.ROOT, message)
    with pytest.raises(Untrusted, match="expected 'fl1-head'"):
        verify_by(keys, 1, HEAD, raw, release.Root)
    with pytest.raises(Untrusted, match="length"):
        verify_by(keys, 1, release.ROOT, sign_by([first] * 17, release.ROOT, message), release.Root)


def heads(effects: list[Any], world: World) -> list[Head]:
    raw = [e.payload for e in effects if isinstance(e, ev.Publish) and e.topic == world.topics.head]
    return [verify_message(AGGREGATOR.public, HEAD, r, Head) for r in raw]


def test_a_head_is_signed_anew_four_times_within_its_expiry_and_its_sequence_grows_over_restarts() -> None:
    world = World()
    (first,) = heads(world.effects, world)
    seen = [first]
    for _ in range(4):
        wake = world.rounds.wake_at()
        assert wake is not None
        assert wake - world.now == pytest.approx(first.expires / 4)
        seen += heads(world.advance(wake - world.now), world)
    assert len(seen) == 5
    world.start()
    seen += heads(world.effects, world)[-1:]
    sequences = [h.sequence for h in seen]
    assert sequences == sorted(set(sequences))
    assert msgspec.structs.replace(seen[1], sequence=0) == msgspec.structs.replace(seen[0], sequence=0)


def test_a_stale_device_is_answered_by_a_fresh_head_but_not_faster_than_that() -> None:
    world = World()
    sent = len(heads(world.effects, world))
    world.now += RETAINED_HEAD_SECONDS + 1
    assert len(heads(world.birth("dev-1", state="stale"), world)) == 1
    assert heads(world.birth("dev-2", state="stale"), world) == []
    assert len(heads(world.advance(RETAINED_HEAD_SECONDS), world)) == 1
    assert len(heads(world.effects, world)) == sent + 2


def test_roots_are_published_before_the_head_that_their_keys_sign() -> None:
    extra = KEYS["dev-3"]
    root = release.Root(
        federation="test", version=1, root=role(AGGREGATOR), release=role(AGGREGATOR, extra, threshold=2)
    )
    raw = release.sign_root(root, [AGGREGATOR])
    world = World(releasing=releasing.Releasing(root, (AGGREGATOR, extra), (raw,)))
    world.handle(ev.Disconnected("cut"))
    published = [e for e in world.handle(ev.Connected()) if isinstance(e, ev.Publish)]
    topics = [e.topic for e in published]
    assert topics.index("fl1/test/root/1") < topics.index("fl1/test/head")
    assert published[topics.index("fl1/test/root/1")].payload == raw
    head = published[topics.index("fl1/test/head")].payload
    assert release.read_head(root, head).version == 0
    with pytest.raises(Untrusted, match=r"not a JWS|expected"):
        verify_message(AGGREGATOR.public, HEAD, head, Head)
