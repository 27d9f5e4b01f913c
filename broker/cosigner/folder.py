"""Writes a co-signer's folder, from the aggregator's."""

import shutil
from pathlib import Path

import msgspec

from fleetgrad.broker import releasing
from fleetgrad.broker import settings as settings_file
from fleetgrad.broker.cosigner.server import FILE, Federation
from fleetgrad.broker.releasing import ReleaseError
from fleetgrad.broker.server import KEY
from fleetgrad.wire.address import parse
from fleetgrad.wire.files import aside
from fleetgrad.wire.mqtt import BrokerSettings
from fleetgrad.wire.release import Root
from fleetgrad.wire.settings import toml_lines
from fleetgrad.wire.signing import load_private_key

CA, TLS = "ca.pem", "tls.pem"


def export(directory: Path, folder: Path) -> Root:
    """Writes the new folder, whole or not at all; the root of trust in it. Raises ReleaseError, SettingsError."""
    if folder.exists():
        raise ReleaseError(f"can't write the co-signer's folder {folder}: it exists, and is made new")
    home = settings_file.home(directory)
    settings = settings_file.load(home)
    aggregator = load_private_key(home / KEY).public
    root, _ = releasing.chain(home, settings.name, aggregator)
    secure = parse(settings.broker.url).tls
    broker = BrokerSettings(
        url=settings.broker.url, insecure=settings.broker.insecure, profile=settings.broker.profile,
        ca=CA if secure else None, certificate=TLS if secure else None,
    )  # fmt: skip
    federation = Federation(name=settings.name)
    lines = ["[federation]", *toml_lines(federation), "", "[broker]", *toml_lines(broker)]
    temporary = aside(folder)
    try:
        temporary.mkdir()
        (temporary / FILE).write_text("\n".join(lines) + "\n")
        (temporary / federation.aggregator_key).write_bytes(aggregator.pem())
        (temporary / federation.root).write_bytes(msgspec.json.encode(root))
        if secure and settings.broker.ca:
            shutil.copyfile(home / settings.broker.ca, temporary / CA)
        temporary.rename(folder)
    except OSError as e:
        raise ReleaseError(f"can't write the co-signer's folder {folder}: {e.strerror}") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root
