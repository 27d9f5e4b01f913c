"""The generator, the rotation and rot-k against an oracle from the definitions, under every capability, and what rot-k refuses."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetgrad.native import binding, rotation
from tests.native import rotations as oracle

Floats = NDArray[np.float32]
KEY, STREAM = 0x0123456789ABCDEF, 5
FEW = [0, 1, 17, 64, 65, 4097, 10000]


def heavy(seed: int, size: int) -> Floats:
    print(f"seed {seed}")
    return np.random.default_rng(seed).standard_t(3, size).astype(np.float32)


def encode(values: Floats, k: int, key: int = KEY) -> NDArray[np.uint8]:
    out = np.empty(rotation.rot_size(values.size, k), np.uint8)
    assert rotation.rot_encode(values, out, k=k, key=key, stream=STREAM) == out.size
    return out


def decode(payload: bytes | NDArray[np.uint8], count: int, k: int, key: int = KEY) -> Floats:
    out = np.full(count, np.nan, np.float32)
    rotation.rot_decode(payload, out, k=k, key=key, stream=STREAM)
    return out


def levels(k: int) -> Floats:
    """The core's non-negative levels: what a window of one value with scale 1 decodes to, sign aside."""
    coded = [oracle.planes(k) for _ in range(2 ** (k - 1))]
    found = []
    for code, widths in enumerate(coded):
        body, low = b"", 0
        for width in widths:
            body, low = body + bytes([code >> low & ((1 << width) - 1)]), low + width
        found.append(abs(decode(struct.pack("<f", 1.0) + body, 1, k)[0]))
    return np.array(found, np.float32)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # Random123's kat_vectors, philox4x32 with 10 rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(
    isa: str, counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    position, whole = counter[1] << 32 | counter[0], key[1] << 32 | key[0]
    out = np.empty(64, np.uint32)
    binding.lib.fg_philox(whole, position >> 4, counter[2], counter[3], binding.pointer("uint32_t *", out))
    assert tuple(out.reshape(4, 16)[:, position % 16]) == words
    assert tuple(oracle.philox(whole, np.array([counter], np.uint64))[0]) == words


@pytest.mark.parametrize("number", [0, 1, 2**28 - 1, 2**28, 2**60 - 1])
def test_philox_runs_sixteen_counters_side_by_side(isa: str, number: int) -> None:
    out = np.empty(64, np.uint32)
    binding.lib.fg_philox(KEY, number, 7, 3, binding.pointer("uint32_t *", out))
    assert (out.reshape(4, 16) == oracle.group(KEY, number, 7, 3)).all()


@pytest.mark.parametrize("count", [1, 2, 8, 16, 64, 128, 1024])
def test_the_oracles_transform_is_hadamards_matrix(count: int) -> None:
    i = np.arange(count)
    odd = np.array([[bin(a & b).count("1") & 1 for b in i] for a in i])
    x = np.random.default_rng(count).integers(-9, 9, count).astype(np.float32)  # exact in float32
    assert (oracle.hadamard(x) == (1 - 2 * odd) @ x).all()


@pytest.mark.parametrize("k", range(1, 9))
def test_levels_are_lloyd_and_maxs(k: int) -> None:
    found = levels(k)
    if k <= 5:
        np.testing.assert_allclose(found, oracle.lloyd_max(k), rtol=3e-6)
    # Each is the mean of its cell, cut halfway between neighbours: the condition that defines them.
    cut = [
        0.0,
        *((a + b) / 2 for a, b in zip(found[:-1].astype(float), found[1:].astype(float), strict=True)),
        math.inf,
    ]
    for level, low, high in zip(found.astype(float), cut[:-1], cut[1:], strict=True):
        density = (math.exp(-(low**2) / 2) - math.exp(-(high**2) / 2)) / math.sqrt(2 * math.pi)
        mass = 0.5 * (math.erfc(low / math.sqrt(2)) - math.erfc(high / math.sqrt(2)))
        assert level == pytest.approx(density / mass, abs=2e-5)


