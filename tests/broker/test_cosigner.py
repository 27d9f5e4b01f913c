"""A co-signer signs what follows from all that it has signed or heard, remembers before it signs, and nothing else."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest

from fleetgrad.broker import founding, releasing, settings
from fleetgrad.broker.cosigner import folder, server
from fleetgrad.broker.cosigner.machine import Cosigner, State, StateError, read_state
from fleetgrad.broker.server import KEY
from fleetgrad.edge.autodiff import zoo
from fleetgrad.wire import release
from fleetgrad.wire.events import Connected, Log, Message, Publish, Subscribe
from fleetgrad.wire.exits import EXIT_NO_BROKER
from fleetgrad.wire.files import DiskError, lock
from fleetgrad.wire.messages import CANDIDATE, HEAD, Candidate, Head, Policy, Record
from fleetgrad.wire.release import Role, Root
from fleetgrad.wire.signing import (
    PrivateKey,
    load_private_key,
    payload_of,
    sign_by,
    sign_message,
    verify_message,
)
from fleetgrad.wire.topics import Topics
from tests.wire.lineage import chain

AGGREGATOR, KEY_1, KEY_2, OFFLINE = (PrivateKey.from_seed(bytes([i]) * 32) for i in range(4))
HEADS, RECORDS = chain(6)
OTHER_HEADS, OTHER_RECORDS = chain(6, "other")


def role(*keys: PrivateKey, threshold: int = 1) -> Role:
    return Role(threshold=threshold, keys=tuple(k.public.raw.hex() for k in keys))


ROOT = Root(federation="test", version=1, root=role(OFFLINE), release=role(AGGREGATOR, KEY_1, KEY_2, threshold=2))
TOPICS = Topics("test")


class Desk:
    """One co-signer, and what it keeps on its disk."""

    def __init__(self, *, root: Root = ROOT, allowed: bool = False) -> None:
        self.disk: bytes | None = None
        self.full = False
        self.start(root, allowed=allowed)

    def start(self, root: Root = ROOT, *, allowed: bool = False) -> None:
        state = read_state(self.disk, "test") if self.disk else None
        self.machine = Cosigner(KEY_1, AGGREGATOR.public, root, state, self.keep, allowed=allowed)

    def keep(self, raw: bytes) -> None:
        if self.full:
            raise DiskError("can't write signed.json: No space left on device")
        self.disk = raw

    def ask(
        self, head: Head, records: list[str] = RECORDS, *, key: PrivateKey = AGGREGATOR, typ: str = CANDIDATE, text: str = ""
    ) -> list[Any]:  # fmt: skip
        json = text or msgspec.json.encode(head).decode()
        candidate = Candidate(federation="test", head=json, records=tuple(records))
        return self.machine.handle(Message(TOPICS.candidate, sign_message(key, typ, candidate)))

    def hear(self, raw: bytes) -> list[Any]:
        return self.machine.handle(Message(TOPICS.head, raw))


def signed(effects: list[Any]) -> list[Head]:
    """Heads that were signed; each signature must hold, and be kept by the broker."""
    found = [e for e in effects if isinstance(e, Publish)]
    assert all(e.topic == TOPICS.signature(KEY_1.public.kid) and e.retained for e in found)
    return [verify_message(KEY_1.public, HEAD, e.payload, Head) for e in found]


def reason(effects: list[Any]) -> str:
    (note,) = effects
    assert isinstance(note, Log)
    assert note.event in ("candidate_refused", "message_dropped"), note
    return str(note.fields["reason"])


def at(head: Head, sequence: int, **fields: Any) -> Head:
    return msgspec.structs.replace(head, sequence=sequence, **fields)


@pytest.fixture
def desk() -> Desk:
    """It has signed version 1 with the sequence 10."""
    made = Desk(allowed=True)
    assert signed(made.ask(at(HEADS[1], 10))) == [at(HEADS[1], 10)]
    return made


def test_it_subscribes_to_candidates_heads_and_the_next_root() -> None:
    (effect,) = Desk().machine.handle(Connected())
    assert effect == Subscribe([TOPICS.root(2), TOPICS.head, TOPICS.candidate])


def test_each_head_that_follows_is_signed_once_remembered(desk: Desk) -> None:
    for sequence, head in ((11, HEADS[1]), (12, HEADS[2]), (20, HEADS[5])):
        assert signed(desk.ask(at(head, sequence))) == [at(head, sequence)]
        assert desk.disk is not None
        state = msgspec.json.decode(desk.disk, type=State)
        assert msgspec.json.decode(state.head, type=Head) == at(head, sequence)


def test_the_same_candidate_gets_the_same_answer_after_a_restart_too(desk: Desk) -> None:
    (before, _) = desk.ask(at(HEADS[2], 11))
    assert desk.ask(at(HEADS[2], 11)) == [before]
    desk.start()
    assert desk.ask(at(HEADS[2], 11)) == [before]


def test_what_an_earlier_life_wrote_is_made_durable_before_it_is_signed_again(desk: Desk) -> None:
    desk.start()  # killed between the rename and the folder's sync: what it reads now may be gone after a power cut
    seen, desk.disk, desk.full = desk.disk, None, True
    assert signed(desk.ask(at(HEADS[1], 10))) == []
    desk.full = False
    assert signed(desk.ask(at(HEADS[1], 10))) == [at(HEADS[1], 10)]
    assert desk.disk == seen


def test_two_heads_never_get_one_sequence(desk: Desk) -> None:
    text = msgspec.json.encode(at(HEADS[1], 10)).decode()
    for restart in (False, True):
        if restart:
            desk.start()
        assert "two heads have the sequence 10" in reason(desk.ask(at(HEADS[2], 10)))
        assert "head has sequence 9, 10 was seen" in reason(desk.ask(at(HEADS[2], 9)))
        assert "two texts of a head have the sequence 10" in reason(desk.ask(HEADS[1], text=text + " "))


def test_what_the_disk_cant_keep_isnt_signed(desk: Desk) -> None:
    desk.full = True
    (note,) = desk.ask(at(HEADS[2], 11))
    assert note.event == "disk_failed"
    desk.full = False
    assert signed(desk.ask(at(HEADS[1], 11))) == [at(HEADS[1], 11)]  # nothing was signed, so another one can be


def test_another_line_of_versions_isnt_signed_whatever_comes_with_it(desk: Desk) -> None:
    assert "another version 1" in reason(desk.ask(at(OTHER_HEADS[2], 11), OTHER_RECORDS))
    assert "isn't shown to come from version 1" in reason(desk.ask(at(HEADS[3], 11), RECORDS[:1]))
    assert "two models are called version 1" in reason(desk.ask(at(OTHER_HEADS[1], 11), OTHER_RECORDS))
    assert "head has version 0, version 1 is held" in reason(desk.ask(at(HEADS[0], 11)))


def test_a_withdrawal_is_signed_where_the_operator_allows_it_and_only_to_what_the_held_version_came_from(
    desk: Desk,
) -> None:
    desk.ask(at(HEADS[4], 11))
    back = at(HEADS[2], 12, withdrawn=4)
    assert "other withdrawn (withdrawn was None, is 4)" in reason(desk.ask(back))
    desk.start(allowed=True)
    assert "comes from another version 2" in reason(desk.ask(at(OTHER_HEADS[2], 12, withdrawn=4)))
    assert "isn't shown to come from version 2" in reason(desk.ask(back, RECORDS[:3]))
    assert signed(desk.ask(back)) == [back]
    again = at(HEADS[2], 13, withdrawn=4)
    assert signed(desk.ask(again)) == [again]  # the same one, signed anew
    assert "other withdrawn" in reason(desk.ask(at(HEADS[1], 14, withdrawn=5)))
    record = Record(
        config="2" * 64, members="3" * 64, params=HEADS[2].params.sha256, parent=HEADS[2].parent, round=2, version=2
    )
    parent = hashlib.sha256(msgspec.json.encode(record)).hexdigest()
    onward = at(OTHER_HEADS[5], 15, parent=parent)
    assert signed(desk.ask(onward)) == [onward]  # numbers 3 and 4 stay used
    assert desk.machine.held == onward


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("plan", HEADS[3].params), ("policy", Policy(learning_rate=9.0)), ("seal", "7" * 64), ("shards", 2),
        ("expires", 9999.0),
    ],
)  # fmt: skip
def test_other_terms_are_signed_once_where_that_is_allowed(desk: Desk, field: str, value: Any) -> None:
    new = at(HEADS[2], 11, **{field: value})
    assert f"other {field} ({field} was" in reason(desk.ask(new))
    desk.start(allowed=True)
    assert signed(desk.ask(at(HEADS[2], 11))) == [at(HEADS[2], 11)]  # no change: the permission is still there
    assert signed(desk.ask(at(new, 12))) == [at(new, 12)]
    assert "other " in reason(desk.ask(at(HEADS[2], 13)))  # and now it is used up
    assert signed(desk.ask(at(new, 14))) == [at(new, 14)]


def test_params_of_another_size_are_another_model(desk: Desk) -> None:
    larger = msgspec.structs.replace(HEADS[2].params, size=11)
    assert "other params' size" in reason(desk.ask(at(HEADS[2], 11, params=larger)))


def test_the_first_head_of_all_is_for_a_person_to_allow() -> None:
    desk = Desk()
    assert "the first head that is signed here: version 1" in reason(desk.ask(at(HEADS[1], 10)))
    assert desk.disk is None


def test_a_head_that_enough_others_have_signed_is_what_the_next_must_follow(desk: Desk) -> None:
    published = sign_by([AGGREGATOR, KEY_2], HEAD, at(HEADS[3], 30, policy=Policy(local_epochs=2)))
    assert [e.event for e in desk.hear(published)] == ["head_heard"]
    desk.start()
    assert "head has sequence 29, 30 was seen" in reason(desk.ask(at(HEADS[3], 29)))
    assert "other policy" in reason(desk.ask(at(HEADS[4], 31)))
    assert signed(desk.ask(at(HEADS[4], 31, policy=Policy(local_epochs=2))))
    assert desk.hear(published) == []
    assert "signature doesn't hold" in reason(desk.hear(sign_message(AGGREGATOR, HEAD, at(HEADS[5], 40))))


def test_a_published_head_can_be_signed_again_by_who_was_late() -> None:
    desk = Desk()
    head = at(HEADS[3], 30)
    desk.hear(sign_by([AGGREGATOR, KEY_2], HEAD, head))
    assert signed(desk.ask(head)) == [head]


def test_what_isnt_the_aggregators_candidate_is_refused(desk: Desk) -> None:
    head = at(HEADS[2], 11)
    assert "signature doesn't hold" in reason(desk.ask(head, key=KEY_2))
    assert "expected 'fl1-candidate'" in reason(desk.ask(head, typ=HEAD))
    assert "candidate: " in reason(desk.ask(head, text='{"federation":"test"}'))
    assert "head of the federation 'other'" in reason(desk.ask(at(head, 11, federation="other")))
    assert desk.machine.handle(Message(TOPICS.candidate, b"")) == []  # it was taken off the broker
    assert signed(desk.ask(head)) == [head]


def test_a_refusal_is_said_once(desk: Desk) -> None:
    assert len(desk.ask(at(HEADS[2], 9))) == 1
    assert desk.ask(at(HEADS[2], 9)) == []
    assert len(desk.ask(at(HEADS[2], 8))) == 1


def test_the_chain_of_roots_is_followed_and_a_key_that_it_drops_signs_no_more(desk: Desk) -> None:
    second = msgspec.structs.replace(ROOT, version=2, release=role(AGGREGATOR, KEY_2, threshold=2))
    forged = release.sign_root(second, [AGGREGATOR])
    assert "signature doesn't hold" in reason(desk.machine.handle(Message(TOPICS.root(2), forged)))
    assert signed(desk.ask(at(HEADS[2], 11)))
    raw = release.sign_root(second, [OFFLINE])
    assert desk.machine.handle(Message(TOPICS.root(2), raw)) == [
        Log("root_followed", {"version": 2}), Subscribe([TOPICS.root(3), TOPICS.head, TOPICS.candidate]),
    ]  # fmt: skip
    desk.start()
    assert "isn't one of those that sign heads by root 2" in reason(desk.ask(at(HEADS[2], 12)))
    assert "isn't one of those" in reason(Desk(root=second).ask(at(HEADS[2], 11)))
    desk.start(msgspec.structs.replace(ROOT, version=3))  # a later root that was put there wins
    assert signed(desk.ask(at(HEADS[2], 12)))


@pytest.mark.parametrize("raw", [b"", b"{", b'{"root":{}}', b"\xff"])
def test_a_memory_that_is_damaged_isnt_taken_for_none(raw: bytes) -> None:
    with pytest.raises(StateError, match="it is damaged"):
        read_state(raw, "test")


def test_a_memory_of_another_federation_or_with_a_damaged_head_is_refused() -> None:
    with pytest.raises(StateError, match="of the federation 'test', expected 'other'"):
        read_state(msgspec.json.encode(State(root=ROOT)), "other")
    with pytest.raises(StateError, match="it is damaged"):
        read_state(msgspec.json.encode(State(root=ROOT, head="{}")), "test")


# --- its folder and process -------------------------------------------------------------------------------------------
@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A federation by TLS in `fed`, whose heads need a second key, and its co-signer's folder `co` with that key."""
    onnx.save(zoo.mlp(inputs=8, hidden=4, classes=3), str(tmp_path / "mlp.onnx"))
    founding.create(tmp_path / "fed", tmp_path / "mlp.onnx", settings.Settings(name="test"))
    home = settings.home(tmp_path / "fed")
    key, second = load_private_key(home / KEY), releasing.make_key(tmp_path / "key", "release")
    both = Role(threshold=2, keys=(key.public.raw.hex(), second.raw.hex()))
    releasing.rotate(home, "test", key, [], release_role=both)
    folder.export(tmp_path / "fed", tmp_path / "co")
    (tmp_path / "key" / "release.key").rename(tmp_path / "co" / server.KEY)
    return tmp_path


