"""The committed golden vectors: the code still makes them, and reads them back from the bytes alone."""

import dataclasses
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
from fleetgrad.wire.codecs import decode_payload, read_info
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.messages import Command, Head, Policy
from fleetgrad.wire.seal import SealKey, seal
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
    shown = {name: text.split(f"**{name}**")[1].split("```")[1] for name in make_vectors.NOTES}
    for name, block in shown.items():
        payload = bytes.fromhex(VECTORS["payloads"][name]["payload"])
        assert (
            bytes.fromhex("".join(line[6:53] for line in block.strip("\n").splitlines())) == payload[2 + payload[0] :]
        )
    dumped = text.split(make_vectors.BEGIN)[1].split("```")
    for block, raw in (
        (dumped[1], header),
        (dumped[3], bytes.fromhex(VECTORS["payloads"]["blk8 to nearest"]["payload"])),
    ):
        assert bytes.fromhex("".join(line[6:53] for line in block.strip("\n").splitlines())) == raw


def test_keys_are_those_of_their_seeds() -> None:
    seals = VECTORS["keys"]["seal"]
    assert SealKey.from_bytes(bytes.fromhex(seals["private"])).public.hex() == seals["public"]
    for key in (VECTORS["keys"][party] for party in ("device", "aggregator")):
        public = PrivateKey.from_seed(bytes.fromhex(key["seed"])).public
        assert public.raw.hex() == key["public"]
        assert public.kid == key["kid"] == hashlib.sha256(bytes.fromhex(key["public"])).hexdigest()[:16]


def public(party: str) -> PublicKey:
    return PrivateKey.from_seed(bytes.fromhex(VECTORS["keys"][party]["seed"])).public


def test_the_policy_hash_is_that_of_its_json() -> None:
    text = VECTORS["policy"]["json"]
    assert hashlib.sha256(text.encode()).hexdigest() == VECTORS["policy"]["sha256"]
    assert msgspec.json.decode(text, type=Policy).sha256() == VECTORS["policy"]["sha256"]


def test_keys_follow_section_4_4_of_the_spec() -> None:
    for purpose, value in VECTORS["seeds"].items():
        text = purpose.encode() + b"demo\0dev-1\0" + struct.pack("<IH", 7, 2)
        if purpose == "fl1-ring":
            text = purpose.encode() + b"demo\0\0" + struct.pack("<IH", 7, 0)
        assert f"{int.from_bytes(hashlib.sha256(text).digest()[:8], 'little'):016x}" == value


def test_no_two_devices_rounds_attempts_or_purposes_share_a_key() -> None:
    purposes: tuple[seeds.Purpose, ...] = ("fl1-seed", "fl1-codec")
    drawn = [
        seeds.derive(purpose, fed, dev, round_, attempt)
        for purpose in purposes
        for fed, dev in (("a", "bc"), ("ab", "c"), *(("demo", f"dev-{i}") for i in range(50)))
        for round_ in range(1, 11)
        for attempt in (1, 2, 3)
    ]
    drawn += [seeds.codec_keys("demo", "dev-1", round_, 1).shared for round_ in range(1, 11)]
    assert len(set(drawn)) == len(drawn)
    assert seeds.codec_keys("demo", "dev-1", 3, 1).shared == seeds.codec_keys("demo", "dev-2", 3, 2).shared


def test_the_update_comes_together_from_its_headers_and_its_payload() -> None:
    update = VECTORS["update"]
    values = (((37 * np.arange(update["floats"])) % 511 - 255) / 4096).astype("<f4")
    info = bytes.fromhex(VECTORS["payloads"]["raw32"]["payload"])
    info = info[: 2 + info[0]].replace(b"\xa5countF", b"\xa5count" + msgspec.msgpack.encode(update["floats"]))
    info = struct.pack("<H", len(info) - 2) + info[2:]
    aad, k = bytes.fromhex(update["sealed with"]), {n: bytes.fromhex(v) for n, v in VECTORS["keys"]["seal"].items()}
    sealed = seal(k["public"], info + values.tobytes(), aad, ephemeral=k["ephemeral"])
    body = sealed + bytes.fromhex(update["signature"])
    short = VECTORS["update in short chunks"]
    last = (len(body) - 1) // short["chunk bytes"] * short["chunk bytes"]
    raw = bytes.fromhex(short["last header"]) + body[last:-64] + bytes.fromhex(short["signature"])
    assert hashlib.sha256(raw).hexdigest() == short["last frame sha256"]
    assert frames.parse(raw, most=len(body))[0].seq == last // short["chunk bytes"]
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
    assert assembly.header.sealed_with() == aad
    payload = SealKey.from_bytes(k["private"]).open(sealed, aad)
    out = np.empty(update["floats"], np.float32)
    assert decode_payload(payload, CodecSpec(name="raw32"), VectorLayout.flat(out.size), keys(), out).weight == 120
    assert np.array_equal(out, values)


