"""Reads a board for `fleetgrad-edge doctor`, beside a daemon that may be running: settings, keys, clock, disk, memory, the trainer's libraries.

One file is written, synced and removed where the spool lies; nothing else is changed.
"""

import errno
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from fleetgrad.edge import spool_report
from fleetgrad.edge.config import EdgeConfig, beginning, load
from fleetgrad.edge.daemon import CLOCK
from fleetgrad.edge.data import npz
from fleetgrad.edge.doctor import findings
from fleetgrad.edge.doctor.findings import NEW_KIT, Finding, failed
from fleetgrad.edge.link import slots, standing
from fleetgrad.edge.link.inbox import FOLDER as OBJECTS
from fleetgrad.edge.link.store import Held, StoreError, look
from fleetgrad.edge.link.trust import followed_root, held_head
from fleetgrad.edge.renewing import NEXT_IDENTITY
from fleetgrad.wire import bundle
from fleetgrad.wire.certificates import common_name, load_certificate
from fleetgrad.wire.command_line import fault
from fleetgrad.wire.files import replace_file
from fleetgrad.wire.kit import joined
from fleetgrad.wire.messages import Head
from fleetgrad.wire.plan import Manifest, PlanError
from fleetgrad.wire.release import Root
from fleetgrad.wire.settings import SettingsError
from fleetgrad.wire.signing import PublicKey, Untrusted, load_private_key, load_public_key
from fleetgrad.wire.sizes import parse_size
from fleetgrad.wire.tls import Floor

PROBE_SECONDS = 120.0
COPY = "put it back from a copy; without one take " + NEW_KIT


class _Probe(msgspec.Struct, frozen=True):
    onnxruntime: str
    capability: str
    capabilities: list[str]
    resident: int


@dataclass(slots=True)
class Board:
    """What was read of it, as far as it could be: what is None or empty was told as a finding."""

    config: EdgeConfig
    folder: Path
    keys: list[PublicKey] = field(default_factory=list)  # its identity, and the next
    client_id: str = ""
    registrar: PublicKey | None = None
    root: Root | None = None
    held: Held | None = None
    head: Head | None = None

    @property
    def spool(self) -> Path:
        return self.folder / self.config.device.spool


def examine(path: Path) -> Iterator[Finding | Board]:
    """A finding for each thing that was tried, as soon as it was; last the board, unless its settings can't be read."""
    try:
        board = Board(*load(path))
    except SettingsError as e:
        mend = "mend it; 'fleetgrad-edge join KIT' writes another, in a new folder"
        yield failed("settings", f"read {path}", str(e), mend)
        return
    config = board.config
    yield Finding("settings", f"read {path}", "ok", f"{config.device.id} of {config.federation.name}")
    own, owner = os.geteuid(), board.folder.stat().st_uid
    yield findings.user(own, owner, {uid: _name(uid) for uid in (own, owner)})
    yield _identity(board)
    floor = Floor(board.spool / CLOCK)
    if config.broker.certificate:
        yield _certificate(board, floor)
    yield findings.clock(time.time(), floor.time)
    samples, said = _data(board)
    yield said
    yield from _disk(board)
    yield from _spool(board)
    running = _locked(board.spool / "lock")
    yield findings.daemon(running, standing.read(board.spool))
    probe, said = _trainer()
    yield said
    manifest = _manifest(board)
    batch = board.head.policy.batch_size if board.head else manifest.optimizer.batch_size if manifest else 1
    batch = max(1, min(batch, samples or batch))
    yield findings.room(manifest, batch, config.device.max_rss_bytes(), probe.resident if probe else None, _available())
    yield board


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _identity(board: Board) -> Finding:
    federation, device, folder = board.config.federation, board.config.device, board.folder
    tried = f"read the keys in {folder}"
    try:
        key = load_private_key(folder / device.key)
        board.keys, board.client_id = [key.public], key.client_id(f"{device.id}-doctor")
        if (folder / NEXT_IDENTITY).exists():
            board.keys.append(load_private_key(folder / NEXT_IDENTITY).public)
        load_public_key(folder / federation.aggregator_key)
        if joined(folder) or (folder / federation.registrar_key).exists():
            board.registrar = load_public_key(folder / federation.registrar_key)
        board.root = beginning(federation, folder)
    except (ValueError, OSError) as e:
        return failed("identity", tried, fault(e), COPY)
    return Finding("identity", tried, "ok", f"key {key.public.kid}, root of trust {board.root.version}")


def _certificate(board: Board, floor: Floor) -> Finding:
    path = board.folder / (board.config.broker.certificate or "")
    try:
        found = load_certificate(path.read_text("ascii"), str(path))
    except (OSError, ValueError) as e:
        return failed("certificate", f"read {path}", fault(e), COPY)
    begins, ends = found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()
    floor.time = max(floor.time, begins)
    return findings.certificate(
        str(path), common_name(found), begins, ends, board.config.device.id, floor.time, time.time()
    )


