"""The registrar: certificates that other tools accept, statements that only rise, and nothing half done."""

import stat
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from cryptography import x509

from fleetgrad.broker.registrar import registrar as registrar_
from fleetgrad.broker.registrar.registrar import Registrar, RegistrarError
from fleetgrad.broker.registrar.server import Server, serve
from fleetgrad.broker.roster import Roster
from fleetgrad.edge import config
from fleetgrad.wire import release
from fleetgrad.wire.certificates import common_name, load_certificate
from fleetgrad.wire.kit import install
from fleetgrad.wire.membership import Member, sign_member
from fleetgrad.wire.signing import PrivateKey, Untrusted
from fleetgrad.wire.topics import NameRefused
from tests.broker.registrars import AGGREGATOR, make_registrar

NOW = 1_800_000_000.0


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_registrar(tmp_path)
    return tmp_path


def open_(place: Path) -> Registrar:
    return Registrar(place / "reg", lambda: NOW)


def test_every_secret_is_its_owners_alone(place: Path) -> None:
    secrets = ("reg/ca.key", "reg/registrar.key", "reg/tls.pem", "broker/server.key", "agg.pem")
    assert {stat.S_IMODE((place / name).stat().st_mode) for name in secrets} == {0o600}
    open_(place)
    assert stat.S_IMODE((place / "reg" / "registrar.sqlite").stat().st_mode) == 0o600
    assert stat.S_IMODE((place / "reg").stat().st_mode) == 0o700


def test_openssl_verifies_what_the_fleets_ca_signed(place: Path) -> None:
    kit = open_(place).add("dev-1")
    (place / "dev.pem").write_text(kit.certificate or "")

    def verify(path: str, *flags: str) -> str:
        words = [
            "openssl",
            "verify",
            "-x509_strict",
            "-attime",
            str(int(NOW)),
            "-CAfile",
            str(place / "reg" / "ca.pem"),
        ]
        done = subprocess.run(
            [*words, *flags, str(place / path)], capture_output=True, text=True, check=False, timeout=60
        )
        return done.stdout + done.stderr

    assert "OK" in verify("dev.pem", "-purpose", "sslclient")
    assert "OK" in verify("broker/server.pem", "-purpose", "sslserver", "-verify_hostname", "broker.lan")
    assert "OK" in verify("broker/server.pem", "-purpose", "sslserver", "-verify_ip", "127.0.0.1")
    assert "mismatch" in verify("broker/server.pem", "-verify_hostname", "other.lan")
    assert "purpose" in verify("dev.pem", "-purpose", "sslserver")
    crl = ("-crl_check", "-CRLfile", str(place / "broker" / "crl.pem"))
    assert "OK" in verify("dev.pem", *crl)
    open_(place).revoke("dev-1")
    assert "revoked" in verify("dev.pem", *crl)
    assert (place / "broker" / "crl.pem").read_bytes() == (place / "reg" / "crl.pem").read_bytes()


def test_a_devices_certificate_is_short_and_names_it(place: Path) -> None:
    certificate = load_certificate(open_(place).add("dev-1").certificate or "", "test")
    assert certificate.subject.rfc4514_string() == "CN=dev-1"
    now = datetime.fromtimestamp(NOW, UTC)
    assert (certificate.not_valid_after_utc - now).days == 90
    assert (now - certificate.not_valid_before_utc).days == 1  # a board's clock may be behind
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_name_is_given_once_and_never_a_roles(place: Path) -> None:
    registrar = open_(place)
    registrar.add("dev-1")
    with pytest.raises(RegistrarError, match="a name is given once"):
        registrar.add("dev-1")
    registrar.revoke("dev-1")
    with pytest.raises(RegistrarError, match="was revoked"):
        registrar.add("dev-1")
    with pytest.raises(RegistrarError, match="revoked already"):
        registrar.revoke("dev-1")
    with pytest.raises(RegistrarError, match="isn't known"):
        registrar.revoke("dev-2")
    for name in ("aggregator", "registrar", "operator"):
        with pytest.raises(NameRefused, match="name of a role"):
            registrar.add(name)


