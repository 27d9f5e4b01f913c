"""The demo's federation: its directory, and real data split over its devices, each device's share beside its edge.toml."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from fleetgrad.broker import founding
from fleetgrad.broker.registrar.registrar import forget_authority
from fleetgrad.broker.settings import FOLDER, Broker, Data, Round, Settings
from fleetgrad.edge.autodiff import zoo
from fleetgrad.edge.data import npz, split
from fleetgrad.edge.data.dataset import fit
from fleetgrad.wire import address, kit
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.loss import LossName, LossOptions
from fleetgrad.wire.messages import Training
from fleetgrad.wire.plan import Gradients, Manifest

HELD_OUT = 0.2
FEDERATION = "federation"

Held = tuple[NDArray[np.generic], NDArray[np.generic]]  # samples and targets that no device has


class DemoError(ValueError):
    """A demo that can't start with these options; the message says which one."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of the demo; see `fleetgrad demo --help`."""

    directory: Path
    devices: int = 8
    rounds: int = 15
    alpha: float = 0.5
    seed: int = 0
    codec: CodecSpec = field(default_factory=lambda: CodecSpec(name="blk8"))
    gradients: Gradients = "int8"
    loss: LossName = "cross-entropy"
    loss_options: LossOptions = field(default_factory=LossOptions)
    broker: str = "auto"
    insecure: bool = False
    only_set_up: bool = False
    model: Path | None = None
    data: Path | None = None
    x: str = "x"
    y: str = "y"
    scale: float | None = None
    shape: tuple[int, ...] | None = None
    training: Training = field(default_factory=Training)


def set_up(
    options: Options, where: address.Address, name: str = "demo"
) -> tuple[Manifest, NDArray[np.generic], NDArray[np.generic]]:
    """Makes the federation, splits the data over its devices; returns what was held out."""
    root = options.directory
    data = evaluation_data(options)
    model = options.model
    if model is None:
        model = root / "digits-cnn.onnx"
        onnx.save(zoo.digits_cnn(options.seed), str(model))
    settings = Settings(
        name=name,
        loss=options.loss,
        loss_options=options.loss_options,
        gradients=options.gradients,
        broker=Broker(url=str(where), insecure=options.insecure),
        training=options.training,
        codec=options.codec,
        round=Round(rounds=options.rounds),
        data=data,
    )
    federation = root / FEDERATION
    manifest = founding.create(federation, model, settings)
    if options.data is None:
        x, y = _digits()
        held_x: NDArray[np.generic] | None = None
        held_y: NDArray[np.generic] | None = None
    else:
        x, y = npz.read_arrays(options.data, options.x, options.y)
        held_x, held_y = _test_arrays(options)
    fit(str(options.data or "digits"), x, y, manifest, scale=data.scale, shape=data.shape)
    labels = y if options.loss == "cross-entropy" and y.ndim == 1 else np.zeros(len(y), np.int64)
    kept = np.arange(len(y))
    if held_x is None or held_y is None:
        kept, held = split.held_out(labels, HELD_OUT, options.seed)
        held_x, held_y = x[held], y[held]
    parts = split.dirichlet(labels[kept], options.devices, options.alpha, options.seed)
    np.savez(federation / FOLDER / data.path, x=held_x, y=held_y)
    width = len(str(options.devices))
    for number, part in enumerate(parts, 1):
        samples = kit.Data(scale=data.scale, shape=data.shape)
        folder = founding.enlist(federation, f"dev-{number:0{width}}", samples)
        np.savez(folder / "data.npz", x=x[kept[part]], y=y[kept[part]])
    forget_authority(federation)
    return manifest, held_x, held_y


def evaluation_data(options: Options) -> Data:
    """How samples are to be read; the digits are 8 x 8 pixels of 0 to 16."""
    if options.data is None:
        return Data(path="eval.npz", scale=options.scale or 1 / 16, shape=(1, 8, 8))
    return Data(path="eval.npz", scale=options.scale or 1.0, shape=options.shape)


def _test_arrays(options: Options) -> tuple[NDArray[np.generic] | None, NDArray[np.generic] | None]:
    """Held-out arrays where the data file has them: x_test beside x_train, or beside x; else nothing."""
    if options.data is None:
        return None, None
    names = [n.removesuffix("train") + "test" if n.endswith("train") else f"{n}_test" for n in (options.x, options.y)]
    try:
        x, y = npz.read_arrays(options.data, *names)
    except ValueError:
        return None, None
    return x, y


def _digits() -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise DemoError(f"the demo's own data needs the extra 'demo': pip install 'fleetgrad[demo]' ({e})") from e
    found = load_digits()
    return found.images.astype(np.uint8), found.target.astype(np.uint8)
