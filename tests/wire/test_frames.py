"""Frames: one byte order, one length, one checksum; whatever else arrives is untrusted and costs no memory."""

import hashlib
import struct
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetgrad.native import kernels
from fleetgrad.wire import frames
from fleetgrad.wire.frames import (
    DATA_BYTES,
    HEADER_BYTES,
    LEAST_CHUNK_BYTES,
    MOST_CHUNK_BYTES,
    Header,
    chunks_of,
    frame,
    parse,
)
from fleetgrad.wire.signing import SIGNATURE_BYTES, PrivateKey, Untrusted

KEY = PrivateKey.from_seed(bytes(range(32)))
OTHER = PrivateKey.from_seed(bytes(range(1, 33)))
MOST = 10 * DATA_BYTES

hashes16, hashes32 = st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32)
headers = st.builds(
    frames.update_header,
    st.sampled_from([frames.UPDATE, frames.QUERY]), hashes16, st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1), hashes16,
    hashes32, hashes32, st.integers(0, 3 * DATA_BYTES), hashes32, st.integers(LEAST_CHUNK_BYTES, MOST_CHUNK_BYTES),
)  # fmt: skip


def update(payload: bytes, chunk_bytes: int = DATA_BYTES) -> tuple[Header, bytes]:
    """Header and signed body of an update with this payload."""
    header = frames.update_header(
        frames.UPDATE, b"f" * 16, 7, 2, b"d" * 16, b"m" * 32, b"c" * 32, len(payload), hashlib.sha256(payload).digest(),
        chunk_bytes,
    )  # fmt: skip
    return header, payload + frames.sign_body(KEY, header)


def sealed(raw: bytes | bytearray) -> bytes:
    """A frame with its CRC made right again, so that only the check under test can refuse it."""
    bare = bytes(raw[:118]) + bytes(4) + bytes(raw[122:])
    return bare[:118] + struct.pack("<I", kernels.crc32c(bare)) + bare[122:]


def test_crc32c_has_the_check_value_of_the_catalogue() -> None:
    assert kernels.crc32c(b"123456789") == 0xE3069283
    assert kernels.crc32c(b"6789", kernels.crc32c(b"12345")) == 0xE3069283


def test_each_field_lies_where_the_diagram_says() -> None:
    header = Header(
        1, bytes(range(16)), 0x01020304, 0x0506, b"D" * 16, b"M" * 32, b"C" * 32, 0x0908, 0x0D0C0B0A, b"P" * 32
    )
    raw = replace(header, seq=0x0807, crc=0x11223344, chunk_bytes=0x55667788).pack()
    assert len(raw) == HEADER_BYTES
    fields = {
        0: b"FGRD", 4: b"\x01", 5: b"\x01", 6: b"\0\0", 8: bytes(range(16)), 24: b"\4\3\2\1", 28: b"\6\5", 30: b"D" * 16,
        46: b"M" * 32, 78: b"C" * 32, 110: b"\7\x08", 112: b"\x08\x09", 114: b"\x0a\x0b\x0c\x0d", 118: b"\x44\x33\x22\x11",
        122: b"P" * 32, 154: b"\x88\x77\x66\x55", 158: bytes(2),
    }  # fmt: skip
    assert b"".join(fields.values()) == raw
    for offset, value in fields.items():
        assert raw[offset : offset + len(value)] == value


@given(headers, st.data())
def test_a_frame_comes_back_as_header_and_chunk(header: Header, data: st.DataObject) -> None:
    seq = data.draw(st.integers(0, header.nchunks - 1))
    chunk = bytes(header.total_len)[header.span(seq)]
    read, got = parse(frame(header, seq, chunk), most=MOST)
    assert read.whole() == header
    assert (read.seq, bytes(got)) == (seq, chunk)


