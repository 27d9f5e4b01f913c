"""`fleetgrad-edge join --code`: this board makes its keys, asks with a one-time code until it is answered, and becomes a member.

The keys are on disk before they leave the board, so that a power cut or an interrupted wait asks again with the same ones: a code
is bound to the first that it was used with.
"""

import queue
import random
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from fleetgrad.edge import config, renewing
from fleetgrad.wire import kit as kits
from fleetgrad.wire import mqtt
from fleetgrad.wire.certificates import key_pem, new_key, new_request
from fleetgrad.wire.enrolment import Answer, Ask, derive, open_proven, prove
from fleetgrad.wire.files import PRIVATE, replace_file, sync
from fleetgrad.wire.kit import Kit, KitError
from fleetgrad.wire.membership import verify_member
from fleetgrad.wire.signing import PrivateKey, PublicKey, Untrusted, parse_private_key
from fleetgrad.wire.strict import MALFORMED, Strict
from fleetgrad.wire.topics import Topics

ASK_SECONDS = 10.0  # between two asks, and up to half as much again
LEAVE_SECONDS = 5.0  # between two goodbyes
SUFFIX = ".enrolling"


class EnrolmentRefused(ValueError):
    """The registrar said no; the message says why."""


class Pending(Strict, frozen=True, kw_only=True):
    """What is asked with, until it is answered: private keys in PEM, and the ask."""

    code: str
    identity: str
    key: str
    ask: Ask


def pending(folder: Path, code_id: str, federation: str, name: str | None) -> Pending:
    """The keys of an ask that was begun for this folder, or new ones, on disk when it returns; raises KitError."""
    path = folder.parent / f".{folder.name}{SUFFIX}"
    try:
        held = msgspec.json.decode(path.read_bytes(), type=Pending)
    except FileNotFoundError:
        held = None
    except (OSError, *MALFORMED) as e:
        raise KitError(f"{path} can't be read: {e}; remove it to begin again") from e
    if held is not None and held.code == code_id and held.ask.name == name:
        return held
    identity, tls = PrivateKey.generate(), new_key()
    ask = Ask(
        federation=federation, name=name, key=identity.public.raw.hex(), request=new_request(tls, name or "board"),
        nonce=secrets.token_hex(16),
    )  # fmt: skip
    ask = msgspec.structs.replace(ask, proof=identity.sign(ask.signed()).hex())
    made = Pending(code=code_id, identity=identity.pem().decode(), key=key_pem(tls), ask=ask)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, msgspec.json.encode(made), PRIVATE)
    except OSError as e:
        raise KitError(f"can't write {path}: {e.strerror}") from e
    return made


def kit_of(held: Pending, answer: Answer) -> Kit:
    """The board's kit, of its own keys and the answer; raises EnrolmentRefused."""
    if answer.status == "refused":
        raise EnrolmentRefused(f"enrolment refused: {answer.reason}")
    parse_private_key(held.identity.encode(), "identity")
    return Kit(
        federation=held.ask.federation, url=answer.url, insecure=answer.insecure, data=answer.data, device=answer.device,
        nonce=held.ask.nonce, identity=held.identity, certificate=answer.certificate, key=held.key, ca=answer.ca,
        aggregator=answer.aggregator, registrar=answer.registrar,
    )  # fmt: skip


