"""Makes a federation's directory.

DIR/aggregator/federation.toml  settings            DIR/aggregator/keys/    its identity, its login, whom it believes
DIR/aggregator/model.onnx       the model           DIR/aggregator/roster/  NAME.jws, who belongs
DIR/aggregator/plan/            what devices train  DIR/broker/             certificate and configuration for mosquitto
DIR/registrar/                  the fleet's CA (broker/registrar/registrar.py), here or wherever it is to be
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec
import onnx

from fleetgrad.broker import settings as settings_file
from fleetgrad.broker.registrar import broker_files
from fleetgrad.broker.registrar import registrar as registrar_
from fleetgrad.broker.roster import FOLDER as ROSTER
from fleetgrad.broker.server import KEY, SEAL
from fleetgrad.broker.settings import Broker, Settings
from fleetgrad.edge.autodiff.compiling import compile_model
from fleetgrad.wire.address import parse
from fleetgrad.wire.choice import ALL, Choice
from fleetgrad.wire.files import aside, sync
from fleetgrad.wire.kit import Data, install
from fleetgrad.wire.mqtt import BrokerSettings
from fleetgrad.wire.plan import Activations, Manifest, Optimizer, Recompute
from fleetgrad.wire.seal import SealKey, save_seal_key
from fleetgrad.wire.signing import PrivateKey, save_private_key
from fleetgrad.wire.topics import check_name

BROKER, DEVICES, REGISTRAR = "broker", "devices", registrar_.FOLDER
MOST_PORT = 65535


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
    registrar: Path | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Makes a federation in a new or empty folder from an ONNX file; raises FoundingError, SettingsError and edge.autodiff's ModelError.

    `registrar` is where the registrar's folder is made if not in the federation's. `choice`, `batch_norm`, `activations`, `recompute`, `dims` and `notice` are the compiler's.
    """
    check_name(settings.name, "federation name")
    settings_file.check(settings)
    if parse(settings.broker.url).tls and parse(settings.broker.url).port == MOST_PORT:
        raise FoundingError(
            f"broker address {settings.broker.url!r}: boards enrol at the next port, so {MOST_PORT - 1} is the last"
        )
    if registrar and _overlap(directory.resolve(), registrar.resolve()):
        raise FoundingError(
            f"--registrar {registrar} and {directory}: one lies in the other, and the registrar gets a folder of its own "
            f"(without --registrar it is {directory / REGISTRAR})"
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FoundingError(f"{directory} exists and isn't an empty folder: a federation is made in a new one")
    if blocked := next((above for above in directory.parents if above.exists() and not above.is_dir()), None):
        raise FoundingError(f"can't make {directory}: {blocked} is no folder")
    if not model.is_file():
        raise FoundingError(f"model {model}: no such file")
    parent = directory.resolve().parent
    temporary = aside(directory.resolve())
    made: Path | None = None
    aggregator = temporary / settings_file.FOLDER
    settings = msgspec.structs.replace(
        settings,
        broker=msgspec.structs.replace(settings.broker, **_login(settings.broker, settings_file.CA, settings_file.TLS)),
    )
    t = settings.training
    optimizer = Optimizer(
        learning_rate=t.learning_rate, momentum=t.momentum, weight_decay=t.weight_decay, batch_size=t.batch_size
    )
    try:
        aggregator.mkdir(parents=True)
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
            output=aggregator / "plan",
            optimizer=optimizer,
        )
        onnx.save(onnx.load(model), aggregator / "model.onnx")  # with the weights that lie in other files
        for folder in ("keys", ROSTER):
            (aggregator / folder).mkdir(mode=0o700)
        key = PrivateKey.generate()
        save_private_key(key, aggregator / KEY)
        (aggregator / KEY).with_suffix(".pub").write_bytes(key.public.pem())
        save_seal_key(SealKey.generate(), aggregator / SEAL)
        settings_file.write(settings, aggregator)
        broker = temporary / BROKER
        broker.mkdir()
        made = temporary / REGISTRAR if registrar is None else _beside(registrar)
        _make_registrar(made, settings, key, directory, temporary, apart=registrar is not None)
        where = parse(settings.broker.url)
        broker_files.write("mosquitto", settings.name, broker, where, directory.resolve() / BROKER)
        apart = [made] if registrar else []
        for path in (path for folder in (temporary, *apart) for path in (folder, *folder.rglob("*"))):
            sync(path)  # what comes next gives keys to other machines: no power cut may leave half of them here
        if registrar is not None:
            made.rename(registrar)
        if directory.exists():
            directory.rmdir()
        temporary.rename(directory)
        for above in (parent, *(path.parent for path in apart)):
            sync(above)
    finally:
        for left in filter(None, (temporary, made)):
            shutil.rmtree(left, ignore_errors=True)
    return manifest


def _make_registrar(
    folder: Path, settings: Settings, key: PrivateKey, directory: Path, temporary: Path, *, apart: bool
) -> None:
    """Makes the registrar in `folder`, and what it gives the aggregator and the broker; `directory` is where these will be."""
    base = str(directory.resolve()) if apart else ".."
    where = parse(settings.broker.url)
    hosts = list(dict.fromkeys([where.host, "localhost", "127.0.0.1", "::1"]))
    own = msgspec.structs.replace(settings.broker, **_login(settings.broker, "ca.pem", "tls.pem"))
    plain = BrokerSettings(**{f: getattr(own, f) for f in BrokerSettings.__struct_fields__})
    made = registrar_.Settings(
        federation=settings.name, roster=f"{base}/{settings_file.FOLDER}/{ROSTER}", broker_files=f"{base}/{BROKER}",
        enrol_url=f"mqtts://{_bracketed(where.host)}:{where.port + 1}" if where.tls else settings.broker.url, broker=plain,
    )  # fmt: skip
    aggregator = temporary / settings_file.FOLDER
    registrar_.create(folder, made, key, hosts, temporary / BROKER, aggregator / settings_file.TLS)
    shutil.copyfile(folder / registrar_.PUBLIC, aggregator / settings_file.REGISTRAR_KEY)
    shutil.copyfile(folder / "ca.pem", aggregator / settings_file.CA)


def _login(broker: Broker, ca: str, tls: str) -> dict[str, str | None]:
    """Where the certificates lie that TLS needs; nothing without TLS."""
    secure = parse(broker.url).tls
    return {"ca": ca if secure else None, "certificate": tls if secure else None, "key": None}


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _beside(path: Path) -> Path:
    """A name in the folder that `path` will be in; raises FoundingError if `path` exists."""
    if path.exists():
        raise FoundingError(
            f"--registrar {path} exists: the registrar gets a folder of its own (remove it if a 'fleetgrad new' that was cut short left it)"
        )
    path.resolve().parent.mkdir(parents=True, exist_ok=True)
    return aside(path.resolve())


def enlist(directory: Path, name: str, data: Data | None = None) -> Path:
    """Adds a device and installs its kit on this machine, in DIR/devices/NAME; the folder. For demonstrations and tests."""
    folder = directory / DEVICES / name
    registrar_.Registrar(directory).add(name, data=data, hand=lambda kit: install(kit, folder))
    return folder
