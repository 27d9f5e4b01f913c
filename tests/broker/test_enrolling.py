"""Enrolment and renewal as the registrar decides them, with nothing between."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from fleetgrad.broker.registrar import enrolling, renewing
from fleetgrad.broker.registrar.registrar import RegistrarError
from fleetgrad.broker.roster import Roster
from fleetgrad.wire.certificates import common_name, load_certificate, new_key, new_request
from fleetgrad.wire.enrolment import Answer, Ask, derive, open_proven, prove
from fleetgrad.wire.kit import Data
from fleetgrad.wire.membership import ISSUED, RENEWAL, Issued, Renewal
from fleetgrad.wire.signing import PrivateKey, Untrusted, parse_private_key, sign_by, sign_message, verify_message
from tests.broker.registrars import make_registrar

NOW, DAY = 1_800_000_000.0, 86400


class Place:
    """A registrar with a clock that is set, and its aggregator's roster."""

    def __init__(self, root: Path) -> None:
        self.root, self.now = root, NOW
        self.registrar = make_registrar(root, lambda: self.now)

    @property
    def roster(self) -> Roster:
        return Roster(self.root, self.registrar.key.public, "fed")

    def code(self, *, auto: bool = False, days: int = 1) -> tuple[str, bytes]:
        (code,) = enrolling.new_codes(self.registrar, 1, days * DAY, auto=auto, data=Data(path="mine.npz"))
        return derive(code, "fed")

    def tell(self, code: tuple[str, bytes], ask: Ask) -> Answer:
        id_, key = code
        return open_proven(key, enrolling.answer(self.registrar, id_, prove(key, ask)), Answer)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def ask(name: str | None = None, key: PrivateKey | None = None) -> Ask:
    key = key or PrivateKey.generate()
    made = Ask(
        federation="fed", name=name, key=key.public.raw.hex(), request=new_request(new_key(), "x"), nonce="1" * 32
    )
    return msgspec.structs.replace(made, proof=key.sign(made.signed()).hex())


def test_a_code_made_so_lets_its_board_in_at_once_and_answers_it_again(place: Place) -> None:
    code, asked = place.code(auto=True), ask("dev-1")
    first = place.tell(code, asked)
    assert (first.status, first.device, first.data.path) == ("enrolled", "dev-1", "mine.npz")
    assert common_name(load_certificate(first.certificate or "", "test")) == "dev-1"
    key = place.roster.key("dev-1")
    assert key is not None
    assert key.raw.hex() == asked.key
    assert place.tell(code, asked).certificate == first.certificate  # the answer was lost
    assert len(place.registrar.register.devices()) == 1
    place.now += 30 * DAY
    assert place.tell(code, asked).status == "enrolled"


def test_a_board_waits_for_the_operator_who_may_say_no(place: Place) -> None:
    yes, no = place.code(), place.code()
    first, second = ask(), ask("dev-2")
    waiting = place.tell(yes, first)
    assert waiting.status == "pending"
    assert place.roster.names() == []
    name = enrolling.decide(place.registrar, yes[0][:8], approve=True)
    assert name == waiting.device
    assert place.tell(yes, first).status == "enrolled"
    assert place.roster.names() == [name]
    place.tell(no, second)
    enrolling.decide(place.registrar, no[0], approve=False, reason="unknown board")
    refused = place.tell(no, second)
    assert (refused.status, refused.reason) == ("refused", "unknown board")
    for id_ in (yes[0], no[0], "ffffffffffff", ""):
        with pytest.raises(RegistrarError):
            enrolling.decide(place.registrar, id_, approve=True)


def test_a_code_is_one_boards(place: Place) -> None:
    code = place.code(auto=True)
    place.tell(code, ask("dev-1"))
    second = place.tell(code, ask("dev-2"))
    assert (second.status, second.reason) == ("refused", "the code was used by another board")
    assert place.roster.names() == ["dev-1"]


def test_what_cannot_be_is_refused_and_leaves_the_code_usable(place: Place) -> None:
    place.registrar.add("dev-1")
    code = place.code(auto=True)
    assert "is taken" in place.tell(code, ask("dev-1")).reason
    assert "name of a role" in place.tell(code, ask("aggregator")).reason
    assert place.tell(code, ask("dev-2")).status == "enrolled"


def test_a_code_ends_when_it_says(place: Place) -> None:
    open_code, asked_code, asked = place.code(), place.code(), ask()
    place.tell(asked_code, asked)
    place.now += DAY + 1
    assert "expired" in place.tell(open_code, ask()).reason
    assert "expired" in place.tell(asked_code, asked).reason
    with pytest.raises(RegistrarError, match="expired"):
        enrolling.decide(place.registrar, asked_code[0], approve=True)


def test_wrong_proofs_are_counted_and_lock_a_code(place: Place) -> None:
    id_, key = place.code(auto=True)
    thief = PrivateKey.generate()
    stolen = ask()
    forged = [
        prove(b"x" * 32, ask()),
        prove(key, msgspec.structs.replace(stolen, key=thief.public.raw.hex())),  # not its key
        prove(key, msgspec.structs.replace(stolen, request="none")),
        b"noise",
    ]
    for raw in forged:
        with pytest.raises(Untrusted):
            enrolling.answer(place.registrar, id_, raw)
    found = place.registrar.register.code(id_)
    assert found is not None
    assert (found.wrong, found.state) == (4, "open")
    with pytest.raises(Untrusted):
        enrolling.answer(place.registrar, id_, b"once more")
    with pytest.raises(Untrusted, match="locked"):
        enrolling.answer(place.registrar, id_, prove(key, ask()))
    with pytest.raises(Untrusted, match="isn't known"):
        enrolling.answer(place.registrar, "0" * 20, b"")
    assert place.registrar.register.devices() == []


