"""Members' certificates that renew themselves: a signed request by the device gives the next certificate, and makes the key that it
names and proves the device's; who is due is told so, since a board may have no clock. A device may also leave, by its own signature.

    key A --request names B, by A and B--> key B, former A --a message by B alone--> key B
                                                          --request names C, by A and C: B was lost on the board--> key C, former A
"""

from dataclasses import replace

from fleetgrad.broker.registrar.authority import request_key
from fleetgrad.broker.registrar.register import Device
from fleetgrad.broker.registrar.registrar import Registrar
from fleetgrad.wire.membership import ISSUED, Issued, Renewal, verify_renewal
from fleetgrad.wire.signing import PublicKey, Untrusted, sign_message

DUE = 2 / 3  # of a certificate's life: then it is renewed
EARLIEST = 1 / 2  # of its life: before that a request is refused, as of a board whose clock is ahead


def due(registrar: Registrar) -> set[str]:
    """Names of the members whose certificates have lived for two thirds of their time."""
    return {d.name for d in registrar.register.devices() if not d.revoked and _lived(registrar, d.not_after, DUE)}


def _lived(registrar: Registrar, not_after: int, share: float) -> bool:
    return not_after - registrar.seconds() <= registrar.settings.certificate_days * 86400 * (1 - share)


def notice(registrar: Registrar, name: str) -> bytes:
    """The signed word that a device's certificate is due. Raises CertificateError where the clock can't be right."""
    registrar.check_clock()
    said = Issued(federation=registrar.federation, device=name, now=registrar.seconds(), due=True)
    return sign_message(registrar.key, ISSUED, said)


def _asked(device: Device, raw: bytes) -> tuple[Renewal, str]:
    """What a member asks, and the key that it signs by. By the former one it may name another next key while it hasn't shown that it
    has the one that it named: it may have lost that. Raises Untrusted."""
    try:
        return verify_renewal(PublicKey.from_hex(device.key), raw), device.key
    except Untrusted:
        if device.former:
            ask = verify_renewal(PublicKey.from_hex(device.former), raw)
            if ask.identity:
                return ask, device.former
        raise


def answer(registrar: Registrar, name: str, raw: bytes) -> bytes | None:
    """The next certificate for a member that asks; None when it leaves. Raises Untrusted, CertificateError."""
    left = early = False
    with registrar.register.transaction():
        device = registrar.register.device(name)
        if device is None or device.revoked:
            raise Untrusted(f"device {name[:64]!r} isn't a member")
        ask, signer = _asked(device, raw)
        if (ask.federation, ask.device) != (registrar.federation, name):
            raise Untrusted(f"renewal of {ask.device} of {ask.federation} on {name}'s topic")
        if device.instance and device.instance != ask.instance:
            raise Untrusted(f"kit used twice: {name} is on another board already (instance {device.instance[:8]})")
        if ask.count < device.count:
            raise Untrusted(f"renewal of {name} is older than its last")
        shown = signer == device.key != ask.identity  # else by the former key, or by both
        seen = replace(device, instance=ask.instance, count=ask.count, former="" if shown else device.former)
        certificate = registrar.register.certificate(name, ask.request) if ask.request else None
        if ask.leaves:
            left = True
        elif ask.request and certificate is None:
            if ask.count == device.count and device.instance:
                raise Untrusted(f"renewal {ask.count} of {name} with another request")
            key = request_key(ask.request, f"request of {name}")
            until = min(device.not_after, ask.until if isinstance(ask.until, int) else device.not_after)
            early = signer == device.key and not _lived(registrar, until, EARLIEST)
            if early:
                registrar.register.put(replace(device, instance=ask.instance, former=seen.former))
            else:
                certificate, not_after = registrar.certify(name, key, ask.request)
                if ask.identity and ask.identity != device.key:
                    seen = replace(seen, key=ask.identity, former=signer)
                registrar.renewed(seen, not_after)
        else:
            registrar.register.put(seen)
    if early:
        raise Untrusted(
            f"renewal of {name} before half of its certificate's life is over: is that board's clock ahead?"
        )
    if left:
        registrar.revoke(name, "left")
        return None
    registrar.deliver(name)
    if certificate is None:  # it has only said where it is
        return None
    said = Issued(
        federation=registrar.federation, device=name, now=registrar.seconds(), count=ask.count, certificate=certificate
    )
    return sign_message(registrar.key, ISSUED, said)
