"""How long a device trusts what it heard: without a fresh head it takes up no training, over restarts too; roots survive them."""

from pathlib import Path

import msgspec
import pytest

from fleetgrad.edge import events as ev
from fleetgrad.edge.config import Federation, beginning
from fleetgrad.edge.link.trust import HEAD_ROW, ROOT_ROW
from fleetgrad.wire import release
from fleetgrad.wire.messages import HEAD
from fleetgrad.wire.release import Role
from fleetgrad.wire.settings import SettingsError
from fleetgrad.wire.signing import PrivateKey, sign_message
from tests.edge.one_device import AGGREGATOR, EXPIRES, TOPICS, Device

NEW = PrivateKey.from_seed(bytes([7]) * 32)


def rotated() -> bytes:
    """Root 1, which gives heads to another key."""
    role = Role(threshold=1, keys=(AGGREGATOR.public.raw.hex(),))
    heads = Role(threshold=1, keys=(NEW.public.raw.hex(),))
    return release.sign_root(release.Root(federation="test", version=1, root=role, release=heads), [AGGREGATOR])


def test_a_device_that_hears_no_fresh_head_says_so_and_takes_up_no_training() -> None:
    device = Device().ready()
    wake = device.participant.wake_at()
    device.now += EXPIRES
    device.handle(ev.Tick())
    assert wake is not None
    assert str(device.participant.state) == "stale"
    assert device.statuses()[-1].state == "stale"
    device.select()
    assert device.trains() == []
    assert device.births()[-1].state == "stale"
    device.head()
    assert [b.state for b in device.births()] == ["idle"]
    device.select()
    assert len(device.trains()) == 1


def test_a_head_that_is_only_repeated_refreshes_nothing() -> None:
    device = Device().ready()
    raw = device.store.held[HEAD_ROW, ""]
    device.now += EXPIRES - 1
    device.handle(ev.Message(TOPICS.head, raw))
    device.now += 1
    device.handle(ev.Tick())
    assert str(device.participant.state) == "stale"


def test_an_older_head_of_the_same_version_is_dropped_and_refreshes_nothing() -> None:
    device = Device().ready()
    older = device.store.held[HEAD_ROW, ""]
    device.now += 10
    device.head()
    newest = device.sequence
    device.now += EXPIRES - 1
    device.handle(ev.Message(TOPICS.head, older))
    assert device.logs() == ["message_dropped"]
    assert device.participant._head is not None
    assert device.participant._head.sequence == newest
    device.now += 1
    device.handle(ev.Tick())
    assert str(device.participant.state) == "stale"


def test_a_head_signed_anew_is_remembered_and_asks_for_nothing() -> None:
    device = Device().ready()
    device.now += 10
    assert device.head() == []
    sequence = device.sequence
    device.start()
    assert device.participant._head is not None
    assert device.participant._head.sequence == sequence


def test_a_restart_counts_from_itself_and_an_update_under_way_still_goes_out() -> None:
    device = Device().ready()
    device.select()
    device.trained()
    device.now += 2 * EXPIRES
    device.handle(ev.Tick())
    assert str(device.participant.state) == "uploading"
    device.start()
    device.handle(ev.Connected())
    device.receipt()
    assert str(device.participant.state) == "idle"
    device.now += EXPIRES
    device.handle(ev.Tick())
    assert str(device.participant.state) == "stale"


def test_a_version_goes_back_only_where_the_head_says_what_is_withdrawn() -> None:
    device = Device().ready()
    device.head(version=5)
    device.head(version=3)
    assert device.logs() == ["message_dropped"]
    device.head(version=3, withdrawn=4)
    assert device.logs() == ["message_dropped"]
    device.head(version=3, withdrawn=5)
    assert device.participant._head is not None
    assert device.participant._head.version == 3


@pytest.mark.parametrize("restart", [False, True])
def test_a_root_is_followed_and_remembered_and_what_the_old_key_signs_is_dropped(restart: bool) -> None:
    device = Device().ready()
    device.handle(ev.Message(TOPICS.root(1), rotated()))
    assert device.logs() == ["root_followed"]
    (again,) = [e for e in device.effects if isinstance(e, ev.Subscribe)]
    assert {TOPICS.root(2), TOPICS.head} <= set(again.filters)
    assert str(device.participant.state) == "fetching"
    if restart:
        device.start()
        device.handle(ev.Connected())
    device.head(version=9)
    assert device.logs() == ["message_dropped"]
    device.head(key=NEW)
    assert str(device.participant.state) == "idle"
    assert device.participant._head is not None


def test_a_damaged_root_is_said_and_the_chain_is_followed_again() -> None:
    device = Device().ready()
    device.handle(ev.Message(TOPICS.root(1), rotated()))
    device.head(key=NEW)
    device.store.damage(ROOT_ROW, "junk")
    device.start()
    device.handle(ev.Connected())
    assert "root_dropped" in device.logs()
    device.handle(ev.Message(TOPICS.root(1), rotated()))
    device.head(key=NEW)
    assert device.participant._head is not None


def test_a_root_of_another_kind_of_message_is_dropped() -> None:
    device = Device().ready()
    head = sign_message(AGGREGATOR, HEAD, device.participant._head)  # type: ignore[arg-type]
    device.handle(ev.Message(TOPICS.root(1), head))
    assert device.logs() == ["message_dropped"]
    assert device.participant._model.trust.root.version == 0


def test_a_root_that_the_settings_name_is_begun_with_and_a_bad_one_is_named(tmp_path: Path) -> None:
    federation = Federation(name="test", root="root.json")
    root = release.Root(
        federation="test",
        version=4,
        root=release.implied("test", NEW.public).root,
        release=release.implied("test", NEW.public).root,
    )
    (tmp_path / "root.json").write_bytes(msgspec.json.encode(root))
    assert beginning(federation, tmp_path) == root
    for text, reason in (
        (b"{}", "missing required field"),
        (msgspec.json.encode(root).replace(b"test", b"else"), "federation 'else'"),
    ):
        (tmp_path / "root.json").write_bytes(text)
        with pytest.raises(SettingsError, match=f"root of trust .*root.json: .*{reason}"):
            beginning(federation, tmp_path)
    (tmp_path / "aggregator.pub").write_bytes(AGGREGATOR.public.pem())
    assert beginning(Federation(name="test"), tmp_path) == release.implied("test", AGGREGATOR.public)