def test_an_exported_folder_holds_all_but_the_secrets(place: Path) -> None:
    assert {p.name for p in (place / "co").iterdir()} == {
        "cosign.toml", "aggregator.pub", "root.json", "ca.pem", "release.key",
    }  # fmt: skip
    root = release.pinned((place / "co" / "root.json").read_bytes(), "test")
    assert (root.version, root.release.threshold) == (1, 2)
    with pytest.raises(releasing.ReleaseError, match=r"can't write the co-signer's folder .*: it exists"):
        folder.export(place / "fed", place / "co")


def test_an_export_that_fails_leaves_no_folder_that_the_next_one_would_meet(place: Path) -> None:
    ca = place / "fed" / "aggregator" / settings.CA
    kept = ca.read_bytes()
    ca.unlink()
    with pytest.raises(releasing.ReleaseError, match=r"can't write the co-signer's folder .*: No such file"):
        folder.export(place / "fed", place / "again")
    ca.write_bytes(kept)
    folder.export(place / "fed", place / "again")


def refusal(place: Path) -> str:
    """Why a co-signer doesn't start; what is raised isn't kept, since the lock goes with it."""
    try:
        server.serve(place / "co", timeout=0.1)
    except ValueError as e:
        return str(e)
    pytest.fail("it started")


