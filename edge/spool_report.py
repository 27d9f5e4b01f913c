"""What a board's spool says of it, read beside a daemon that may be running: the model, updates on their way, what is waited for."""

import shutil
from pathlib import Path
from typing import Literal

import msgspec

from fleetgrad.edge.config import EdgeConfig
from fleetgrad.edge.link import outbox, partial, residual, slots, standing
from fleetgrad.edge.link.memory import Memory
from fleetgrad.edge.link.store import MEMORY, Held, look
from fleetgrad.edge.link.trust import HEAD_ROW, followed_root, held_head
from fleetgrad.edge.link.wear import WRITTEN, Written
from fleetgrad.wire.messages import Head
from fleetgrad.wire.release import Root
from fleetgrad.wire.signing import Untrusted
from fleetgrad.wire.sizes import parse_size

Kind = Literal["waits for its receipt", "counted, waits for its round's end"]


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """One update in the spool; `bits` per coordinate."""

    round: int
    attempt: int
    bytes: int
    bits: float
    state: Kind


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The spool's content. Sizes in bytes; versions and rounds are None where there is none yet."""

    device: str
    federation: str
    spool: str
    boot: int
    round: int | None
    attempt: int | None
    installed: int | None
    before: int | None
    offered: int | None
    fetched: int
    to_fetch: int
    updates: list[Update]
    carried_from: int | None
    waits_for: str
    not_connected: str
    revoked: bool
    held: int
    free: int
    free_needed: int
    written: int
    written_a_day: int
    damaged: dict[str, str]


def read(config: EdgeConfig, folder: Path, begins: Root) -> Report:
    """Reads the spool of `config`, whose paths are relative to `folder`; `begins` is the root of trust that the device begins
    with. Raises StoreError."""
    spool, device = folder / config.device.spool, config.device
    held = look(spool)
    memory = held.all(MEMORY, Memory).get("", Memory())
    records = sorted(held.all(outbox.UPDATE, outbox.Record).values(), key=lambda r: (r.round, r.attempt))
    models = sorted(held.all(slots.INSTALLED, slots.Installed).values(), key=lambda s: -s.number)
    head, to_fetch = _head(held, begins), 0
    if head and not (models and models[0].params == head.params and models[0].plan == head.plan):
        have = {sha256 for slot in models for sha256 in slot.objects}
        to_fetch = sum(ref.size for ref in (head.plan, head.params) if ref.sha256 not in have)
    updates = [
        Update(
            round=r.round, attempt=r.attempt, bytes=r.size, bits=round(r.rate, 4),
            state="counted, waits for its round's end" if r.accepted else "waits for its receipt",
        )
        for r in records
    ]  # fmt: skip
    carried = held.all(residual.CARRIED, residual.Residual).get("")
    return Report(
        device=device.id,
        federation=config.federation.name,
        spool=str(spool),
        boot=memory.boot,
        round=memory.round or None,
        attempt=memory.attempt or None,
        installed=models[0].version if models else None,
        before=models[1].version if models[1:] else None,
        offered=head.version if head else None,
        fetched=_bytes(spool / partial.FOLDER),
        to_fetch=to_fetch,
        updates=updates,
        carried_from=carried.round if carried else None,
        waits_for=_waits_for(head, to_fetch, memory, records),
        not_connected=standing.read(spool),
        revoked=memory.revoked,
        held=_bytes(spool),
        free=shutil.disk_usage(spool).free,
        free_needed=parse_size(device.free_space),
        written=held.all(WRITTEN, Written).get("", Written()).bytes,
        written_a_day=parse_size(device.written_a_day),
        damaged={f"{kind} {key}".strip(): reason for (kind, key), reason in held.damaged.items()},
    )


def _head(held: Held, begins: Root) -> Head | None:
    try:
        return held_head(held, followed_root(held, begins))
    except Untrusted as e:
        held.damaged[HEAD_ROW, ""] = str(e)
        return None


def _waits_for(head: Head | None, to_fetch: int, memory: Memory, records: list[outbox.Record]) -> str:
    if memory.revoked:
        return "nothing: the registrar has revoked this device. What is here stays; it asks once a day whether that still holds"
    sent = [r for r in records if not r.accepted]
    if sent and (sent[-1].round, sent[-1].attempt) == (memory.round, memory.attempt):
        return f"the receipt for round {sent[-1].round}"
    if head is None:
        return "a first head from the aggregator"
    if to_fetch:
        return f"the model of version {head.version}"
    if not memory.ended:
        return f"its own training for round {memory.round}"
    return "being selected"


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() else 0
        except FileNotFoundError:  # the daemon has just removed it
            continue
    return total
