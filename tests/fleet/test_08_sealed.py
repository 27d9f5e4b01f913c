"""The broker reads nothing of an update: every byte that passed it in a federation's rounds is searched for what devices know."""

import threading

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from fleetgrad.broker.server import SEAL
from fleetgrad.wire import frames
from fleetgrad.wire.chunks import Assembly
from fleetgrad.wire.codecs import read_info
from fleetgrad.wire.frames import Header
from fleetgrad.wire.seal import load_seal_key
from fleetgrad.wire.signing import SIGNATURE_BYTES
from tests.fleet.conftest import DEVICES, SECONDS, Federation, MakeFederation, samples

WINDOW = 16  # bytes in a row that give a secret away


class Spy:
    """The broker's operator: everything that is published, by topic."""

    def __init__(self, federation: Federation) -> None:
        self.seen: list[tuple[str, bytes]] = []
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
        self._client.on_message = lambda _c, _u, m: self.seen.append((m.topic, bytes(m.payload)))
        subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_connect = lambda c, *_: c.subscribe("#", 1)
        self._client.connect(federation.address.host, federation.port)
        self._client.loop_start()
        assert subscribed.wait(SECONDS)

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def bodies(seen: list[tuple[str, bytes]]) -> list[tuple[Header, bytes]]:
    """The updates that came whole."""
    under_way: dict[Header, Assembly] = {}
    for topic, raw in seen:
        if "/up/" in topic:
            header, chunk = frames.parse(raw, most=1 << 24)
            if header.type == frames.UPDATE:
                under_way.setdefault(header.whole(), Assembly(header.whole())).add(header, chunk)
    return [(h, bytes(a.body[:-SIGNATURE_BYTES])) for h, a in under_way.items() if a.complete]


def test_no_published_byte_tells_an_update_or_a_sample(make_federation: MakeFederation) -> None:
    federation = make_federation(kind="embedded", rounds=2)
    federation.start_broker()
    federation.until(lambda _: True)
    spy = Spy(federation)
    federation.start_aggregator()
    for name in DEVICES:
        federation.start_edge(name)
    federation.until_reported()
    spy.stop()
    updates = bodies(spy.seen)
    assert len({(h.round, h.device) for h, _ in updates}) == 2 * len(DEVICES)
    key = load_seal_key(federation.directory / SEAL)
    secrets: list[bytes] = []
    for header, sealed in updates:
        info, coded = read_info(key.open(sealed, header.sealed_with()))
        assert info.weight in {150, 170, 190}
        secrets += windows(bytes(coded))
    for number, _ in enumerate(DEVICES):
        secrets += windows(samples(150 + 20 * number, number)["x"].tobytes())
    assert len(secrets) > 1000
    published = b"\n".join(raw for _, raw in spy.seen)
    found = [s for s in secrets if s in published]
    assert not found, f"{len(found)} of {len(secrets)} secrets were published, the first {found[0]!r}"


def windows(raw: bytes) -> list[bytes]:
    """Disjoint parts, but for those of few different bytes, which occur everywhere."""
    parts = [raw[at : at + WINDOW] for at in range(0, len(raw) - WINDOW + 1, WINDOW)]
    return [p for p in parts if len(set(p)) > WINDOW // 2]
