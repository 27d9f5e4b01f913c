"""`fleetgrad-edge leave`: a device ends its part. The registrar is told, and what makes this board the device is removed from it.

Keys go first and settings last, so that a wipe that was cut short goes on when it is run again.
"""

import queue
import random
import secrets
import shutil
import time
from pathlib import Path

from fleetgrad.edge import renewing
from fleetgrad.edge.config import EdgeConfig, client_id
from fleetgrad.edge.enrolling import pending_path
from fleetgrad.wire import kit as kits
from fleetgrad.wire import mqtt
from fleetgrad.wire.files import sync
from fleetgrad.wire.membership import verify_member
from fleetgrad.wire.signing import PrivateKey, PublicKey, Untrusted
from fleetgrad.wire.topics import Topics

LEAVE_SECONDS = 5.0  # between two goodbyes


def wipe(config: Path, settings: EdgeConfig, folder: Path) -> tuple[list[str], list[str]]:
    """Removes a device's keys, spool and settings, and nothing else: (what was removed, files that the settings name and that lie
    elsewhere, so aren't only the device's). `folder` is what the settings' paths are relative to. Raises OSError.
    """
    own = [settings.device.key, settings.broker.key, settings.broker.certificate]
    named = [(folder / name).resolve() for name in own if name]
    inside = [path for path in named if path.is_relative_to(folder)]
    keys = [folder / n for n in (kits.IDENTITY, kits.TLS, renewing.NEXT, renewing.NEXT_IDENTITY)]
    beside = [
        pending_path(folder),
        *(folder.parent / f".{folder.name}{suffix}" for suffix in (kits.JOINING, ".ca.pem")),
    ]
    removed: list[str] = []
    for path in (*dict.fromkeys([*inside, *keys]), *beside):
        _remove(path, removed)
    _remove(folder / settings.device.spool, removed)
    sync(folder)
    for name in (renewing.COUNT, kits.JOINED, kits.CA, kits.AGGREGATOR, kits.REGISTRAR, kits.ROOT):
        _remove(folder / name, removed)
    sync(folder)
    _remove(config, removed)
    sync(folder)
    return removed, [str(path) for path in named if path not in inside and path.exists()]


def _remove(path: Path, removed: list[str]) -> None:
    """A file or a folder, where a link leads too; and what a write that was cut short left of it."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink()
    if path.is_dir():
        shutil.rmtree(path.resolve())
        removed.append(f"{path.name}/")
    elif path.exists():
        removed.append(path.name)
    if path.is_symlink() or path.is_file():
        path.unlink()


def leave(identity: PrivateKey, folder: Path, registrar: PublicKey, broker: mqtt.Endpoint, seconds: float) -> bool:
    """Tells the registrar that the device ends its part; whether it has confirmed that by its signature within `seconds`."""
    joined = kits.joined(folder)
    if joined is None:
        return False
    dice, inbox, topics = random.Random(secrets.randbits(64)), mqtt.Inbox(), Topics(joined.federation)
    raw = renewing.Renewing(folder, joined, identity, registrar, dice, time.time).leaving()
    session = mqtt.Session(broker, client_id(broker, joined.device, identity), inbox=inbox, random=dice)
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