def enrol(
    code: str,
    federation: str,
    broker: mqtt.Endpoint,
    folder: Path,
    name: str | None = None,
    *,
    timeout: float = 0.0,
    say: Callable[[str], None] = lambda _: None,
) -> Kit:
    """Asks until there is an answer, and installs what it gives into `folder`; the kit.

    Raises CodeRefused, EnrolmentRefused, KitError, and ConnectionError after `timeout` seconds (0: never) without an answer.
    """
    if held_by := kits.joined(folder):
        raise KitError(f"{folder} belongs to device {held_by.device!r} of {held_by.federation!r} already")
    id_, key = derive(code, federation)
    held = pending(folder, id_, federation, name)
    topics, inbox, dice = Topics(federation), mqtt.Inbox(), random.Random(secrets.randbits(64))
    session = mqtt.Session(broker, f"enrol-{secrets.token_hex(8)}", inbox=inbox, will=None, random=dice)
    session.start()
    raw, began, told, ask_at = prove(key, held.ask), time.monotonic(), "", 0.0
    try:
        while True:
            now = time.monotonic()
            if timeout and now - began > timeout:
                raise ConnectionError(
                    f"no answer within {timeout:g} s{': ' + told if told else ''}; run it again to go on waiting"
                )
            if session.connected and now >= ask_at:
                session.publish(topics.enrol(id_), raw)
                ask_at = now + dice.uniform(1.0, 1.5) * ASK_SECONDS
            try:
                event = inbox.get(timeout=0.5)
            except queue.Empty:
                continue
            if isinstance(event, mqtt.Up):
                session.subscribe([topics.enrolled(id_)])
                ask_at = 0.0
            elif isinstance(event, mqtt.Down) and told != event.reason:
                told = event.reason
                say(told)
            elif isinstance(event, mqtt.Message):
                try:
                    answer = open_proven(key, event.payload, Answer)
                except Untrusted:
                    continue
                if answer.nonce == held.ask.nonce or answer.status == "refused":
                    if answer.status != "pending":
                        break
                    waits = f"waiting for approval: 'fleetgrad enroll approve {id_[:8]}' on the registrar's machine"
                    if told != waits:
                        told = waits
                        say(told)
    finally:
        session.stop()
    kit = kit_of(held, answer)
    kits.install(kit, folder, "the answer", rehearse=config.rehearse)
    (folder.parent / f".{folder.name}{SUFFIX}").unlink(missing_ok=True)
    return kit


def wipe(folder: Path, spool: Path) -> list[str]:
    """Removes a device's keys, settings and spool, and nothing else; what was removed. Raises OSError."""
    removed = []
    for name in (
        kits.IDENTITY,
        kits.TLS,
        kits.JOINED,
        kits.SETTINGS,
        kits.CA,
        kits.AGGREGATOR,
        kits.REGISTRAR,
        kits.ROOT,
        renewing.NEXT,
        renewing.NEXT_IDENTITY,
        renewing.COUNT,
    ):
        if (folder / name).exists():
            (folder / name).unlink()
            removed.append(name)
    if spool.is_dir():
        shutil.rmtree(spool)
        removed.append(f"{spool.name}/")
    sync(folder)
    return removed


def leave(identity: PrivateKey, folder: Path, registrar: PublicKey, broker: mqtt.Endpoint, seconds: float) -> bool:
    """Tells the registrar that the device ends its part; whether it has confirmed that by its signature within `seconds`."""
    joined = kits.joined(folder)
    if joined is None:
        return False
    dice, inbox, topics = random.Random(secrets.randbits(64)), mqtt.Inbox(), Topics(joined.federation)
    raw = renewing.Renewing(folder, joined, identity, registrar, dice, time.time).leaving()
    session = mqtt.Session(broker, joined.device, inbox=inbox, will=None, random=dice)
    session.start()
    end, ask_at = time.monotonic() + seconds, 0.0
    try:
        while (now := time.monotonic()) < end:
            if session.connected and now >= ask_at:
                session.subscribe([topics.member(joined.device)])
                session.publish(topics.renew(joined.device), raw)
                ask_at = now + LEAVE_SECONDS
            try:
                event = inbox.get(timeout=0.2)
            except queue.Empty:
                continue
            if isinstance(event, mqtt.Message):
                try:
                    said = verify_member(registrar, joined.federation, event.payload, joined.device)
                except Untrusted:
                    continue
                if said.revoked:
                    return True
        return False
    finally:
        session.stop()
