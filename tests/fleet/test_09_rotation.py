"""A root of trust that changes under a running federation: devices follow, and heads need two signatures from then on."""

import pytest

from fleetgrad.broker import releasing, settings
from fleetgrad.broker.server import KEY
from fleetgrad.wire.release import Role
from fleetgrad.wire.signing import load_private_key
from tests.fleet.conftest import DEVICES, MakeFederation


@pytest.mark.needs("mosquitto")
def test_devices_follow_to_other_keys_in_the_middle_of_a_federation(make_federation: MakeFederation) -> None:
    federation = make_federation(rounds=4)
    federation.start()
    federation.until(lambda v: v.aggregator is not None and (v.aggregator.version or 0) >= 1)
    federation.fleet.kill("aggregator")
    home = settings.home(federation.directory)
    key, second = load_private_key(home / KEY), releasing.make_key(home / "keys", "release-2")
    both = Role(threshold=2, keys=(key.public.raw.hex(), second.raw.hex()))
    releasing.rotate(home, "test", key, [], release_role=both)
    federation.start_aggregator()
    rows = federation.until_reported()
    assert [r["members"] for r in rows] == [len(DEVICES)] * 4
    federation.until(lambda v: all(d.version == 4 for d in v.devices.values()) and len(v.devices) == len(DEVICES))
    for name in DEVICES:
        assert f"root_followed device={name} version=1" in (federation.root / "logs" / f"{name}.log").read_text()
