"""Payloads: the decoder gives back what was coded, or says which field is wrong; it allocates nothing for a sender."""

import struct
import tracemalloc

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fleetgrad.native import binding
from fleetgrad.wire.codecs import (
    BLK8,
    CODECS,
    MAX_INFO_BYTES,
    RAW32,
    Codec,
    CodecError,
    decode_payload,
    encode_payload,
    payload_bound,
    read_info,
)
from fleetgrad.wire.messages import UpdateInfo

codecs = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
values = arrays(np.float32, st.integers(1, 300), elements=st.floats(-64, 64, width=32))
INFO = UpdateInfo(codec=0, bits=32, count=3, weight=10, steps=4, loss=0.5)


def made(codec: Codec, vector: NDArray[np.float32], seed: int | None = 1) -> bytes:
    return encode_payload(codec, vector, weight=10, steps=4, loss=0.5, seed=seed)


def with_info(info: object, coded: bytes) -> bytes:
    """A payload with any msgpack before the coded vector."""
    raw = msgspec.msgpack.encode(info)
    return struct.pack("<H", len(raw)) + raw + coded


def test_ids_are_stable() -> None:
    assert {c.name: (c.id, c.bits) for c in CODECS.values()} == {"raw32": (0, 32), "blk8": (3, 8)}


@codecs
@given(vector=values)
def test_a_payload_decodes_to_its_info_and_vector(codec: Codec, vector: NDArray[np.float32]) -> None:
    payload = made(codec, vector)
    out = np.full(vector.size, np.nan, np.float32)
    info = decode_payload(payload, codec, out)
    assert info == UpdateInfo(codec=codec.id, bits=codec.bits, count=vector.size, weight=10, steps=4, loss=0.5)
    assert read_info(payload)[0] == info
    assert len(payload) <= payload_bound(codec, vector.size)
    if codec is RAW32:
        assert np.array_equal(out.view(np.uint32), vector.view(np.uint32))
    else:
        blocks = np.abs(np.pad(vector, (0, -vector.size % 64)).reshape(-1, 64)).max(axis=1)
        step = np.repeat(blocks / 127, 64)[: vector.size]
        assert (np.abs(out - vector) <= step * (1 + 1e-5) + 2.0**-80).all(), "off by at most one step of its block"


@codecs
def test_the_size_of_a_coded_vector_follows_from_its_count_alone(codec: Codec) -> None:
    for count in (1, 63, 64, 65, 1000):
        for fill in (0.0, 1.5):
            payload = made(codec, np.full(count, fill, np.float32))
            assert len(read_info(payload)[1]) == codec.size(count)


def test_rounding_is_the_same_for_a_seed_and_another_for_another() -> None:
    vector = np.linspace(-1, 1, 500, dtype=np.float32)
    assert made(BLK8, vector, 5) == made(BLK8, vector, 5)
    assert made(BLK8, vector, 5) != made(BLK8, vector, 6)
    assert made(BLK8, vector, None) == made(BLK8, vector, None)
    assert made(RAW32, vector, 5) == made(RAW32, vector, None)


@codecs
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_not_coded(codec: Codec, bad: float) -> None:
    vector = np.zeros(100, np.float32)
    vector[70] = bad
    with pytest.raises(binding.KernelError, match=r"value 70 of 100.*(nan|inf)"):
        made(codec, vector)


@codecs
def test_another_plans_vector_is_refused_with_both_counts(codec: Codec) -> None:
    with pytest.raises(CodecError, match="holds 10 floats, the plan has 11"):
        decode_payload(made(codec, np.ones(10, np.float32)), codec, np.empty(11, np.float32))


def test_a_payload_of_another_codec_is_refused() -> None:
    payload = made(BLK8, np.ones(10, np.float32))
    with pytest.raises(CodecError, match="codec 3 with 8 bits, this round uses raw32"):
        decode_payload(payload, RAW32, np.empty(10, np.float32))


