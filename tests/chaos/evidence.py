"""What a federation of real processes leaves behind: its journal, its logs, its spools, and what was collected while it ran.

Payloads and params are gone from the aggregator's folder soon: a thread keeps hard links of them, so that sums can be made again.
"""

import hashlib
import os
import re
import shlex
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fleetgrad.broker import settings
from fleetgrad.broker.journal import Attempt, Memory, SqliteJournal, Version
from fleetgrad.broker.registry import objects
from fleetgrad.broker.server import JOURNAL, SEAL
from fleetgrad.edge.link import outbox, store
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.wire import frames, seeds
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.files import TEMPORARY
from fleetgrad.wire.seal import load_seal_key
from fleetgrad.wire.topics import name_hash
from tests import invariants
from tests.invariants import Violation
from tests.simulation.training import Made

COLLECT_SECONDS = 0.02
SPOOL_BYTES = 64 << 20  # what a device keeps at most


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a log."""

    event: str
    fields: dict[str, str]

    def number(self, name: str) -> int:
        return int(self.fields[name])


def lines(path: Path) -> Iterator[Line]:
    """The lines that are events; a process that was killed may leave half of one."""
    for raw in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        if not re.match(r"[a-z_]+( [a-z_]+=|$)", raw):
            continue
        try:
            first, *rest = shlex.split(raw)
        except ValueError:
            continue
        yield Line(first, dict(part.split("=", 1) for part in rest if "=" in part))


class Collector:
    """Keeps what appears in some folders."""

    def __init__(self, folders: list[Path], into: Path) -> None:
        self._folders, self._into = folders, into
        into.mkdir(parents=True, exist_ok=True)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(COLLECT_SECONDS):
            self._look()

    def _look(self) -> None:
        for folder in self._folders:
            try:
                entries = list(os.scandir(folder))
            except FileNotFoundError:
                continue
            for entry in entries:
                kept = self._into / f"{folder.name}-{entry.name}"
                if entry.name.endswith(TEMPORARY) or (kept.exists() and kept.stat().st_ino == entry.inode()):
                    continue
                kept.unlink(missing_ok=True)  # an upload that was begun anew is another file
                try:
                    os.link(entry.path, kept)
                except (FileNotFoundError, FileExistsError):
                    continue

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._look()


@dataclass
class Evidence:
    """Read when every process has ended."""

    directory: Path  # the aggregator's
    spools: dict[str, Path]  # of devices
    logs: Path
    collected: Path
    revoked: dict[str, int] = field(default_factory=dict)  # devices, each with the last round that may have counted it
    summed: dict[int, str] = field(
        default_factory=dict
    )  # versions whose params could be made again, with those that they follow
    memory: Memory = field(init=False)

    def __post_init__(self) -> None:
        self.settings = settings.load(self.directory)
        journal = SqliteJournal(self.directory / JOURNAL)
        self.memory = journal.load()
        journal.close()

    @property
    def versions(self) -> list[Version]:
        """All of them, the withdrawn ones too."""
        return [*self.memory.versions, *self.memory.withdrawn]

    def check(self) -> None:
        """I1 to I9 and I14; raises Violation."""
        memory = self.memory
        invariants.check_chain(memory.versions, memory.withdrawn)
        invariants.check_attempts(memory.attempts)
        invariants.check_counted_once(memory.contributions)
        made = invariants.by_round(self.versions)
        for attempt in memory.attempts.values():
            if attempt.state == "published":
                counted = invariants.members(memory.contributions, attempt.round, attempt.attempt)
                invariants.check_members(made[attempt.round], counted)
        for c in memory.contributions.values():
            if c.round > self.revoked.get(c.device, c.round):
                raise Violation(f"I14: round {c.round} counts {c.device}, which was revoked before")
        self._check_objects()
        self._check_sums()
        self._check_published_once()
        self._check_words()
        for device, spool in self.spools.items():
            self._check_device(device, spool)

    def _check_objects(self) -> None:
        for path in (self.directory / objects.FOLDER).iterdir():
            if not path.name.endswith(TEMPORARY):
                invariants.check_whole(f"object {path.name[:16]}", path.read_bytes(), path.name)
        current = self.memory.versions[-1]
        path = self.directory / objects.FOLDER / current.params
        invariants.check_whole("the current version", path.read_bytes() if path.exists() else None, current.params)
        if torn := [p.name for p in self.collected.iterdir() if p.name.startswith("objects-") and not _is(p)]:
            raise Violation(f"I6: objects were in place under their name before they were whole: {torn}")

    def _check_sums(self) -> None:
        layout = VectorLayout.of(open_plan(self.directory / "plan").manifest)
        key = load_seal_key(self.directory / SEAL)
        numbered, made = {v.number: v for v in self.versions}, invariants.by_round(self.versions)
        for attempt in self.memory.attempts.values():
            if attempt.state != "published":
                continue
            old, new = numbered[attempt.version], made[attempt.round]
            params = [self.collected / f"objects-{v.params}" for v in (old, new)]
            counted = invariants.members(self.memory.contributions, attempt.round, attempt.attempt)
            payloads = [(c.device, self.collected / f"spool-{c.round}-{c.attempt}-{c.device}.update") for c in counted]
            if not all(path.exists() for path in [*params, *(path for _, path in payloads)]):
                continue
            whole = [path.read_bytes() for _, path in payloads]
            sealed = [raw[frames.HEADER_BYTES :][: c.size] for raw, c in zip(whole, counted, strict=True)]
            updates = [
                Made(
                    raw, key.open(raw, self._sealed_with(attempt, device, old.params)), self.settings.codec,
                    seeds.codec_keys(self.settings.name, device, attempt.round, attempt.attempt), layout,
                    np.zeros(0, np.float32),
                )
                for (device, _), raw in zip(payloads, sealed, strict=True)
            ]  # fmt: skip
            invariants.check_sum(new.number, params[0].read_bytes(), params[1].read_bytes(), updates)
            self.summed[new.number] = old.params

    def _sealed_with(self, attempt: Attempt, device: str, params: str) -> bytes:
        ids = name_hash(self.settings.name), attempt.round, attempt.attempt, name_hash(device)
        return frames.sealed_with(*ids, bytes.fromhex(params), bytes.fromhex(attempt.config))

    def _check_published_once(self) -> None:
        """I4, as the log says: what was published is not published again as something else."""
        seen: dict[int, int] = {}
        for line in lines(self.logs / "aggregator.log"):
            if line.event == "version_published":
                version, round_ = line.number("version"), line.number("round")
                if seen.setdefault(version, round_) != round_:
                    raise Violation(
                        f"I4: version {version} was published as that of rounds {seen[version]} and {round_}"
                    )
        if seen and max(seen) > self.memory.highest:
            raise Violation(f"I4: version {max(seen)} was published, the journal ends with {self.memory.highest}")

    def _check_words(self) -> None:
        """Nothing that happened was unforeseen."""
        for path in sorted(self.logs.glob("*.log")):
            text = path.read_text(errors="replace")
            if "Traceback" in text:
                raise Violation(f"{path.name}: {text[text.index('Traceback') :][:2000]}")

    def _check_device(self, device: str, spool: Path) -> None:
        trained, stored = (0, 0), (0, 0)
        accepted: set[int] = set()
        ended: set[tuple[int, int]] = set()
        versions: list[int] = []
        for line in lines(self.logs / f"{device}.log"):
            match line.event:
                case "training":
                    trained = line.number("round"), line.number("attempt")
                    versions.append(line.number("version"))
                    if trained[0] > self.revoked.get(device, trained[0]):
                        raise Violation(f"I14: {device} was asked in round {trained[0]}, and had been revoked before")
                case "update_stored":
                    stored = trained
                case "receipt":
                    ended.add(stored)
                    if line.fields["verdict"] == "accepted":
                        accepted.add(line.number("round"))
                case "model_installed":
                    versions.append(line.number("version"))
                case "update_quarantined" | "memory_quarantined":
                    raise Violation(f"I6: {device} opened what wasn't whole: {line.fields}")
        invariants.check_forward(device, versions, {v.number for v in self.memory.withdrawn})
        counted = {(c.round, c.attempt) for c in self.memory.contributions.values() if c.device == device}
        for round_ in sorted(accepted):
            if not any(r == round_ for r, _ in counted):
                raise Violation(f"I2: {device}'s acknowledged update of round {round_} isn't counted")
        if stored != (0, 0):
            if stored not in self.memory.attempts:
                raise Violation(f"I7: {device} trained for {stored}, the journal knows no such attempt")
            invariants.check_kept(device, stored, spooled(spool), counted | ended, self.memory.attempts)
        used = sum(p.stat().st_size for p in spool.rglob("*") if p.is_file())
        invariants.check_within(f"bytes in the spool of {device}", used, SPOOL_BYTES)


def spooled(spool: Path) -> set[tuple[int, int]]:
    """(round, attempt) of the updates that a device's spool holds."""
    records = store.look(spool).all(outbox.UPDATE, outbox.Record)
    return {(record.round, record.attempt) for record in records.values()}


def _is(path: Path) -> bool:
    return hashlib.sha256(path.read_bytes()).hexdigest() == path.name.removeprefix("objects-")
