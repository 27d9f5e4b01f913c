"""A registrar for tests, in reg/, with a roster and a broker's folder that it reaches."""

import time
from collections.abc import Callable
from pathlib import Path

from fleetgrad.broker.registrar import registrar as registrar_
from fleetgrad.broker.registrar.registrar import Registrar, Settings
from fleetgrad.wire.mqtt import BrokerSettings
from fleetgrad.wire.signing import PrivateKey

AGGREGATOR = PrivateKey.from_seed(bytes(32))


def make_registrar(root: Path, clock: Callable[[], float] = time.time) -> Registrar:
    for name in ("roster", "broker"):
        (root / name).mkdir()
    settings = Settings(
        federation="fed", roster="../roster", broker_files="../broker",
        broker=BrokerSettings(url="mqtts://broker.lan", ca="ca.pem", certificate="tls.pem"),
    )  # fmt: skip
    hosts = ["broker.lan", "127.0.0.1"]
    registrar_.create(root / "reg", settings, AGGREGATOR, hosts, root / "broker", root / "agg.pem")
    return Registrar(root / "reg", clock)
