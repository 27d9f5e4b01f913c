"""Payloads: the decoder gives back what was coded, or says which field is wrong; it allocates nothing for a sender."""

import struct
import tracemalloc
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetgrad.wire.codecs import (
    MAX_INFO_BYTES,
    CodecError,
    codec_of,
    decode_payload,
    encode_payload,
    payload_bound,
    read_info,
)
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import DEFAULTS, NAMES, CodecSpec
from fleetgrad.wire.messages import UpdateInfo
from fleetgrad.wire.seeds import Keys
from tests.wire.codings import KEYS, LAYOUT, SPECS, UNBIASED, heavy, keys

COUNT = LAYOUT.count
RAW32, BLK8 = CodecSpec(name="raw32"), CodecSpec(name="blk8")
specs = pytest.mark.parametrize("spec", SPECS, ids=str)
INFO = UpdateInfo(codec=0, parameter=32, count=COUNT, rate=32.0, weight=10, steps=4, loss=0.5)


def made(spec: CodecSpec, vector: NDArray[np.float32], keys: Keys = KEYS, layout: VectorLayout = LAYOUT) -> bytes:
    return encode_payload(spec, layout, vector, keys=keys, weight=10, steps=4, loss=0.5)


def decoded(payload: bytes, spec: CodecSpec, keys: Keys = KEYS, layout: VectorLayout = LAYOUT) -> NDArray[np.float32]:
    out = np.full(layout.count, np.nan, np.float32)
    decode_payload(payload, spec, layout, keys, out)
    return out


def with_info(info: object, coded: bytes) -> bytes:
    """A payload with any msgpack before the coded vector."""
    raw = msgspec.msgpack.encode(info)
    return struct.pack("<H", len(raw)) + raw + coded