def test_a_revocation_that_was_cut_short_is_told_at_the_next_try(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registrar = open_(place)
    serial = load_certificate(registrar.add("dev-1").certificate or "", "test").serial_number

    def full(path: Path, raw: bytes) -> None:
        raise RegistrarError(f"can't write {path}: No space left on device")

    with monkeypatch.context() as m, pytest.raises(RegistrarError, match="No space"):
        m.setattr(registrar_, "_replace", full)
        registrar.revoke("dev-1", "stolen")
    with pytest.raises(RegistrarError, match="revoked already"):
        open_(place).revoke("dev-1")
    said = Roster(place, registrar.key.public, "fed")
    with pytest.raises(Untrusted, match="was revoked"):
        said.key("dev-1")
    for folder in ("reg", "broker"):
        listed = x509.load_pem_x509_crl((place / folder / "crl.pem").read_bytes())
        assert listed.get_revoked_certificate_by_serial_number(serial) is not None


def test_two_registrars_on_one_folder_are_refused(place: Path) -> None:
    first = Server(place / "reg", insecure=False, timeout=0.1)
    with pytest.raises(RegistrarError, match="another 'fleetgrad registrar serve' is running on this folder"):
        serve(place / "reg", timeout=0.1)
    del first
    Server(place / "reg", insecure=False, timeout=0.1)


def test_without_the_cas_key_nobody_joins_and_nothing_is_noted(place: Path) -> None:
    registrar_.forget_authority(place / "reg")
    with pytest.raises(ValueError, match="fleet's CA"):
        open_(place).add("dev-1")
    assert open_(place).register.devices() == []
    assert list((place / "roster").iterdir()) == []


def test_the_roster_believes_the_registrar_alone_and_the_latest_word(place: Path) -> None:
    registrar = open_(place)
    roster = Roster(place, registrar.key.public, "fed")
    registrar.add("dev-1")
    registrar.add("dev-2")
    first = (place / "roster" / "dev-1.jws").read_bytes()
    assert roster.names() == ["dev-1", "dev-2"]
    assert roster.key("dev-1") is not None
    assert roster.key("dev-3") is None
    assert roster.key("../../etc/passwd") is None
    registrar.revoke("dev-1", "lost")
    with pytest.raises(Untrusted, match="revoked: lost"):
        roster.key("dev-1")
    assert roster.names() == ["dev-2"]
    (place / "roster" / "dev-1.jws").write_bytes(first)  # an older statement put back
    with pytest.raises(Untrusted, match="revoked"):
        roster.key("dev-1")
    assert roster.take("dev-1", first) is None
    (place / "roster" / "dev-2.jws").write_bytes(b"noise")
    assert roster.key("dev-2") is not None  # what was said before holds


def test_statements_come_to_a_roster_by_the_broker_too(place: Path, tmp_path: Path) -> None:
    registrar = open_(place)
    registrar.add("dev-1")
    raw = registrar.register.device("dev-1")
    assert raw is not None
    away = Roster(tmp_path / "away", registrar.key.public, "fed")
    assert away.names() == []
    assert away.take("dev-1", raw.statement) is not None
    assert away.names() == ["dev-1"]
    assert Roster(tmp_path / "away", registrar.key.public, "fed").names() == ["dev-1"]
    registrar.revoke("dev-1")
    again = registrar.register.device("dev-1")
    assert again is not None
    taken = away.take("dev-1", again.statement)
    assert taken is not None
    assert taken.revoked
    assert away.take("dev-1", raw.statement) is None
    assert away.names() == []


def test_a_statement_of_another_key_federation_device_or_size_is_refused(place: Path) -> None:
    registrar = open_(place)
    roster = Roster(place, registrar.key.public, "fed")
    member = Member(federation="fed", device="dev-1", key="0" * 64, serial=1, not_after=0)
    others = Member(federation="other", device="dev-1", key="0" * 64, serial=1, not_after=0)
    refused = {
        "signature doesn't hold": ("dev-1", sign_member(PrivateKey.generate(), member)),
        "expected dev-2": ("dev-2", sign_member(registrar.key, member)),
        "of other": ("dev-1", sign_member(registrar.key, others)),
        "at most": ("dev-1", b"x" * 5000),
        "JWS": ("dev-1", b""),
    }
    for match, (device, raw) in refused.items():
        with pytest.raises(Untrusted, match=match):
            roster.take(device, raw)
    assert roster.names() == []


def test_roles_get_logins_and_a_broker_another_certificate(place: Path) -> None:
    registrar = open_(place)
    for role in ("aggregator", "operator"):
        assert common_name(load_certificate(registrar.login(role), role)) == role
    with pytest.raises(RegistrarError, match="expected one of"):
        registrar.login("dev-1")
    made = load_certificate(registrar.broker_certificate(["b.lan", "10.0.0.1"]), "test")
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["b.lan"]


def test_a_root_of_trust_beside_the_registrar_goes_into_kits(place: Path) -> None:
    assert open_(place).add("dev-1").root is None
    pinned = release.implied("fed", PrivateKey.generate().public)
    (place / "reg" / "root.json").write_bytes(msgspec.json.encode(pinned))
    kit = open_(place).add("dev-2")
    install(kit, place / "board")
    settings, folder = config.load(place / "board" / "edge.toml")
    assert config.beginning(settings.federation, folder) == pinned
    (place / "reg" / "root.json").write_text("{}")
    with pytest.raises(RegistrarError, match=r"kit refused: .*federation.*root\.json"):
        open_(place).add("dev-3")


def test_the_chain_of_roots_in_the_aggregators_folder_is_followed_for_kits_and_kept(place: Path) -> None:
    roots = place / "roots"
    roots.mkdir()
    root = release.implied("fed", AGGREGATOR.public)
    for version in (1, 2):
        root = msgspec.structs.replace(root, version=version)
        (roots / f"{version}.json").write_bytes(release.sign_root(root, [AGGREGATOR]))
    kit = open_(place).add("dev-1")
    assert release.pinned((kit.root or "").encode(), "fed") == root
    (roots / "3.json").write_bytes(release.sign_root(msgspec.structs.replace(root, version=3), [PrivateKey.generate()]))
    with pytest.raises(RegistrarError, match=r"kit refused: .*3\.json: signature doesn't hold"):
        open_(place).add("dev-2")
    for path in roots.iterdir():
        path.unlink()
    assert release.pinned((open_(place).add("dev-3").root or "").encode(), "fed") == root