def renewal(place: Place, key: PrivateKey, **fields: object) -> bytes | None:
    made = Renewal(federation="fed", device="dev-1", instance="a" * 32, count=1)
    raw = sign_message(key, RENEWAL, msgspec.structs.replace(made, **fields))
    return renewing.answer(place.registrar, "dev-1", raw)


def member(place: Place) -> PrivateKey:
    return parse_private_key((place.registrar.add("dev-1").identity or "").encode(), "test")


def test_a_member_gets_its_next_certificate_and_the_same_for_the_same_request(place: Place) -> None:
    key = member(place)
    assert renewing.due(place.registrar) == set()
    place.now += 60 * DAY
    assert renewing.due(place.registrar) == {"dev-1"}
    said = verify_message(place.registrar.key.public, ISSUED, renewing.notice(place.registrar, "dev-1"), Issued)
    assert (said.due, said.certificate, said.now) == (True, None, int(place.now))
    request = new_request(new_key(), "anyone")
    raw = renewal(place, key, request=request)
    assert raw is not None
    issued = verify_message(place.registrar.key.public, ISSUED, raw, Issued)
    certificate = load_certificate(issued.certificate or "", "test")
    assert common_name(certificate) == "dev-1"  # whatever the request says
    assert certificate.not_valid_after_utc.timestamp() == place.now + 90 * DAY
    assert renewing.due(place.registrar) == set()
    again = renewal(place, key, request=request)
    assert again is not None
    assert verify_message(place.registrar.key.public, ISSUED, again, Issued).certificate == issued.certificate
    held = place.roster.member("dev-1")
    assert held is not None
    assert (held.serial, held.not_after) == (int(place.now), int(place.now + 90 * DAY))
    with pytest.raises(Untrusted, match="with another request"):
        renewal(place, key, request=new_request(new_key(), "x"))
    with pytest.raises(Untrusted, match="older"):
        renewal(place, key, count=0, request=request)


def test_a_key_that_the_old_one_names_and_that_proves_itself_becomes_the_devices(place: Place) -> None:
    old, new = member(place), PrivateKey.generate()
    ask = Renewal(
        federation="fed", device="dev-1", instance="a" * 32, count=1, request=new_request(new_key(), "x"),
        identity=new.public.raw.hex(),
    )  # fmt: skip
    place.now += 61 * DAY
    for keys in ([old], [new], [PrivateKey.generate(), new]):
        with pytest.raises(Untrusted, match="signature"):
            renewing.answer(place.registrar, "dev-1", sign_by(keys, RENEWAL, ask))
    raw = sign_by([old, new], RENEWAL, ask)
    issued = [
        renewing.answer(place.registrar, "dev-1", raw) for _ in range(3)
    ]  # it may have died before it kept the answer
    assert issued[0] is not None
    assert issued[0] == issued[1] == issued[2]
    held = place.roster.member("dev-1")
    assert held is not None
    assert (held.key, held.serial) == (new.public.raw.hex(), int(place.now))
    place.now += 61 * DAY
    with pytest.raises(Untrusted, match="signature"):
        renewal(place, old, count=2, request=new_request(new_key(), "x"))
    assert renewal(place, new, count=2, request=new_request(new_key(), "x")) is not None


def test_a_kit_on_a_second_board_gets_no_certificate(place: Place) -> None:
    key = member(place)
    assert renewal(place, key, count=0) is None  # it only says where it is
    with pytest.raises(Untrusted, match="kit used twice"):
        renewal(place, key, count=5, instance="b" * 32, request=new_request(new_key(), "x"))


def test_only_the_device_itself_renews_or_leaves(place: Place) -> None:
    key = member(place)
    for wrong in ({"leaves": True}, {"request": new_request(new_key(), "x")}):
        with pytest.raises(Untrusted, match="signature"):
            renewal(place, PrivateKey.generate(), **wrong)
    with pytest.raises(Untrusted, match="of other"):
        renewal(place, key, federation="other")
    with pytest.raises(Untrusted, match="isn't a member"):
        renewing.answer(place.registrar, "dev-9", b"")
    assert renewal(place, key, leaves=True) is None
    with pytest.raises(Untrusted, match="revoked: left"):
        place.roster.key("dev-1")
    with pytest.raises(Untrusted, match="isn't a member"):
        renewal(place, key, count=9, request=new_request(new_key(), "x"))


def test_a_code_that_was_approved_for_a_device_revoked_since_says_so(place: Place) -> None:
    code, asked = place.code(auto=True), ask("dev-1")
    place.tell(code, asked)
    place.registrar.revoke("dev-1")
    row = place.registrar.register.code(code[0])
    assert row is not None
    assert replace(row, wrong=0).state == "approved"
    assert "revoked" in place.tell(code, asked).reason
