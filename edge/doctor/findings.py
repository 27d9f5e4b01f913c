"""What `fleetgrad-edge doctor` says of each thing it tried, and how it judges what was read and heard. Nothing is read or asked here.

A finding is ok, a note (the board takes part, or nobody can tell yet) or failed (it can't take part before that is mended).
"""

import errno
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from fleetgrad.edge.spool_report import Report
from fleetgrad.edge.training import memory
from fleetgrad.wire import release
from fleetgrad.wire.membership import verify_member
from fleetgrad.wire.messages import AggregatorStatus, Head
from fleetgrad.wire.plan import Manifest, PlanError
from fleetgrad.wire.release import Root
from fleetgrad.wire.signing import PublicKey, Untrusted
from fleetgrad.wire.sizes import megabytes

State = Literal["ok", "note", "failed"]

FORBIDDEN = os.strerror(errno.EACCES)
AS_USER = "run this as the daemon's user ('sudo -u fleetgrad'), who must own all of the board's folder"
RENEWED_AT = 2 / 3  # of a certificate's life
VOLATILE = {"tmpfs": "lies in memory", "ramfs": "lies in memory", "overlay": "lies in a container's own layer"}
NEW_KIT = (
    "a new kit: 'fleetgrad device add NAME' where the registrar is; here 'fleetgrad-edge leave --wipe', then 'join'"
)
REVOKED = "ask who runs the registrar: a revoked board comes back with a kit of another name, after 'fleetgrad-edge leave --wipe'"
START = "start it: 'systemctl start fleetgrad-edge', or 'fleetgrad-edge run --config edge.toml'"
REGISTRAR = "'fleetgrad registrar serve' must run for that"


class Finding(msgspec.Struct, frozen=True):
    """One line: the thing, what was tried, how it went, what was seen, and what to do."""

    check: str
    tried: str
    state: State
    said: str
    remedy: str = ""


@dataclass(slots=True)
class Heard:
    """What the broker had for the device within the time: raw messages, the next roots by version, refused subscriptions."""

    head: bytes | None = None
    member: bytes | None = None
    aggregator: AggregatorStatus | None = None
    roots: dict[int, bytes] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    retains: bool = True


def failed(check: str, tried: str, said: str, remedy: str) -> Finding:
    """What keeps the board from taking part: `remedy` is what to do, unless it is only that this user mayn't read or write it."""
    return Finding(check, tried, "failed", said, AS_USER if FORBIDDEN in said else remedy)


def user(own: int, owner: int, names: Mapping[int, str]) -> Finding:
    """Whether who runs this is who the board's folder belongs to."""
    tried, name = "compare this user with the owner of the board's folder", names.get(owner, str(owner))
    if own == owner:
        return Finding("user", tried, "ok", name)
    return Finding(
        "user", tried, "note", f"this is {names.get(own, own)}, the folder is {name}'s: what one can read the other may not",
        f"run this as the daemon's user: 'sudo -u {name} ...'; and give that user all of it: 'chown -R {name}: FOLDER'",
    )  # fmt: skip


def certificate(where: str, name: str, begins: float, ends: float, device: str, floor: float, now: float) -> Finding:
    """The board's TLS certificate, by a time that has passed for certain. All in Unix seconds."""
    tried, passed = f"read {where}", max(now, floor)
    if name != device:
        return failed("certificate", tried, f"it is {name}'s, and this is {device}: brokers go by it", NEW_KIT)
    if passed >= ends:
        said = f"it ended on {day(ends)}; this board's clock says {day(now)}"
        return failed("certificate", tried, said, f"a clock that is ahead: set it. Else {NEW_KIT}")
    if passed >= begins + RENEWED_AT * (ends - begins):
        said = f"it ends on {day(ends)}, and should have been renewed by now"
        return Finding("certificate", tried, "note", said, f"the daemon asks for the next: {REGISTRAR}")
    return Finding("certificate", tried, "ok", f"holds until {day(ends)}")


