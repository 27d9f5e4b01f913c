"""lossless: bit for bit, against a decoder in plain Python, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetgrad.native import lossless
from fleetgrad.native.binding import KernelError
from tests.native import reference
from tests.native.inputs import SIZES, vectors

SMALL = np.array([1.5, -0.0, 0.0, 1e-42, -3e-39, 2.0**-126, 3.4028235e38, -1.5], np.float32)


def round_trip(values: NDArray[np.float32]) -> bytes:
    coded = lossless.encode(values)
    assert coded.size <= 4 * values.size + 4 * -(-values.size // 65536)
    out = np.full(values.size, 7, np.float32)
    lossless.decode(coded, out)
    assert out.tobytes() == values.tobytes()
    return coded.tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_every_size_comes_back_bit_for_bit(isa: str, seed: int, size: int) -> None:
    for make in vectors(seed):
        round_trip(make(size))


def test_every_kind_of_finite_float_comes_back_bit_for_bit(isa: str, seed: int) -> None:
    print(f"seed {seed}")
    words = np.random.default_rng(seed).integers(0, 2**32, 200_000, np.uint32)
    finite = words[(words >> np.uint32(23) & np.uint32(255)) != 255].view(np.float32)
    round_trip(np.concatenate([finite, SMALL]))


def test_bytes_are_those_that_the_page_of_codecs_says(isa: str, seed: int) -> None:
    for make in vectors(seed):
        for size in (1, 65, 4097):
            values = make(size)
            assert reference.lossless(round_trip(values), size).tobytes() == values.tobytes()


def test_a_stream_of_two_chunks_is_that_of_its_parts(isa: str, seed: int) -> None:
    for make in vectors(seed):
        values = make(65536 + 1000)
        assert round_trip(values) == round_trip(values[:65536]) + round_trip(values[65536:])


def test_exponents_and_zeros_are_what_is_saved(seed: int) -> None:
    print(f"seed {seed}")
    values = np.random.default_rng(seed).standard_normal(200_000).astype(np.float32)
    _, counts = np.unique(values.view(np.uint32) >> 23 & 255, return_counts=True)
    entropy = -(counts * np.log2(counts / values.size)).sum()
    assert 8 * len(round_trip(values)) <= 1.005 * (24 * values.size + entropy)
    values[values < 0] = 0  # half of all
    assert 8 * len(round_trip(values)) <= 0.55 * 32 * values.size
    assert len(round_trip(np.zeros(65536, np.float32))) == 8


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_with_their_index(isa: str, bad: float) -> None:
    values = np.ones(70_000, np.float32)
    values[66_001] = bad
    with pytest.raises(KernelError, match=r"value 66001 of 70000: value is NaN or infinite"):
        lossless.encode(values)


def test_every_cut_of_a_stream_and_every_byte_behind_it_is_refused(isa: str) -> None:
    values = np.repeat(SMALL, 60)
    coded = round_trip(values)
    out = np.empty(values.size, np.float32)
    for size in range(len(coded)):
        with pytest.raises(KernelError, match="chunk 0 of a stream of"):
            lossless.decode(coded[:size], out)
    with pytest.raises(KernelError, match="bytes are left over"):
        lossless.decode(coded + b"\0", out)
    with pytest.raises(KernelError):
        lossless.decode(coded, np.empty(values.size + 65536, np.float32))
    with pytest.raises(KernelError, match="left over"):
        lossless.decode(b"\0", np.empty(0, np.float32))


def test_an_exponent_of_infinity_is_refused(isa: str) -> None:
    coded = bytearray(round_trip(np.ones(3, np.float32)))
    assert coded[:2] == b"\1\x7f"
    coded[1] = 255
    with pytest.raises(KernelError, match="NaN or infinite"):
        lossless.decode(coded, np.empty(3, np.float32))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_stream_decodes_as_the_reference_does_or_is_refused_by_both(data: st.DataObject) -> None:
    values = np.repeat(SMALL, data.draw(st.sampled_from([1, 9, 40])))
    coded = bytearray(lossless.encode(values).tobytes())
    for _ in range(data.draw(st.integers(1, 3))):
        coded[data.draw(st.integers(0, len(coded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    out = np.empty(values.size, np.float32)
    try:
        expected = reference.lossless(bytes(coded), values.size)
    except ValueError:
        with pytest.raises(KernelError):
            lossless.decode(coded, out)
    else:
        lossless.decode(coded, out)
        assert out.tobytes() == expected.tobytes()


def test_the_face_refuses_what_the_kernel_cannot_check() -> None:
    with pytest.raises(KernelError, match="float32"):
        lossless.encode(np.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(KernelError, match="strides"):
        lossless.encode(np.zeros(8, np.float32)[::2])
