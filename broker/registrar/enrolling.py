"""One-time codes: made, asked with, approved. What a board asks is answered from the register alone, so that the commands beside a
running registrar decide, and an answer that was lost is given again.

    open --ask--> asked --approve--> approved        a code made with --auto-approve goes there at once
                        \\-- refuse --> refused
    open --WRONG_MOST wrong proofs--> locked        not once it is a board's: whoever reads `enrolled/+` knows its id
"""

from dataclasses import replace

import msgspec

from fleetgrad.broker.registrar.authority import request_key
from fleetgrad.broker.registrar.register import Code
from fleetgrad.broker.registrar.registrar import Registrar, RegistrarError, check_reason
from fleetgrad.wire.certificates import CertificateError
from fleetgrad.wire.enrolment import Answer, Ask, derive, new_code, open_proven, prove
from fleetgrad.wire.kit import Data
from fleetgrad.wire.membership import check_device
from fleetgrad.wire.signing import PublicKey, Untrusted
from fleetgrad.wire.topics import NameRefused

WRONG_MOST = 5  # wrong proofs with a code's id before it is locked


def new_codes(registrar: Registrar, count: int, seconds: int, *, auto: bool, data: Data) -> list[str]:
    """Fresh codes; the register keeps what proves them, never the codes."""
    codes = [new_code() for _ in range(count)]
    expires, told = registrar.seconds() + seconds, msgspec.json.encode(data).decode()
    derived = [derive(code, registrar.federation) for code in codes]
    with registrar.register.transaction():
        for id_, key in derived:
            registrar.register.put_code(Code(id_, key, expires, auto, data=told))
    return codes


def state_of(code: Code, now: int) -> str:
    """A code's state in a word."""
    return "expired" if code.state in ("open", "asked") and now > code.expires else code.state


def decide(registrar: Registrar, id_: str, *, approve: bool, reason: str = "") -> str:
    """Approves or refuses what was asked with a code; the device's name. Raises RegistrarError."""
    check_reason(reason)
    found = [c for c in registrar.register.codes() if c.id.startswith(id_)] if id_ else []
    if len(found) != 1:
        raise RegistrarError(f"{id_!r} is the beginning of {len(found)} codes' ids: 'fleetgrad enroll list' shows them")
    with registrar.register.transaction():
        code = registrar.register.code(found[0].id) or found[0]
        state = state_of(code, registrar.seconds())
        if state != "asked":
            raise RegistrarError(f"code {code.id}: nobody waits for an answer to it, it is {state}")
        if approve:
            _approve(registrar, code)
        else:
            registrar.register.put_code(replace(code, state="refused", reason=reason or "the operator refused"))
    if approve:
        registrar.deliver(code.device)
    return code.device


def answer(registrar: Registrar, id_: str, raw: bytes) -> bytes:
    """What a board that asks with the code `id_` is told; raises Untrusted when nothing is to be said."""
    refused: Untrusted | None = None
    with registrar.register.transaction():
        code = registrar.register.code(id_)
        if code is None or code.state == "locked":
            raise Untrusted("code isn't known" if code is None else "code is locked")
        try:
            ask = open_proven(code.key, raw, Ask)
            _check(ask, registrar.federation)
            code = _taken_up(registrar, code, ask)
        except Untrusted as e:
            wrong = code.wrong + 1
            state = "locked" if wrong >= WRONG_MOST and code.state == "open" else code.state
            registrar.register.put_code(replace(code, wrong=wrong, state=state))
            refused = e  # raised after the transaction, which is to be kept
    if refused:
        raise refused
    if code.state == "approved":
        registrar.deliver(code.device)
    return prove(code.key, _answer(registrar, code, ask))


def _check(ask: Ask, federation: str) -> None:
    """Raises Untrusted unless the ask is for this federation and by who has both keys."""
    key = PublicKey.from_hex(ask.key)
    if ask.federation != federation or not key.verify(bytes.fromhex(ask.proof), ask.signed()):
        raise Untrusted("ask whose signature doesn't hold")
    try:
        request_key(ask.request, "request")
    except CertificateError as e:
        raise Untrusted(str(e)) from e


def _taken_up(registrar: Registrar, code: Code, ask: Ask) -> Code:
    """The code's row after this ask; a refusal that is told but doesn't use the code up stands in `reason` alone."""
    body = msgspec.json.encode(ask).decode()
    if code.state == "refused" or code.request == body:
        return replace(code, reason="the code has expired") if _late(registrar, code) else code
    if code.request:
        return replace(code, state="refused", reason="the code was used by another board")
    if _late(registrar, code):
        return replace(code, state="refused", reason="the code has expired")
    name = ask.name or f"dev-{PublicKey.from_hex(ask.key).kid[:8]}"
    try:
        check_device(name)
    except NameRefused as e:
        return replace(code, state="refused", reason=str(e)[:200])
    if registrar.register.device(name):
        return replace(code, state="refused", reason=f"the name {name!r} is taken")
    code = replace(code, state="asked", request=body, device=name)
    if code.auto:
        return _approve(registrar, code)
    registrar.register.put_code(code)
    return code


def _late(registrar: Registrar, code: Code) -> bool:
    return state_of(code, registrar.seconds()) == "expired"


def _approve(registrar: Registrar, code: Code) -> Code:
    ask = msgspec.json.decode(code.request, type=Ask)
    registrar.enlist(code.device, ask.key, ask.request, ask.nonce)
    approved = replace(code, state="approved", reason="")
    registrar.register.put_code(approved)
    return approved


def _answer(registrar: Registrar, code: Code, ask: Ask) -> Answer:
    now = registrar.seconds()
    if code.state == "refused" or _late(registrar, code):
        return Answer(nonce=ask.nonce, status="refused", now=now, reason=code.reason or "the code has expired")
    if code.state != "approved":
        return Answer(nonce=ask.nonce, status="pending", now=now, reason=code.id[:8], device=code.device)
    device = registrar.register.device(code.device)
    if device is None or device.revoked:
        return Answer(nonce=ask.nonce, status="refused", now=now, reason=f"device {code.device!r} was revoked")
    kit = registrar.fleet_kit(msgspec.json.decode(code.data, type=Data))
    return Answer(
        nonce=ask.nonce, status="enrolled", now=now, device=code.device, url=kit.url, insecure=kit.insecure, data=kit.data,
        certificate=registrar.register.certificate(code.device, ask.request), ca=kit.ca, aggregator=kit.aggregator,
        registrar=kit.registrar, root=kit.root,
    )  # fmt: skip
