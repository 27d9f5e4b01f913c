"""Every kernel against a NumPy oracle, under every capability, and what each refuses."""

import binascii
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetgrad.native import binding, codecs, kernels

SIZES = [1, 15, 63, 64, 65, 1000, 4099]


def normal(seed: int, size: int, scale: float = 1.0) -> NDArray[np.float32]:
    print(f"seed {seed}")
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def blocks(values: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [values[i : i + 64] for i in range(0, values.size, 64)]


def encode(values: NDArray[np.float32], seed: int | None = None) -> NDArray[np.uint8]:
    out = np.empty(codecs.blk8_size(values.size), np.uint8)
    assert codecs.blk8_encode(values, out, seed) == out.size
    return out


def decode(payload: bytes, count: int) -> NDArray[np.float32]:
    out = np.empty(count, np.float32)
    codecs.blk8_decode(payload, out)
    return out


@pytest.mark.parametrize("size", SIZES)
def test_blk8_to_nearest_is_absmax_over_127_in_each_block(isa: str, seed: int, size: int) -> None:
    values = normal(seed, size, 0.01)
    values[: size // 3] = 0
    expected = b""
    for block in blocks(values):
        most = np.abs(block).max()
        scale = np.float32(most / np.float32(127))
        inverse = np.float32(127) / most if most > 0 else np.float32(0)
        expected += struct.pack("<f", scale) + np.rint(block * inverse).astype(np.int8).tobytes()
    assert encode(values).tobytes() == expected
    assert len(expected) == codecs.blk8_size(size)


def lowbias32(z: NDArray[np.uint32]) -> NDArray[np.uint32]:
    z = (z ^ (z >> np.uint32(16))) * np.uint32(0x7FEB352D)
    z = (z ^ (z >> np.uint32(15))) * np.uint32(0x846CA68B)
    return z ^ (z >> np.uint32(16))


@pytest.mark.parametrize("size", SIZES)
def test_blk8_stochastic_rounds_value_plus_keyed_noise(isa: str, seed: int, size: int) -> None:
    values, key = normal(seed, size, 3.0), 0xFEDCBA9876543210 ^ seed
    low, high = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
    expected = b""
    for number, block in enumerate(blocks(values)):
        base = lowbias32(lowbias32(np.array([number], np.uint32) + low) ^ high)
        bits = lowbias32(base + np.arange(32, dtype=np.uint32) * np.uint32(0x9E3779B9))
        noise = (np.concatenate([bits & np.uint32(0xFFFF), bits >> np.uint32(16)]) + 0.5) / 65536 - 0.5
        most = np.abs(block).max()
        scaled = block * (np.float32(127) / most) + noise[: block.size].astype(np.float32)
        codes = np.rint(scaled).clip(-127, 127)
        expected += struct.pack("<f", most / np.float32(127)) + codes.astype(np.int8).tobytes()
    assert encode(values, key).tobytes() == expected


def test_blk8_stochastic_is_right_on_average(isa: str, seed: int) -> None:
    values = np.tile(np.array([1.0, 0.3337, -0.251, 0.0049], np.float32), 16)
    rounds = 4000
    total = np.zeros(values.size)
    for i in range(rounds):
        total += decode(encode(values, seed * 65536 + i).tobytes(), values.size)
    # A step is 1/127; rounding has a standard deviation of at most half a step; five of them for the mean of `rounds`.
    assert np.abs(total / rounds - values).max() < 5 * 0.5 / 127 / rounds**0.5


def test_blk8_decodes_to_within_a_step(isa: str, seed: int) -> None:
    values = normal(seed, 5000, 0.1)
    bound = np.repeat([np.abs(b).max() / 127 for b in blocks(values)], 64)[: values.size]
    assert (np.abs(decode(encode(values).tobytes(), values.size) - values) <= bound * 0.501).all()
    assert (np.abs(decode(encode(values, 5).tobytes(), values.size) - values) <= bound * 1.001).all()


def test_blk8_writes_zeros_under_a_scale_that_arm_would_flush(isa: str) -> None:
    values = np.full(64, 2.0**-91, np.float32)
    assert encode(values).tobytes() == bytes(68)
    assert encode(values, 3).tobytes() == bytes(68)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("key", [None, 9])
def test_blk8_encode_refuses_a_value_that_is_not_finite(isa: str, bad: float, key: int | None) -> None:
    values = np.zeros(200, np.float32)
    values[137] = bad
    with pytest.raises(binding.KernelError, match="value 137 of 200"):
        encode(values, key)


@pytest.mark.parametrize(
    ("scale", "codes", "match"),
    [
        (struct.pack("<f", np.nan), bytes(64), "block 1: scale"),
        (struct.pack("<f", np.inf), bytes(64), "block 1: scale"),
        (struct.pack("<f", -1.0), bytes(64), "block 1: scale"),
        (struct.pack("<f", -0.0), bytes(64), "block 1: scale"),
        (struct.pack("<f", 2.0**-91), bytes(64), "block 1: scale"),
        (struct.pack("<f", 1.0), b"\x80" + bytes(63), "block 1: code"),
        (struct.pack("<f", 0.0), b"\x01" + bytes(63), "block 1: code"),
    ],
)
def test_blk8_decode_refuses_what_no_encoder_writes(isa: str, scale: bytes, codes: bytes, match: str) -> None:
    with pytest.raises(binding.KernelError, match=match):
        decode(bytes(68) + scale + codes, 128)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 200))
