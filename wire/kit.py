"""A kit: all that makes a board a member of a federation, as one JSON file that an operator carries there.

It holds private keys: whoever reads it is the device. A kit without an identity (of a fleet, for boards flashed alike) holds
only what is public; such a board makes its own keys and enrols with a one-time code (wire/enrolment.py).

    edge.toml   device.key   tls.pem   ca.pem   aggregator.pub   registrar.pub   joined.json

Installing writes these files, whole or not at all. `joined.json` says which kit it was, and has a number that is drawn on
the board: two boards of one kit have two.
"""

import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fleetgrad.wire.address import AddressRefused, check_plain, parse
from fleetgrad.wire.certificates import CertificateError, common_name, load_certificate, pair
from fleetgrad.wire.files import PRIVATE, replace_file, sync
from fleetgrad.wire.membership import Nonce, Pem
from fleetgrad.wire.messages import Name
from fleetgrad.wire.release import pinned
from fleetgrad.wire.settings import toml_value
from fleetgrad.wire.signing import KeyRefused, Untrusted, parse_private_key, parse_public_key, save_private
from fleetgrad.wire.strict import MALFORMED, Strict

SUFFIX, JOINING = ".kit", ".joining"  # of a kit's file, and of a hidden folder beside a device's while it is made
MAX_BYTES = 256 * 1024
MAX_PATH, MAX_ARRAY_NAME = 4096, 256  # characters
MAX_SCALE = 1e30  # samples are fp32
PLAIN = r"^[^\x00-\x1f\x7f-\x9f]*\Z"  # text without control characters, which no terminal, log or TOML takes well
ArrayName = Annotated[str, Meta(min_length=1, max_length=MAX_ARRAY_NAME, pattern=PLAIN)]
SETTINGS, IDENTITY, TLS, CA = "edge.toml", "device.key", "tls.pem", "ca.pem"
AGGREGATOR, REGISTRAR, ROOT, JOINED = "aggregator.pub", "registrar.pub", "root.json", "joined.json"


class KitError(ValueError):
    """A kit that can't be read or installed; the message names the file and says what to do."""


class Data(Strict, frozen=True, kw_only=True):
    """The table [data] of edge.toml: an .npz file, the names of its arrays, a factor for the samples, and the shape of one sample."""

    path: Annotated[str, Meta(min_length=1, max_length=MAX_PATH, pattern=PLAIN)] = "data.npz"
    x: ArrayName = "x"
    y: ArrayName = "y"
    scale: Annotated[float, Meta(gt=0, le=MAX_SCALE)] = 1.0
    shape: Annotated[tuple[Annotated[int, Meta(ge=1, lt=2**31)], ...], Meta(min_length=1, max_length=8)] | None = None


class Kit(Strict, frozen=True, kw_only=True):
    """`identity` is the Ed25519 key, `certificate` and `key` are TLS's; all in PEM. `device` is empty in a fleet's kit."""

    format: Literal["fleetgrad-kit"] = "fleetgrad-kit"
    version: Literal[1] = 1
    federation: Name
    url: Annotated[str, Meta(max_length=1024)]
    insecure: bool = False
    data: Data = Data()
    device: Name | None = None
    nonce: Nonce | None = None
    identity: Pem | None = None
    certificate: Pem | None = None
    key: Pem | None = None
    ca: Pem | None = None
    aggregator: Pem | None = None
    registrar: Pem | None = None
    enrol_url: Annotated[str, Meta(max_length=1024)] | None = None
    root: Annotated[str, Meta(max_length=64 * 1024)] | None = None  # of trust, where it isn't the aggregator's key


class Joined(Strict, frozen=True, kw_only=True):
    """What a board remembers of its kit."""

    federation: Name
    device: Name
    nonce: Nonce
    instance: Nonce


def read(path: Path) -> Kit:
    """A kit's file; raises KitError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise KitError(f"kit {path}: {e.strerror}") from e
    if len(raw) > MAX_BYTES:
        raise KitError(f"kit {path}: more than {MAX_BYTES} bytes")
    try:
        return msgspec.json.decode(raw, type=Kit)
    except MALFORMED as e:
        raise KitError(f"kit {path} isn't one that this version reads: {e}") from e


def write(kit: Kit, path: Path) -> None:
    """Writes a kit that only its owner may read, whole or not at all; raises KitError if there is another one."""
    raw = msgspec.json.format(msgspec.json.encode(kit), indent=1)
    try:
        if not path.exists():
            replace_file(path, raw, PRIVATE)
        elif path.read_bytes() != raw:
            raise KitError(f"kit {path} exists: remove it if it was never used")
    except OSError as e:
        raise KitError(f"kit {path}: {e.strerror}") from e


def check_fleet(kit: Kit, where: str) -> None:
    """Raises KitError unless a board can use what every device of the fleet is told: addresses, keys, the root of trust."""
    try:
        for url in filter(None, (kit.url, kit.enrol_url)):
            check_plain(parse(url), kit.insecure)
        if kit.aggregator:
            parse_public_key(kit.aggregator.encode(), f"aggregator's key in {where}")
        if kit.registrar:
            parse_public_key(kit.registrar.encode(), f"registrar's key in {where}")
        if kit.ca:
            load_certificate(kit.ca, f"CA in {where}")
        if kit.root:
            pinned(kit.root.encode(), kit.federation)
    except (AddressRefused, Untrusted) as e:
        raise KitError(f"{where}: {e}") from e
    except (KeyRefused, CertificateError) as e:
        raise KitError(str(e)) from e


def check(kit: Kit, where: str) -> None:
    """Raises KitError unless a device's kit is whole: keys that load, a certificate of this device and of this key."""
    check_fleet(kit, where)
    if not (kit.device and kit.nonce and kit.identity and kit.aggregator and kit.registrar):
        raise KitError(f"{where} has no identity: it is a fleet's kit, a board enrols with it and --code")
    try:
        parse_private_key(kit.identity.encode(), f"identity in {where}")
        if kit.certificate or kit.key:
            pair(kit.certificate or "", kit.key or "", f"certificate in {where}")
            name = common_name(load_certificate(kit.certificate or "", where))
            if name != kit.device:
                raise KitError(f"certificate in {where} is for {name[:64]!r}, the kit for {kit.device!r}")
    except (KeyRefused, CertificateError) as e:
        raise KitError(str(e)) from e