@codecs
@pytest.mark.parametrize("change", [-1, 1, 64])
def test_a_vector_of_another_length_is_refused(codec: Codec, change: int) -> None:
    payload = made(codec, np.ones(100, np.float32))
    with pytest.raises(CodecError, match=f"coded vector has {codec.size(100) + change} bytes"):
        decode_payload((payload + bytes(64))[: len(payload) + change], codec, np.empty(100, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_coded_value_that_is_not_finite_is_refused_with_its_index(bad: float) -> None:
    coded = np.array([1, 2, bad], "<f4").tobytes()
    with pytest.raises(CodecError, match=r"value 2 of 3 is -?(nan|inf)"):
        decode_payload(with_info(INFO, coded), RAW32, np.empty(3, np.float32))


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 2.0**-91])
def test_a_blk8_scale_that_no_encoder_writes_is_refused_with_its_block(scale: float) -> None:
    payload = bytearray(made(BLK8, np.ones(100, np.float32)))
    payload[-40:-36] = np.float32(scale).tobytes()
    with pytest.raises(CodecError, match="block 1"):
        decode_payload(bytes(payload), BLK8, np.empty(100, np.float32))


@pytest.mark.parametrize("payload", [b"", b"\0", b"\0\0", b"\1\0", b"\xff\xff", struct.pack("<H", 513) + bytes(600)])
def test_a_payload_cut_before_its_vector_is_refused(payload: bytes) -> None:
    with pytest.raises(CodecError):
        read_info(payload)


def test_info_has_a_limit_of_its_own() -> None:
    with pytest.raises(CodecError, match=f"at most {MAX_INFO_BYTES}"):
        read_info(with_info({"extra": "x" * 600}, b""))


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused(loss: float) -> None:
    with pytest.raises(CodecError, match="loss is"):
        read_info(with_info(msgspec.structs.replace(INFO, loss=loss), bytes(12)))


@pytest.mark.parametrize(
    "info", [b"\xff", {}, [], 5, {**msgspec.to_builtins(INFO), "more": 1}, {**msgspec.to_builtins(INFO), "weight": 1.5}]
)
def test_info_is_read_strictly(info: object) -> None:
    with pytest.raises(CodecError, match="update info"):
        read_info(with_info(info, bytes(12)))


def test_bytes_between_info_and_vector_are_refused() -> None:
    raw = msgspec.msgpack.encode(INFO) + b"\0"
    with pytest.raises(CodecError, match="trailing"):
        read_info(struct.pack("<H", len(raw)) + raw + bytes(12))


def test_info_that_is_no_utf8_is_refused_like_any_other_malformed_one() -> None:
    raw = b"\x81\xa1\xff\x01"
    with pytest.raises(CodecError, match="update info"):
        read_info(struct.pack("<H", len(raw)) + raw)


@codecs
@given(payload=st.binary(max_size=400))
def test_random_payloads_are_refused_and_nothing_else(codec: Codec, payload: bytes) -> None:
    with pytest.raises(CodecError):
        decode_payload(payload, codec, np.empty(20, np.float32))


@codecs
@given(data=st.data())
def test_a_payload_with_changed_bytes_decodes_to_finite_values_or_is_refused(codec: Codec, data: st.DataObject) -> None:
    payload = bytearray(made(codec, np.linspace(-2, 2, 150, dtype=np.float32)))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    out = np.zeros(150, np.float32)
    try:
        info = decode_payload(bytes(payload), codec, out)
    except CodecError:
        return
    assert np.isfinite(out).all()
    assert 1 <= info.weight <= 2**24


def test_a_hostile_count_allocates_nothing_of_its_size() -> None:
    payload = with_info(msgspec.structs.replace(INFO, count=2**28), bytes(12))
    out = np.empty(3, np.float32)
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match="268435456 floats"):
            decode_payload(payload, RAW32, out)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()
