"""Who belongs to a federation: the registrar's signed statements, roster/NAME.jws, one a device. They are read again when they
change, and put there by `fleetgrad device` or, from the broker, by the aggregator itself: so devices come and go while it runs.
"""

import time
from pathlib import Path

from fleetgrad.wire.files import PosixFiles, put
from fleetgrad.wire.membership import Member, Revoked, verify_member
from fleetgrad.wire.signing import PublicKey, Untrusted
from fleetgrad.wire.topics import NAME

FOLDER = "roster"
SUFFIX = ".jws"
MAX_BYTES = 4096
SETTLED_NS = 1_000_000_000


class Roster:
    """The folder, with statements cached by modification time; `registrar` is whose statements are believed."""

    def __init__(self, directory: Path, registrar: PublicKey, federation: str) -> None:
        self._folder = directory / FOLDER
        self._files = PosixFiles(self._folder)
        self._registrar, self._federation = registrar, federation
        self._cache: dict[str, tuple[int, Member | None]] = {}
        self._names: tuple[int, list[str]] | None = None

    def member(self, device: str) -> Member | None:
        """The newest statement on a device; None where there is none that holds."""
        if not NAME.fullmatch(device):
            return None
        path = self._folder / f"{device}{SUFFIX}"
        try:
            changed = path.stat().st_mtime_ns
            held = self._cache.get(device)
            if held is None or held[0] != changed:
                held = self._cache[device] = (changed, self._newer(device, path.read_bytes()[: MAX_BYTES + 1]))
        except OSError:
            self._cache.pop(device, None)
            return None
        return held[1]

    def key(self, device: str) -> PublicKey | None:
        """The device's key, or None if it isn't a member; raises Revoked if it was one."""
        member = self.member(device)
        if member is None:
            return None
        if member.revoked:
            raise Revoked(member)
        return member.public()

    def take(self, device: str, raw: bytes) -> Member | None:
        """Keeps a statement from the broker; None if nothing new is said. Raises Untrusted, DiskError."""
        if len(raw) > MAX_BYTES:
            raise Untrusted(f"statement of {len(raw)} bytes, at most {MAX_BYTES}")
        said = verify_member(self._registrar, self._federation, raw, device)
        held = self.member(device)
        if held is not None and said.serial <= held.serial:
            return None
        put(self._files, f"{device}{SUFFIX}", raw)
        self._cache.pop(device, None)
        return said

    def names(self) -> list[str]:
        """Ids of the members, sorted; without the revoked ones. The folder is read again when it has changed."""
        try:
            changed = self._folder.stat().st_mtime_ns
        except OSError:
            return []
        if self._names is None or self._names[0] != changed:
            found = (self.member(p.stem) for p in self._folder.glob(f"*{SUFFIX}"))
            names = sorted(m.device for m in found if m is not None and not m.revoked)
            if (
                time.time_ns() - changed < SETTLED_NS
            ):  # what changes in the same tick of the disk's clock would be missed
                return names
            self._names = changed, names
        return self._names[1]

    def size(self) -> int:
        return len(self.names())

    def _newer(self, device: str, raw: bytes) -> Member | None:
        """What a file says; what was said later before holds against an older file put back."""
        held = self._cache.get(device, (0, None))[1]
        try:
            said = verify_member(self._registrar, self._federation, raw, device)
        except Untrusted:
            return held
        return said if held is None or said.serial >= held.serial else held
