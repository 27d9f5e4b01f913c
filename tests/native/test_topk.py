"""topk: the k largest, ties by index, against NumPy's sort and a decoder in plain Python, and what it refuses."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetgrad.native import topk
from fleetgrad.native.binding import KernelError
from tests.native import reference
from tests.native.inputs import SIZES, sgd, vectors

HALF = np.uint32(1 << 20)  # of the step between two magnitudes that can be told apart


def wanted(values: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """What a stream of the k largest decodes to: a stable sort, then rounding in integers."""
    words = values.view(np.uint32)
    magnitudes = words & np.uint32(0x7FFFFFFF)
    order = np.argsort(-magnitudes.astype(np.int64), kind="stable")[:k]
    codes = (magnitudes + HALF) >> np.uint32(21)
    top = int(codes.max(initial=0))
    order = order[codes[order] >= max(148, top - 255)]
    out = np.zeros(values.size, np.uint32)
    out[order] = codes[order] << np.uint32(21) | (words[order] & np.uint32(0x80000000))
    return out.view(np.float32)


def round_trip(values: NDArray[np.float32], k: int) -> bytes:
    coded = topk.encode(values, k)
    out = np.full(values.size, 7, np.float32)
    topk.decode(coded, out)
    assert out.tobytes() == wanted(values, k).tobytes()
    return coded.tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_the_k_largest_come_back_to_a_quarter_of_an_octave(isa: str, seed: int, size: int) -> None:
    for make in vectors(seed):
        values = make(size)
        for k in sorted({0, min(1, size), size // 100, size // 3, size} if size < 10**6 else {size // 100, size // 3}):
            round_trip(values, k)


def test_ties_go_to_the_lower_index(isa: str) -> None:
    values = np.array([1, -2, 2, -2, 1, 2, 3], np.float32)
    out = np.empty(7, np.float32)
    for k, kept in ((1, {6}), (2, {6, 1}), (3, {6, 1, 2}), (4, {6, 1, 2, 3}), (6, {6, 1, 2, 3, 5, 0})):
        topk.decode(topk.encode(values, k), out)
        assert set(np.flatnonzero(out)) == kept


def test_a_tie_over_the_border_of_two_chunks_is_kept_once(isa: str) -> None:
    values = np.full(150_000, -1.25, np.float32)
    for k in (65_535, 65_536, 65_537, 131_072, 140_001):
        out = np.empty(values.size, np.float32)
        topk.decode(topk.encode(values, k), out)
        assert (out[:k] == -1.25).all() and (out[k:] == 0).all()


def test_bytes_are_those_that_the_page_of_codecs_says(isa: str, seed: int) -> None:
    for make in vectors(seed):
        for size, k in ((1, 1), (65, 3), (4097, 400), (70_000, 66_000)):
            values = make(size)
            assert reference.topk(round_trip(values, k), size).tobytes() == wanted(values, k).tobytes()


def test_far_gaps_are_told_exactly(isa: str) -> None:
    values = np.zeros(2**22, np.float32)
    places = np.unique(2 ** np.arange(22) + np.array([[-1], [0], [1]]).clip(0))
    places = places[places < values.size]
    values[places] = np.float32(0.75)
    round_trip(values, places.size)


def test_places_cost_about_their_entropy_and_values_six_bits(seed: int) -> None:
    print(f"seed {seed}")
    values = np.random.default_rng(seed).standard_normal(2**20).astype(np.float32)
    for share in (0.001, 0.01, 0.1):
        k = int(share * values.size)
        places = values.size * -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
        assert 8 * len(round_trip(values, k)) < 1.02 * places + 5 * k + 1000


def test_with_error_feedback_all_arrives_and_the_residual_stays_bounded(seed: int) -> None:
    rng = np.random.default_rng(seed)
    print(f"seed {seed}")
    residual, sent, size, k, rounds = np.zeros(5000, np.float32), np.zeros(5000), 5000, 500, 480
    constant, norms = sgd(rng, size), []
    for _ in range(rounds):
        v = constant + residual
        out = np.empty_like(v)
        topk.decode(topk.encode(v, k), out)
        residual, sent = v - out, sent + out
        norms.append(float(np.linalg.norm(residual)))
        # topk leaves out at most 1 - k / d of the squared norm, and rounds what it keeps: a contraction in every round.
        assert norms[-1] ** 2 <= (1 - 0.98 * k / size) * float(np.linalg.norm(v)) ** 2
    # What that contraction bounds a residual by, whatever the values: it doesn't grow for ever.
    shrink = (1 - 0.98 * k / size) ** 0.5
    assert max(norms) <= shrink / (1 - shrink) * float(np.linalg.norm(constant))
    assert max(norms[rounds // 2 :]) < 1.05 * max(norms[: rounds // 2])  # it is full by then
    assert np.linalg.norm(sent / rounds - constant) < 0.1 * np.linalg.norm(constant)


@pytest.mark.parametrize(
    ("bad", "text"), [(np.nan, "NaN or infinite"), (-np.inf, "NaN or infinite"), (2e27, "beyond the range")]
)
def test_what_is_not_finite_or_too_large_is_refused_with_its_index(isa: str, bad: float, text: str) -> None:
    values = np.ones(70_000, np.float32)
    values[66_001] = bad
    with pytest.raises(KernelError, match=f"value 66001 of 70000: value is {text}"):
        topk.encode(values, 10)
    values[5] = 1e30
    if not np.isfinite(bad):
        with pytest.raises(KernelError, match="value 66001"):
            topk.encode(values, 10)


def test_every_cut_of_a_stream_and_every_byte_behind_it_is_refused(isa: str, seed: int) -> None:
    print(f"seed {seed}")
    values = sgd(np.random.default_rng(seed), 3000)
    values[-1] = 1  # it is kept: a shorter vector has no place for it
    coded = round_trip(values, 300)
    out = np.empty(values.size, np.float32)
    for size in range(len(coded)):
        with pytest.raises(KernelError, match="of a stream of"):
            topk.decode(coded[:size], out)
    with pytest.raises(KernelError, match="bytes are left over"):
        topk.decode(coded + b"\0", out)
    with pytest.raises(KernelError, match="out of range"):
        topk.decode(coded, out[:299])
    with pytest.raises(KernelError, match="beyond the range"):
        topk.decode(coded, out[:-200])


def test_headers_that_no_encoder_writes_are_refused(isa: str) -> None:
    out = np.empty(9, np.float32)
    topk.decode(struct.pack("<IH", 0, 0), out)
    for head in ((0, 500), (1, 147), (1, 869), (10, 500), (2**32 - 1, 500)):
        with pytest.raises(KernelError, match="out of range"):
            topk.decode(struct.pack("<IH", *head) + bytes(100), out)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_stream_decodes_as_the_reference_does_or_is_refused_by_both(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 5)))
    values = sgd(rng, 900)
    coded = bytearray(topk.encode(values, data.draw(st.sampled_from([1, 5, 200]))).tobytes())
    for _ in range(data.draw(st.integers(1, 3))):
        coded[data.draw(st.integers(0, len(coded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    out = np.empty(values.size, np.float32)
    try:
        expected = reference.topk(bytes(coded), values.size)
    except ValueError:
        with pytest.raises(KernelError):
            topk.decode(coded, out)
    else:
        topk.decode(coded, out)
        assert out.tobytes() == expected.tobytes()


def test_the_face_refuses_a_k_that_the_vector_has_not() -> None:
    for k in (-1, 4):
        with pytest.raises(KernelError, match=f"k is {k}, expected 0 to the vector's 3 values"):
            topk.encode(np.ones(3, np.float32), k)
