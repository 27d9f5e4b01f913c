"""The committed golden vectors: the code still makes them, and reads them back from the bytes alone."""

import hashlib
import importlib.util
import json
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest

from fleetgrad.native import binding
from fleetgrad.wire import frames, messages, seeds
from fleetgrad.wire.chunks import Assembly
from fleetgrad.wire.codecs import BLK8, RAW32, decode_payload, read_info
from fleetgrad.wire.messages import Command, Head, Policy
from fleetgrad.wire.signing import PrivateKey, PublicKey, Untrusted, verify_message

HERE = Path(__file__).parent
VECTORS: dict[str, Any] = json.loads((HERE / "vectors.json").read_text())
AGAIN = "run `python tests/wire/make_vectors.py` if the protocol changed on purpose"


@pytest.fixture(scope="module")
def make_vectors() -> ModuleType:
    """The generator beside this file."""
    found = importlib.util.spec_from_file_location("make_vectors", HERE / "make_vectors.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize("part", VECTORS)
def test_the_code_gives_the_committed_bytes(make_vectors: ModuleType, part: str) -> None:
    made = json.loads(json.dumps(make_vectors.make()))
    assert made[part] == VECTORS[part], AGAIN
    assert list(made) == list(VECTORS)


def test_every_capability_gives_the_committed_payloads(make_vectors: ModuleType) -> None:
    before = binding.capability()
    try:
        for name in binding.capabilities():
            binding.use_capability(name)
            assert make_vectors.make()["payloads"] == VECTORS["payloads"], name
    finally:
        binding.use_capability(before)


def test_the_spec_shows_the_same_bytes(make_vectors: ModuleType) -> None:
    text = make_vectors.SPEC.read_text()
    assert make_vectors.spec_with_example(text) == text, AGAIN
    header = bytes.fromhex(VECTORS["update"]["headers"][0])
    dumped = text.split(make_vectors.BEGIN)[1].split("```")
    for block, raw in ((dumped[1], header), (dumped[3], bytes.fromhex(VECTORS["payloads"]["blk8 to nearest"]))):
        assert bytes.fromhex("".join(line[6:53] for line in block.strip("\n").splitlines())) == raw


def test_keys_are_those_of_their_seeds() -> None:
    for key in VECTORS["keys"].values():
        public = PrivateKey.from_seed(bytes.fromhex(key["seed"])).public
        assert public.raw.hex() == key["public"]
        assert public.kid == key["kid"] == hashlib.sha256(bytes.fromhex(key["public"])).hexdigest()[:16]


def public(party: str) -> PublicKey:
    return PrivateKey.from_seed(bytes.fromhex(VECTORS["keys"][party]["seed"])).public


def test_the_policy_hash_is_that_of_its_json() -> None:
    text = VECTORS["policy"]["json"]
    assert hashlib.sha256(text.encode()).hexdigest() == VECTORS["policy"]["sha256"]
    assert msgspec.json.decode(text, type=Policy).sha256() == VECTORS["policy"]["sha256"]


def test_seeds_follow_section_4_4_of_the_spec() -> None:
    for purpose, value in VECTORS["seeds"].items():
        text = purpose.encode() + b"demo\0dev-1\0" + struct.pack("<IH", 7, 2)
        assert f"{int.from_bytes(hashlib.sha256(text).digest()[:8], 'little'):016x}" == value
    drawn = {
        seeds.derive(purpose, fed, dev, round_, attempt)
        for purpose in ("fl1-seed", "fl1-codec")
        for fed, dev in (("a", "bc"), ("ab", "c"))
        for round_ in (1, 2)
        for attempt in (1, 2)
    }
    assert len(drawn) == 16


def test_the_update_comes_together_from_its_headers_and_its_payload() -> None:
    update = VECTORS["update"]
    values = (((37 * np.arange(update["floats"])) % 511 - 255) / 4096).astype("<f4")
    info = bytes.fromhex(VECTORS["payloads"]["raw32"])[:52].replace(
        b"\xa5countF", b"\xa5count" + msgspec.msgpack.encode(update["floats"])
    )
    info = struct.pack("<H", len(info) - 2) + info[2:]
    body = info + values.tobytes() + bytes.fromhex(update["signature"])
    assembly: Assembly | None = None
    for seq in (2, 0, 1):
        chunk = body[seq * frames.DATA_BYTES : (seq + 1) * frames.DATA_BYTES]
        raw = bytes.fromhex(update["headers"][seq]) + chunk
        assert hashlib.sha256(raw).hexdigest() == update["frames sha256"][seq]
        header, read = frames.parse(raw, most=len(body))
        assembly = assembly or Assembly(header)
        assembly.add(header, read)
    assert assembly is not None
    assert assembly.complete
    assert bytes(assembly.body) == body
    assert b"fl1-update" + assembly.header.pack() == bytes.fromhex(update["signed bytes"])
    assert frames.signature_holds(public("device"), assembly.header, assembly.body)
    out = np.empty(update["floats"], np.float32)
    assert decode_payload(bytes(assembly.body[:-64]), RAW32, out).weight == 120
    assert np.array_equal(out, values)


def test_the_query_is_one_frame_that_its_device_signed() -> None:
    raw = bytes.fromhex(VECTORS["query"])
    header, body = frames.parse(raw, most=64)
    assert (header.type, header.nchunks, header.total_len, len(raw)) == (frames.QUERY, 1, 64, 224)
    assert header.payload_sha256.hex() == VECTORS["update"]["payload sha256"]
    assert public("device").verify(bytes(body), header.signed_bytes())


def test_payloads_decode_to_what_numpy_reads_from_them() -> None:
    for name, text in VECTORS["payloads"].items():
        raw = bytes.fromhex(text)
        info, coded = read_info(raw)
        out = np.empty(info.count, np.float32)
        decode_payload(raw, RAW32 if name == "raw32" else BLK8, out)
        if name == "raw32":
            assert np.array_equal(out, np.frombuffer(coded, "<f4"))
            continue
        at = 0
        for start in range(0, info.count, 64):
            count = min(64, info.count - start)
            scale = np.frombuffer(coded, "<f4", 1, at)[0]
            codes = np.frombuffer(coded, np.int8, count, at + 4).astype(np.float32)
            assert np.array_equal(out[start : start + count], scale * codes)
            at += 4 + count
        assert at == len(coded)


def test_each_signed_message_is_read_by_its_own_kind_alone() -> None:
    kinds: dict[str, tuple[str, str, Any]] = {
        "head": ("aggregator", messages.HEAD, Head),
        "birth": ("device", messages.BIRTH, messages.Birth),
        **dict.fromkeys(("select", "receipt", "bitmap", "retry-after"), ("aggregator", messages.COMMAND, Command)),
    }
    assert set(kinds) == set(VECTORS["jws"])
    for name, raw in VECTORS["jws"].items():
        party, kind, type_ = kinds[name]
        message = verify_message(public(party), kind, raw.encode(), type_)
        assert message.federation == "demo"
        for other in {messages.HEAD, messages.BIRTH, messages.COMMAND} - {kind}:
            with pytest.raises(Untrusted):
                verify_message(public(party), other, raw.encode(), type_)


def test_the_fixed_point_sum_is_exact() -> None:
    values = ((37 * np.arange(70)) % 511 - 255) * (2**32 // 4096)
    assert np.array_equal(np.frombuffer(bytes.fromhex(VECTORS["fixed point"]["sum"]), "<i8"), 123 * values)