@pytest.mark.parametrize("chunk_bytes", [LEAST_CHUNK_BYTES, 4096, DATA_BYTES, MOST_CHUNK_BYTES])
@pytest.mark.parametrize("chunks", [0, 1, 2])
@pytest.mark.parametrize("more", [1, -64, -63, 0])
def test_frames_of_a_body_are_full_but_for_the_last(chunks: int, more: int, chunk_bytes: int) -> None:
    size = max(1, chunks * chunk_bytes + more)
    header, body = update(bytes(i % 251 for i in range(size)), chunk_bytes)
    made = list(frames.frames(header, body))
    assert len(made) == header.nchunks == chunks_of(size + SIGNATURE_BYTES, chunk_bytes)
    read = [parse(raw, most=size + SIGNATURE_BYTES) for raw in made]
    assert [h.seq for h, _ in read] == list(range(header.nchunks))
    assert all(len(chunk) == chunk_bytes for _, chunk in read[:-1])
    assert 0 < len(read[-1][1]) <= chunk_bytes
    assert b"".join(chunk for _, chunk in read) == body
    assert frames.signature_holds(KEY.public, header, body)


def test_an_object_is_its_payload_alone() -> None:
    data = b"model" * 30_000
    header = frames.object_header(len(data), hashlib.sha256(data).digest())
    made = [parse(raw, most=len(data)) for raw in frames.frames(header, data)]
    assert b"".join(chunk for _, chunk in made) == data
    assert (header.type, header.round, header.device, header.model) == (frames.OBJECT, 0, bytes(16), bytes(32))


@given(st.data())
def test_a_changed_bit_is_refused(data: st.DataObject) -> None:
    header, body = update(b"payload" * 20)
    raw = bytearray(frame(header, 0, body))
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Untrusted):
        parse(bytes(raw), most=MOST)


@given(st.binary(max_size=400))
def test_random_bytes_are_untrusted_and_nothing_else(raw: bytes) -> None:
    with pytest.raises(Untrusted):
        parse(raw, most=MOST)


@given(st.data())
def test_a_header_with_any_fields_and_a_right_checksum_parses_exactly_or_is_untrusted(data: st.DataObject) -> None:
    """Fields drawn at random, the CRC made right: what parse takes has the one length that its header implies."""
    header, body = update(b"x" * data.draw(st.integers(0, 300)))
    raw = bytearray(frame(header, 0, body))
    for offset, width in data.draw(
        st.lists(st.sampled_from([(0, 4), (4, 1), (5, 1), (6, 2), (110, 2), (112, 2), (114, 4), (154, 4), (158, 2)]))
    ):
        raw[offset : offset + width] = data.draw(st.binary(min_size=width, max_size=width))
    try:
        read, chunk = parse(sealed(raw), most=MOST)
    except Untrusted:
        return
    assert read.type in (frames.UPDATE, frames.QUERY, frames.OBJECT)
    assert (read.seq, read.nchunks, read.total_len) == (0, 1, len(chunk))
    assert read.flags == (frames.SEALED if read.type == frames.UPDATE else 0)


WRONG = [
    (0, b"FGRE", "starts with"),
    (4, b"\2", "protocol version 2"),
    (5, b"\0", "type 0"),
    (5, b"\4", "type 4"),
    (6, b"\0\0", "flags 0x0: an update is sealed"),
    (6, b"\3\0", "flags 0x3"),
    (6, b"\1\x80", "flags 0x8001"),
    (110, b"\1\0", "chunk 1 of 1"),
    (112, b"\2\0", "of 2"),
    (112, b"\0\0", "of 0"),
    (114, b"\0\0\0\0", "body of 0 bytes"),
    (114, b"\xff\xff\xff\xff", "body of 4294967295 bytes, at most"),
    (154, b"\1\0", "chunks of 1 bytes, expected 1024 to 122880"),
    (154, bytes(4), "chunks of 0 bytes"),
    (154, b"\xff\xff\xff\xff", "chunks of 4294967295 bytes"),
    (158, b"\1", "reserved"),
    (159, b"\1", "reserved"),
]