def clock(now: float, floor: float) -> Finding:
    """This board's clock against a time that has passed for certain; Unix seconds."""
    tried = "compare the clock with the newest time that has passed for certain"
    if now < floor:
        said = f"it says {day(now)}, and it is {day(floor)} or later; certificates are judged by that"
        return Finding(
            "clock", tried, "note", said, "set it: 'timedatectl set-ntp true', where the board reaches a time server"
        )
    return Finding("clock", tried, "ok", day(now))


def place(spool: str, kind: str, free: int, needed: int) -> Finding:
    """Where the spool lies: the file system's kind, and its free bytes against what training needs."""
    tried = f"look at the disk of {spool}"
    if free < needed:
        said = f"{megabytes(free)} are free, training needs {megabytes(needed)}"
        return failed("disk", tried, said, "make room, or lower free-space in [device] of edge.toml")
    said = f"{megabytes(free)} are free on {kind or 'a file system of unknown kind'}"
    if kind in VOLATILE:
        return Finding(
            "disk", tried, "note", f"{said}: it {VOLATILE[kind]}, and goes with it",
            "set spool in [device] of edge.toml to a folder on a disk",
        )  # fmt: skip
    return Finding("disk", tried, "ok", said)


def room(manifest: Manifest | None, batch: int, limit: int | None, before: int | None, available: int) -> Finding:
    """Memory: what the plan takes with `batch` samples, by `limit` (max-rss) or by what this machine has `available`; `before` is what a
    trainer has before its data and sessions. Bytes."""
    tried = "compare what the plan takes with what it may"
    if manifest is None or before is None:
        why = "no plan is here yet" if manifest is None else "no trainer starts"
        said = f"{why}; {megabytes(available)} are available" + (f", max-rss is {megabytes(limit)}" if limit else "")
        return Finding("memory", tried, "ok" if before else "note", said)
    try:
        needed = before + memory.growth(manifest, batch)
        pieces = None if limit is None else memory.micro_batch(manifest, batch, limit, before)
    except memory.DoesNotFit as e:
        return failed("memory", tried, str(e), "raise max-rss in [device] of edge.toml")
    except PlanError as e:
        return Finding("memory", tried, "note", str(e))
    said = f"batches of {batch} take about {megabytes(needed)} besides the data; {megabytes(available)} are available"
    if limit is not None:
        said += f", max-rss is {megabytes(limit)}" + (f": they run in pieces of {pieces}" if pieces else "")
    elif needed > available:
        return Finding(
            "memory", tried, "note", said, "set max-rss in [device] of edge.toml: batches then run in pieces that fit"
        )
    return Finding("memory", tried, "ok", said)


def spool(report: Report) -> Finding:
    """What the daemon has kept."""
    tried = f"read {report.spool}"
    if report.revoked:
        said = "the registrar has revoked this device"
        return failed("spool", tried, said, REVOKED)
    model = "no model yet" if report.installed is None else f"version {report.installed} is installed"
    said = f"{model}; waits for {report.waits_for}; {len(report.updates)} updates on their way"
    if report.damaged:
        lost = "; ".join(f"{row}: {reason}" for row, reason in report.damaged.items())
        return Finding(
            "spool", tried, "note", f"{said}; damaged: {lost}", "the daemon fetches or begins anew what was lost"
        )
    return Finding("spool", tried, "ok", said)


def daemon(running: bool | None, not_connected: str) -> Finding:
    """Whether a daemon has the spool, and what it says of its link."""
    tried = "look for a daemon that has the spool"
    if running is None:
        return Finding("daemon", tried, "note", "this system doesn't tell who holds a lock", START)
    if not running:
        said = "none runs" + (f"; the last one wasn't connected: {not_connected}" if not_connected else "")
        return Finding("daemon", tried, "note", said, START)
    if not_connected:
        return failed("daemon", tried, f"it runs, and isn't connected: {not_connected}", "see the lines on the broker")
    return Finding("daemon", tried, "ok", "it runs")


