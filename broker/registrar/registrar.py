"""The registrar's folder and acts: devices added, revoked and renewed. Each gives a signed statement on the device, which goes
into the aggregator's roster where that folder can be reached, and to the broker by `registrar serve`.

    registrar.toml                        settings
    ca.key  ca.pem  crl.pem               the fleet's CA, and which certificates were revoked
    registrar.key  registrar.pub          signs statements
    tls.pem  aggregator.pub               the registrar's own login; the aggregator's key, for kits
    root.json                             the root of trust for kits, where it isn't the aggregator's key
    registrar.sqlite  kits/               memory; kits that were made here: hand each over, then remove it
    kits/.NAME.unfinished                 what a kit is made of, until it is where it was to be
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta

from fleetgrad.broker.registrar.authority import CA, CA_KEY, ROLE_DAYS, Authority, request_key, utc
from fleetgrad.broker.registrar.register import Device, Register
from fleetgrad.wire import kit as kits
from fleetgrad.wire import release
from fleetgrad.wire.certificates import CertificateError, key_pem, load_certificate, new_key, pair
from fleetgrad.wire.files import replace_file
from fleetgrad.wire.kit import Data, Kit
from fleetgrad.wire.membership import ROLES, Member, check_device, sign_member
from fleetgrad.wire.messages import Name
from fleetgrad.wire.mqtt import BrokerSettings
from fleetgrad.wire.settings import load_toml, toml_lines
from fleetgrad.wire.signing import (
    PrivateKey,
    Untrusted,
    load_private_key,
    load_public_key,
    save_private,
    save_private_key,
)
from fleetgrad.wire.strict import Strict

FILE, KEY, PUBLIC, TLS = "registrar.toml", "registrar.key", "registrar.pub", "tls.pem"
AGGREGATOR, KITS, CRL, FOLDER = "aggregator.pub", "kits", "crl.pem", "registrar"
DEVICE_DAYS = 90
MAX_REASON = 200  # characters
MOST_CERTIFICATES = 8  # of one device, that haven't ended; two are usual, and a board may lose a key or two
STATEMENT = ".jws"  # of a device, in the aggregator's roster


class RegistrarError(ValueError):
    """What the registrar can't do; the message says why."""


class Settings(Strict, frozen=True, kw_only=True):
    """registrar.toml. `roster` is the aggregator's folder of members, `broker_files` the broker's: written to where they exist."""

    federation: Name
    certificate_days: Annotated[int, Meta(ge=1, le=3650)] = DEVICE_DAYS
    roster: str | None = None
    broker_files: str | None = None
    enrol_url: str | None = None
    broker: BrokerSettings


def check_reason(text: str) -> str:
    """Returns what an operator gives as a reason, which logs and topics carry; raises RegistrarError."""
    if len(text) > MAX_REASON or not re.search(kits.PLAIN, text):
        raise RegistrarError(
            f"reason of {len(text)} characters refused: {MAX_REASON} at most, without control characters"
        )
    return text


def home(directory: Path) -> Path:
    """The registrar's folder: `directory`, or the one in it; raises RegistrarError."""
    for folder in (directory, directory / FOLDER):
        if (folder / FILE).is_file():
            return folder
    raise RegistrarError(
        f"{directory} holds no {FILE}: give the registrar's folder, which 'fleetgrad new' made ({directory / FOLDER}, or "
        "where --registrar said)"
    )