@pytest.mark.parametrize("count", oracle.SIZES)
@pytest.mark.parametrize("k", [1, 3, 4, 8])
def test_rot_decodes_what_the_format_says(isa: str, seed: int, count: int, k: int) -> None:
    payload = encode(heavy(seed, count), k)
    level = levels(k)
    both = np.concatenate([level, -level])
    y = [np.where(codes < 0, 0, both[codes]) * scale for scale, codes in oracle.read(payload.tobytes(), count, k)]
    expected = (
        oracle.rotated_back(np.concatenate(y).astype(np.float32), KEY, STREAM) if count else np.zeros(0, np.float32)
    )
    assert (decode(payload, count, k) == expected).all()


@pytest.mark.parametrize("count", FEW[1:])
@pytest.mark.parametrize("k", range(1, 9))
def test_rot_codes_are_nearest_levels_and_the_scale_is_edens(isa: str, seed: int, count: int, k: int) -> None:
    values = heavy(seed, count)
    y = oracle.rotated(values, KEY, STREAM).astype(np.float64)
    level, at = levels(k).astype(np.float64), 0
    cut = (level[1:] + level[:-1]) / 2
    for scale, codes in oracle.read(encode(values, k).tobytes(), count, k):
        part = y[at : at + codes.size]
        at += codes.size
        magnitude = np.abs(part) / math.sqrt((part**2).mean())
        index = codes & (level.size - 1)
        near = np.zeros(codes.size, bool) if k == 1 else np.abs(magnitude[:, None] - cut).min(1) < 1e-5
        assert ((np.searchsorted(cut, magnitude) == index) | near).all()
        assert ((codes >> (k - 1) == (part < 0)) | (np.abs(part) < 1e-5)).all()
        assert scale == pytest.approx((part**2).sum() / (np.abs(part) * level[index]).sum(), rel=2e-5)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 4095, 4096, 4097, 10000, 2**20 + 1])
def test_rot_of_zeros_is_zeros(isa: str, count: int) -> None:
    payload = encode(np.zeros(count, np.float32), 4)
    assert not payload.any()
    assert not decode(payload, count, 4).any()


@pytest.mark.parametrize("k", range(1, 9))
def test_rot_spends_k_bits_and_a_scale_a_window(k: int) -> None:
    for count in (4096, 4097, 5000, 10000, 100_003, 2**20 + 1):
        assert rotation.rot_size(count, k) <= 1.01 * k * count / 8 + 64


@pytest.mark.parametrize("count", [4097, 10000, 70_001])
@pytest.mark.parametrize("k", range(1, 9))
def test_rot_has_the_error_of_theory(isa: str, seed: int, count: int, k: int) -> None:
    # Clipped: a vector that few values dominate isn't normal when it is rotated, and loses less.
    values = np.clip(heavy(seed, count), -8, 8)
    level = oracle.lloyd_max(min(k, 5)) if k <= 5 else levels(k).astype(np.float64)
    cut = np.concatenate([[0.0], (level[1:] + level[:-1]) / 2, [np.inf]])
    density = np.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi)
    distortion = 1 - 2 * (level * (density[:-1] - density[1:])).sum()  # 1 - E level^2, as each is its cell's mean
    # Beyond the last level an error has no bound: with more bits such errors are rarer, and larger beside the others. Of n values one
    # is beyond 7.9 deviations with a chance of 1e-7, and adds (7.9 - the last level)^2 / (n distortion) to the ratio; 6.5 of the
    # deviations that E error^4 gives it are the rest. With these n, both together are 0.02 at most.
    total, rounds = 0.0, 3_000_000 * {6: 2, 7: 4, 8: 10}.get(k, 1) // count
    for i in range(rounds):
        total += float(((decode(encode(values, k, i), count, k, i) - values).astype(np.float64) ** 2).sum())
    ratio = total / rounds / float((values.astype(np.float64) ** 2).sum()) / (distortion / (1 - distortion))
    assert 0.96 <= ratio <= 1.02