def joined(folder: Path) -> Joined | None:
    """Which kit a board's folder was made from; None where it was none."""
    try:
        return msgspec.json.decode((folder / JOINED).read_bytes(), type=Joined)
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise KitError(f"{folder} can't be a device's folder: it is a file, or lies in one") from None
    except OSError as e:
        raise KitError(f"{folder / JOINED}: {e.strerror}") from e
    except MALFORMED as e:
        raise KitError(f"{folder / JOINED}: {e}") from e


def install(
    kit: Kit,
    folder: Path,
    where: str = "kit",
    draw: Callable[[int], str] = secrets.token_hex,
    rehearse: Callable[[Path], object] = lambda _: None,
) -> bool:
    """Makes `folder` the device's, all at once; False when it is already. Raises KitError.

    Other files that lie in the folder, as the data, stay there; another device's identity is never overwritten. `rehearse` gets a
    folder with the files to be, and raises ValueError where a daemon wouldn't start with them: then nothing is installed.
    """
    check(kit, where)
    held = joined(folder)
    if held is not None:
        if (held.federation, held.device, held.nonce) == (kit.federation, kit.device, kit.nonce):
            return False
        raise KitError(
            f"{folder} belongs to device {held.device!r} of {held.federation!r}: give another folder with --into, "
            f"or end its part with 'fleetgrad-edge leave --wipe --config {folder / SETTINGS}'"
        )
    files = _files(kit, draw)
    if taken := sorted(name for name in files if not _free(folder / name, files[name])):
        raise KitError(f"{folder} holds {', '.join(taken)} already: give another folder with --into")
    try:
        _install(files, folder, where, rehearse)
    except OSError as e:
        raise KitError(f"can't install into {folder}: {e.strerror}") from e
    return True


def _files(kit: Kit, draw: Callable[[int], str]) -> dict[str, str]:
    """What is written, `joined.json` last: without it a folder isn't a device's."""
    parts = {IDENTITY: kit.identity, AGGREGATOR: kit.aggregator, REGISTRAR: kit.registrar, CA: kit.ca, ROOT: kit.root}
    files = {name: text for name, text in parts.items() if text}
    if kit.certificate and kit.key:
        files[TLS] = pair(kit.certificate, kit.key, "kit")
    files[SETTINGS] = edge_settings(kit)
    mark = Joined(federation=kit.federation, device=kit.device or "", nonce=kit.nonce or "", instance=draw(16))
    return files | {JOINED: msgspec.json.encode(mark).decode() + "\n"}


def _free(path: Path, text: str) -> bool:
    """Whether nothing is lost when `text` is put there: an installation that was cut short is taken up again."""
    try:
        return path.read_text() == text
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False


def _install(files: dict[str, str], folder: Path, where: str, rehearse: Callable[[Path], object]) -> None:
    folder = folder.resolve()
    temporary = folder.parent / f".{folder.name}{JOINING}"
    shutil.rmtree(temporary, ignore_errors=True)  # of an installation that was cut short
    try:
        temporary.mkdir(mode=0o700, parents=True)
        for name, text in files.items():
            save_private(text.encode(), temporary / name)
        try:
            rehearse(temporary)
        except ValueError as e:
            raise KitError(f"{where} can't be used: {str(e).replace(str(temporary), str(folder))}") from e
        sync(temporary)
        if not folder.exists():
            temporary.rename(folder)
            sync(folder.parent)
            return
        for name in files:  # the folder has the user's files: ours go in one by one, the mark last
            (temporary / name).rename(folder / name)
        sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def edge_settings(kit: Kit) -> str:
    """The text of edge.toml."""

    lines = [
        "[device]",
        f"id = {toml_value(kit.device)}",
        f"key = {toml_value(IDENTITY)}",
        'spool = "spool"              # what must survive a restart; keep it on a disk, not in memory',
        "threads = 1",
        "",
        "[federation]",
        f"name = {toml_value(kit.federation)}",
        f"aggregator-key = {toml_value(AGGREGATOR)}",
        f"registrar-key = {toml_value(REGISTRAR)}",
        *([f"root = {toml_value(ROOT)}"] if kit.root else []),
        "",
        "[broker]",
        f"url = {toml_value(kit.url)}",
        f"insecure = {toml_value(kit.insecure)}",
    ]
    if kit.url.startswith(("mqtts:", "wss:")):
        lines += [f"ca = {toml_value(CA)}"] if kit.ca else []
        lines += [f"certificate = {toml_value(TLS)}       # and its key, in one file"] if kit.certificate else []
    lines += [
        "timeout = 0                  # seconds to wait for a broker that is down; 0 waits for ever",
        "",
        "[data]                       # never leaves the device",
        f"path = {toml_value(kit.data.path)}",
        f"x = {toml_value(kit.data.x)}",
        f"y = {toml_value(kit.data.y)}",
        f"scale = {toml_value(float(kit.data.scale))}",
        *([f"shape = {toml_value(list(kit.data.shape))}"] if kit.data.shape else []),
    ]
    return "\n".join(lines) + "\n"
