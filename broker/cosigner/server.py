"""`fleetgrad release cosign`: a co-signer's process. Its folder holds what `fleetgrad release export` has written, and what it has signed.

cosign.toml  aggregator.pub  root.json  ca.pem     the federation, its broker, whom this co-signer believes
tls.pem                                            its login at the broker
signed-KID.json                                    the last head that the key KID has signed or heard, and the root
"""

import os
from functools import partial
from pathlib import Path

from fleetgrad.broker.cosigner.machine import Cosigner, State, StateError, read_state
from fleetgrad.wire import release
from fleetgrad.wire.events import Connected, Disconnected, Log, Message, Publish, Subscribe, Tick
from fleetgrad.wire.files import PosixFiles, lock, put
from fleetgrad.wire.log import Sparing, log
from fleetgrad.wire.loop import Loop, Stop
from fleetgrad.wire.messages import Name
from fleetgrad.wire.mqtt import BrokerSettings
from fleetgrad.wire.settings import SettingsError, load_toml
from fleetgrad.wire.signing import Untrusted, load_private_key, load_public_key
from fleetgrad.wire.strict import Strict

FILE, KEY = "cosign.toml", "release.key"


class Federation(Strict, frozen=True, kw_only=True):
    """Files with the aggregator's public key and the root of trust to begin with."""

    name: Name
    aggregator_key: str = "aggregator.pub"
    root: str = "root.json"


class Settings(Strict, frozen=True, kw_only=True):
    """cosign.toml; paths are relative to it."""

    federation: Federation
    broker: BrokerSettings


class Server:
    """One key's connection."""

    def __init__(self, folder: Path, key_file: Path | None, *, allowed: bool, insecure: bool, timeout: float) -> None:
        if not (folder / FILE).is_file():
            raise SettingsError(
                f"co-signer {folder}: no {FILE} is there; the folder is made by 'fleetgrad release export DIR -o FOLDER', on the aggregator's machine"
            )
        settings = load_toml(folder / FILE, Settings)
        federation = settings.federation
        key = load_private_key(key_file or folder / KEY)
        root = folder / federation.root
        try:
            pinned = release.pinned(root.read_bytes(), federation.name)
        except (OSError, Untrusted) as e:
            raise SettingsError(f"root of trust {root}: {e}") from e
        name = f"signed-{key.public.kid}"
        try:
            self._lock = lock(folder / f"{name}.lock")
        except BlockingIOError:
            raise SettingsError(
                f"co-signer {folder}: another 'fleetgrad release cosign' has this key's memory"
            ) from None
        files = PosixFiles(folder)
        self._machine = Cosigner(
            key,
            load_public_key(folder / federation.aggregator_key),
            pinned,
            _remembered(files, f"{name}.json", federation.name),
            partial(put, files, f"{name}.json"),
            allowed=allowed,
        )
        broker = settings.broker.endpoint(folder, insecure=insecure)
        self._address, self._kid = broker.address, key.public.kid
        self._loop = Loop(broker, key.client_id(f"cosigner-{federation.name}"), timeout, log)
        self._sparing = Sparing()

    def run(self) -> int:
        """Signs until stopped; the exit code."""
        held = self._machine.held
        log(
            "cosigner_started",
            broker=self._address,
            pid=os.getpid(),
            key=self._kid,
            root=self._machine.root.version,
            sequence=held.sequence if held else "none",
        )
        try:
            return self._loop.run(self._serve)
        finally:
            self._lock.close()

    def _serve(self) -> int:
        while True:
            match item := self._loop.next(None):
                case Stop(code):
                    log("cosigner_stopped")
                    return code
                case Connected() | Disconnected() | Message() | Tick():
                    self._execute(item)

    def _execute(self, event: Connected | Disconnected | Message | Tick) -> None:
        for effect in self._machine.handle(event):
            match effect:
                case Publish():  # one that is lost is asked for again
                    self._loop.session.publish(effect.topic, effect.payload, retain=effect.retained)
                case Subscribe():
                    self._loop.session.subscribe(effect.filters)
                case Log():
                    self._sparing(effect.event, **effect.fields)


def _remembered(files: PosixFiles, name: str, federation: str) -> State | None:
    try:
        return read_state(files.read(name), federation)
    except FileNotFoundError:
        return None
    except StateError as e:
        raise SettingsError(
            f"memory {files.path(name)} refused: {e}. Put it back from a copy that is as new; without one make another key "
            "('fleetgrad release key') and name it with 'fleetgrad release rotate'"
        ) from e


def serve(
    folder: Path, key: Path | None = None, *, allowed: bool = False, insecure: bool = False, timeout: float = 0.0
) -> int:
    """Runs a co-signer until SIGTERM or SIGINT; returns the exit code. Raises ValueError where its folder or its key doesn't let it begin,
    DiskError where the disk doesn't."""
    return Server(folder, key, allowed=allowed, insecure=insecure, timeout=timeout).run()
