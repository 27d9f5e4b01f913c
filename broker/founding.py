"""Makes a federation's directory, and adds devices to it.

DIR/federation.toml   settings            DIR/keys/        the aggregator's identity
DIR/model.onnx        the model           DIR/roster/      NAME.pub, one public key a member
DIR/plan/             what devices train  DIR/devices/     NAME/, what to copy to the board
"""

import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec
import onnx

from fleetgrad.broker import settings as settings_file
from fleetgrad.broker.roster import FOLDER as ROSTER
from fleetgrad.broker.server import KEY, SEAL
from fleetgrad.broker.settings import Settings
from fleetgrad.edge.autodiff.compiling import compile_model
from fleetgrad.wire.choice import ALL, Choice
from fleetgrad.wire.plan import Activations, Manifest, Optimizer, Recompute
from fleetgrad.wire.seal import SealKey, save_seal_key
from fleetgrad.wire.signing import PrivateKey, load_private_key, save_private_key
from fleetgrad.wire.topics import check_name

DEVICES = "devices"


class FoundingError(ValueError):
    """A federation or device that can't be made; nothing was left behind."""


def create(
    directory: Path,
    model: Path,
    settings: Settings,
    *,
    choice: Choice = ALL,
    batch_norm: Literal["shared", "frozen"] = "shared",
    activations: Activations = "int8",
    recompute: Recompute = "none",
    dims: Mapping[str, int] | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Makes a federation in a new or empty folder from an ONNX file; raises FoundingError, SettingsError and edge.autodiff's ModelError.

    `choice`, `batch_norm`, `activations`, `recompute`, `dims` and `notice` are the compiler's.
    """
    settings_file.check(settings)
    check_name(settings.name, "federation name")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FoundingError(f"{directory} exists and isn't an empty folder: a federation is made in a new one")
    if not model.is_file():
        raise FoundingError(f"model {model}: no such file")
    parent = directory.resolve().parent
    temporary = parent / f".{directory.name}.{os.getpid()}.tmp"
    t = settings.training
    optimizer = Optimizer(
        learning_rate=t.learning_rate, momentum=t.momentum, weight_decay=t.weight_decay, batch_size=t.batch_size
    )
    try:
        temporary.mkdir(parents=True)
        manifest = compile_model(
            model,
            loss=settings.loss,
            loss_options=settings.loss_options,
            gradients=settings.gradients,
            batch_norm=batch_norm,  # with statistics that stay on devices, the published model would predict with the first ones
            activations=activations,
            recompute=recompute,
            choice=choice,
            dims=dims,
            notice=notice,
            output=temporary / "plan",
            optimizer=optimizer,
        )
        onnx.save(onnx.load(model), temporary / "model.onnx")  # with the weights that lie in other files
        for folder in ("keys", ROSTER, DEVICES):
            (temporary / folder).mkdir(mode=0o700 if folder == "keys" else 0o755)
        key = PrivateKey.generate()
        save_private_key(key, temporary / KEY)
        (temporary / KEY).with_suffix(".pub").write_bytes(key.public.pem())
        save_seal_key(SealKey.generate(), temporary / SEAL)
        settings_file.write(settings, temporary)
        if directory.exists():
            directory.rmdir()
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def add_device(
    directory: Path,
    name: str,
    *,
    data: str = "data.npz",
    x: str = "x",
    y: str = "y",
    scale: float = 1.0,
    shape: tuple[int, ...] | None = None,
    broker: str | None = None,
) -> Path:
    """Makes a device's folder (edge.toml, device.key, aggregator.pub) and lists its key in the roster; the folder.

    `data` is the .npz file's path as the device sees it, relative to its edge.toml; `broker` overrides the federation's.
    """
    check_name(name, "device id")
    if not 0 < scale < math.inf:
        raise FoundingError(f"--scale {scale:g}: samples are multiplied by it, so it must be above 0 and finite")
    settings = settings_file.load(directory)
    folder, member = directory / DEVICES / name, directory / ROSTER / f"{name}.pub"
    if member.exists() or folder.exists():
        raise FoundingError(f"device {name!r} is in the roster of {directory} already")
    aggregator = load_private_key(directory / KEY).public
    key = PrivateKey.generate()
    folder.mkdir(parents=True)
    save_private_key(key, folder / "device.key")
    (folder / "aggregator.pub").write_bytes(aggregator.pem())

    def text(value: object) -> str:
        return msgspec.json.encode(value).decode()

    lines = [
        "[device]",
        f'id = "{name}"',
        'key = "device.key"',
        'spool = "spool"              # what must survive a restart; keep it on a disk, not in memory',
        "threads = 1",
        "",
        "[federation]",
        f'name = "{settings.name}"',
        'aggregator-key = "aggregator.pub"',
        "",
        "[broker]",
        f"url = {text(broker or settings.broker.url)}",
        f"insecure = {text(settings.broker.insecure)}",
        "timeout = 0                  # seconds to wait for a broker that is down; 0 waits for ever",
        "",
        "[data]                       # never leaves the device",
        f"path = {text(data)}",
        f"x = {text(x)}",
        f"y = {text(y)}",
        f"scale = {text(float(scale))}",
        *([f"shape = {text(list(shape))}"] if shape else []),
    ]
    (folder / "edge.toml").write_text("\n".join(lines) + "\n")
    temporary = member.with_suffix(".tmp")
    temporary.write_bytes(key.public.pem())
    temporary.rename(member)
    return folder