def test_statistics_follow_the_coded_vector_and_are_summed_in_their_own_unit() -> None:
    vector = VECTORS["statistics"]
    plain = VectorLayout.stacked([(name, tuple(shape)) for name, shape in vector["tensors"]])
    layout = dataclasses.replace(
        plain,
        statistics=tuple(p for p in plain.parts if p.name in vector["statistics"]),
        variances=tuple(p for p in plain.parts if p.name in vector["variances"]),
        exponent=vector["exponent"],
    )
    values = (((37 * np.arange(layout.count)) % 511 - 255) / 4096).astype("<f4")
    layout.clear_padding(values)
    raw, out, start = bytes.fromhex(vector["payload"]), np.empty(layout.count, np.float32), plain.parts[1].start
    assert raw.endswith(values[start:].tobytes())
    decode_payload(raw, msgspec.convert(vector["codec"], CodecSpec), layout, keys(), out)
    assert np.array_equal(out[start:], values[start:])
    assert 0 < np.abs(out[:start] - values[:start]).max() < 3e-4  # half a step of blk8: absmax / 127 / 2
    total = np.frombuffer(bytes.fromhex(vector["sum"]), "<i8")
    units = np.where(np.arange(layout.count) < start, 2.0**32, 2.0 ** (32 - vector["exponent"]))
    assert np.array_equal(total, 123 * np.rint(values * units).astype(np.int64))


def test_the_query_is_one_frame_that_its_device_signed() -> None:
    raw = bytes.fromhex(VECTORS["query"])
    header, body = frames.parse(raw, most=64)
    assert (header.type, header.nchunks, header.total_len, len(raw)) == (frames.QUERY, 1, 64, 224)
    assert header.payload_sha256.hex() == VECTORS["update"]["payload sha256"]
    assert public("device").verify(bytes(body), header.signed_bytes())


def keys() -> seeds.Keys:
    return seeds.codec_keys("demo", "dev-1", 7, 2)


@pytest.mark.parametrize("name", VECTORS["payloads"])
def test_payloads_decode_to_the_committed_floats_on_every_capability(name: str) -> None:
    vector = VECTORS["payloads"][name]
    layout = VectorLayout.stacked((n, tuple(shape)) for n, shape in vector["tensors"])
    if name != "auto":
        layout = VectorLayout.flat(70)
    spec, out = msgspec.convert(vector["codec"], CodecSpec), np.empty(layout.count, np.float32)
    before = binding.capability()
    try:
        for capability in binding.capabilities():
            binding.use_capability(capability)
            assert decode_payload(bytes.fromhex(vector["payload"]), spec, layout, keys(), out).weight == 120
            assert hashlib.sha256(out.astype("<f4").tobytes()).hexdigest() == vector["decoded sha256"], capability
    finally:
        binding.use_capability(before)


def nibbles(raw: np.ndarray, count: int) -> np.ndarray:
    """blk4's codes: low halves of the bytes first, then the high ones, in two's complement."""
    halves = np.concatenate([raw & 15, raw >> 4])[:count].astype(np.int8)
    return halves - 16 * (halves > 7).astype(np.int8)


@pytest.mark.parametrize("name", ["raw32", "fp16", "blk8 to nearest", "blk8 stochastic", "blk4 to nearest"])
def test_simple_payloads_decode_to_what_numpy_reads_from_them(name: str) -> None:
    raw = bytes.fromhex(VECTORS["payloads"][name]["payload"])
    info, coded = read_info(raw)
    if name in ("raw32", "fp16"):
        read = np.frombuffer(coded, "<f4" if name == "raw32" else "<f2").astype(np.float32)
    else:
        blocks = []
        at = 0
        for start in range(0, info.count, 64):
            count = min(64, info.count - start)
            scale = np.frombuffer(coded, "<f4", 1, at)[0]
            at += 4
            if name.startswith("blk8"):
                codes = np.frombuffer(coded, np.int8, count, at)
                at += count
            else:
                codes = nibbles(np.frombuffer(coded, np.uint8, -(-count // 2), at), count)
                at += -(-count // 2)
            blocks.append(scale * codes.astype(np.float32))
        assert at == len(coded)
        read = np.concatenate(blocks)
    assert hashlib.sha256(read.astype("<f4").tobytes()).hexdigest() == VECTORS["payloads"][name]["decoded sha256"]


def test_each_signed_message_is_read_by_its_own_kind_alone() -> None:
    kinds: dict[str, tuple[str, str, Any]] = {
        "head": ("aggregator", messages.HEAD, Head),
        "birth": ("device", messages.BIRTH, messages.Birth),
        "candidate": ("aggregator", messages.CANDIDATE, messages.Candidate),
        "want": ("device", messages.WANT, messages.Want),
        **dict.fromkeys(("select", "receipt", "bitmap", "retry-after"), ("aggregator", messages.COMMAND, Command)),
    }
    assert set(kinds) == set(VECTORS["jws"])
    for name, raw in VECTORS["jws"].items():
        party, kind, type_ = kinds[name]
        message = verify_message(public(party), kind, raw.encode(), type_)
        assert message.federation == "demo"
        for other in {messages.HEAD, messages.BIRTH, messages.WANT, messages.COMMAND, messages.CANDIDATE} - {kind}:
            with pytest.raises(Untrusted):
                verify_message(public(party), other, raw.encode(), type_)


def test_the_fixed_point_sum_is_exact() -> None:
    values = ((37 * np.arange(70)) % 511 - 255) * (2**32 // 4096)
    assert np.array_equal(np.frombuffer(bytes.fromhex(VECTORS["fixed point"]["sum"]), "<i8"), 123 * values)
