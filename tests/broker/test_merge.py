"""Merging against exact integer arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetgrad.broker.merge import MergeError, merge
from fleetgrad.broker.strategies.fedavg import FedAvg
from fleetgrad.native.binding import KernelError
from fleetgrad.wire.codecs import encode_payload
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.seeds import Keys

RAW32, LAYOUT = CodecSpec(name="raw32"), VectorLayout.flat(5)
finite = st.floats(-64, 64, width=32)


def keys(_device: str) -> Keys:
    return Keys(1, 2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.lists(finite, min_size=5, max_size=5), st.integers(1, 2**20)), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_merging_is_exact_in_fixed_point_and_in_any_order(members: list, random: object) -> None:
    old = np.array([0.5, -1, 3e-5, 100, 0], np.float32)
    payloads = [
        (
            f"dev-{i}",
            encode_payload(RAW32, LAYOUT, np.array(values, np.float32), keys=keys(""), weight=w, steps=1, loss=0.0),
        )
        for i, (values, w) in enumerate(members)
    ]
    merged = merge(old.astype("<f4").tobytes(), payloads, RAW32, LAYOUT, keys)
    random.shuffle(payloads)  # type: ignore[attr-defined]
    assert merge(old.astype("<f4").tobytes(), payloads, RAW32, LAYOUT, keys) == merged
    total = sum(w for _, w in members)
    for i, value in enumerate(np.frombuffer(merged, "<f4")):
        exact = sum(w * round(Fraction(float(np.float32(v[i]))) * 2**32) for v, w in members)
        expected = np.float32(float(old[i]) + exact / total * 2.0**-32)
        assert value == expected


def test_a_payload_that_changed_on_disk_names_its_device() -> None:
    with pytest.raises(MergeError, match="update of dev-9"):
        merge(bytes(20), [("dev-9", b"\x00\x00")], RAW32, LAYOUT, keys)


def test_weights_over_the_limit_are_refused_before_they_are_added() -> None:
    rule = FedAvg(3)
    rule.add(np.ones(3, np.float32), 2**24 - 1)
    with pytest.raises(KernelError, match="16777217"):
        rule.add(np.ones(3, np.float32), 2)
    assert (rule.apply(np.zeros(3, np.float32)) == 1).all()
