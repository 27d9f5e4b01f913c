"""Kits as the registrar makes them: whole after any cut, and never one that a board could join by but not run with."""

import os
import re
from functools import partial
from pathlib import Path

import pytest

from fleetgrad.broker.registrar.registrar import Registrar, RegistrarError
from fleetgrad.edge.config import rehearse
from fleetgrad.wire import kit as kits
from fleetgrad.wire.certificates import load_certificate, pair
from fleetgrad.wire.kit import KitError
from fleetgrad.wire.membership import verify_member
from fleetgrad.wire.signing import parse_private_key
from tests.broker.registrars import make_registrar


class Cut(BaseException):
    """The power is gone."""


def test_power_cut_anywhere_in_adding_a_device_leaves_a_name_that_the_same_command_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every open, sync, rename and removal is the last one once; the database takes a transaction whole or not at all."""
    calls = {os: ("open", "fsync"), Path: ("replace", "unlink")}
    real = {(owner, name): getattr(owner, name) for owner, names in calls.items() for name in names}
    make_registrar(tmp_path)
    points = resumed = 0
    for cut in range(1000):
        name, left, done = f"dev-{cut}", [cut], False
        path = tmp_path / f"{name}.kit"

        def counted(owner: object, word: str, left: list[int] = left) -> object:
            def call(*args: object, **keywords: object) -> object:
                if left[0] == 0:
                    raise Cut
                left[0] -= 1
                return real[owner, word](*args, **keywords)

            return call

        registrar = Registrar(tmp_path / "reg")
        with monkeypatch.context() as patched:
            for owner, word in real:
                patched.setattr(owner, word, counted(owner, word))
            try:
                registrar.add(name, hand=partial(kits.write, path=path))
                done = True
            except Cut:
                points += 1
        registrar.register.close()
        registrar = Registrar(tmp_path / "reg")
        before = registrar.register.device(name)
        if not done and (before is None or (tmp_path / "reg" / "kits" / f".{name}.unfinished").exists()):
            resumed += before is not None
            registrar.add(name, hand=partial(kits.write, path=path))
        with pytest.raises(RegistrarError, match="a name is given once"):
            registrar.add(name)
        made, device = kits.read(path), registrar.register.device(name)
        kits.check(made, "test")
        assert device is not None
        assert before is None or before.key == device.key  # the keys that were noted are the ones that are used
        assert parse_private_key((made.identity or "").encode(), "test").public.raw.hex() == device.key
        assert pair(made.certificate or "", made.key or "", "test")
        delivered = (tmp_path / "roster" / f"{name}.jws").read_bytes()
        assert verify_member(registrar.key.public, "fed", delivered, name).key == device.key
        registrar.revoke(name)  # its certificate was noted down: it can be
        serial = load_certificate(made.certificate or "", "test").serial_number
        assert serial in registrar.register.revoked_serials()
        registrar.register.close()
        if done:
            break
    assert points >= 8
    assert resumed >= 4
    assert [p.name for p in (tmp_path / "reg" / "kits").iterdir()] == []


def test_a_kit_that_has_found_its_board_is_not_made_again(tmp_path: Path) -> None:
    registrar = make_registrar(tmp_path)

    def full(made: kits.Kit) -> None:
        raise KitError("kit: No space left on device")

    with pytest.raises(KitError, match="No space"):
        registrar.add("dev-1", hand=full)
    held = registrar.register.device("dev-1")
    assert held is not None
    assert registrar.add("dev-1").nonce == held.nonce
    with pytest.raises(RegistrarError, match="a name is given once"):
        registrar.add("dev-1")
    with pytest.raises(KitError, match="No space"):
        registrar.add("dev-2", hand=full)
    registrar.revoke("dev-2")
    with pytest.raises(RegistrarError, match="was revoked"):
        registrar.add("dev-2")


def test_a_kit_whose_board_could_not_run_is_not_made_and_costs_no_name(tmp_path: Path) -> None:
    registrar = make_registrar(tmp_path)
    for url, match in (
        ("http://x", "expected mqtt"), ("mqtts://", "expected mqtt"), ("mqtts://a:0", "port 0"),
        ("mqtt://other.lan", "give --insecure"),
    ):  # fmt: skip
        with pytest.raises(KitError, match=match):
            registrar.add("dev-1", url=url)
    assert registrar.register.devices() == []
    made = registrar.add("dev-1", url="mqtt://other.lan", insecure=True)
    kits.install(made, tmp_path / "board", rehearse=rehearse)
    assert 'url = "mqtt://other.lan"\ninsecure = true' in (tmp_path / "board" / "edge.toml").read_text()


def test_what_would_not_run_is_not_installed(tmp_path: Path) -> None:
    made = make_registrar(tmp_path).add("dev-1")

    def refuse(folder: Path) -> None:
        rehearse(folder)
        raise ValueError(f"settings file {folder}/edge.toml: key 'x'")

    with pytest.raises(KitError, match=re.escape(f"a.kit can't be used: settings file {tmp_path}/board/edge.toml")):
        kits.install(made, tmp_path / "board", "a.kit", rehearse=refuse)
    assert not (tmp_path / "board").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_registrar_of_another_user_adds_and_revokes_without_the_aggregators_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registrar = make_registrar(tmp_path)
    assert registrar.unreached() == []
    may = os.access

    def access(path: object, mode: int) -> bool:
        return Path(str(path)).name not in ("roster", "broker") and may(str(path), mode)

    monkeypatch.setattr(os, "access", access)
    registrar.add("dev-1")
    registrar.revoke("dev-1")
    assert registrar.unreached() == ["roster", "broker-files"]
    assert list((tmp_path / "roster").iterdir()) == []
