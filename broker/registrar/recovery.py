"""After a cut or a backup that was put back: what commands hadn't time to tell is told, and what was signed and forgotten is taken in."""

import contextlib
from dataclasses import replace

from fleetgrad.broker.registrar.register import Device
from fleetgrad.broker.registrar.registrar import STATEMENT, Registrar
from fleetgrad.wire.membership import verify_member
from fleetgrad.wire.signing import Untrusted


def adopt(registrar: Registrar, name: str, raw: bytes) -> bool:
    """Takes in a statement of the registrar's own that is newer than what its register holds; whether it was. Raises Untrusted."""
    said = verify_member(registrar.key.public, registrar.federation, raw, name)
    with registrar.register.transaction():
        held = registrar.register.device(name)
        if held and held.serial >= said.serial:
            return False
        known = held or Device(name, said.key, said.serial, said.not_after)
        former = (
            known.former if known.key == said.key else ""
        )  # whatever came between, it isn't the one before this key
        registrar.register.put(
            replace(
                known, key=said.key, former=former, serial=said.serial, not_after=said.not_after, revoked=said.revoked, reason=said.reason,
                statement=raw,
            )
        )  # fmt: skip
    return True


def retell(registrar: Registrar) -> list[str]:
    """Brings the folders that can be reached up to date: the aggregator's roster, from which newer statements are taken in, and the
    list of revoked certificates. The devices that the register had forgotten. Raises RegistrarError, CertificateError.
    """
    roster, adopted = registrar.roster(), []
    for path in sorted(roster.glob(f"*{STATEMENT}")) if roster else ():
        with contextlib.suppress(Untrusted, OSError):
            if adopt(registrar, path.stem, path.read_bytes()):
                adopted.append(path.stem)
    for device in registrar.register.devices():
        held = roster / f"{device.name}{STATEMENT}" if roster else None
        if held and not (held.exists() and held.read_bytes() == device.statement):
            registrar.deliver(device.name)
    registrar.write_crl()
    return adopted
