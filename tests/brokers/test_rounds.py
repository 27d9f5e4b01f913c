"""A whole federation on each broker, with its defaults: two rounds, and the broker killed after its first words with all its memory."""

import json

import pytest

from tests.brokers.conftest import DEVICES, ROUNDS, SECONDS, Site

TOOL = {"nats-cluster": "nats", "embedded": "amqtt"}
KILLED = ("mosquitto", "nats", "nats-cluster", "embedded")


def published(site: Site, *, killed: bool) -> None:
    """Runs the federation to its end; the broker dies when the first device has been heard of."""
    broker, fleet = site.broker, site.federation.fleet
    fleet.aggregator(site.federation.directory, "--exit-when-done")
    fleet.edge("dev-1", site.config("dev-1"))
    site.until(lambda v: v.aggregator is not None and len(v.devices) == 1)
    if killed:
        broker.kill()
        broker.start()
    fleet.edge("dev-2", site.config("dev-2"))
    site.until(lambda v: ROUNDS in v.metrics)
    check(site)


def check(site: Site) -> None:
    """Each round was published, with both devices."""
    rows = [json.loads(line) for line in (site.federation.directory / "rounds.jsonl").read_text().splitlines()]
    assert [(r["round"], r["members"]) for r in rows] == [(i + 1, len(DEVICES)) for i in range(ROUNDS)]


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.needs(TOOL.get(k, k))) for k in KILLED])
def test_a_federation_ends_as_it_should_though_its_broker_is_killed_and_started_again(site: Site) -> None:
    published(site, killed=True)


@pytest.mark.needs("rabbitmq")
@pytest.mark.parametrize("kind", ["rabbitmq"])
def test_a_federation_ends_as_it_should_on_rabbitmq(site: Site, sample: str) -> None:
    published(site, killed=sample == "full")  # its second start takes another 14 s


@pytest.mark.needs("mosquitto")
@pytest.mark.parametrize("kind", ["forgetful"])
def test_a_federation_ends_as_it_should_where_nothing_is_retained_and_nobody_was_told(site: Site) -> None:
    fleet = site.federation.fleet
    for device in DEVICES:
        fleet.edge(device, site.config(device))
    fleet.aggregator(site.federation.directory, "--exit-when-done")
    assert fleet.wait("aggregator", SECONDS) == 0
    check(site)
