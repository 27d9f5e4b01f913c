"""edge.toml: a device's settings. Paths are relative to the file; unknown and ill-typed keys are refused by name."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from fleetgrad.edge.link.delivery import Limits
from fleetgrad.wire import release
from fleetgrad.wire.kit import SETTINGS, Data
from fleetgrad.wire.messages import Name
from fleetgrad.wire.mqtt import BrokerSettings, Endpoint
from fleetgrad.wire.mqtt.profiles import profile_for
from fleetgrad.wire.release import Root
from fleetgrad.wire.settings import MOST_SECONDS, SettingsError, load_toml
from fleetgrad.wire.signing import PrivateKey, Untrusted, load_private_key, load_public_key
from fleetgrad.wire.sizes import parse_size
from fleetgrad.wire.strict import Strict


class Device(Strict, frozen=True, kw_only=True):
    """`spool` is the folder for what must survive a restart: `spool_updates` and `spool_bytes`, as 64MB, of updates on their way.

    No training with less than `free_space` where it lies; over `written_a_day` bytes a log line says so. `threads` is onnxruntime's;
    `max_rss`, as 200MB, what the trainer may take.
    """

    id: Name
    key: str = "device.key"
    spool: str = "spool"
    threads: Annotated[int, Meta(ge=1, le=64)] = 1
    max_rss: str | None = None
    spool_updates: Annotated[int, Meta(ge=1, le=64)] = 3
    spool_bytes: str = "64MB"
    free_space: str = "100MB"
    written_a_day: str = "50MB"

    def __post_init__(self) -> None:
        sizes = {
            "max-rss": self.max_rss, "spool-bytes": self.spool_bytes, "free-space": self.free_space,
            "written-a-day": self.written_a_day,
        }  # fmt: skip
        for field, text in sizes.items():
            try:
                parse_size(text or "0")
            except ValueError as e:
                raise ValueError(f"field `{field}`: {e}") from e

    def limits(self) -> Limits:
        """Of the spool, as numbers."""
        return Limits(self.spool_updates, parse_size(self.spool_bytes))

    def max_rss_bytes(self) -> int | None:
        """`max_rss` as a number."""
        return None if self.max_rss is None else parse_size(self.max_rss)


class Federation(Strict, frozen=True, kw_only=True):
    """`root` is a JSON file with the root of trust to begin with (wire/release.py); without one it is the aggregator's key."""

    name: Name
    aggregator_key: str = "aggregator.pub"
    registrar_key: str = "registrar.pub"
    root: str | None = None


class Broker(BrokerSettings, frozen=True, kw_only=True):
    """`timeout`: seconds to wait for a broker that is down before giving up; 0 waits for ever."""

    timeout: Annotated[float, Meta(ge=0, le=MOST_SECONDS)] = 0.0


class EdgeConfig(Strict, frozen=True, kw_only=True):
    device: Device
    federation: Federation
    broker: Broker
    data: Data


def load(path: Path) -> tuple[EdgeConfig, Path]:
    """The settings and the folder that their paths are relative to; raises SettingsError."""
    settings, folder = load_toml(path, EdgeConfig), path.resolve().parent
    spool = (folder / settings.device.spool).resolve()
    if folder.is_relative_to(spool) or (folder / settings.data.path).resolve().is_relative_to(spool):
        raise SettingsError(
            f"settings file {path}: key 'device.spool': {spool} holds the settings or the data, and all that lies in a spool may be "
            "removed: give it a folder of its own"
        )
    return settings, folder


def beginning(federation: Federation, folder: Path) -> Root:
    """The root of trust that a device begins with: the one that its settings name, or the aggregator's key. Raises SettingsError, KeyRefused."""
    if federation.root is None:
        return release.implied(federation.name, load_public_key(folder / federation.aggregator_key))
    path = folder / federation.root
    try:
        return release.pinned(path.read_bytes(), federation.name)
    except OSError as e:
        raise SettingsError(f"root of trust {path}: {e.strerror}") from e
    except Untrusted as e:
        raise SettingsError(f"root of trust {path}: {e}") from e


def client_id(broker: Endpoint, device: str, key: PrivateKey) -> str:
    """What a device connects by: an id that nobody can guess, but where the broker wants the device's name."""
    return device if profile_for(broker.profile, broker.address).named else key.client_id(device)


def rehearse(folder: Path) -> None:
    """Reads what a daemon reads when it starts, but for its data; raises ValueError where it couldn't start."""
    settings, folder = load(folder / SETTINGS)
    load_private_key(folder / settings.device.key)
    load_public_key(folder / settings.federation.aggregator_key)
    load_public_key(folder / settings.federation.registrar_key)
    beginning(settings.federation, folder)
    settings.broker.endpoint(folder)
