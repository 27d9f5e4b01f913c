"""Kits: one file that makes a board a member, installed whole or not at all, and never over another's keys."""

import stat
from pathlib import Path

import msgspec
import pytest

from fleetgrad.wire import kit
from fleetgrad.wire.certificates import CertificateError, key_pem, new_key, new_request, pair
from fleetgrad.wire.kit import Kit, KitError
from fleetgrad.wire.signing import PrivateKey

PUBLIC = PrivateKey.from_seed(b"p" * 32).public.pem().decode()


DATA = b'{"format":"fleetgrad-kit","federation":"fed","url":"mqtt://127.0.0.1","data":{%s}}'


def made(device: str | None = "dev-1", nonce: str = "0" * 32, **fields: object) -> Kit:
    identity = PrivateKey.from_seed(b"i" * 32).pem().decode()
    found = Kit(
        federation="fed", url="mqtt://127.0.0.1:1", device=device, nonce=nonce, identity=identity, aggregator=PUBLIC,
        registrar=PUBLIC,
    )  # fmt: skip
    return msgspec.structs.replace(found, **fields)


def test_a_kit_is_written_once_for_its_owner_alone_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "dev-1.kit"
    kit.write(made(), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert kit.read(path) == made()
    kit.write(made(), path)  # as a command that was cut short does when it is run again
    with pytest.raises(KitError, match="exists"):
        kit.write(made("dev-2"), path)
    assert kit.read(path) == made()


def test_installing_twice_changes_nothing_and_two_boards_differ(tmp_path: Path) -> None:
    assert kit.install(made(), tmp_path / "a")
    held = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    assert not kit.install(made(), tmp_path / "a")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == held
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o600 for p in (tmp_path / "a").iterdir())
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
    kit.install(made(), tmp_path / "b")
    first, second = kit.joined(tmp_path / "a"), kit.joined(tmp_path / "b")
    assert first and second
    assert first.nonce == second.nonce
    assert first.instance != second.instance
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_folder_keeps_the_users_files_and_is_never_made_anothers(tmp_path: Path) -> None:
    folder = tmp_path / "board"
    folder.mkdir()
    (folder / "data.npz").write_bytes(b"mine")
    assert kit.install(made(), folder)
    assert (folder / "data.npz").read_bytes() == b"mine"
    with pytest.raises(KitError, match="belongs to device 'dev-1'"):
        kit.install(made("dev-2", "1" * 32), folder)
    (folder / kit.JOINED).unlink()  # as a power cut before the last file leaves it
    assert kit.install(made(), folder)
    (folder / kit.JOINED).unlink()
    (folder / kit.IDENTITY).write_text("another's")
    with pytest.raises(KitError, match=r"holds device\.key already"):
        kit.install(made(), folder)
    assert (folder / kit.IDENTITY).read_text() == "another's"


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", "isn't one that this version reads"),
        (b"PK\x03\x04", "isn't one that this version reads"),
        (b'{"format":"fleetgrad-kit","version":2,"federation":"fed","url":"mqtt://a"}', "version"),
        (b'{"format":"fleetgrad-kit","federation":"../up","url":"mqtt://a"}', "federation"),
        (b'{"format":"fleetgrad-kit","federation":"fed","url":"mqtt://a","device":"../../etc"}', "device"),
        (b'{"format":"fleetgrad-kit","federation":"fed","url":"mqtt://a","files":{}}', "unknown field"),
        (b'{"format":"fleetgrad-kit","federation":"fed","url":"\xff"}', "isn't one"),
        (DATA % b'"path":"a\\u007fb"', r"data\.path"),
        (DATA % b'"path":"a\\u0000b"', r"data\.path"),
        (DATA % b'"x":"\\u001b[2J"', r"data\.x"),
        (DATA % b'"shape":[-1,0]', r"data\.shape"),
        (DATA % b'"shape":[]', r"data\.shape"),
        (DATA % b'"scale":1e300', r"data\.scale"),
        (b" " * (kit.MAX_BYTES + 1), "more than"),
    ],
)
def test_a_file_that_is_no_kit_is_refused(tmp_path: Path, raw: bytes, match: str) -> None:
    path = tmp_path / "x.kit"
    path.write_bytes(raw)
    with pytest.raises(KitError, match=match):
        kit.read(path)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"device": None}, "has no identity"),
        ({"identity": PUBLIC}, "private key"),
        ({"aggregator": "x"}, "aggregator's key"),
        ({"ca": "x"}, "no certificate"),
        ({"certificate": "x", "key": "y"}, "no certificate"),
        ({"url": "http://x"}, "expected mqtt"),
        ({"url": "mqtt://other.lan"}, "--insecure"),
        ({"enrol_url": "mqtts://a/path"}, "only a host and a port"),
        ({"root": "{}"}, "missing required field"),
    ],
)
def test_a_kit_that_is_not_whole_installs_nothing(tmp_path: Path, fields: dict[str, str], match: str) -> None:
    with pytest.raises(KitError, match=match):
        kit.install(made(**fields), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_or_lies_in_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "board"):
        with pytest.raises(KitError, match="is a file, or lies in one"):
            kit.install(made(), folder)
    assert (tmp_path / "file").read_text() == "mine"


def test_what_an_installation_left_that_was_cut_short_is_gone_after_the_next(tmp_path: Path) -> None:
    (tmp_path / ".a.joining").mkdir()
    (tmp_path / ".a.joining" / kit.IDENTITY).write_text("a key")
    assert kit.install(made(), tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_url_cannot_write_settings_of_its_own(tmp_path: Path) -> None:
    import tomllib

    evil = 'mqtt://x"\n[device]\nid = "root"\n#'
    assert tomllib.loads(kit.edge_settings(made(url=evil)))["broker"]["url"] == evil


def test_a_certificate_and_its_key_are_one_text() -> None:
    with pytest.raises(CertificateError, match="no certificate"):
        pair(new_request(new_key(), "dev-1"), key_pem(new_key()), "test")