class Registrar:
    """One federation's; `clock` gives Unix seconds. The CA's key is read when something is to be signed by it."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder = home(directory)
        self.settings = load_toml(self.folder / FILE, Settings)
        self.register = Register(self.folder)
        self.key = load_private_key(self.folder / KEY)
        self._clock = clock

    @property
    def federation(self) -> str:
        return self.settings.federation

    def now(self) -> datetime:
        return utc(self._clock())

    def seconds(self) -> int:
        return int(self._clock())

    # --- devices ----------------------------------------------------------------------------------------------------
    def add(
        self,
        name: str,
        *,
        data: Data | None = None,
        url: str | None = None,
        insecure: bool = False,
        hand: Callable[[Kit], object] = lambda _: None,
    ) -> Kit:
        """A new device's kit, which `hand` puts where it is to be; its statement is published. What was cut short before that
        is completed by the next call, with the same keys. A device whose certificate has ended or doesn't hold yet, and which
        can't renew it, gets its next kit so. Raises NameRefused, RegistrarError, CertificateError, KitError.
        """
        check_device(name)
        fleet = self.fleet_kit(data, url, insecure=insecure)
        kits.check_fleet(fleet, "kit")
        unfinished = self.folder / KITS / f".{name}.unfinished"
        unfinished.parent.mkdir(mode=0o700, exist_ok=True)
        with self.register.transaction():
            device, begun = self.register.device(name), kits.read(unfinished) if unfinished.exists() else None
            if device is None or device.revoked or device.instance or begun is None or begun.nonce != device.nonce:
                if device is None or device.revoked or self._usable(device):
                    self._check_free(name)
                begun, device = self._begin(name, fleet, device.serial if device else 0)
                unfinished.unlink(missing_ok=True)
                kits.write(begun, unfinished)
        kit = msgspec.structs.replace(
            fleet, device=name, nonce=begun.nonce, identity=begun.identity, certificate=begun.certificate, key=begun.key
        )
        hand(kit)
        self._deliver(device)
        unfinished.unlink(missing_ok=True)
        return kit

    def _begin(self, name: str, fleet: Kit, serial: int) -> tuple[Kit, Device]:
        """New keys for a device, whose statement is noted down (within a transaction)."""
        identity, tls, nonce = PrivateKey.generate(), new_key(), os.urandom(16).hex()
        certificate, not_after = self.certify(name, tls.public_key(), request="")
        device = self._signed(Device(name, identity.public.raw.hex(), self._next(serial), not_after, nonce=nonce))
        kit = msgspec.structs.replace(
            fleet, device=name, nonce=nonce, identity=identity.pem().decode(), certificate=certificate, key=key_pem(tls)
        )
        return kit, device

    def enlist(self, name: str, key: str, request: str, nonce: str) -> str:
        """Takes in a device that made its own keys (within a transaction); its certificate. `deliver` publishes it."""
        check_device(name)
        self._check_free(name)
        certificate, not_after = self.certify(name, request_key(request, f"request of {name}"), request)
        self._signed(Device(name, key, self._next(0), not_after, nonce=nonce))
        return certificate

    def fleet_kit(self, data: Data | None = None, url: str | None = None, *, insecure: bool = False) -> Kit:
        """What every device of the fleet may know, without an identity."""
        broker, ca = self.settings.broker, self.folder / CA
        return Kit(
            federation=self.federation, url=url or broker.url, insecure=insecure or broker.insecure, data=data or Data(),
            ca=ca.read_text() if ca.exists() else None, aggregator=(self.folder / AGGREGATOR).read_text(),
            registrar=self.key.public.pem().decode(), enrol_url=self.settings.enrol_url,
            root=self._root(),
        )  # fmt: skip

    def _root(self) -> str | None:
        """The root of trust for kits: root.json, or what the chain in the aggregator's folder leads to, which becomes root.json."""
        path, aggregator = self.folder / kits.ROOT, load_public_key(self.folder / AGGREGATOR)
        roots = (self.folder / (self.settings.roster or "")).parent / release.ROOTS
        reached = self.settings.roster and os.access(roots, os.R_OK | os.X_OK)
        try:
            held = release.pinned(path.read_bytes(), self.federation) if path.exists() else None
            begins = held or release.implied(self.federation, aggregator)
            last = release.chain(roots, begins)[0] if reached else begins
        except Untrusted as e:
            raise RegistrarError(f"kit refused: its board would follow no root of trust: {e} ({path})") from e
        text = msgspec.json.encode(last).decode()
        if last.version > begins.version:
            _replace(path, text.encode())
        return text if last.version or held else None

    def revoke(self, name: str, reason: str = "") -> None:
        """Ends a device's membership, for good: its name isn't given again. Raises RegistrarError.

        A second time changes nothing, but tells it again: the first may have been killed, or met a full disk, before it had.
        """
        check_reason(reason)
        with self.register.transaction():
            device = self._known(name)
            again = device.revoked
            if not again:
                device = self._signed(replace(device, revoked=True, reason=reason, serial=self._next(device.serial)))
        self._deliver(device)
        self.write_crl()
        if again:
            raise RegistrarError(f"device {name!r} was revoked already")

    def certify(self, name: str, key: ec.EllipticCurvePublicKey, request: str) -> tuple[str, int]:
        """A device's certificate, noted down, and when it ends."""
        self.check_clock()
        if self.register.living(name, self.seconds()) >= MOST_CERTIFICATES:
            raise RegistrarError(f"device {name!r} has {MOST_CERTIFICATES} certificates that haven't ended: no more")
        made = Authority.load(self.folder).client(name, key, self.now(), self.settings.certificate_days)
        loaded = load_certificate(made, name)
        not_after = int(loaded.not_valid_after_utc.timestamp())
        self.register.add_certificate(loaded.serial_number, name, not_after, made, request)
        return made, not_after

    def renewed(self, device: Device, not_after: int) -> Device:
        """The device's next statement, signed and noted down (within a transaction)."""
        return self._signed(replace(device, not_after=not_after, serial=self._next(device.serial)))

    def deliver(self, name: str) -> None:
        """Puts a device's newest statement into the aggregator's roster, where that can be written to."""
        self._deliver(self._known(name))

    def unreached(self) -> list[str]:
        """Which of the folders that the settings name can't be written to from here: what `serve` or the operator must carry there."""
        named = {"roster": self.settings.roster, "broker-files": self.settings.broker_files}
        return [name for name, path in named.items() if not self._reachable(path)]

    def login(self, role: str) -> str:
        """A new certificate and key, in PEM, for one of the operator's own processes."""
        if role not in ROLES:
            raise RegistrarError(f"role {role[:64]!r}: expected one of {', '.join(ROLES)}")
        self.check_clock()
        return role_login(Authority.load(self.folder), role, self.now())

    def broker_certificate(self, hosts: list[str]) -> str:
        """A new certificate and key, in PEM, for a broker that is reached by these names and addresses."""
        self.check_clock()
        key = new_key()
        return pair(Authority.load(self.folder).server(hosts, key.public_key(), self.now()), key_pem(key), hosts[0])

    def write_crl(self) -> None:
        """Writes the list of revoked certificates, here and beside the broker's files where these can be reached."""
        text = Authority.load(self.folder).revoked(self.register.revoked_serials())
        beside = self._reachable(self.settings.broker_files)
        for folder in filter(None, (self.folder, beside)):
            _replace(folder / CRL, text.encode())

    def check_clock(self) -> None:
        """Raises CertificateError where this machine's clock is wrong for certain: what it signed then would lock boards out."""
        path = self.folder / CA
        try:
            ca = load_certificate(path.read_text(), str(path))
        except OSError as e:
            raise CertificateError(f"the fleet's CA: {e.strerror}: {path}") from e
        if not ca.not_valid_before_utc <= self.now() < ca.not_valid_after_utc:
            raise CertificateError(
                f"nothing is signed: the clock of this machine says {self.now():%Y-%m-%d}, and the fleet's CA is from "
                f"{ca.not_valid_before_utc:%Y-%m-%d} and ends {ca.not_valid_after_utc:%Y-%m-%d}: set the clock"
            )

    def roster(self) -> Path | None:
        """The aggregator's folder of statements, where it can be written to from here."""
        return self._reachable(self.settings.roster)

    def _next(self, serial: int) -> int:
        """The serial number of a device's next statement: above its last one, and above what was said before a backup was put back."""
        return max(serial + 1, self.seconds())

    def _known(self, name: str) -> Device:
        device = self.register.device(name)
        if device is None:
            raise RegistrarError(f"device {name[:64]!r} isn't known here: 'fleetgrad device list' says which are")
        return device

    def _usable(self, device: Device) -> bool:
        """Whether a broker takes its certificate now: it may have ended, or be one of a time when this machine's clock was ahead."""
        newest = self.register.newest_certificate(device.name)
        begins = load_certificate(newest, device.name).not_valid_before_utc.timestamp() if newest else 0.0
        return begins <= self.seconds() <= device.not_after

    def _check_free(self, name: str) -> None:
        if held := self.register.device(name):
            gone = " and was revoked" if held.revoked else ""
            raise RegistrarError(f"device {name!r} exists{gone}: a name is given once")

    def _signed(self, device: Device) -> Device:
        member = Member(
            federation=self.federation, device=device.name, key=device.key, serial=device.serial,
            not_after=device.not_after, revoked=device.revoked, reason=device.reason,
        )  # fmt: skip
        signed = replace(device, statement=sign_member(self.key, member))
        self.register.put(signed)
        return signed

    def _deliver(self, device: Device) -> None:
        roster = self.roster()
        if roster:
            _replace(roster / f"{device.name}{STATEMENT}", device.statement)

    def _reachable(self, path: str | None) -> Path | None:
        found = self.folder / path if path else None
        return found if found and os.path.isdir(found) and os.access(found, os.W_OK | os.X_OK) else None  # noqa: PTH112 - is_dir raises where it may not look


