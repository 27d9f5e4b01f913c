"""ring: its integers against an oracle from the definitions, their sums mod 2^r, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetgrad.native import binding, rotation
from tests.native import rotations as oracle

Floats = NDArray[np.float32]
SHARED, OWN, STREAM = 0x0123456789ABCDEF, 77, 5
STEP = 2.0**-7


def heavy(seed: int, size: int) -> Floats:
    print(f"seed {seed}")
    return np.random.default_rng(seed).standard_t(4, size).astype(np.float32)


def integers(values: Floats, own: int = OWN, step: float = STEP, most: int = 2**22) -> NDArray[np.uint32]:
    return rotation.ring_encode(values, step=step, most=most, shared=SHARED, own=own, stream=STREAM)


def floats(total: NDArray[np.uint32], r: int, step: float = STEP) -> Floats:
    out = np.full(total.size, np.nan, np.float32)
    rotation.ring_decode(total, out, r=r, step=step, shared=SHARED, stream=STREAM)
    return out


def over_the_wire(total: NDArray[np.uint32], r: int) -> NDArray[np.uint32]:
    packed, out = np.empty(rotation.ring_size(total.size, r), np.uint8), np.empty_like(total)
    rotation.ring_pack(total, packed, r=r)
    rotation.ring_unpack(packed, out, r=r)
    return out


@pytest.mark.parametrize("count", oracle.SIZES)
def test_ring_rounds_the_rotated_vector_up_as_often_as_its_fraction_says(isa: str, seed: int, count: int) -> None:
    values = heavy(seed, count)
    z = oracle.rotated(values, SHARED, STREAM) / np.float32(STEP) if count else values
    whole = np.floor(z)
    uniform = (oracle.uniform16(OWN, STREAM, count).astype(np.float32) + np.float32(0.5)) / np.float32(65536)
    expected = (whole + (uniform < z - whole)).astype(np.int64)
    assert (integers(values).view(np.int32) == expected).all()


@pytest.mark.parametrize("count", oracle.SIZES[1:])
@pytest.mark.parametrize("r", rotation.RING_BITS)
def test_ring_decodes_signed_numbers_through_the_rotation_back(isa: str, seed: int, count: int, r: int) -> None:
    total = np.random.default_rng(seed).integers(0, 2**32, count, np.uint32)
    low = (total.astype(np.int64) + 2 ** (r - 1)) % 2**r - 2 ** (r - 1)
    expected = oracle.rotated_back(low.astype(np.float32) * np.float32(STEP), SHARED, STREAM)
    assert (floats(total, r) == expected).all()


@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 1023, 1024, 1025, 10007])
@pytest.mark.parametrize("r", rotation.RING_BITS)
def test_ring_packs_r_bits_a_number(isa: str, seed: int, count: int, r: int) -> None:
    total = np.random.default_rng(seed).integers(0, 2**32, count, np.uint32)
    packed = np.empty(rotation.ring_size(count, r), np.uint8)
    rotation.ring_pack(total, packed, r=r)
    expected = total.astype(f"<u{4 if r == 32 else 2}").tobytes()
    if r == 20:
        upper, half = total >> np.uint32(16) & np.uint32(15), (count + 1) // 2
        plane = upper[:half].copy()
        plane[: count - half] |= upper[half:] << np.uint32(4)
        expected += plane.astype(np.uint8).tobytes()
    assert packed.tobytes() == expected
    assert (over_the_wire(total, r) == total % np.uint64(2**r)).all()


@pytest.mark.parametrize("count", [65, 5000])
@pytest.mark.parametrize("r", rotation.RING_BITS)
def test_a_sum_of_integers_decodes_to_the_sum_of_vectors(isa: str, seed: int, count: int, r: int) -> None:
    clients, squares = 30, list[float]()
    for first in range(0, clients * max(1, 5000 // count), clients):
        vectors = [heavy(seed + first + i, count) for i in range(clients)]
        total = np.zeros(count, np.uint32)
        for own, values in enumerate(vectors, first):  # as an aggregator adds: mod 2^r
            total = (total + over_the_wire(integers(values, own), r)) & np.uint32(2**r - 1)
        error = floats(total, r).astype(np.float64) - np.sum(vectors, 0, np.float64)
        # Stochastic rounding has a variance of f (1 - f) <= 1/4 steps each; the rotation keeps it. Six deviations, and float32's own error.
        assert np.abs(error).max() < 6 * STEP * (clients / 4) ** 0.5 + 1e-4
        squares += (error**2).tolist()
    # A fraction is anywhere in a step: f (1 - f) is 1/6 on average. The mean of n squares of normal numbers is beyond
    # 1 + 2 sqrt(t / n) + 2 t / n with a chance of e^-t at most (Laurent and Massart 2000, lemma 1): here t is 16, and that is below 1/4.
    spread = 1 + 2 * (16 / len(squares)) ** 0.5 + 32 / len(squares)
    assert np.mean(squares) < STEP**2 * clients / 6 * spread < STEP**2 * clients / 4


def test_a_sum_may_wrap_on_its_way_and_still_be_right(isa: str, seed: int) -> None:
    values, r, step = np.clip(heavy(seed, 4096), -4, 4) * 4, 16, 2.0**-10
    plus, minus = integers(values, 1, step), integers(-values, 2, step)
    halfway = 3 * plus.view(np.int32).astype(np.int64)
    assert (
        np.abs(halfway).max() >= 2**15 > np.abs(plus.view(np.int32)).max()
    )  # three of them leave the ring, one doesn't
    total = (np.uint32(3) * plus & np.uint32(0xFFFF)) + np.uint32(2) * minus & np.uint32(0xFFFF)
    assert np.abs(floats(total, r, step) - values).max() < 6 * step * (5 / 4) ** 0.5 * 3 + 1e-4


@pytest.mark.parametrize("whole", [0, 1, -1, 200, 2**15, 2**20])
def test_the_rounding_is_right_on_average_however_large_the_number(isa: str, whole: int) -> None:
    values = np.array([whole + 0.25], np.float32)  # a window of one: the rotation is a sign
    rounds = 4000
    mean = np.mean([floats(integers(values, own, 1.0), 32, 1.0)[0] for own in range(rounds)], dtype=np.float64)
    assert abs(mean - values[0]) < 5 * (0.25 * 0.75 / rounds) ** 0.5


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 4095, 4096, 4097, 10000])
def test_ring_of_zeros_is_zeros(isa: str, count: int) -> None:
    total = integers(np.zeros(count, np.float32))
    assert not total.any() and not floats(total, 16).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**91])
@pytest.mark.parametrize("index", [0, 4096, 9999])
def test_ring_refuses_a_value_and_names_it(isa: str, bad: float, index: int) -> None:
    values = np.zeros(10000, np.float32)
    values[index] = bad
    with pytest.raises(binding.KernelError, match=f"value {index} of 10000: value is"):
        integers(values)


@pytest.mark.parametrize("exponent", [90, -90])
def test_ring_takes_values_and_steps_at_the_ends_of_their_range(isa: str, seed: int, exponent: int) -> None:
    values = np.clip(heavy(seed, 5000), -0.99, 0.99)
    factor = np.float32(2.0**exponent)
    plain = floats(integers(values, step=0.5), 32, 0.5)
    step = 2.0 ** (exponent - 1) if exponent > 0 else 2.0**exponent
    if exponent < 0:
        plain = floats(integers(values, step=1.0), 32, 1.0)
    assert (floats(integers(values * factor, step=step), 32, step) == plain * factor).all()


def test_ring_refuses_a_coordinate_beyond_its_share_of_the_ring(isa: str) -> None:
    values = np.zeros(10000, np.float32)
    values[100] = 64.0  # spreads over its window: one step each
    integers(values, step=1.0, most=2)
    with pytest.raises(binding.KernelError, match="rotated coordinate 0 is 1 steps of 1 or more: take a larger step"):
        integers(values, step=1.0, most=1)


@pytest.mark.parametrize(
    ("step", "most"), [(0.0, 5), (2.0**-91, 5), (2.0**91, 5), (float("nan"), 5), (1.0, 0), (1.0, 2**23 + 1)]
)
def test_ring_refuses_a_step_or_bound_out_of_range(step: float, most: int) -> None:
    with pytest.raises(binding.KernelError, match="out of range"):
        integers(np.zeros(4, np.float32), step=step, most=most)


def test_ring_refuses_bits_behind_the_last_number(isa: str) -> None:
    packed, out = np.zeros(rotation.ring_size(3, 20), np.uint8), np.empty(3, np.uint32)
    packed[-1] = 0x10
    with pytest.raises(binding.KernelError, match="bits behind the last"):
        rotation.ring_unpack(packed, out, r=20)
    with pytest.raises(binding.KernelError, match="7 bytes, 3 integers mod 2\\^20 take 8"):
        rotation.ring_unpack(bytes(7), out, r=20)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=200), st.sampled_from(rotation.RING_BITS))
def test_ring_numbers_survive_the_wire(numbers: list[int], r: int) -> None:
    total = np.array(numbers, np.uint32)
    assert (over_the_wire(total, r) == total % np.uint64(2**r)).all()
