"""Codecs in real federations: one of each family ends with a model, error feedback outlives kill -9 with the same bytes, and an
operator changes the codec of a running federation without touching a device."""

import random

import pytest
from msgspec.structs import replace

from fleetgrad.broker import settings
from fleetgrad.edge.link import residual, store
from fleetgrad.wire.coding.spec import CodecSpec
from tests.fleet.conftest import DEVICES, Federation, MakeFederation

pytestmark = pytest.mark.needs("mosquitto")
FAMILIES = (
    CodecSpec(name="auto", bits=6), CodecSpec(name="rot-4"), CodecSpec(name="topk", fraction=0.1),
    CodecSpec(name="ring", bits=20),
)  # fmt: skip


def with_codec(federation: Federation, codec: CodecSpec) -> Federation:
    """Edits federation.toml as an operator does."""
    settings.write(replace(settings.load(federation.directory), codec=codec), federation.directory)
    return federation


@pytest.mark.parametrize("codec", FAMILIES, ids=str)
def test_a_federation_trains_with_each_family_of_codecs(make_federation: MakeFederation, codec: CodecSpec) -> None:
    federation = with_codec(make_federation(rounds=2), codec)
    federation.start()
    rows = federation.until_reported()
    assert [(r["round"], r["members"], r["codec"]) for r in rows] == [(n, 3, str(codec)) for n in (1, 2)]
    assert all(0 < r["bits"] <= 33 for r in rows)
    assert rows[-1]["accuracy"] > 0.5
    assert "update_refused" not in federation.fleet.log("aggregator").read_text()


def test_devices_killed_under_error_feedback_end_with_the_same_bytes(
    make_federation: MakeFederation, seed: int
) -> None:
    print(f"seed {seed}")
    codec, rng = CodecSpec(name="ec-dz", bits=1), random.Random(seed)
    calm = with_codec(make_federation("calm", rounds=4), codec)
    calm.start()
    calm.until_reported()
    federation = with_codec(make_federation("wild", rounds=4, epochs=2), codec)
    federation.start()
    with federation.watch() as watch:
        for _ in range(6):
            for _ in range(rng.randrange(1, 10)):
                watch.step(0.5)
            victim = rng.choice(DEVICES)
            print(f"kill {victim}")
            federation.fleet.kill(victim)
            federation.start_edge(victim)
    rows = federation.until_reported()
    assert {r["members"] for r in rows} == {3}
    assert federation.model_hash() == calm.model_hash()
    for device in DEVICES:
        found, _ = residual.load(store.look(federation.folder(device) / "spool"))
        assert found is not None
        assert found.round in (3, 4), "each device carries what its last update left out"


def test_an_operator_changes_the_codec_and_devices_follow_from_the_next_round(make_federation: MakeFederation) -> None:
    federation = with_codec(make_federation(rounds=6, epochs=4), CodecSpec(name="topk", fraction=0.2))
    federation.start()
    federation.until(lambda v: 2 in v.metrics)
    federation.fleet.kill("aggregator")
    with_codec(federation, CodecSpec(name="rot-4"))
    federation.start_aggregator()
    rows = federation.until_reported()
    assert [r["round"] for r in rows] == [1, 2, 3, 4, 5, 6]
    codecs = [r["codec"] for r in rows]
    change = codecs.index("rot-4")
    assert 2 <= change <= 4, "from the next round on, or the one after it where devices had been asked already"
    assert codecs == ["topk, fraction 0.2"] * change + ["rot-4"] * (6 - change)
    assert all(r["members"] == 3 for r in rows), "updates of the round under way are judged by its own policy"