@pytest.mark.parametrize(("offset", "value", "reason"), WRONG)
def test_a_frame_that_breaks_one_rule_is_refused_for_it(offset: int, value: bytes, reason: str) -> None:
    header, body = update(b"payload")
    raw = bytearray(frame(header, 0, body))
    raw[offset : offset + len(value)] = value
    with pytest.raises(Untrusted, match=reason):
        parse(sealed(raw), most=MOST)


@pytest.mark.parametrize("change", [-1, 1, 5])
def test_a_chunk_shorter_or_longer_than_its_header_says_is_refused(change: int) -> None:
    header, body = update(b"payload")
    with pytest.raises(Untrusted, match="chunk 0 has"):
        parse(frame(header, 0, (body + bytes(5))[: len(body) + change]), most=MOST)


@pytest.mark.parametrize("length", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + MOST_CHUNK_BYTES + 1])
def test_a_frame_of_an_impossible_length_is_refused(length: int) -> None:
    with pytest.raises(Untrusted, match="expected 161 to 123040"):
        parse(bytes(length), most=MOST)


def test_a_body_of_more_chunks_than_a_header_counts_is_refused_with_the_length_that_would_do() -> None:
    with pytest.raises(ValueError, match=r"65,536 chunks, at most 65,535: .* at least 1,025"):
        frames.object_header(65_536 * 1024, bytes(32), 1024)
    assert frames.object_header(65_535 * 1024, bytes(32), 1024).nchunks == 65_535


def test_the_readers_own_bound_holds_whatever_the_header_says() -> None:
    header, body = update(bytes(1000))
    raw = frame(header, 0, body)
    assert parse(raw, most=len(body))[0].whole() == header
    with pytest.raises(Untrusted, match="at most 1063"):
        parse(raw, most=len(body) - 1)


def test_parsing_a_hostile_length_allocates_nothing_of_its_size() -> None:
    header, body = update(b"payload")
    raw = bytearray(frame(header, 0, body))
    raw[112:118] = struct.pack("<HI", 2**16 - 1, 2**32 - 1)
    hostile = sealed(raw)
    tracemalloc.start()
    try:
        with pytest.raises(Untrusted):
            parse(hostile, most=MOST)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()


def test_the_signature_covers_every_field_and_the_payload() -> None:
    header, body = update(b"payload")
    assert frames.signature_holds(KEY.public, header, body)
    assert frames.signature_holds(KEY.public, replace(header, seq=3, crc=9), body), "it is the same for every chunk"
    assert not frames.signature_holds(OTHER.public, header, body)
    changes: list[dict[str, object]] = [
        {"type": frames.QUERY}, {"federation": b"F" * 16}, {"round": 8}, {"attempt": 3}, {"device": b"D" * 16},
        {"model": b"M" * 32}, {"config": b"C" * 32}, {"nchunks": 2}, {"payload_sha256": b"P" * 32}, {"flags": 0},
        {"chunk_bytes": 4096},
    ]  # fmt: skip
    for change in changes:
        assert not frames.signature_holds(KEY.public, replace(header, **change), body), change  # type: ignore[arg-type]
    assert not frames.signature_holds(KEY.public, header, b"Payload" + body[7:])
    assert not frames.signature_holds(KEY.public, header, body[:-1])
    assert not frames.signature_holds(KEY.public, header, body + b"\0")
    assert not frames.signature_holds(KEY.public, header, b"")


def test_an_update_signature_is_no_query_and_no_message() -> None:
    header, body = update(b"")
    query = replace(header, type=frames.QUERY)
    assert frames.signature_holds(KEY.public, query, frames.sign_body(KEY, query))
    assert not frames.signature_holds(KEY.public, query, body)
    assert header.signed_bytes().startswith(frames.CONTEXT)
    assert b"." not in header.signed_bytes()[: len(frames.CONTEXT)], "a JWS signs base64url and a dot"