@pytest.mark.parametrize("exponent", [79, 40, -40, -85])
def test_rot_scales_with_its_values(isa: str, seed: int, exponent: int) -> None:
    values = np.clip(heavy(seed, 5000), -1.9, 1.9)
    factor = np.float32(2.0**exponent)
    assert (decode(encode(values * factor, 4), 5000, 4) == decode(encode(values, 4), 5000, 4) * factor).all()


def test_rot_writes_zeros_under_a_scale_that_arm_would_flush(isa: str) -> None:
    payload = encode(np.full(4096, 2.0**-92, np.float32), 4)
    assert not payload.any()
    assert not encode((np.arange(100) % 7 * 2.0**-149).astype(np.float32), 8).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**81, -(2.0**100)])
@pytest.mark.parametrize("index", [0, 4096, 9000, 9999])
def test_rot_encode_refuses_a_value_and_names_it(isa: str, bad: float, index: int) -> None:
    values = np.ones(10000, np.float32)
    values[index] = bad
    with pytest.raises(binding.KernelError, match=f"value {index} of 10000: value is"):
        encode(values, 4)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, -0.0, 2.0**-91, 2.0**-149, 2.0**91])
def test_rot_decode_refuses_a_scale_that_no_encoder_writes(isa: str, scale: float) -> None:
    payload = encode(np.ones(10000, np.float32), 4)
    start = 2 * (4 + 2048) - (4096 - 10000 % 4096) // 2  # of the second window's follower
    payload[start : start + 4] = np.frombuffer(struct.pack("<f", scale), np.uint8)
    with pytest.raises(binding.KernelError, match="window 2: scale"):
        decode(payload, 10000, 4)


def test_rot_decode_refuses_codes_under_a_scale_of_zero(isa: str) -> None:
    payload = encode(np.zeros(4096, np.float32), 4)
    payload[-1] = 1
    with pytest.raises(binding.KernelError, match="window 0: code"):
        decode(payload, 4096, 4)


@pytest.mark.parametrize(("k", "count"), [(1, 4101), (3, 4098), (4, 4097), (7, 4101), (2, 1), (5, 1)])
def test_rot_decode_refuses_bits_behind_the_last_value(isa: str, seed: int, k: int, count: int) -> None:
    payload = encode(heavy(seed, count), k)
    left = count - 4096 if count > 4096 else 1
    width = oracle.planes(k)[-1]
    end = 4 + sum(-(-left * w // 8) for w in oracle.planes(k))  # of the first part, which has the leftover's values
    payload[end - 1] |= 0x80 if left * width % 8 else 0
    assert left * width % 8
    with pytest.raises(binding.KernelError, match="window 0: code"):
        decode(payload, count, k)


@pytest.mark.parametrize("k", [0, 9, -1])
def test_rot_refuses_a_k_out_of_range(k: int) -> None:
    with pytest.raises(binding.KernelError, match=f"rot-{k}: k is 1 to 8"):
        rotation.rot_size(10, k)


def test_rot_refuses_payloads_of_another_size() -> None:
    with pytest.raises(binding.KernelError, match="2051 bytes, 4096 values take 2052"):
        decode(bytes(2051), 4096, 4)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 300), st.integers(1, 8), st.data())
def test_rot_decode_survives_any_bytes(count: int, k: int, data: st.DataObject) -> None:
    size = rotation.rot_size(count, k)
    payload = bytearray(data.draw(st.binary(min_size=size, max_size=size)))
    if size >= 4 and data.draw(st.booleans()):
        payload[:4] = struct.pack("<f", data.draw(st.floats(2.0**-90, 2.0**90, width=32)))
    try:
        out = decode(bytes(payload), count, k)
    except binding.KernelError:
        return
    assert np.isfinite(out).all()


def test_another_stream_is_another_rotation(isa: str, seed: int) -> None:
    values = heavy(seed, 4096)
    first, second = np.empty((2, rotation.rot_size(4096, 4)), np.uint8)
    rotation.rot_encode(values, first, k=4, key=1, stream=0)
    rotation.rot_encode(values, second, k=4, key=1, stream=1)
    assert (first != second).mean() > 0.5
