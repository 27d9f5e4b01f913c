"""Attacks on releases, from the list of The Update Framework: a device's verdict is python-tuf's on the same story in its terms.

here                        in TUF
root n                      root n
head: sequence, version     timestamp and snapshot of version `sequence`, which names targets of version `version`
params, plan                target files
`expires` went by           the timestamp has expired
"""

import base64
import datetime
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleetgrad.edge import events as ev
from fleetgrad.edge.participant import Participant
from fleetgrad.edge.reporting import Identity
from fleetgrad.wire import frames, release
from fleetgrad.wire.messages import HEAD, Head
from fleetgrad.wire.release import Role, Root
from fleetgrad.wire.signing import PrivateKey, Untrusted, sign_by
from tests.conftest import need
from tests.edge.one_device import AGGREGATOR, EXPIRES, KEY, PLAN, POLICY, TOPICS, Device, ref

need("tuf")
from securesystemslib import signer as signing  # noqa: E402
from tuf.api import metadata as tufs  # noqa: E402
from tuf.api.exceptions import EqualVersionNumberError, RepositoryError  # noqa: E402
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet  # noqa: E402
from tuf.ngclient.config import EnvelopeType  # noqa: E402

TUF: Any = tufs
SIGNING: Any = signing
SEEDS = {name: hashlib.sha256(name.encode()).digest() for name in ("a", "b", "c", "r1", "r2", "r3", "n1", "thief")}
OURS = {name: PrivateKey.from_seed(seed) for name, seed in SEEDS.items()}
THEIRS = {name: SIGNING.CryptoSigner(Ed25519PrivateKey.from_private_bytes(seed)) for name, seed in SEEDS.items()}
NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
LATER = NOW + datetime.timedelta(days=30)
MODELS = {v: f"params of version {v} ".encode() * 50 for v in (0, 1, 2, 3)}
Names = Sequence[str]


@dataclass(frozen=True)
class Both:
    """One thing in both languages; `theirs` are metadata files' bytes."""

    ours: bytes
    theirs: tuple[bytes, ...]


def root(
    version: int, keys: Names = ("a",), threshold: int = 1, release_keys: Names = ("r1",), release_threshold: int = 1,
    signers: Names | None = None,
) -> Both:  # fmt: skip
    signers = keys if signers is None else signers

    def role(names: Names, k: int) -> Role:
        return Role(threshold=k, keys=tuple(OURS[n].public.raw.hex() for n in names))

    ours = Root(
        federation="test", version=version, root=role(keys, threshold), release=role(release_keys, release_threshold)
    )
    signed = TUF.Root(version=version, expires=LATER, consistent_snapshot=False)
    for name, names, k in (
        ("root", keys, threshold),
        *((other, release_keys, release_threshold) for other in ("timestamp", "snapshot", "targets")),
    ):
        signed.roles[name] = TUF.Role([], k)
        for each in names:
            key = THEIRS[each].public_key
            signed.add_key(key, name)
    return Both(release.sign_root(ours, [OURS[n] for n in signers]), (metadata(signed, signers),))


def metadata(signed: Any, signers: Names) -> bytes:
    made = TUF.Metadata(signed)
    for name in signers:
        made.sign(THEIRS[name], append=True)
    return bytes(made.to_bytes())


def head(
    version: int, sequence: int, signers: Names = ("r1",), params: bytes | None = None, expired: bool = False
) -> Both:
    raw = params or MODELS.get(version, b"another")
    ours = Head(
        federation="test", version=version, plan=ref(PLAN), params=ref(raw), parent="0" * 64, policy=POLICY, seal="5e" * 32,
        boot=1, sequence=sequence, expires=EXPIRES,
    )  # fmt: skip
    ends = NOW - datetime.timedelta(days=1) if expired else LATER
    targets = TUF.Targets(version=version + 1, expires=LATER)  # theirs begin with 1
    targets.targets = {"params": TUF.TargetFile.from_data("params", raw, ["sha256"])}
    snapshot = TUF.Snapshot(version=sequence, expires=LATER)
    snapshot.meta["targets.json"] = TUF.MetaFile(version=version + 1)
    timestamp = TUF.Timestamp(version=sequence, expires=ends)
    timestamp.snapshot_meta = TUF.MetaFile(version=sequence)
    theirs = tuple(metadata(signed, signers) for signed in (timestamp, snapshot, targets))
    return Both(sign_by([OURS[n] for n in signers], HEAD, ours), theirs)


@dataclass
class Story:
    """What a client has, and what it is offered then."""

    first: Both
    offered: Both
    held: Both | None = None
    roots: list[Both] = field(default_factory=list)
    later: bool = False  # the offer comes when what is held has expired


