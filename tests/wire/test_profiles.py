"""Brokers' limits: the table is what the documentation shows, a CONNACK narrows it, and our topics and chunks fit all of it."""

from pathlib import Path

import pytest

from fleetgrad.wire.address import Address
from fleetgrad.wire.frames import HEADER_BYTES
from fleetgrad.wire.mqtt.profiles import KIB, MOST_CHUNK, OVERHEAD, PROFILES, Connack, limits, profile_for, table
from fleetgrad.wire.signing import SIGNATURE_BYTES
from fleetgrad.wire.topics import TABLE, Topics

LONGEST = "x" * 64  # a name


def test_the_documentation_has_the_table_as_it_is() -> None:
    assert table() in (Path(__file__).parents[2] / "docs" / "brokers.md").read_text()


@pytest.mark.parametrize("name", PROFILES)
def test_a_chunk_fits_its_broker_with_everything_around_it(name: str) -> None:
    found = limits(PROFILES[name], Connack())
    topics = [
        Topics(LONGEST).fill(
            row, device=LONGEST, shard=255, version=2**32 - 1, sha16="0" * 16, index=65535, code="0" * 16, kid="0" * 16
        )
        for row in TABLE
    ]
    around = max(map(len, topics)) + HEADER_BYTES + SIGNATURE_BYTES + 12
    assert around <= OVERHEAD
    for most in (found.packet_bytes, found.window_bytes):
        assert most is None or found.chunk_bytes + around <= most
    assert max(t.count("/") for t in topics) <= 7


@pytest.mark.parametrize("name", PROFILES)
def test_what_a_broker_says_narrows_its_row_and_never_widens_it(name: str) -> None:
    row = PROFILES[name]
    told = limits(row, Connack(receive_maximum=3, maximum_packet_size=10_000, maximum_qos=0, retain_available=False))
    assert (told.window, told.packet_bytes, told.qos, told.retained) == (3, 10_000, 0, False)
    assert told.chunk_bytes == 9 * 1024
    wide = limits(row, Connack(receive_maximum=65535, maximum_packet_size=2**28, maximum_qos=2))
    assert wide.window == 8
    assert wide.qos == 1
    assert row.chunk_bytes <= wide.chunk_bytes <= MOST_CHUNK
    assert limits(row, Connack(maximum_packet_size=OVERHEAD + KIB)).chunk_bytes == KIB
    assert limits(row, Connack(maximum_packet_size=OVERHEAD + KIB - 1)).chunk_bytes == 0
    assert limits(row, Connack(maximum_packet_size=100)).chunk_bytes == 0


def test_longer_chunks_than_a_rows_default_are_taken_where_packets_have_room() -> None:
    said = Connack(maximum_packet_size=MOST_CHUNK + OVERHEAD)
    assert limits(PROFILES["mosquitto"], said).chunk_bytes == MOST_CHUNK
    assert limits(PROFILES["mosquitto"], Connack()).chunk_bytes == MOST_CHUNK
    assert limits(PROFILES["generic"], Connack()).chunk_bytes == MOST_CHUNK
    assert limits(PROFILES["azure-eventgrid"], Connack()).chunk_bytes == 63 * KIB


def test_the_generic_row_takes_what_every_broker_takes_rates_apart() -> None:
    rows = [p for p in PROFILES.values() if p.name not in ("generic", "azure-eventgrid")]  # which has a name of its own
    generic = PROFILES["generic"]
    assert generic.filters_per_subscribe == min(p.filters_per_subscribe for p in rows)
    assert generic.packet_bytes == min(p.packet_bytes for p in rows if p.packet_bytes)
    assert generic.chunk_bytes == min(p.chunk_bytes for p in rows)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("abc-ats.iot.eu-west-1.amazonaws.com", "aws-iot"),
        ("x.westeurope-1.ts.eventgrid.azure.net", "azure-eventgrid"),
        ("amazonaws.com.example", "generic"),
        ("127.0.0.1", "generic"),
    ],
)
def test_auto_knows_clouds_by_their_hosts(host: str, name: str) -> None:
    assert profile_for("auto", Address(host, 8883, "mqtts")) is PROFILES[name]
    assert profile_for("mosquitto", Address(host, 8883, "mqtts")) is PROFILES["mosquitto"]


def test_rates_have_a_margin() -> None:
    found = limits(PROFILES["aws-iot"], Connack())
    assert found.publishes_per_second == pytest.approx(90)
    assert found.bytes_per_second == pytest.approx(0.9 * 512 * 1024)
