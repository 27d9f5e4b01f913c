"""`fleetgrad-edge join --code`: this board makes its keys, asks with a one-time code until it is answered, and becomes a member.

The keys are on disk before they leave the board, so that a power cut or an interrupted wait asks again with the same ones: a code
is bound to the first that it was used with.
"""

import queue
import random
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from fleetgrad.edge import config
from fleetgrad.wire import kit as kits
from fleetgrad.wire import mqtt
from fleetgrad.wire.certificates import key_pem, new_key, new_request
from fleetgrad.wire.enrolment import Answer, Ask, derive, open_proven, prove
from fleetgrad.wire.files import PRIVATE, replace_file
from fleetgrad.wire.kit import Kit, KitError
from fleetgrad.wire.signing import PrivateKey, Untrusted, parse_private_key
from fleetgrad.wire.strict import MALFORMED, Strict
from fleetgrad.wire.topics import Topics

SILENT = (
    "the registrar hasn't answered yet: 'fleetgrad registrar serve' must run, and know this code and this federation"
)
ASK_SECONDS = 10.0  # between two asks, and up to half as much again
SUFFIX = ".enrolling"


class EnrolmentRefused(ValueError):
    """The registrar said no; the message says why."""


class Pending(Strict, frozen=True, kw_only=True):
    """What is asked with, until it is answered: private keys in PEM, and the ask."""

    code: str
    identity: str
    key: str
    ask: Ask


def pending_path(folder: Path) -> Path:
    """Where the keys are, beside the folder that is to be the device's."""
    return folder.parent / f".{folder.name}{SUFFIX}"


def finished(folder: Path, code_id: str) -> bool:
    """Whether the folder is a device's by this very code, and only the end of that was cut short. Raises KitError where it is another's."""
    joined = kits.joined(folder)
    if joined is None:
        return False
    held = _read(pending_path(folder))
    if held is None or (held.code, held.ask.nonce) != (code_id, joined.nonce):
        raise KitError(f"{folder} belongs to device {joined.device!r} of {joined.federation!r} already")
    pending_path(folder).unlink()
    return True


def _read(path: Path) -> Pending | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Pending)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise KitError(f"{path} can't be read: {e.strerror}") from e
    except MALFORMED as e:
        raise KitError(f"{path} can't be read: {e}; remove it to begin again") from e


def pending(folder: Path, code_id: str, federation: str, name: str | None) -> Pending:
    """The keys of an ask that was begun for this folder, or new ones, on disk when it returns; raises KitError."""
    path, held = pending_path(folder), _read(pending_path(folder))
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


def answer_to(held: Pending, key: bytes, raw: bytes) -> Answer | None:
    """What the registrar says to this board; None for what others say, or what it says to another board that has the code as well."""
    try:
        answer = open_proven(key, raw, Answer)
    except Untrusted:
        return None
    return answer if answer.nonce == held.ask.nonce else None


def kit_of(held: Pending, answer: Answer) -> Kit:
    """The board's kit, of its own keys and the answer; raises EnrolmentRefused."""
    if answer.status == "refused":
        raise EnrolmentRefused(f"enrolment refused: {answer.reason}")
    parse_private_key(held.identity.encode(), "identity")
    return Kit(
        federation=held.ask.federation, url=answer.url, insecure=answer.insecure, data=answer.data, device=answer.device,
        nonce=held.ask.nonce, identity=held.identity, certificate=answer.certificate, key=held.key, ca=answer.ca,
        aggregator=answer.aggregator, registrar=answer.registrar, root=answer.root,
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
) -> Kit | None:
    """Asks until there is an answer, and installs what it gives into `folder`; the kit, or None where that was done before.

    Raises CodeRefused, EnrolmentRefused, KitError, and ConnectionError after `timeout` seconds (0: never) without an answer.
    """
    topics = Topics(federation)
    id_, key = derive(code, federation)
    if finished(folder, id_):
        return None
    held = pending(folder, id_, federation, name)
    inbox, dice = mqtt.Inbox(), random.Random(secrets.randbits(64))
    session = mqtt.Session(broker, f"enrol-{secrets.token_hex(8)}", inbox=inbox, random=dice)
    session.start()
    raw, began, told, ask_at, asked = prove(key, held.ask), time.monotonic(), "", 0.0, 0
    waits = f"waiting for approval: 'fleetgrad enroll approve {id_[:8]}' on the registrar's machine"
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
                asked += 1
                if asked > 1 and told not in (waits, SILENT):
                    told = SILENT
                    say(told)
            try:
                event = inbox.get(timeout=0.5)
            except queue.Empty:
                continue
            if isinstance(event, mqtt.Connected):
                session.subscribe([topics.enrolled(id_)])
                ask_at, asked = 0.0, 0
            elif isinstance(event, mqtt.Disconnected) and told != event.reason:
                told = event.reason
                say(told)
            elif isinstance(event, mqtt.Message):
                answer = answer_to(held, key, event.payload)
                if answer and answer.status != "pending":
                    break
                if answer and told != waits:
                    told = waits
                    say(told)
    finally:
        session.stop()
    kit = kit_of(held, answer)
    kits.install(kit, folder, "the answer", rehearse=config.rehearse)
    pending_path(folder).unlink(missing_ok=True)
    return kit