def test_what_a_co_signer_cant_start_with_is_said(place: Path) -> None:
    assert "tls.pem" in refusal(place)
    text = (place / "co" / "cosign.toml").read_text()
    (place / "co" / "cosign.toml").write_text(
        text.replace("mqtts:", "mqtt:").replace('ca = "ca.pem"\n', "").replace('certificate = "tls.pem"\n', "")
    )
    assert server.serve(place / "co", timeout=0.1) == EXIT_NO_BROKER
    kid = load_private_key(place / "co" / server.KEY).public.kid
    memory = place / "co" / f"signed-{kid}.json"
    memory.write_text("{")
    assert f"memory {memory} refused: it is damaged" in refusal(place)
    memory.unlink()
    held = lock(place / "co" / f"signed-{kid}.lock")
    assert "another 'fleetgrad release cosign' has this key's memory" in refusal(place)
    held.close()
    (place / "co" / "root.json").write_text("{}")
    assert "root of trust" in refusal(place)
    (place / "co" / server.KEY).unlink()
    assert "key file" in refusal(place)
    (place / "co" / "cosign.toml").unlink()
    assert "no cosign.toml is there; the folder is made by 'fleetgrad release export DIR -o FOLDER'" in refusal(place)


def test_payload_of_a_memory_is_the_bytes_that_were_signed(desk: Desk) -> None:
    (effect, _) = desk.ask(at(HEADS[2], 11))
    assert desk.disk is not None
    assert payload_of(effect.payload).decode() == msgspec.json.decode(desk.disk, type=State).head
