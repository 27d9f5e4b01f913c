"""raw32 and fp16 against NumPy's own types, under every capability, and what they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetgrad.native import binding, codecs

Floats = NDArray[np.float32]
SIZES = [0, 1, 63, 64, 65, 1023, 1024, 1025, 4095, 4096, 4097, 10000, 2**20 + 1]
HALVES = np.arange(2**16, dtype=np.uint16)
FINITE = HALVES[HALVES & 0x7C00 != 0x7C00]


def spread(seed: int, size: int) -> Floats:
    """Magnitudes from far under fp16's least to near its most, both signs."""
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(size) * 10.0 ** rng.uniform(-12, 4, size)).clip(-65000, 65000).astype(np.float32)


def fp16(values: Floats) -> NDArray[np.uint8]:
    out = np.empty(codecs.fp16_size(values.size), np.uint8)
    assert codecs.fp16_encode(values, out) == out.size
    return out


@pytest.mark.parametrize("size", SIZES)
def test_fp16_is_ieees_half(isa: str, seed: int, size: int) -> None:
    values = spread(seed, size)
    coded, out = fp16(values), np.empty_like(values)
    assert coded.tobytes() == values.astype("<f2").tobytes()
    codecs.fp16_decode(coded, out)
    assert (out == values.astype(np.float16).astype(np.float32)).all()


def test_fp16_decodes_every_half_and_codes_it_again(isa: str) -> None:
    out = np.empty(FINITE.size, np.float32)
    codecs.fp16_decode(FINITE.tobytes(), out)
    assert (out.view(np.uint32) == FINITE.view(np.float16).astype(np.float32).view(np.uint32)).all()  # -0 as well
    assert fp16(out).tobytes() == FINITE.tobytes()


def test_fp16_rounds_every_tie_to_even(isa: str) -> None:
    positive = FINITE[FINITE < 0x7C00].view(np.float16).astype(np.float64)
    middle = ((positive[1:] + positive[:-1]) / 2).astype(np.float32)  # exact in float32, subnormal halves too
    for values in (middle, -middle, np.nextafter(middle, np.float32(1e9)), np.nextafter(middle, np.float32(0))):
        assert fp16(values).tobytes() == values.astype("<f2").tobytes()


@pytest.mark.parametrize("bad", [65520.0, -65520.0, 1e30, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 1023, 1024, 2999])
def test_fp16_encode_refuses_what_would_be_infinite(isa: str, bad: float, index: int) -> None:
    values = np.full(3000, np.nextafter(np.float32(65520), np.float32(0)))
    assert (fp16(values).view(np.uint16) == 0x7BFF).all()
    values[index] = bad
    with pytest.raises(binding.KernelError, match=f"fp16 encode: value {index} of 3000: value is"):
        fp16(values)


@pytest.mark.parametrize("bad", [0x7C00, 0xFC00, 0x7C01, 0x7FFF, 0xFE00])
@pytest.mark.parametrize("index", [0, 1024, 2999])
def test_fp16_decode_refuses_infinity_and_nan(isa: str, bad: int, index: int) -> None:
    halves = np.full(3000, 0x7BFF, np.uint16)
    halves[index] = bad
    with pytest.raises(binding.KernelError, match=f"fp16 decode: value {index}: value is NaN or infinite"):
        codecs.fp16_decode(halves.tobytes(), np.empty(3000, np.float32))


@pytest.mark.parametrize("size", SIZES)
def test_raw32_is_the_floats_themselves(isa: str, seed: int, size: int) -> None:
    values = np.random.default_rng(seed).integers(0, 0x7F800000, size, np.uint32).view(np.float32)
    coded, out = np.empty(codecs.raw32_size(size), np.uint8), np.empty_like(values)
    assert codecs.raw32_encode(values, coded) == 4 * size
    assert coded.tobytes() == values.tobytes()
    codecs.raw32_decode(coded, out)
    assert out.tobytes() == values.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 1024, 2999])
def test_raw32_refuses_what_is_not_finite_both_ways(isa: str, bad: float, index: int) -> None:
    values = np.full(3000, np.finfo(np.float32).max)
    values[index] = bad
    with pytest.raises(binding.KernelError, match=f"raw32 encode: value {index} of 3000: value is NaN"):
        codecs.raw32_encode(values, np.empty(12000, np.uint8))
    with pytest.raises(binding.KernelError, match=f"raw32 decode: value {index}: value is NaN"):
        codecs.raw32_decode(values.tobytes(), np.empty(3000, np.float32))


@given(st.binary(max_size=200), st.integers(0, 100))
def test_fp16_decode_survives_any_bytes(payload: bytes, count: int) -> None:
    out = np.empty(count, np.float32)
    try:
        codecs.fp16_decode(payload, out)
    except binding.KernelError:
        return
    assert len(payload) == 2 * count and np.isfinite(out).all()


@pytest.mark.parametrize("codec", ["raw32", "fp16", "blk8", "blk4"])
def test_payloads_of_another_size_are_refused(codec: str) -> None:
    size = getattr(codecs, f"{codec}_size")(70)
    with pytest.raises(binding.KernelError, match=f"{codec} decode: {size - 1} bytes, 70 values take {size}"):
        getattr(codecs, f"{codec}_decode")(bytes(size - 1), np.empty(70, np.float32))