def create(
    folder: Path, settings: Settings, aggregator: PrivateKey, hosts: list[str], broker: Path, login: Path
) -> None:
    """Makes a registrar in the new folder `folder`; the broker's certificate in `broker` and the aggregator's login in `login`."""
    folder.mkdir(mode=0o700, parents=True)
    (folder / KITS).mkdir(mode=0o700)
    now = utc(time.time())
    authority = Authority.create(settings.federation, now)
    authority.save(folder)
    key = PrivateKey.generate()
    save_private_key(key, folder / KEY)
    (folder / PUBLIC).write_bytes(key.public.pem())
    (folder / AGGREGATOR).write_bytes(aggregator.public.pem())
    save_private(role_login(authority, "registrar", now).encode(), folder / TLS)
    save_private(role_login(authority, "aggregator", now).encode(), login)
    tls = new_key()
    save_private(key_pem(tls).encode(), broker / "server.key")
    (broker / "server.pem").write_text(authority.server(hosts, tls.public_key(), now))
    (broker / CA).write_text(authority.pem)
    for place in (folder, broker):
        (place / CRL).write_text(authority.revoked([]))
    (folder / FILE).write_text(_text(settings))


def role_login(authority: Authority, role: str, now: datetime) -> str:
    """Certificate and key of one of the operator's own processes."""
    key = new_key()
    return pair(authority.client(role, key.public_key(), now, ROLE_DAYS), key_pem(key), role)


def forget_authority(directory: Path) -> None:
    """Removes the CA's key for good: nobody can join any more. For demonstrations, whose fleet is never added to."""
    (home(directory) / CA_KEY).unlink(missing_ok=True)


def _text(settings: Settings) -> str:
    plain = [line for line in toml_lines(settings) if not line.startswith("broker = ")]
    return "\n".join([*plain, "", "[broker]", *toml_lines(settings.broker)]) + "\n"


def _replace(path: Path, raw: bytes) -> None:
    """Puts a file in its place, durably."""
    try:
        replace_file(path, raw)
    except OSError as e:
        raise RegistrarError(f"can't write {path}: {e.strerror}") from e