def theirs(story: Story) -> bool:
    """Whether python-tuf's client takes what is offered, as its updater goes about it: what it holds and can't use any more is no fault."""
    try:
        trusted = TrustedMetadataSet(story.first.theirs[0], EnvelopeType.METADATA)
        for each in story.roots:
            trusted.update_root(each.theirs[0])
        if story.held:
            ignore(lambda: trusted.update_timestamp(story.held.theirs[0]))  # type: ignore[union-attr]
        try:
            trusted.update_timestamp(story.offered.theirs[0])
        except EqualVersionNumberError:
            return False
        if story.held:
            ignore(lambda: trusted.update_snapshot(story.held.theirs[1], trusted=True))  # type: ignore[union-attr]
        trusted.update_snapshot(story.offered.theirs[1])
        trusted.update_targets(story.offered.theirs[2])
    except RepositoryError:
        return False
    return True


def ignore(act: Callable[[], object]) -> None:
    try:
        act()
    except RepositoryError:
        return


def device(first: Both) -> Device:
    """A device with a pinned root."""
    made = Device()
    pinned = msgspec.json.decode(payload(first.ours), type=Root)
    made.participant = Participant(
        Identity("test", "dev-1", KEY, AGGREGATOR.public, 50, root=pinned), made.disk, made.store, random.Random(3)
    )
    made.handle(ev.Connected())
    return made


def payload(raw: bytes) -> bytes:
    text = json.loads(raw)["payload"] if raw.startswith(b"{") else raw.split(b".")[1].decode()
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def ours(story: Story) -> bool:
    """Whether a device takes what is offered for current, and would train on it."""
    client = device(story.first)
    if story.held:
        client.handle(ev.Message(TOPICS.head, story.held.ours))
        assert client.participant._head is not None
        client.objects(PLAN, *MODELS.values(), b"another")
    if story.later:
        client.now += EXPIRES + 1
    for each in story.roots:
        version = client.participant._model.trust.root.version
        client.handle(ev.Message(TOPICS.root(version + 1), each.ours))
        if client.participant._model.trust.root.version == version:
            return False
    client.handle(ev.Message(TOPICS.head, story.offered.ours))
    found = client.participant._head
    took = found == msgspec.json.decode(payload(story.offered.ours), type=Head)
    client.handle(ev.Tick())
    return took and client.participant.state != "stale"


TWO = {"release_keys": ("r1", "r2", "r3"), "release_threshold": 2}


def mixed() -> Both:
    """The payload of one release under the signature of another; theirs: one's timestamp with the other's snapshot."""
    old, new = head(3, 7), head(2, 6)
    header, _, signature = new.ours.split(b".")
    return Both(b".".join([header, old.ours.split(b".")[1], signature]), (new.theirs[0], *old.theirs[1:]))


def twice() -> Both:
    """One key's signature, twice."""
    made = head(2, 6, ("r1", "r1"))
    found = []
    for each in made.theirs:
        parsed = json.loads(each)
        parsed["signatures"] *= 2
        found.append(json.dumps(parsed).encode())
    return Both(made.ours, tuple(found))