def _data(board: Board) -> tuple[int, Finding]:
    data = board.config.data
    path = board.folder / data.path
    tried = f"count the samples in {path}"
    try:
        found = npz.count(path, data.x, data.y)
    except ValueError as e:
        return 0, failed("data", tried, str(e), "put the file there, or mend [data] in edge.toml")
    return found, Finding("data", tried, "ok", f"{found} samples")


def _disk(board: Board) -> Iterator[Finding]:
    spool = board.spool.resolve()
    if spool.exists() and not spool.is_dir():
        yield failed(
            "disk",
            f"look at the disk of {spool}",
            "it is no folder",
            "set spool in [device] of edge.toml to a folder",
        )
        return
    place = next(p for p in (spool, *spool.parents) if p.is_dir())
    disk = os.statvfs(place)
    free = disk.f_bavail * disk.f_frsize
    yield findings.place(str(spool), _file_system(place), free, parse_size(board.config.device.free_space))
    file, tried = place / f".doctor-{os.getpid()}", f"write, sync, read and remove a file in {place}"
    try:
        replace_file(file, b"whole")
        try:
            if file.read_bytes() != b"whole":
                raise OSError(errno.EIO, "what was read isn't what was written")
        finally:
            file.unlink()
    except OSError as e:
        yield failed(
            "writing", tried, e.strerror or str(e), "a disk that fails loses updates: see 'dmesg', try another"
        )
        return
    yield Finding("writing", tried, "ok", "done")


def _file_system(place: Path) -> str:
    """The kind of the file system that a folder lies on; empty where the system doesn't tell."""
    try:
        rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return ""
    kinds = {row[4].replace("\\040", " "): row[row.index("-") + 1] for row in rows}
    return next((kinds[str(p)] for p in (place, *place.parents) if str(p) in kinds), "")


def _spool(board: Board) -> Iterator[Finding]:
    """Reads the spool into the board; nothing of the root of trust is known without keys."""
    if board.root is None:
        return
    try:
        report = spool_report.read(board.config, board.folder, board.root)
        board.held = look(board.spool)
    except (StoreError, OSError) as e:
        said, tried = fault(e), f"read {board.spool}"
        new = isinstance(e, StoreError) and findings.FORBIDDEN not in said
        yield (
            Finding("spool", tried, "note", said, findings.START)
            if new
            else failed("spool", tried, said, findings.START)
        )
        return
    try:
        board.root = followed_root(board.held, board.root)
        board.head = held_head(board.held, board.root)
    except Untrusted as e:
        report.damaged["trust"] = str(e)
    yield findings.spool(report)


def _locked(path: Path) -> bool | None:
    """Whether a process holds the lock of that file; None where the system doesn't tell. Trying it would stop a daemon that just starts."""
    try:
        inode = path.stat().st_ino
        rows = Path("/proc/locks").read_text().splitlines()
    except FileNotFoundError as e:
        return None if e.filename == "/proc/locks" else False
    except OSError:
        return None
    return any("FLOCK" in row and f":{inode} " in row for row in rows)


def _trainer() -> tuple[_Probe | None, Finding]:
    tried = "start what a trainer starts with"
    remedy = "install it anew: pip install --force-reinstall fleetgrad onnxruntime"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fleetgrad.edge.doctor.probe"], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as e:
        return None, failed("trainer", tried, fault(e), remedy)
    except subprocess.TimeoutExpired:
        return None, failed(
            "trainer", tried, f"it hasn't started after {PROBE_SECONDS:g} s", "see what else this board does"
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        died = (
            f"it was killed by signal {-done.returncode}"
            if done.returncode < 0
            else f"it ended with code {done.returncode}"
        )
        return None, failed("trainer", tried, f"{died}: {last}"[:500], remedy)
    try:
        found = msgspec.json.decode(done.stdout, type=_Probe)
    except msgspec.MsgspecError as e:
        return None, failed("trainer", tried, f"it said what it shouldn't: {e}", remedy)
    said = f"onnxruntime {found.onnxruntime}; the C core runs {found.capability} of {', '.join(found.capabilities)}"
    return found, Finding("trainer", tried, "ok", said)


def _manifest(board: Board) -> Manifest | None:
    """Of the plan that is installed; None where there is none, or a damaged one, which the daemon fetches again."""
    if board.held is None:
        return None
    models = sorted(board.held.all(slots.INSTALLED, slots.Installed).values(), key=lambda slot: slot.number)
    try:
        return bundle.read_manifest(board.spool / OBJECTS / models[-1].plan.sha256) if models else None
    except PlanError:
        return None


def _available() -> int:
    """Bytes of memory that a process could still take: of this machine, and of the container that this may be."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    found = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)
    group = Path("/sys/fs/cgroup")
    try:
        return min(found, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no limit, or no control groups
        return found