def recoded(payload: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The payload with another coded vector, and a rate that is true of it."""
    info, coded = read_info(payload)
    other = change(bytes(coded))
    return with_info(msgspec.structs.replace(info, rate=8.0 * len(other) / info.count), other)


def nmse(found: NDArray[np.float32], vector: NDArray[np.float32]) -> float:
    return float(np.square(found - vector, dtype=np.float64).sum() / np.square(vector, dtype=np.float64).sum())


def test_ids_and_parameters_are_stable() -> None:
    ids = {n: (codec_of(CodecSpec(name=n)).id, codec_of(CodecSpec(name=n)).parameter) for n in NAMES}
    assert ids == {
        "raw32": (0, 32), "fp16": (1, 16), "blk8": (3, 8), "blk4": (3, 4), **{f"rot-{k}": (4, k) for k in range(1, 9)},
        "ec-dither": (5, 0), "ec-dz": (6, 0), "topk": (7, 0), "lossless": (8, 0), "ring": (9, 16), "auto": (10, 0),
    }  # fmt: skip


@specs
def test_a_payload_decodes_to_its_info_and_nearly_its_vector(spec: CodecSpec) -> None:
    vector = heavy(LAYOUT, 1)
    payload = made(spec, vector)
    out = np.full(COUNT, np.nan, np.float32)
    info = decode_payload(payload, spec, LAYOUT, KEYS, out)
    codec = codec_of(spec)
    coded = read_info(payload)[1]
    assert info == UpdateInfo(
        codec=codec.id,
        parameter=codec.parameter,
        count=COUNT,
        rate=8 * len(coded) / COUNT,
        weight=10,
        steps=4,
        loss=0.5,
    )
    assert len(payload) <= payload_bound(spec, LAYOUT)
    assert not codec.exact or len(coded) == codec.most(LAYOUT)
    if spec.name in ("raw32", "lossless"):
        assert np.array_equal(out.view(np.uint32), vector.view(np.uint32))
    else:
        # 2.5 bits a coordinate or more keep the most of any vector; the codecs' own tests have the exact figures
        assert nmse(out, vector) < (0.25 if info.rate > 2.5 else 2)


@specs
def test_the_same_update_has_the_same_bytes_whenever_it_is_made_again(spec: CodecSpec) -> None:
    assert made(spec, heavy(LAYOUT, 2)) == made(spec, heavy(LAYOUT, 2))


@specs
def test_padding_decodes_to_zero_whatever_was_sent(spec: CodecSpec) -> None:
    out = decoded(made(spec, heavy(LAYOUT, 3) + np.float32(0.001)), spec)
    kept = np.zeros(COUNT, bool)
    for part in LAYOUT.parts:
        kept[part.start : part.end] = True
    assert (~kept).sum() > 0
    assert not out[~kept].any()
    assert out[kept].any()


@specs
@pytest.mark.parametrize("count", [1, 15, 16, 63, 64, 65, 1000])
def test_vectors_of_any_length_and_of_zeros_go_through(spec: CodecSpec, count: int) -> None:
    layout = VectorLayout.flat(count)
    for vector in (np.zeros(count, np.float32), np.full(count, 0.25, np.float32)):
        payload = made(spec, vector, layout=layout)
        assert len(payload) <= payload_bound(spec, layout)
        out = decoded(payload, spec, layout=layout)
        assert vector.any() or not out.any()


@specs
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_refused_with_tensor_and_index(spec: CodecSpec, bad: float) -> None:
    vector = heavy(LAYOUT, 4)
    vector[LAYOUT.parts[3].start + 70] = bad
    with pytest.raises(CodecError, match=r"tensor 'dense.weight', value 70 of 4040 is -?(nan|inf)"):
        made(spec, vector)


@pytest.mark.parametrize("spec", [s for s in SPECS if s.name in UNBIASED and s.rounding != "nearest"], ids=str)
def test_the_mean_of_many_devices_is_n_times_nearer_and_a_shared_key_spoils_it(spec: CodecSpec) -> None:
    """Identical deltas are the worst case for bias. 64 devices: error within 25 % of a 64th (5 sigma and more here)."""
    vector, n = heavy(LAYOUT, 5), 64

    def error_of_mean(keys_of: Callable[[int], Keys]) -> float:
        total = np.zeros(COUNT)
        for device in range(n):
            total += decoded(made(spec, vector, keys_of(device)), spec, keys_of(device))
        return nmse((total / n).astype(np.float32), vector)

    one = float(np.mean([nmse(decoded(made(spec, vector, keys(d)), spec, keys(d)), vector) for d in range(8)]))
    own = error_of_mean(keys)
    if spec.name == "auto":  # fp16 is rounded to nearest: an error that no mean removes, 2^-11 of each value
        own -= 2.0**-24
    assert n * own / one == pytest.approx(1, abs=0.25)
    assert error_of_mean(lambda device: Keys(keys(1).own, KEYS.shared)) > 0.5 * one


def test_rounding_is_the_same_for_a_key_and_another_for_another() -> None:
    vector = heavy(LAYOUT, 6)
    assert made(BLK8, vector, keys(1)) != made(BLK8, vector, keys(2))
    nearest = CodecSpec(name="blk8", rounding="nearest")
    assert made(nearest, vector, keys(1)) == made(nearest, vector, keys(2))


@specs
def test_another_plans_vector_is_refused_with_both_counts(spec: CodecSpec) -> None:
    other = VectorLayout.flat(10)
    with pytest.raises(CodecError, match=f"holds 10 floats, the plan has {COUNT}"):
        decoded(made(spec, np.ones(10, np.float32), layout=other), spec)
    with pytest.raises(CodecError, match=f"vector of 10 floats, the plan has {COUNT}"):
        made(spec, np.ones(10, np.float32))


@specs
def test_a_payload_of_another_codec_or_parameter_is_refused(spec: CodecSpec) -> None:
    mine = codec_of(spec)
    for other in SPECS:
        if (codec_of(other).id, codec_of(other).parameter) != (mine.id, mine.parameter):
            with pytest.raises(CodecError, match=f"codec {mine.id} with parameter {mine.parameter}, this round uses"):
                decoded(made(spec, heavy(LAYOUT, 7)), other)


@specs
@pytest.mark.parametrize("change", [-1, 1, 64])
def test_a_vector_of_another_length_is_refused(spec: CodecSpec, change: int) -> None:
    payload = recoded(made(spec, heavy(LAYOUT, 8)), lambda c: (c + bytes(64))[: len(c) + change])
    with pytest.raises(
        CodecError,
        match=f"coded vector has {codec_of(spec).most(LAYOUT) + change} bytes" if codec_of(spec).exact else None,
    ):
        decoded(payload, spec)


@specs
def test_a_vector_beyond_its_bound_is_refused_before_it_is_read(spec: CodecSpec) -> None:
    payload = recoded(made(spec, heavy(LAYOUT, 8)), lambda _: bytes(codec_of(spec).most(LAYOUT) + 1))
    with pytest.raises(CodecError, match="coded vector has"):
        decoded(payload, spec)


def test_a_rate_that_the_bytes_belie_is_refused() -> None:
    info, coded = read_info(made(BLK8, heavy(LAYOUT, 8)))
    for rate in (info.rate * (1 + 2**-50), 0.0, float("nan"), float("inf")):
        with pytest.raises(CodecError, match=r"rate is|rate`"):
            decoded(with_info(msgspec.structs.replace(info, rate=rate), bytes(coded)), BLK8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_coded_value_that_is_not_finite_is_refused_with_its_tensor(bad: float) -> None:
    values = np.zeros(COUNT, "<f4")
    values[3] = bad
    with pytest.raises(CodecError, match=r"tensor 'conv.weight', value 3 of 1152 is -?(nan|inf)"):
        decoded(with_info(INFO, values.tobytes()), RAW32)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 2.0**-91])
def test_a_blk8_scale_that_no_encoder_writes_is_refused_with_its_block(scale: float) -> None:
    payload = recoded(made(BLK8, heavy(LAYOUT, 9)), lambda c: c[:68] + np.float32(scale).tobytes() + c[72:])
    with pytest.raises(CodecError, match="block 1"):
        decoded(payload, BLK8)


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


@specs
@given(payload=st.binary(max_size=400))
def test_random_payloads_are_refused_and_nothing_else(spec: CodecSpec, payload: bytes) -> None:
    with pytest.raises(CodecError):
        decoded(payload, spec)


@specs
@given(coded=st.binary(max_size=600))
def test_random_vectors_behind_an_honest_info_are_finite_or_refused(spec: CodecSpec, coded: bytes) -> None:
    codec, layout = codec_of(spec), VectorLayout.flat(100)
    if codec.exact:
        coded = (coded * codec.most(layout))[: codec.most(layout)]
    info = msgspec.structs.replace(
        INFO, codec=codec.id, parameter=codec.parameter, count=100, rate=8.0 * len(coded) / 100
    )
    try:
        out = decoded(with_info(info, coded), spec, layout=layout)
    except CodecError:
        return
    assert np.isfinite(out).all()


@specs
@given(data=st.data())
def test_a_payload_with_changed_bytes_decodes_to_finite_values_or_is_refused(
    spec: CodecSpec, data: st.DataObject
) -> None:
    layout = VectorLayout.stacked([("a", (9, 150)), ("b", (20,))])
    payload = bytearray(made(spec, heavy(layout, 10), layout=layout))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    out = np.zeros(layout.count, np.float32)
    try:
        info = decode_payload(bytes(payload), spec, layout, KEYS, out)
    except CodecError:
        return
    assert np.isfinite(out).all()
    assert 1 <= info.weight <= 2**24


def test_a_hostile_count_allocates_nothing_of_its_size() -> None:
    payload = with_info(msgspec.structs.replace(INFO, count=2**28), bytes(12))
    layout, out = VectorLayout.flat(3), np.empty(3, np.float32)
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match="268435456 floats"):
            decode_payload(payload, RAW32, layout, KEYS, out)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


def test_a_spec_says_all_its_parameters_and_only_its_own() -> None:
    for name in NAMES:
        said = msgspec.json.decode(msgspec.json.encode(CodecSpec(name=name)))
        assert said == {"name": name, **DEFAULTS.get(name, {})}
        assert msgspec.json.decode(msgspec.json.encode(said), type=CodecSpec) == CodecSpec(name=name)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"name": "zip"}, "name"),
        ({"name": "rot-9"}, "name"),
        ({"name": "rot-2", "bits": 2}, "`bits`: codec rot-2 takes no parameters"),
        ({"name": "ec-dz", "fraction": 0.1}, "`fraction`: codec ec-dz takes only bits"),
        ({"name": "auto", "bits": 2, "bytes": 4000}, "`bytes`: codec auto takes bits or bytes, not both"),
        ({"name": "ec-dither", "bits": 17}, "`bits`: 17, codec ec-dither takes 0.05 to 16"),
        ({"name": "ec-dither", "bytes": 4000}, "`bytes`: codec ec-dither takes only bits"),
        ({"name": "topk", "fraction": 0.0}, "`fraction`: 0"),
        ({"name": "ring", "bits": 18}, "`bits`: 18, codec ring takes 16, 20, 32"),
        ({"name": "ring", "step": 1e9}, "`step`: 1e"),
        ({"name": "auto", "bytes": 3}, "`bytes`: 3"),
        ({"name": "raw32", "rounding": "nearest"}, "`rounding`: codec raw32 takes no parameters"),
    ],
    ids=str,
)
def test_a_spec_that_cannot_be_is_refused_with_its_field(fields: dict[str, object], match: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=match if "name" not in match else None):
        msgspec.convert(fields, CodecSpec)
