"""blk4, and the limits that it shares with blk8, against a NumPy oracle under every capability, and what its decoder refuses."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetgrad.native import binding, codecs

Floats = NDArray[np.float32]
SIZES = [0, 1, 2, 63, 64, 65, 127, 4095, 4096, 4097, 10000, 2**20 + 1]


def heavy(seed: int, size: int) -> Floats:
    print(f"seed {seed}")
    values = np.random.default_rng(seed).standard_t(3, size).astype(np.float32)
    values[size // 3 : size // 2] = 0
    return values


def encode(values: Floats, key: int | None = None) -> NDArray[np.uint8]:
    out = np.empty(codecs.blk4_size(values.size), np.uint8)
    assert codecs.blk4_encode(values, out, key) == out.size
    return out


def decode(payload: bytes, count: int) -> Floats:
    out = np.full(count, np.nan, np.float32)
    codecs.blk4_decode(payload, out)
    return out


def lowbias32(z: NDArray[np.uint32]) -> NDArray[np.uint32]:
    z = (z ^ (z >> np.uint32(16))) * np.uint32(0x7FEB352D)
    z = (z ^ (z >> np.uint32(15))) * np.uint32(0x846CA68B)
    return z ^ (z >> np.uint32(16))


def noise(key: int, blocks: int) -> Floats:
    """v of the format, [blocks, 64]."""
    base = lowbias32(lowbias32(np.arange(blocks, dtype=np.uint32) + np.uint32(key & 0xFFFFFFFF)) ^ np.uint32(key >> 32))
    bits = lowbias32(base[:, None] + np.arange(32, dtype=np.uint32) * np.uint32(0x9E3779B9))
    halves = np.concatenate([bits & np.uint32(0xFFFF), bits >> np.uint32(16)], 1)
    return ((halves + 0.5) / 65536 - 0.5).astype(np.float32)


def expected(values: Floats, key: int | None) -> bytes:
    count = values.size
    blocks = -(-count // 64)
    x = np.zeros((blocks, 64), np.float32)
    x.ravel()[:count] = values
    most = np.abs(x).max(1, keepdims=True)
    inverse = np.divide(np.float32(7), most, out=np.zeros_like(most), where=most > 0)
    scaled = x * inverse if key is None else x * inverse + noise(key, blocks)
    codes = np.rint(scaled).clip(-7, 7).astype(np.int64) & 15
    out = b""
    for i in range(blocks):
        here = min(64, count - 64 * i)
        half = (here + 1) // 2
        both = codes[i, :half].copy()
        both[: here - half] |= codes[i, half:here] << 4
        out += struct.pack("<f", most[i, 0] / np.float32(7)) + both.astype(np.uint8).tobytes()
    return out


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", [None, 0xFEDCBA9876543210])
def test_blk4_is_absmax_over_7_in_each_block(isa: str, seed: int, size: int, key: int | None) -> None:
    values = heavy(seed, size)
    coded = encode(values, key)
    assert coded.tobytes() == expected(values, key)
    scale = np.repeat([np.abs(values[i : i + 64]).max() / np.float32(7) for i in range(0, size, 64)], 64)[:size]
    assert (np.abs(decode(coded.tobytes(), size) - values) <= scale * (0.5001 if key is None else 1.0001)).all()


def test_blk4s_worked_example_is_what_the_page_says(isa: str) -> None:
    values = np.array([0.7, -0.2, 0.35, 0.05, 0.0], np.float32)
    assert encode(values).tobytes().hex(" ") == "cd cc cc 3d 07 0e 04"


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4095, 4096, 4097])
@pytest.mark.parametrize("key", [None, 3])
def test_zeros_and_what_arm_would_flush_become_zeros(isa: str, size: int, key: int | None) -> None:
    for values in (np.zeros(size, np.float32), np.full(size, 2.0**-88, np.float32)):
        assert not encode(values, key).any()
    assert not decode(bytes(codecs.blk4_size(size)), size).any()


@pytest.mark.parametrize("codec", ["blk8", "blk4"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**91, -3e38])
@pytest.mark.parametrize(("index", "size"), [(0, 200), (137, 200), (199, 200), (4096, 4097)])
def test_blocks_refuse_a_value_and_name_it(isa: str, codec: str, bad: float, index: int, size: int) -> None:
    values = np.full(size, 2.0**90, np.float32)
    out = np.empty(getattr(codecs, f"{codec}_size")(size), np.uint8)
    for key in (None, 9):
        assert getattr(codecs, f"{codec}_encode")(values, out, key) == out.size
    values[index] = bad
    for key in (None, 9):
        with pytest.raises(binding.KernelError, match=f"{codec} encode: value {index} of {size}: value is"):
            getattr(codecs, f"{codec}_encode")(values, out, key)


@pytest.mark.parametrize("codec", ["blk8", "blk4"])
@pytest.mark.parametrize("exponent", [89, -80])
def test_blocks_scale_with_their_values(isa: str, seed: int, codec: str, exponent: int) -> None:
    values, factor = np.clip(heavy(seed, 1000), -1.9, 1.9), np.float32(2.0**exponent)
    coded, out = (
        [np.empty(getattr(codecs, f"{codec}_size")(1000), np.uint8) for _ in range(2)],
        np.empty((2, 1000), np.float32),
    )
    for i, x in enumerate((values, values * factor)):
        getattr(codecs, f"{codec}_encode")(x, coded[i], 5)
        getattr(codecs, f"{codec}_decode")(coded[i], out[i])
    assert (out[0] * factor == out[1]).all()


@pytest.mark.parametrize(
    ("scale", "codes", "match"),
    [
        (np.nan, bytes(32), "block 1: scale"),
        (np.inf, bytes(32), "block 1: scale"),
        (-1.0, bytes(32), "block 1: scale"),
        (-0.0, bytes(32), "block 1: scale"),
        (2.0**-91, bytes(32), "block 1: scale"),
        (2.0**91, bytes(32), "block 1: scale"),
        (1.0, b"\x08" + bytes(31), "block 1: code"),
        (1.0, bytes(31) + b"\x80", "block 1: code"),
        (0.0, b"\x10" + bytes(31), "block 1: code"),
    ],
)
def test_blk4_decode_refuses_what_no_encoder_writes(isa: str, scale: float, codes: bytes, match: str) -> None:
    for count in (128, 191):  # a last block, and one in the middle
        rest = bytes(codecs.blk4_size(count) - 72)
        with pytest.raises(binding.KernelError, match=match):
            decode(bytes(36) + struct.pack("<f", scale) + codes + rest, count)


def test_blk4_decode_refuses_bits_behind_the_last_value(isa: str) -> None:
    payload = struct.pack("<f", 1.0) + b"\x01\x20"
    with pytest.raises(binding.KernelError, match="block 0: code"):
        decode(payload, 3)
    assert decode(struct.pack("<f", 1.0) + b"\x31\x02", 3).tolist() == [1, 2, 3]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 200), st.floats(2.0**-90, 2.0**90, width=32), st.data())
def test_blk4_decode_survives_any_bytes(count: int, scale: float, data: st.DataObject) -> None:
    size = codecs.blk4_size(count)
    payload = data.draw(st.binary(min_size=size, max_size=size))
    if count and data.draw(st.booleans()):
        payload = struct.pack("<f", scale) + payload[4:]
    try:
        out = decode(payload, count)
    except binding.KernelError:
        return
    assert np.isfinite(out).all()