def membership(heard: Heard, registrar: PublicKey, federation: str, device: str, own: list[PublicKey]) -> Finding:
    """The registrar's retained word on this device, against its keys (the one in use, and the next)."""
    tried = "ask the broker for the registrar's word on this device"
    if heard.member is None:
        if heard.refused or not heard.retains:
            return Finding("membership", tried, "note", "; ".join(heard.refused) or "this broker retains nothing")
        return Finding(
            "membership",
            tried,
            "note",
            "there is none on the broker",
            f"{REGISTRAR}, unless registrar and aggregator share a disk",
        )
    try:
        said = verify_member(registrar, federation, heard.member, device)
    except Untrusted as e:
        return failed("membership", tried, f"it isn't the registrar's that this board knows: {e}", NEW_KIT)
    if said.revoked:
        reason = f": {said.reason}" if said.reason else ""
        return failed(
            "membership",
            tried,
            f"this device was revoked{reason}",
            REVOKED,
        )
    if said.public().raw not in [key.raw for key in own]:
        return failed("membership", tried, f"the registrar names the key {said.public().kid}, this board has {', '.join(k.kid for k in own)}",
            "a renewal that was lost mends itself while the daemon runs; else another board has this name: " + NEW_KIT,
        )  # fmt: skip
    return Finding("membership", tried, "ok", f"a member, key {said.public().kid}")


def head(heard: Heard, root: Root, held: Head | None) -> Finding:
    """The aggregator's retained head, by the root of trust that the board has reached, against the one that it holds."""
    tried = "ask the broker for the newest head"
    if heard.head is None:
        if heard.refused:
            return failed(
                "head",
                tried,
                "; ".join(heard.refused),
                "the broker's permissions: 'fleetgrad broker-files' writes them",
            )
        if not heard.retains:
            return Finding("head", tried, "note", "this broker retains nothing: the aggregator says it to who asks")
        return failed(
            "head",
            tried,
            "there is none on the broker",
            "has 'fleetgrad serve' run, on this broker, for a federation of this name? mosquitto doesn't say where its permissions are what is missing",
        )
    try:
        while (raw := heard.roots.get(root.version + 1)) is not None:
            root = release.succeed(root, raw)
        found = release.read_head(root, heard.head)
        if held:
            release.check_follows(found, held)
    except Untrusted as e:
        return failed(
            "head",
            tried,
            f"this board doesn't take it: {e}",
            "is it another federation's of the same name? " + NEW_KIT,
        )
    said = f"version {found.version}, number {found.sequence}"
    if held is None:
        return Finding("head", tried, "ok", f"{said}; this board holds none yet")
    behind = found.sequence - held.sequence
    return Finding(
        "head", tried, "ok", f"{said}; this board holds " + ("it" if not behind else f"one that is {behind} older")
    )


def aggregator(heard: Heard) -> Finding:
    """The aggregator's retained state."""
    tried, state = "ask the broker how the aggregator is", heard.aggregator
    remedy = "'fleetgrad serve' must run where the aggregator is"
    if state is None and heard.refused:
        return Finding("aggregator", tried, "note", "the broker doesn't let this board ask")
    if state is None:
        said = "it says nothing" if heard.retains else "this broker retains nothing"
        return Finding("aggregator", tried, "failed" if heard.retains else "note", said, remedy)
    if state.state == "offline":
        return failed("aggregator", tried, "it is offline", remedy)
    said = (
        state.state
        if state.round is None
        else f"{state.state}, round {state.round}: {state.received} of {state.goal} updates"
    )
    if state.signatures_missing:
        said += f"; the newest head waits for {state.signatures_missing} signatures"
    return Finding("aggregator", tried, "ok", said)


def day(seconds: float) -> str:
    """Unix seconds as people write them."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
