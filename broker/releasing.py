"""The aggregator's part in the root of trust: the chain in DIR/roots, the keys in DIR/keys that sign heads, and the next root.

roots/1.json, 2.json, ...      each signed by the thresholds of the one before and of its own; none: the aggregator's key alone
keys/aggregator.key            signs commands always, and heads where the root lists it
keys/release-NAME.key          more keys for heads; those that lie elsewhere sign by `fleetgrad release cosign`
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fleetgrad.wire import release
from fleetgrad.wire.files import replace_file
from fleetgrad.wire.release import ROOTS, Role, Root
from fleetgrad.wire.signing import (
    PrivateKey,
    PublicKey,
    Untrusted,
    load_private_key,
    save_private_key,
)  # fmt: skip
from fleetgrad.wire.topics import check_name

KEYS, EXTRA = "keys", "release-"


class ReleaseError(ValueError):
    """A chain of roots that doesn't hold, or keys that don't make the next one; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Releasing:
    """What it takes to release: the keys at hand that sign heads, and the chain of roots as it is published, from version 1."""

    root: Root
    keys: tuple[PrivateKey, ...]
    roots: tuple[bytes, ...] = ()


def chain(directory: Path, federation: str, aggregator: PublicKey) -> tuple[Root, tuple[bytes, ...]]:
    """The last root and all signed ones, each followed from the one before; raises ReleaseError."""
    try:
        return release.chain(directory / ROOTS, release.implied(federation, aggregator))
    except Untrusted as e:
        raise ReleaseError(f"{e}; devices won't follow it either: restore it, or remove it and rotate again") from e


def load(directory: Path, federation: str, aggregator: PrivateKey) -> Releasing:
    """The chain, and the keys at hand that its last root lists; raises ReleaseError."""
    root, signed = chain(directory, federation, aggregator.public)
    found = [aggregator, *(load_private_key(p) for p in sorted((directory / KEYS).glob(f"{EXTRA}*.key")))]
    keys = tuple(key for key in found if key.public.raw.hex() in root.release.keys)
    return Releasing(root, keys, signed)


def make_key(path: Path, name: str) -> PublicKey:
    """A new key NAME.key and its public part NAME.pub in the folder `path`; raises KeyRefused if there is one, ReleaseError
    where there can be no folder.

    A key without its public part is one whose making was cut short: it is completed.
    """
    check_name(name, "key name")
    private, public = path / f"{name}.key", path / f"{name}.pub"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ReleaseError(f"folder {path} for a key can't be made: {e.strerror}") from e
    if public.exists() or not private.exists():
        save_private_key(PrivateKey.generate(), private)
    key = load_private_key(private).public
    replace_file(public, key.pem())
    return key


def rotate(
    directory: Path, federation: str, aggregator: PrivateKey, signers: Sequence[PrivateKey], *,
    root: Role | None = None, release_role: Role | None = None,
) -> Root:  # fmt: skip
    """Writes the next root, signed by `signers` and the aggregator; roles that aren't given stay. Raises ReleaseError."""
    last, _ = chain(directory, federation, aggregator.public)
    new = Root(
        federation=federation, version=last.version + 1, root=root or last.root, release=release_role or last.release
    )
    by_kid = {key.public.kid: key for key in (aggregator, *signers)}
    listed = {*last.root.keys, *new.root.keys}
    if others := [key.public.kid for key in signers if key.public.raw.hex() not in listed]:
        raise ReleaseError(
            f"key {', '.join(others)} signs no root: neither root {last.version} nor the next lists it with --root"
        )
    keys = [key for key in by_kid.values() if key.public.raw.hex() in listed]
    try:
        if not keys:
            raise Untrusted("none of the keys at hand is a root key")
        raw = release.sign_root(new, keys)
        release.succeed(last, raw)
    except Untrusted as e:
        raise ReleaseError(f"root {new.version} isn't signed by enough keys: {e} (give them with --sign-with)") from e
    if (new.root, new.release) == (last.root, last.release):
        raise ReleaseError(
            f"root {new.version} would name the same keys as root {last.version}: give --root or --release"
        )
    folder = directory / ROOTS
    folder.mkdir(exist_ok=True)
    replace_file(folder / f"{new.version}.json", raw)
    return new