def test_blk8_decode_survives_any_bytes(payload: bytes, count: int) -> None:
    out = np.empty(count, np.float32)
    try:
        codecs.blk8_decode(payload, out)
    except binding.KernelError:
        return
    assert len(payload) == codecs.blk8_size(count)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("weight", [1, 1797, 2**24])
def test_ring_add_is_fixed_point_with_32_fractional_bits(isa: str, seed: int, weight: int) -> None:
    values = normal(seed, 3001, 0.02)
    values[:8] = [64, -64, 0, 2.0**-33, 3 * 2.0**-33, -(2.0**-33), 2.0**-149, -0.0]
    accumulator = np.arange(3001, dtype=np.int64)
    kernels.ring_add(accumulator, values, weight)
    expected = [i + weight * round(float(v) * 2**32) for i, v in enumerate(values)]  # exact: Python's integers
    assert accumulator.tolist() == expected


@pytest.mark.parametrize(
    ("bad", "reason"), [(64.00001, "beyond"), (np.nan, "NaN"), (-np.inf, "NaN"), (-1e30, "beyond")]
)
def test_ring_add_refuses_a_bad_value_and_adds_nothing(isa: str, bad: float, reason: str) -> None:
    values = np.ones(2000, np.float32)
    values[1999] = bad
    accumulator = np.zeros(2000, np.int64)
    with pytest.raises(binding.KernelError, match=f"value 1999 of 2000: .*{reason}"):
        kernels.ring_add(accumulator, values, 3)
    assert not accumulator.any()


@pytest.mark.parametrize("weight", [0, -1, 2**24 + 1])
def test_ring_add_refuses_a_weight_out_of_range(weight: int) -> None:
    with pytest.raises(binding.KernelError, match=f"weight {weight}"):
        kernels.ring_add(np.zeros(1, np.int64), np.zeros(1, np.float32), weight)


def test_ring_mean_rounds_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    total = 12345
    accumulator = rng.integers(-(2**40), 2**40, 999) * total
    base, out = normal(seed, 999), np.empty(999, np.float32)
    kernels.ring_mean(accumulator, total, base, out)
    expected = (base.astype(np.float64) + accumulator.astype(np.float64) / total * 2.0**-32).astype(np.float32)
    assert (out == expected).all()


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1000])
def test_crc32c_is_castagnolis_and_continues(isa: str, seed: int, size: int) -> None:
    data = np.random.default_rng(seed).bytes(size)
    crc = 0xFFFFFFFF
    for byte in data:  # RFC 3720 appendix B.4, bit by bit
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert kernels.crc32c(data) == crc ^ 0xFFFFFFFF
    assert kernels.crc32c(data[size // 3 :], kernels.crc32c(data[: size // 3])) == crc ^ 0xFFFFFFFF
    assert kernels.crc32c(b"123456789") == 0xE3069283 != binascii.crc32(b"123456789")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 1023, 1024, 2999])
def test_find_nonfinite_gives_the_first_index(isa: str, bad: float, index: int) -> None:
    values = np.full(3000, np.finfo(np.float32).max)
    assert kernels.find_nonfinite(values) == -1
    values[index] = values[2999] = bad
    assert kernels.find_nonfinite(values) == index


@pytest.mark.parametrize(
    "array", [np.zeros(10), np.zeros(20, np.float32)[::2], np.zeros(10, np.int32)], ids=["float64", "strided", "int32"]
)
def test_kernels_refuse_arrays_of_another_type_or_layout(array: NDArray[np.float32]) -> None:
    with pytest.raises(binding.KernelError, match="needs contiguous float32"):
        kernels.find_nonfinite(array)


def test_blk8_refuses_buffers_of_another_size() -> None:
    with pytest.raises(binding.KernelError, match=r"has 10 elements, expected 104"):
        codecs.blk8_encode(np.zeros(96, np.float32), np.zeros(10, np.uint8), None)
    with pytest.raises(binding.KernelError, match=r"67 bytes, 64 values take 68"):
        decode(bytes(67), 64)


@pytest.mark.parametrize(("name", "code"), [("serial", 0), ("riscv", 1)])
def test_the_environment_masks_the_instruction_set(name: str, code: int) -> None:
    environment = {**os.environ, binding.VARIABLE: name}
    program = "from fleetgrad.native import binding; print(binding.capability())"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "serial" in (done.stderr if code else done.stdout)
