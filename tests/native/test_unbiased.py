"""Fixed-rate codecs that are right on average: a z-test over keys, the mean over devices, and what a shared key does to it."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetgrad.native import codecs, rotation

Floats = NDArray[np.float32]
Sent = Callable[[Floats, int], Floats]  # (values, the device's key) -> what arrives


def _blocks(bits: int) -> Sent:
    def sent(values: Floats, key: int) -> Floats:
        size = codecs.blk8_size if bits == 8 else codecs.blk4_size
        coded, out = np.empty(size(values.size), np.uint8), np.empty_like(values)
        (codecs.blk8_encode if bits == 8 else codecs.blk4_encode)(values, coded, key)
        (codecs.blk8_decode if bits == 8 else codecs.blk4_decode)(coded, out)
        return out

    return sent


def _rot(k: int) -> Sent:
    def sent(values: Floats, key: int) -> Floats:
        coded, out = np.empty(rotation.rot_size(values.size, k), np.uint8), np.empty_like(values)
        rotation.rot_encode(values, coded, k=k, key=key)
        rotation.rot_decode(coded, out, k=k, key=key)
        return out

    return sent


def _ring(values: Floats, key: int) -> Floats:
    out, step = np.empty_like(values), float(np.abs(values).max(initial=1e-3)) / 4
    rotation.ring_decode(
        rotation.ring_encode(values, step=step, most=2**15, shared=99, own=key), out, r=16, step=step, shared=99
    )
    return out


CODECS: dict[str, Sent] = {
    "blk8": _blocks(8), "blk4": _blocks(4), "ring": _ring, **{f"rot-{k}": _rot(k) for k in (1, 2, 4, 6)},
}  # fmt: skip


def bias_in_bounds(sent: Sent, values: Floats, first: int, rounds: int, jump: float, slack: float) -> None:
    """Each value's mean over keys is within 6.5 deviations of it (a chance of 1e-10 each); `jump` is what a single rare event moves a value by,
    of which twelve too many are too rare to see in the deviation."""
    found = np.stack([sent(values, first + i) for i in range(rounds)]).astype(np.float64)
    bound = 6.5 * np.sqrt(found.var(0, ddof=1) / rounds) + 12 * jump / rounds + slack
    assert (np.abs(found.mean(0) - values) <= bound).all()


@pytest.mark.parametrize(("name", "steps"), [("blk8", 127), ("blk4", 7), ("ring", 4)])
@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**63), st.integers(1, 200), st.floats(0.1, 3.0), st.integers(0, 2**32))
def test_stochastic_rounding_is_right_on_average(
    name: str, steps: int, first: int, count: int, tail: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(count) * np.exp(tail * rng.standard_normal(count))).astype(np.float32)
    most = float(np.abs(values).max())
    bias_in_bounds(CODECS[name], values, first, 300, most / steps, most * 1e-6)


@pytest.mark.parametrize("name", ["rot-1", "rot-2", "rot-4", "rot-6"])
@settings(max_examples=4, deadline=None)
@given(st.integers(0, 2**63), st.integers(600, 3000), st.floats(0.1, 0.8), st.integers(0, 2**32))
def test_rotations_are_right_on_average(name: str, first: int, count: int, tail: float, seed: int) -> None:
    # A vector of many values: EDEN's scale is unbiased over all rotations, and Hadamard's come near them where no few values make up the norm.
    # A value of four tenths of the norm is off by 7 % under rot-1, whatever the number of keys.
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(count) * np.exp(tail * rng.standard_normal(count))).astype(np.float32)
    assume(float(np.abs(values).max()) < 0.2 * float(np.linalg.norm(values)))
    bias_in_bounds(CODECS[name], values, first, 150, 0.0, 0.01 * float(np.abs(values).max()))


@pytest.mark.parametrize("name", CODECS)
def test_the_mean_of_a_hundred_devices_has_a_hundredth_of_the_error(seed: int, name: str) -> None:
    print(f"seed {seed}")
    # Few values that make up most of the error would leave the ratio to chance: here its deviation is under 1 %.
    rng = np.random.default_rng(seed)
    values = rng.laplace(size=50_000).astype(np.float32)
    sent = CODECS[name]
    devices = 100
    # Keys are hashes. Consecutive ones draw the same rounding for blocks in the next place, which takes the deviation to 4 %.
    keys = rng.integers(0, 2**63, devices)
    arrived = np.stack([sent(values, int(key)) for key in keys]).astype(np.float64)
    one = ((arrived - values) ** 2).sum(1).mean()
    mean = ((arrived.mean(0) - values) ** 2).sum()
    assert 0.95 <= devices * mean / one <= 1.05


@pytest.mark.parametrize("name", ["blk8", "blk4", "rot-1", "rot-4", "ring"])
def test_a_shared_key_removes_nothing_from_the_error_of_the_mean(seed: int, name: str) -> None:
    print(f"seed {seed}")
    values = np.random.default_rng(seed).standard_t(4, 20_000).astype(np.float32)
    sent = CODECS[name]
    devices = 100
    arrived = np.stack([sent(values, 7) for _ in range(devices)]).astype(np.float64)
    one = ((arrived - values) ** 2).sum(1).mean()
    mean = ((arrived.mean(0) - values) ** 2).sum()
    assert devices * mean / one == pytest.approx(devices)


@pytest.mark.parametrize("name", ["blk8", "blk4"])
def test_rounding_to_nearest_doesnt_average_out(seed: int, name: str) -> None:
    values = np.random.default_rng(seed).standard_normal(64).astype(np.float32)
    size, encode, decode = (
        (codecs.blk8_size, codecs.blk8_encode, codecs.blk8_decode)
        if name == "blk8"
        else (codecs.blk4_size, codecs.blk4_encode, codecs.blk4_decode)
    )
    coded, again, out = np.empty(size(64), np.uint8), np.empty(size(64), np.uint8), np.empty_like(values)
    encode(values, coded, None)
    encode(values, again, None)
    decode(coded, out)
    assert (coded == again).all() and np.abs(out - values).max() > 0
