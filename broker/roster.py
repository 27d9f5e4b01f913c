"""Who belongs to a federation: one public key a file, roster/NAME.pub, read again when it changes, so that devices can be
added while the aggregator runs."""

from pathlib import Path

from fleetgrad.wire.signing import KeyRefused, PublicKey, load_public_key
from fleetgrad.wire.topics import NAME

FOLDER = "roster"


class Roster:
    """The folder, with keys cached by modification time."""

    def __init__(self, directory: Path) -> None:
        self._folder = directory / FOLDER
        self._cache: dict[str, tuple[int, PublicKey]] = {}

    def key(self, device: str) -> PublicKey | None:
        """The device's key, or None if it isn't a member or its file can't be read as a key."""
        if not NAME.fullmatch(device):
            return None
        path = self._folder / f"{device}.pub"
        try:
            changed = path.stat().st_mtime_ns
            held = self._cache.get(device)
            if held is None or held[0] != changed:
                held = self._cache[device] = (changed, load_public_key(path))
        except (OSError, KeyRefused):
            return None
        return held[1]

    def names(self) -> list[str]:
        """Ids of the members, sorted."""
        return sorted(p.stem for p in self._folder.glob("*.pub")) if self._folder.is_dir() else []

    def size(self) -> int:
        return len(self.names())