STORIES: dict[str, tuple[bool, Callable[[], Story]]] = {
    "a release": (True, lambda: Story(root(1), head(2, 6), head(1, 5))),
    "a first release": (True, lambda: Story(root(1), head(2, 6))),
    "the same version, signed anew": (True, lambda: Story(root(1), head(1, 6), head(1, 5))),
    "arbitrary software": (False, lambda: Story(root(1), head(2, 6, ("thief",)), head(1, 5))),
    "arbitrary software at first": (False, lambda: Story(root(1), head(2, 6, ("thief",)))),
    "a stranger's signature beside": (True, lambda: Story(root(1), head(2, 6, ("thief", "r1")), head(1, 5))),
    "a root key that isn't a release key": (False, lambda: Story(root(1), head(2, 6, ("a",)), head(1, 5))),
    "two of three": (True, lambda: Story(root(1, **TWO), head(2, 6, ("r3", "r1")))),  # type: ignore[arg-type]
    "one stolen key of a threshold of two": (False, lambda: Story(root(1, **TWO), head(3, 99, ("r1",)))),  # type: ignore[arg-type]
    "one key and a stranger's": (False, lambda: Story(root(1, **TWO), head(2, 6, ("r1", "thief")))),  # type: ignore[arg-type]
    "one key twice": (False, lambda: Story(root(1, **TWO), twice())),  # type: ignore[arg-type]
    "a replay": (False, lambda: Story(root(1), head(1, 5), head(2, 6))),
    "a rollback under a new sequence": (False, lambda: Story(root(1), head(1, 7), head(2, 6))),
    "another release under the same sequence": (False, lambda: Story(root(1), head(2, 6), head(1, 6))),
    "mix and match": (False, lambda: Story(root(1), mixed(), head(1, 5))),
    "a freeze": (False, lambda: Story(root(1), head(1, 5, expired=True), head(1, 5), later=True)),
    "a root's rotation": (True, lambda: Story(root(1), head(2, 6, ("n1",)), head(1, 5), [root(2, release_keys=("n1",))])),
    "a root's own keys rotated": (
        True, lambda: Story(root(1), head(2, 6), head(1, 5), [root(2, ("b",), signers=("a", "b"))]),
    ),
    "a chain of rotations": (
        True, lambda: Story(root(1), head(2, 6), None, [root(2, ("b",), signers=("a", "b")), root(3, ("c",), signers=("b", "c"))]),
    ),
    "a key that was taken away": (False, lambda: Story(root(1), head(2, 6), head(1, 5), [root(2, release_keys=("n1",))])),
    "a root that only its new key signs": (False, lambda: Story(root(1), head(2, 6), None, [root(2, ("b",), signers=("b",))])),
    "a root that only the old key signs": (False, lambda: Story(root(1), head(2, 6), None, [root(2, ("b",), signers=("a",))])),
    "a skipped root": (False, lambda: Story(root(1), head(2, 6), None, [root(3)])),
    "a root once more": (False, lambda: Story(root(2), head(2, 6), None, [root(2)])),
    "a root by too few": (
        False, lambda: Story(root(1, ("a", "b"), 2), head(2, 6), None, [root(2, ("a", "b"), 2, signers=("a",))]),
    ),
    "recovery from a version counted out of reach": (
        True, lambda: Story(root(1), head(2, 7, ("n1",)), head(900_000, 900_000), [root(2, release_keys=("n1",))]),
    ),
    "no recovery without other keys": (False, lambda: Story(root(1), head(2, 7), head(900_000, 900_000), [root(2)])),
}  # fmt: skip


@pytest.mark.parametrize("name", STORIES)
def test_the_verdict_is_tufs(name: str) -> None:
    taken, story = STORIES[name]
    assert theirs(story()) == taken, "python-tuf"
    assert ours(story()) == taken, "the device"


@pytest.mark.parametrize("threshold", [0, -1, 3])
def test_a_threshold_that_no_signatures_or_never_enough_reach_is_refused(threshold: int) -> None:
    if threshold < 1:
        with pytest.raises(ValueError, match="threshold"):
            TUF.Role([THEIRS["a"].public_key.keyid], threshold)
    raw = payload(root(1, ("a", "b"), 2).ours).replace(b'"threshold":2', b'"threshold":%d' % threshold)
    with pytest.raises(Untrusted, match=r"threshold|>= 1"):
        release.pinned(raw, "test")


@pytest.mark.parametrize("change", ["longer", "shorter", "other", "endless"])
def test_a_model_of_other_bytes_is_no_ones_model(change: str) -> None:
    """Wrong hash, wrong length and endless data: theirs refuses the file, and the device goes on fetching."""
    whole = MODELS[1]
    bad = {"longer": whole + b"!", "shorter": whole[:-1], "other": b"!" + whole[1:], "endless": whole * 5000}[change]
    made = head(1, 5)
    target = TUF.TargetFile.from_data("params", whole, ["sha256"])
    with pytest.raises(RepositoryError):
        target.verify_length_and_hashes(bad)
    client = device(root(1))
    client.handle(ev.Message(TOPICS.head, made.ours))
    client.objects(PLAN)
    for header in (
        frames.object_header(len(bad), hashlib.sha256(whole).digest()),
        frames.object_header(len(whole), hashlib.sha256(whole).digest()),
    ):
        cut = frames.Header(**{**{f: getattr(header, f) for f in header.__slots__}, "total_len": len(bad)})
        for seq in range(min(2, frames.chunks_of(len(bad)))):
            client.handle(ev.Message(TOPICS.object(ref(whole).sha256, seq), frames.frame(cut, seq, bad[cut.span(seq)])))
    assert str(client.participant.state) == "fetching"
    assert not [n for n in client.disk.names("objects") if n == ref(whole).sha256]
    client.handle(ev.Connected())
    client.objects(whole)
    assert str(client.participant.state) == "idle", "the right one is still taken"


def test_what_no_head_names_is_not_stored() -> None:
    """Extraneous dependencies: an object more on the broker is nobody's."""
    client = device(root(1))
    client.handle(ev.Message(TOPICS.head, head(1, 5).ours))
    client.objects(PLAN, MODELS[1])
    assert str(client.participant.state) == "idle"
    before = client.disk.names("objects")
    extra = b"something else to install"
    header = frames.object_header(len(extra), hashlib.sha256(extra).digest())
    client.handle(ev.Message(TOPICS.object(ref(extra).sha256, 0), frames.frame(header, 0, extra)))
    assert client.disk.names("objects") == before
