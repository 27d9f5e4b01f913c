"""Who may release: the root of trust, and what a head must show to be accepted (after The Update Framework, theupdateframework.io).

    root n ---- names the keys and thresholds of ----> root, release
      | signed by the thresholds of root n and of root n + 1
    root n + 1                                 head: signed by the threshold of release, sequence and version never lower

A device begins with the root in its kit, or with root 0, which nobody signs: the aggregator's key alone, in both roles. It follows the
chain one version at a time. A head whose keys a new root has taken away is forgotten together with what it had seen of sequences and
versions, so that a stolen key can't have counted them beyond reach.

Expiry is a duration from when a head with a new sequence was heard: a board has no clock that could be trusted.
"""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from fleetgrad.wire.messages import HEAD, Head, Name, RawKey, Record
from fleetgrad.wire.signing import MAX_SIGNATURES, PrivateKey, PublicKey, Untrusted, sign_by, verify_by
from fleetgrad.wire.strict import MALFORMED, Strict

ROOT = "fl1-root"
ROOTS = "roots"  # the folder of the chain, in the aggregator's


class Role(Strict, frozen=True, kw_only=True):
    """At least `threshold` of `keys` must sign."""

    threshold: Annotated[int, Meta(ge=1, le=MAX_SIGNATURES)]
    keys: Annotated[tuple[RawKey, ...], Meta(min_length=1, max_length=MAX_SIGNATURES)]

    def __post_init__(self) -> None:
        if len(set(self.keys)) != len(self.keys) or self.threshold > len(self.keys):
            raise ValueError(
                f"threshold {self.threshold} of {len(set(self.keys))} different keys, {len(self.keys)} are listed"
            )

    def public(self) -> list[PublicKey]:
        return [PublicKey.from_hex(key) for key in self.keys]


class Root(Strict, frozen=True, kw_only=True):
    """Version `version` of who may release for a federation."""

    federation: Name
    version: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    root: Role
    release: Role


def implied(federation: str, aggregator: PublicKey) -> Root:
    """Root 0: the aggregator's key, alone."""
    alone = Role(threshold=1, keys=(aggregator.raw.hex(),))
    return Root(federation=federation, version=0, root=alone, release=alone)


def sign_root(root: Root, keys: list[PrivateKey]) -> bytes:
    """A root signed by all these keys."""
    return sign_by(keys, ROOT, root)


def pinned(raw: bytes, federation: str) -> Root:
    """The root in a device's folder, as JSON: it came with the kit, so nobody else vouches for it. Raises Untrusted."""
    try:
        root = msgspec.json.decode(raw, type=Root)
    except MALFORMED as e:
        raise Untrusted(f"root: {e}") from e
    if root.federation != federation:
        raise Untrusted(f"root of the federation {root.federation!r}, expected {federation!r}")
    return root


def succeed(root: Root, raw: bytes) -> Root:
    """The next root; raises Untrusted unless it is the very next version, signed by the thresholds of this one and of its own."""
    new = verify_by(root.root.public(), root.root.threshold, ROOT, raw, Root)
    if new.federation != root.federation:
        raise Untrusted(f"root of the federation {new.federation!r}, expected {root.federation!r}")
    if new.version != root.version + 1:
        raise Untrusted(f"root has version {new.version}, expected {root.version + 1}")
    return verify_by(new.root.public(), new.root.threshold, ROOT, raw, Root)


def chain(folder: Path, root: Root) -> tuple[Root, tuple[bytes, ...]]:
    """The last of the roots that follow `root` by files `folder`/N.json, and those as they are signed; raises Untrusted."""
    signed: list[bytes] = []
    while (path := folder / f"{root.version + 1}.json").exists():
        try:
            signed.append(path.read_bytes())
            root = succeed(root, signed[-1])
        except (OSError, Untrusted) as e:
            raise Untrusted(f"{path}: {e}") from e
    return root, tuple(signed)


def read_head(root: Root, raw: bytes) -> Head:
    """A head of the federation that its release role signed; raises Untrusted."""
    head = verify_by(root.release.public(), root.release.threshold, HEAD, raw, Head)
    if head.federation != root.federation:
        raise Untrusted(f"head of the federation {head.federation!r}")
    return head


def check_follows(head: Head, held: Head) -> None:
    """Raises Untrusted where `head` must not replace `held`: it is older, or goes back to a version without saying so."""
    if head.sequence < held.sequence:
        raise Untrusted(f"head has sequence {head.sequence}, {held.sequence} was seen")
    if head.sequence == held.sequence and head != held:
        raise Untrusted(f"two heads have the sequence {head.sequence}")
    if head.version < held.version and (head.withdrawn is None or head.withdrawn < held.version):
        raise Untrusted(f"head has version {head.version}, version {held.version} is held")


def check_descends(head: Head, held: Head, records: Sequence[str]) -> None:
    """Raises Untrusted unless `head` is of the version of `held`, or of one that came from it by these records of versions."""
    if head.version == held.version:
        if (head.params, head.parent) != (held.params, held.parent):
            raise Untrusted(f"two models are called version {head.version}")
        return
    if head.version < held.version:
        raise Untrusted(f"version {head.version} can't come from version {held.version}")
    by_hash = {sha256(text.encode()).hexdigest(): text for text in records}
    parent, above = head.parent, head.version
    while above > held.version:
        if (text := by_hash.get(parent)) is None:
            raise Untrusted(f"version {head.version} isn't shown to come from version {held.version}")
        try:
            record = msgspec.json.decode(text, type=Record)
        except MALFORMED as e:
            raise Untrusted(f"record of what version {above} comes from: {e}") from e
        if not held.version <= record.version < above:  # withdrawn versions leave gaps
            raise Untrusted(
                f"record of version {record.version} stands for what version {above} comes from, after version {held.version}"
            )
        parent, above = record.parent, record.version
    if (record.params, record.parent) != (held.params.sha256, held.parent):
        raise Untrusted(f"version {head.version} comes from another version {held.version}")
