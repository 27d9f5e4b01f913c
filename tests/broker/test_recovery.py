"""A registrar that is attacked, whose clock is wrong, whose folder is an older one, or that was killed between two steps."""

import base64
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from fleetgrad.broker.registrar import enrolling, recovery, renewing, server
from fleetgrad.broker.registrar import registrar as registrar_
from fleetgrad.broker.registrar.authority import request_key
from fleetgrad.broker.registrar.registrar import Registrar, RegistrarError
from fleetgrad.broker.roster import Roster
from fleetgrad.wire import kit as kits
from fleetgrad.wire import mqtt
from fleetgrad.wire.certificates import CertificateError, load_certificate, new_key, new_request
from fleetgrad.wire.enrolment import derive, prove
from fleetgrad.wire.kit import Data
from fleetgrad.wire.loop import Stop
from fleetgrad.wire.membership import RENEWAL, Renewal
from fleetgrad.wire.signing import PrivateKey, Untrusted, parse_private_key, sign_message
from tests.broker.registrars import make_registrar
from tests.broker.test_enrolling import DAY, NOW, Place, ask

P256, P256_SHORT = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d030163")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def pem(der: bytes) -> str:
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"


@cache
def requests() -> dict[str, str]:
    """Certificate requests that no certificate is made for."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dev-1")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    good = builder.sign(new_key(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    others: dict[str, x509.CertificateSigningRequest] = {
        "RSA": builder.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256()),
        "Ed25519": builder.sign(ed25519.Ed25519PrivateKey.generate(), None),
        "another curve": builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256()),
    }
    return {
        **{kind: made.public_bytes(serialization.Encoding.PEM).decode() for kind, made in others.items()},
        "an unknown curve": pem(good.replace(P256, P256_SHORT)),
        "an unknown kind of key": pem(good.replace(bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d0263"))),
        "an unknown version": pem(good.replace(b"\x02\x01\x00", b"\x02\x01\x0a", 1)),
        "another's signature": pem(good[:-4] + bytes(b ^ 1 for b in good[-4:])),
        "nothing": pem(b""),
    }  # fmt: skip


@pytest.mark.parametrize("kind", requests())
def test_a_request_by_an_odd_or_broken_key_is_refused_whatever_it_is(place: Place, kind: str) -> None:
    text = requests()[kind]
    with pytest.raises(CertificateError):
        request_key(text, "request")
    (code,) = enrolling.new_codes(place.registrar, 1, DAY, auto=True, data=Data())
    id_, key = derive(code, "fed")
    board = PrivateKey.generate()
    asked = msgspec.structs.replace(ask("dev-1", board), request=text)
    asked = msgspec.structs.replace(asked, proof=board.sign(asked.signed()).hex())
    with pytest.raises(Untrusted, match="request"):
        enrolling.answer(place.registrar, id_, prove(key, asked))
    assert place.registrar.register.devices() == []


def member(registrar: Registrar, name: str = "dev-1") -> PrivateKey:
    return parse_private_key((registrar.add(name).identity or "").encode(), "test")


def renewal(key: PrivateKey, count: int = 1, **fields: object) -> bytes:
    asked = {"request": new_request(new_key(), "x"), "instance": "a" * 32, **fields}
    made = Renewal(federation="fed", device="dev-1", count=count, **asked)  # type: ignore[arg-type]
    return sign_message(key, RENEWAL, made)


def test_a_board_whose_clock_is_ahead_gets_no_certificate_before_its_time(place: Place) -> None:
    key = member(place.registrar)
    raw = renewal(key)
    for _ in range(3):
        with pytest.raises(Untrusted, match="is that board's clock ahead"):
            renewing.answer(place.registrar, "dev-1", raw)
    held = place.registrar.register.device("dev-1")
    assert held is not None
    assert (held.instance, held.count) == ("a" * 32, 0)  # where it is, is known all the same
    place.now += 46 * DAY
    assert renewing.answer(place.registrar, "dev-1", raw) is not None


def test_a_member_that_asks_without_end_fills_nothing(place: Place) -> None:
    key, now = member(place.registrar), int(NOW)
    for count in range(1, registrar_.MOST_CERTIFICATES):
        assert renewing.answer(place.registrar, "dev-1", renewal(key, count, until=now)) is not None
    with pytest.raises(RegistrarError, match="8 certificates that haven't ended"):
        renewing.answer(place.registrar, "dev-1", renewal(key, 100, until=now))
    place.now += 89 * DAY
    with pytest.raises(RegistrarError, match="8 certificates that haven't ended"):
        renewing.answer(place.registrar, "dev-1", renewal(key, 100))
    place.now += 2 * DAY
    assert renewing.answer(place.registrar, "dev-1", renewal(key, 100)) is not None
    assert place.registrar.register.living("dev-1", int(place.now)) == 1


@pytest.mark.parametrize("years", [-10, 10])
def test_a_registrar_whose_clock_is_wrong_signs_nothing_that_would_lock_boards_out(place: Place, years: int) -> None:
    place.registrar.add("dev-1")
    listed = (place.root / "broker" / "crl.pem").read_bytes()
    place.now += years * 365.25 * DAY
    for act in (
        lambda: place.registrar.add("dev-2"),
        lambda: renewing.notice(place.registrar, "dev-1"),
        lambda: place.registrar.login("operator"),
        lambda: place.registrar.broker_certificate(["broker.lan"]),
    ):
        with pytest.raises(CertificateError, match=r"the clock of this machine says .* set the clock"):
            act()
    assert [d.name for d in place.registrar.register.devices()] == ["dev-1"]
    assert (place.root / "broker" / "crl.pem").read_bytes() == listed
    place.registrar.revoke("dev-1")  # which needs no clock
    with pytest.raises(Untrusted, match="revoked"):
        place.roster.key("dev-1")
    assert (place.root / "broker" / "crl.pem").read_bytes() != listed


@pytest.mark.parametrize("years", [-10, 3])
def test_no_clock_makes_a_list_of_revoked_certificates_that_the_broker_wouldnt_take_or_that_forgets_one(
    place: Place, years: int
) -> None:
    serial = load_certificate(place.registrar.add("dev-1").certificate or "", "test").serial_number
    place.registrar.revoke("dev-1")
    place.now += years * 365.25 * DAY
    recovery.retell(place.registrar)
    listed = x509.load_pem_x509_crl((place.root / "broker" / "crl.pem").read_bytes())
    ca = load_certificate((place.root / "reg" / "ca.pem").read_text(), "test")
    assert (listed.last_update_utc, listed.next_update_utc) == (ca.not_valid_before_utc, ca.not_valid_after_utc)
    assert listed.get_revoked_certificate_by_serial_number(serial) is not None


def test_a_board_whose_certificate_was_made_while_the_clock_was_ahead_gets_its_next_kit(place: Place) -> None:
    key = member(place.registrar)
    place.now += 300 * DAY
    assert renewing.answer(place.registrar, "dev-1", renewal(key, 1)) is not None
    place.now -= 300 * DAY
    place.registrar.add("dev-1")
    with pytest.raises(RegistrarError, match="a name is given once"):
        place.registrar.add("dev-1")


def test_a_board_that_slept_until_its_certificate_had_ended_gets_its_next_kit(place: Place) -> None:
    first = place.registrar.add("dev-1")
    place.now += 89 * DAY
    with pytest.raises(RegistrarError, match="a name is given once"):
        place.registrar.add("dev-1")
    place.now += 2 * DAY
    code, asked = place.code(auto=True), ask("dev-1")
    assert "is taken" in place.tell(code, asked).reason  # a code gives no other board's name
    second = place.registrar.add("dev-1")
    assert first.nonce != second.nonce
    key = place.roster.key("dev-1")
    assert key is not None
    assert key.raw == parse_private_key((second.identity or "").encode(), "test").public.raw
    old = parse_private_key((first.identity or "").encode(), "test")
    with pytest.raises(Untrusted, match="signature"):
        renewing.answer(place.registrar, "dev-1", renewal(old))
    place.registrar.revoke("dev-1")
    place.now += 91 * DAY
    with pytest.raises(RegistrarError, match="was revoked"):
        place.registrar.add("dev-1")


def test_after_an_old_backup_what_was_signed_since_holds_and_what_is_said_next_is_heard(tmp_path: Path) -> None:
    now = [NOW]
    registrar = make_registrar(tmp_path, lambda: now[0])
    key = member(registrar, "dev-1")
    registrar.add("dev-2")
    registrar.register.close()
    shutil.copytree(tmp_path / "reg", tmp_path / "backup")
    registrar = Registrar(tmp_path / "reg", lambda: now[0])
    now[0] += 61 * DAY
    renewing.answer(registrar, "dev-1", renewal(key))
    registrar.revoke("dev-2", "stolen")
    registrar.add("dev-3")
    said = {d.name: d.statement for d in registrar.register.devices()}
    registrar.register.close()
    for path in (tmp_path / "roster").iterdir():
        path.unlink()  # the aggregator is on another machine
    heard = Roster(tmp_path / "away", registrar.key.public, "fed")
    for name, raw in said.items():
        heard.take(name, raw)

    now[0] += DAY
    restored = Registrar(tmp_path / "backup", lambda: now[0])
    restored.revoke("dev-1", "lost")
    held = restored.register.device("dev-1")
    assert held is not None
    assert heard.take("dev-1", held.statement) is not None  # newer than what the lost register had said
    assert recovery.adopt(restored, "dev-2", said["dev-2"])  # retained by the broker
    assert recovery.adopt(restored, "dev-3", said["dev-3"])
    assert not recovery.adopt(restored, "dev-1", said["dev-1"])  # older than what was said since
    with pytest.raises(Untrusted):
        recovery.adopt(restored, "dev-4", said["dev-3"])
    found = {d.name: (d.revoked, d.reason) for d in restored.register.devices()}
    assert found == {"dev-1": (True, "lost"), "dev-2": (True, "stolen"), "dev-3": (False, "")}
    with pytest.raises(RegistrarError, match="a name is given once"):
        restored.add("dev-3")


def test_what_a_command_that_was_killed_had_no_time_to_tell_is_told_at_the_next_start(place: Place) -> None:
    kit = place.registrar.add("dev-1")
    place.registrar.add("dev-2")
    serial = load_certificate(kit.certificate or "", "test").serial_number
    with place.registrar.register.transaction():  # as `leave` and `revoke` do before they tell
        held = place.registrar.register.device("dev-1")
        assert held is not None
        place.registrar.renewed(replace(held, revoked=True, reason="left"), held.not_after)
    (place.root / "roster" / "dev-2.jws").unlink()
    (place.root / "roster" / "dev-9.jws").write_bytes(b"noise")
    assert recovery.retell(place.registrar) == []
    with pytest.raises(Untrusted, match="left"):
        place.roster.key("dev-1")
    assert place.roster.key("dev-2") is not None
    listed = x509.load_pem_x509_crl((place.root / "broker" / "crl.pem").read_bytes())
    assert listed.get_revoked_certificate_by_serial_number(serial) is not None


def test_a_code_that_is_a_boards_is_not_locked_by_others(place: Place) -> None:
    code, asked = place.code(), ask("dev-1")
    assert place.tell(code, asked).status == "pending"
    for _ in range(2 * enrolling.WRONG_MOST):
        with pytest.raises(Untrusted):
            enrolling.answer(place.registrar, code[0], b"noise")
    assert enrolling.decide(place.registrar, code[0], approve=True) == "dev-1"
    assert place.tell(code, asked).status == "enrolled"


class Script:
    """A session in whose place events are given and publishes are kept."""

    events: list[object]
    published: list[tuple[str, bytes]]

    def __init__(self, *_: object, inbox: mqtt.Inbox, **__: object) -> None:
        self._inbox = inbox

    def start(self, after: float = 0.0) -> None:
        for event in (mqtt.Connected(), *self.events, Stop()):
            self._inbox.put(event)

    def subscribe(self, filters: list[str]) -> None:
        pass

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> bool:
        self.published.append((topic, payload))
        return True

    def stop(self) -> None:
        pass


def serve(root: Path, monkeypatch: pytest.MonkeyPatch, events: list[object]) -> list[str]:
    """The topics that a registrar publishes on while these events come."""
    Script.events, Script.published = events, []
    monkeypatch.setattr(mqtt, "Session", Script)
    assert server.serve(root / "reg") == 0
    return [topic for topic, _ in Script.published]


def test_strangers_take_no_members_turn_and_odd_messages_end_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registrar = make_registrar(tmp_path)
    settings = tmp_path / "reg" / "registrar.toml"
    key = member(registrar)
    registrar.add("dev-9")
    settings.write_text(
        re.sub("certificate-days = 90", "certificate-days = 3650", settings.read_text())
    )  # so it is due
    (known,), (mine,) = (enrolling.new_codes(registrar, 1, DAY, auto=True, data=Data()) for _ in range(2))
    known_id, _ = derive(known, "fed")
    my_id, my_key = derive(mine, "fed")
    unknown = [mqtt.Message(f"fl1/fed/enrol/{i:020x}", b"x", False) for i in range(1000)]
    flood = [mqtt.Message(f"fl1/fed/enrol/{known_id}", b"noise", False)] * 300
    greedy = [mqtt.Message("fl1/fed/renew/dev-9", b"noise", False)] * 300
    odd = [mqtt.Message(topic, b"\xff", False) for topic in ("fl1/fed/reg/dev-1", "fl1/fed/renew/-", "fl1/other/x", "")]
    asks = [
        mqtt.Message(f"fl1/fed/enrol/{my_id}", prove(my_key, ask("dev-2")), False),
        mqtt.Message("fl1/fed/renew/dev-1", renewal(key), False),
    ]
    assert f"fl1/fed/enrolled/{my_id}" in serve(tmp_path, monkeypatch, [*unknown, *odd, *asks[:1]])
    assert "fl1/fed/issued/dev-1" in serve(tmp_path, monkeypatch, [*flood, *greedy, *odd, *asks[1:]])
    said = capsys.readouterr().err
    assert said.count("ask_dropped") < 2 * (server.ASKS_AT_ONCE + 20)


def test_a_register_that_cannot_be_read_is_said_and_the_server_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registrar = make_registrar(tmp_path)
    registrar.register.close()
    monkeypatch.setattr(server, "SETTLE_SECONDS", 0.0)

    def damaged(folder: Path) -> Registrar:
        made = Registrar(folder)
        made.register._db.execute("ALTER TABLE devices RENAME TO gone")
        return made

    monkeypatch.setattr(server, "Registrar", damaged)
    serve(tmp_path, monkeypatch, [mqtt.Message("fl1/fed/renew/dev-1", b"x", False)])
    said = capsys.readouterr().err
    assert "registrar_failed" in said
    assert "no such table: devices" in said
    assert "registrar_stopped" in said


def test_kits_with_certificates_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    kit = make_registrar(tmp_path).add("dev-1")
    der = load_certificate(kit.certificate or "", "test").public_bytes(serialization.Encoding.DER)
    for broken in (der.replace(P256, P256_SHORT), der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x0a", 1)):
        text = pem(broken).replace("CERTIFICATE REQUEST", "CERTIFICATE")
        with pytest.raises(kits.KitError, match="can be used"):
            kits.install(msgspec.structs.replace(kit, certificate=text), tmp_path / "board")
