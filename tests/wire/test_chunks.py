"""Reassembly: any order, any repetition, foreign frames between; the body comes out or the frame is refused."""

import hashlib
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetgrad.wire import frames
from fleetgrad.wire.chunks import Assembly, absent, has
from fleetgrad.wire.frames import DATA_BYTES, MOST_CHUNK_BYTES, parse
from fleetgrad.wire.signing import Untrusted

BODY = bytes(i * 7 % 256 for i in range(256)) * 1100  # 281,600 bytes: five chunks, the last one short
HEADER = frames.object_header(len(BODY), hashlib.sha256(BODY).digest())
FRAMES = [parse(raw, most=len(BODY)) for raw in frames.frames(HEADER, BODY)]
FOREIGN = [
    (replace(header, **change), chunk)  # type: ignore[arg-type]
    for (header, chunk), change in zip(
        FRAMES,
        (
            {"payload_sha256": b"x" * 32}, {"total_len": len(BODY) - 1}, {"attempt": 1}, {"device": b"y" * 16},
            {"type": frames.UPDATE},
        ),
        strict=True,
    )
]  # fmt: skip


@given(st.data())
def test_a_body_comes_together_from_frames_in_any_order_twice_and_with_foreign_ones_between(
    data: st.DataObject,
) -> None:
    order = data.draw(st.permutations([*range(len(FRAMES)), *data.draw(st.lists(st.integers(0, 9), max_size=10))]))
    assembly = Assembly(FRAMES[data.draw(st.integers(0, len(FRAMES) - 1))][0])
    seen: set[int] = set()
    for index in order:
        if index >= len(FRAMES):
            before = bytes(assembly.received)
            with pytest.raises(Untrusted, match="another body"):
                assembly.add(*FOREIGN[index - len(FRAMES)])
            assert bytes(assembly.received) == before
            continue
        assert assembly.add(*FRAMES[index]) is (index not in seen)
        seen.add(index)
        assert assembly.complete is (len(seen) == len(FRAMES))
        assert absent(assembly.received, HEADER.nchunks) == sorted(set(range(len(FRAMES))) - seen)
        assert assembly.missing == len(FRAMES) - len(seen)
    assert bytes(assembly.body) == BODY


@given(st.integers(1024, MOST_CHUNK_BYTES), st.randoms(use_true_random=False))
def test_a_body_comes_together_from_chunks_of_any_length(chunk_bytes: int, random: Random) -> None:
    header = frames.object_header(len(BODY), hashlib.sha256(BODY).digest(), chunk_bytes)
    made = [parse(raw, most=len(BODY)) for raw in frames.frames(header, BODY)]
    random.shuffle(made)
    assembly = Assembly(made[0][0])
    assert all(assembly.add(*one) for one in made)
    assert assembly.complete
    assert bytes(assembly.body) == BODY
    with pytest.raises(Untrusted, match="another body"):
        assembly.add(*FRAMES[0])


def test_a_chunk_that_came_is_not_overwritten_by_its_twin() -> None:
    assembly = Assembly(HEADER)
    assembly.add(*FRAMES[0])
    assert not assembly.add(FRAMES[0][0], bytes(DATA_BYTES))
    assert bytes(assembly.body[:DATA_BYTES]) == BODY[:DATA_BYTES]


def test_the_first_header_names_the_body_whatever_its_seq() -> None:
    assert Assembly(FRAMES[3][0]).header == HEADER
    assert Assembly(FRAMES[3][0]).missing == 5


@pytest.mark.parametrize(("nchunks", "length"), [(1, 1), (8, 1), (9, 2), (64, 8), (65, 9)])
def test_a_bitmap_has_a_bit_for_each_chunk(nchunks: int, length: int) -> None:
    assembly = Assembly(frames.object_header(nchunks * DATA_BYTES, bytes(32)))
    assert len(assembly.received) == length
    assert absent(assembly.received, nchunks) == list(range(nchunks))


def test_bits_count_from_the_least_significant() -> None:
    bitmap = bytes([0b0000_0101, 0b1000_0000])
    assert [i for i in range(16) if has(bitmap, i)] == [0, 2, 15]
    assert absent(bitmap, 16) == [1, *range(3, 15)]


@given(st.binary(max_size=5), st.integers(0, 100))
def test_a_bitmap_of_any_length_marks_nothing_beyond_its_end(bitmap: bytes, nchunks: int) -> None:
    missing = absent(bitmap, nchunks)
    assert set(range(8 * len(bitmap), nchunks)) <= set(missing)
    assert missing == [i for i in range(nchunks) if not has(bitmap, i)]
