"""Makes the golden vectors of the protocol: `python tests/wire/make_vectors.py` writes them to vectors.json and SPEC.md.

Run it only when the protocol changes on purpose; test_vectors.py holds that the code still gives the committed bytes.
Keys come from fixed seeds, values from small formulas, so that another implementation can repeat every line:

    delta[i] = ((37 * i) mod 511 - 255) / 4096      (float32, exact)
"""

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleetgrad.native import kernels
from fleetgrad.wire import frames, messages, seeds
from fleetgrad.wire.codecs import decode_payload, encode_payload
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.messages import (
    Birth,
    Bitmap,
    Candidate,
    Closed,
    Delta,
    Head,
    Link,
    ObjectRef,
    Policy,
    Receipt,
    Record,
    RetryAfter,
    Select,
    Want,
)
from fleetgrad.wire.seal import SealKey, seal
from fleetgrad.wire.signing import PrivateKey, sign_message
from fleetgrad.wire.topics import Topics, name_hash, shard_of

HERE = Path(__file__).resolve().parent
SPEC = HERE.parents[1] / "wire" / "SPEC.md"
BEGIN, END = "<!-- made by tests/wire/make_vectors.py -->\n", "<!-- end -->\n"

FEDERATION, DEVICE, ROUND, ATTEMPT = "demo", "dev-1", 7, 2
DEVICE_KEY = PrivateKey.from_seed(bytes(range(32)))
AGGREGATOR_KEY = PrivateKey.from_seed(bytes(range(32, 64)))
SEAL_KEY, EPHEMERAL = SealKey.from_bytes(bytes(range(64, 96))), bytes(range(96, 128))
POLICY = Policy(weight_decay=1e-4)
PARAMS = hashlib.sha256(b"params").digest()
LONG, SHORT = 35_000, 70  # floats of the three-chunk update and of the example payloads
SHORT_CHUNKS = 4096  # bytes, where the same update is cut into shorter chunks


def delta(count: int) -> NDArray[np.float32]:
    """The vector of the examples."""
    return (((37 * np.arange(count)) % 511 - 255) / 4096).astype(np.float32)


RAW32, BLK8 = CodecSpec(name="raw32"), CodecSpec(name="blk8", rounding="nearest")
LARGE = VectorLayout.stacked([("weight", (33, 40)), ("bias", (33,))])  # auto's example: one large tensor, one small
NORMED = VectorLayout.stacked([("weight", (7, 10)), ("mean", (5,)), ("var", (5,))])
NORMED = dataclasses.replace(NORMED, statistics=NORMED.parts[1:], variances=NORMED.parts[2:], exponent=12)
EXAMPLES = {
    "raw32": RAW32, "fp16": CodecSpec(name="fp16"), "blk8 to nearest": BLK8, "blk8 stochastic": CodecSpec(name="blk8"),
    "blk4 to nearest": CodecSpec(name="blk4", rounding="nearest"), "rot-2": CodecSpec(name="rot-2"),
    "ec-dither": CodecSpec(name="ec-dither", bits=4), "ec-dz": CodecSpec(name="ec-dz", bits=4),
    "topk": CodecSpec(name="topk", fraction=0.1), "lossless": CodecSpec(name="lossless"), "ring": CodecSpec(name="ring"),
    "auto": CodecSpec(name="auto", bits=2),
}  # fmt: skip


def layout_of(name: str) -> VectorLayout:
    """Layout of an example."""
    return LARGE if name == "auto" else VectorLayout.flat(SHORT)


def payload(codec: CodecSpec, layout: VectorLayout) -> bytes:
    """The example vector as an update's payload, under the keys of the example's device and attempt."""
    values = delta(layout.count)
    layout.clear_padding(values)
    keys = seeds.codec_keys(FEDERATION, DEVICE, ROUND, ATTEMPT)
    return encode_payload(codec, layout, values, keys=keys, weight=120, steps=32, loss=0.5)


def shared_statistics() -> dict[str, Any]:
    """A payload of a plan with running statistics, and the sum of two members' in the unit of its exponent."""
    values, made = delta(NORMED.count), payload(BLK8, NORMED)
    NORMED.clear_padding(values)
    total = np.zeros(NORMED.count, np.int64)
    for weight in (120, 3):
        kernels.ring_add(total, NORMED.summed(values), weight)
    return {
        "codec": msgspec.to_builtins(BLK8),
        "tensors": [[p.name, list(p.shape)] for p in NORMED.parts],
        "statistics": [p.name for p in NORMED.statistics],
        "variances": [p.name for p in NORMED.variances],
        "exponent": NORMED.exponent,
        "payload": made.hex(),
        "rule": "the floats added with the weights 120 and 3, int64 little-endian",
        "sum": total.astype("<i8").tobytes().hex(),
    }


def payload_vector(name: str) -> dict[str, Any]:
    """An example payload with what its reader must know, and the hash of the float32 that it decodes to."""
    spec, layout = EXAMPLES[name], layout_of(name)
    made, out = payload(spec, layout), np.empty(layout.count, np.float32)
    decode_payload(made, spec, layout, seeds.codec_keys(FEDERATION, DEVICE, ROUND, ATTEMPT), out)
    return {
        "codec": msgspec.to_builtins(spec),
        "tensors": [[p.name, list(p.shape)] for p in layout.parts],
        "payload": made.hex(),
        "decoded sha256": hashlib.sha256(out.astype("<f4").tobytes()).hexdigest(),
    }


def update_header(type_: int, length: int, sha256: bytes, chunk_bytes: int = frames.DATA_BYTES) -> frames.Header:
    """The header of the example update, or of its query."""
    config = bytes.fromhex(POLICY.sha256())
    return frames.update_header(
        type_, name_hash(FEDERATION), ROUND, ATTEMPT, name_hash(DEVICE), PARAMS, config, length, sha256, chunk_bytes
    )


def jws() -> dict[str, str]:
    """One signed message of each kind."""
    sha = hashlib.sha256(b"payload").hexdigest()
    names: dict[str, Any] = {"federation": FEDERATION, "device": DEVICE}
    attempt = {**names, "round": ROUND, "attempt": ATTEMPT}
    head = Head(
        federation=FEDERATION, version=6, plan=ObjectRef(sha256=hashlib.sha256(b"plan").hexdigest(), size=1234),
        params=ObjectRef(sha256=PARAMS.hex(), size=140_000), parent="0" * 64, policy=POLICY, seal=SEAL_KEY.public.hex(), boot=3, sequence=50331651,
        expires=86400.0,
        closed=(Closed(round=6, attempt=1, outcome="published"), Closed(round=7, attempt=1, outcome="abandoned")),
        link=Link(chunk_bytes=4096, reconnect_seconds=0.4, retained=False),
        deltas=(Delta(base=sha, object=ObjectRef(sha256="1" * 64, size=9000)),),
    )  # fmt: skip
    birth = Birth(
        **names, boot=2, seq=5, version=6, params=PARAMS.hex(), state="training", round=ROUND, attempt=ATTEMPT,
        samples=120, software="0.1.0",
    )  # fmt: skip
    want = Want(
        **names, boot=2, seq=6, object=ObjectRef(sha256=PARAMS.hex(), size=140_000), chunk_bytes=4096, received="0d"
    )
    record = Record(config=POLICY.sha256(), members=sha, params="2" * 64, parent="0" * 64, round=5, version=5)
    texts = [msgspec.json.encode(m).decode() for m in (head, record)]
    candidate = Candidate(federation=FEDERATION, head=texts[0], records=(texts[1],))
    commands: dict[str, msgspec.Struct] = {
        "select": Select(
            **attempt, version=6, params=PARAMS.hex(), config=POLICY.sha256(), window=8, slot=0.5, deadline=600.0
        ),
        "receipt": Receipt(**attempt, payload=sha, verdict="refused", reason="value 3 of 12 is nan"),
        "bitmap": Bitmap(**attempt, payload=sha, chunk_bytes=61_440, received="05"),
        "retry-after": RetryAfter(**names, least=1.0, most=30.0),
    }
    return {
        "head": sign_message(AGGREGATOR_KEY, messages.HEAD, head).decode(),
        "candidate": sign_message(AGGREGATOR_KEY, messages.CANDIDATE, candidate).decode(),
        "birth": sign_message(DEVICE_KEY, messages.BIRTH, birth).decode(),
        "want": sign_message(DEVICE_KEY, messages.WANT, want).decode(),
        **{k: sign_message(AGGREGATOR_KEY, messages.COMMAND, m).decode() for k, m in commands.items()},
    }


def long_update(chunk_bytes: int = frames.DATA_BYTES) -> tuple[frames.Header, bytes, list[bytes]]:
    """Header, body and frames of the three-chunk update."""
    plain = payload(RAW32, VectorLayout.flat(LONG))
    aad = update_header(frames.UPDATE, 0, bytes(32)).sealed_with()
    data = seal(SEAL_KEY.public, plain, aad, ephemeral=EPHEMERAL)
    header = update_header(frames.UPDATE, len(data), hashlib.sha256(data).digest(), chunk_bytes)
    body = data + frames.sign_body(DEVICE_KEY, header)
    return header, body, list(frames.frames(header, body))


def make() -> dict[str, Any]:
    """All vectors; bytes are hex."""
    header, body, made = long_update()
    short = long_update(SHORT_CHUNKS)
    query = update_header(frames.QUERY, 0, header.payload_sha256)
    model = b"".join(i.to_bytes(2, "little") for i in range(40_000))
    objects = frames.object_header(len(model), hashlib.sha256(model).digest())
    total = np.zeros(SHORT, np.int64)
    for weight in (120, 3):
        kernels.ring_add(total, delta(SHORT), weight)
    return {
        "crc32c": {"data": b"123456789".hex(), "crc": f"{kernels.crc32c(b'123456789'):08x}"},
        "names": {
            name: {"hash": name_hash(name).hex(), "shard of 16": shard_of(name, 16)} for name in (FEDERATION, DEVICE)
        },
        "topics": {
            "head": Topics(FEDERATION).head,
            "update": Topics(FEDERATION).update(DEVICE, 16),
            "object": Topics(FEDERATION).object(PARAMS.hex(), 3),
        },
        "keys": {
            "device": {"seed": bytes(range(32)).hex(), "public": DEVICE_KEY.public.raw.hex(), "kid": DEVICE_KEY.public.kid},
            "aggregator": {
                "seed": bytes(range(32, 64)).hex(),
                "public": AGGREGATOR_KEY.public.raw.hex(),
                "kid": AGGREGATOR_KEY.public.kid,
            },
            "seal": {"private": bytes(range(64, 96)).hex(), "public": SEAL_KEY.public.hex(), "ephemeral": EPHEMERAL.hex()},
        },
        "policy": {
            "json": msgspec.json.encode(POLICY, order="deterministic").decode(),
            "sha256": POLICY.sha256(),
            "sha256 of the defaults": Policy().sha256(),
        },
        "seeds": {
            purpose: f"{seeds.derive(purpose, FEDERATION, DEVICE, ROUND, ATTEMPT):016x}"
            for purpose in ("fl1-seed", "fl1-codec")
        }
        | {"fl1-ring": f"{seeds.codec_keys(FEDERATION, DEVICE, ROUND, ATTEMPT).shared:016x}"},
        "payloads": {name: payload_vector(name) for name in EXAMPLES},
        "statistics": shared_statistics(),
        "update": {
            "floats": LONG,
            "payload length": len(body) - 64,
            "sealed with": header.sealed_with().hex(),
            "payload sha256": header.payload_sha256.hex(),
            "signed bytes": header.signed_bytes().hex(),
            "signature": body[-64:].hex(),
            "headers": [raw[: frames.HEADER_BYTES].hex() for raw in made],
            "frames sha256": [hashlib.sha256(raw).hexdigest() for raw in made],
        },
        "update in short chunks": {
            "chunk bytes": SHORT_CHUNKS,
            "signature": short[1][-64:].hex(),
            "last header": short[2][-1][: frames.HEADER_BYTES].hex(),
            "last frame sha256": hashlib.sha256(short[2][-1]).hexdigest(),
        },
        "query": b"".join(
            frames.frames(query, frames.sign_body(DEVICE_KEY, query))
        ).hex(),
        "object": {
            "rule": "u16 little-endian 0 to 39999",
            "headers": [raw[: frames.HEADER_BYTES].hex() for raw in frames.frames(objects, model)],
        },
        "jws": jws(),
        "fixed point": {
            "rule": f"delta[0..{SHORT}) added with the weights 120 and 3, int64 little-endian",
            "sum": total.astype("<i8").tobytes().hex(),
        },
    }  # fmt: skip


def dump(raw: bytes, notes: dict[int, str]) -> str:
    """A hex dump cut at the offsets of `notes`, 16 bytes a line; the note stands at its first line."""
    cuts = [*notes, len(raw)]
    lines = []
    for start, end in itertools.pairwise(cuts):
        for at in range(start, end, 16):
            note = notes[start] if at == start else ""
            lines.append(f"{at:4d}  {raw[at : min(at + 16, end)].hex(' '):<47}  {note}".rstrip())
    return "\n".join(lines)


def example() -> str:
    """The worked example of SPEC.md, section 8."""
    header, body, made = long_update()
    first = dump(
        made[0][: frames.HEADER_BYTES],
        {
            0: 'magic "FGRD"', 4: "version 1", 5: "type 1, update", 6: "flags: sealed", 8: 'SHA-256("demo")[:16]', 24: "round 7",
            28: "attempt 2", 30: 'SHA-256("dev-1")[:16]', 46: "model", 78: "config", 110: "seq 0",
            112: f"nchunks {header.nchunks}", 114: f"total_len {header.total_len}", 118: "CRC32C", 122: "SHA-256 of the payload",
            154: f"chunk_bytes {header.chunk_bytes}", 158: "reserved",
        },
    )  # fmt: skip
    data = payload(BLK8, VectorLayout.flat(SHORT))
    info = int.from_bytes(data[:2], "little")
    coded = dump(
        data,
        {
            0: f"length of info, {info}", 2: "info, msgpack", 2 + info: "scale of block 0, float32",
            6 + info: "64 codes, int8", 70 + info: "scale of block 1", 74 + info: "6 codes",
        },
    )  # fmt: skip
    return f"""\
The first header of an update of {LONG} floats in raw32: {header.nchunks} chunks, {len(body)} bytes with the signature.
```
{first}
```
A payload of {SHORT} floats in blk8, rounded to nearest (`delta[i] = ((37 i) mod 511 - 255) / 4096`).
A block is its scale, absmax / 127 as float32, and one int8 for each of its up to 64 values: value = code x scale.
```
{coded}
```
The same vector in the other codecs, coded vector alone, under the keys of `demo`, `dev-1`, round 7, attempt 2:
{"".join(coded_example(name) for name in EXAMPLES if name in NOTES)}"""


NOTES = {
    "fp16": "Each value as IEEE binary16, rounded to nearest even.",
    "blk4 to nearest": "As blk8, with absmax / 7 and codes of 4 bits, two's complement; of S bytes, byte j has value j low and j + S high.",
    "rot-2": "Windows of 64 here (4096 in longer vectors); the last one ends at the vector's end, and what it overlaps is coded there alone.",
    "ec-dither": "Requested: 4 bits. One chunk of 70 values; its sizes, its lanes' states, the words that they read, raw bits.",
    "ec-dz": "Requested: 4 bits. As ec-dither, with the points that |q| = 1, 2 and more decode to.",
    "topk": "A tenth: the 7 largest magnitudes.",
    "lossless": "Four planes of bytes: exponents, mantissas' upper, middle and lower bits, the sign last.",
    "ring": "r = 16, step 2^-12: rotated by the round's shared key, in steps, rounded by the device's own.",
    "auto": "Another vector, of two tensors: weight (33 x 40) and bias (33); requested: 2 bits. Padding isn't in it.",
}


def plane_notes(coded: bytes) -> dict[int, str]:
    """The parts of each of lossless's four planes."""
    found: dict[int, str] = {}
    at = 0
    for name in ("exponents", "upper bits", "middle bits", "lower bits and sign"):
        mode = coded[at]
        found |= {at: ("plane as it is", "plane of one byte", "coded plane")[mode], at + 1: name}
        at += 1 + (SHORT, 1, 0)[mode]
        if mode == 2:
            found[at] = f"table of {name}"
            at = table_end(coded, at)
            field = int.from_bytes(coded[at : at + 3], "little")
            lanes, size = 1 << (field >> 20), field & 0xFFFFF
            found |= {at: f"{size} bytes of words, {lanes} lanes", at + 3: "states, words"}
            at += 3 + 4 * lanes + size
    return found


def table_end(coded: bytes, at: int) -> int:
    """Behind the table of frequencies that begins there (native/src/codecs/rans.h)."""
    last, symbol, at = coded[at], 0, at + 1
    while symbol <= last:
        first = coded[at]
        symbol += 1 + (coded[at + 1] if first == 0 else 0)
        at += 2 if first == 0 or first >= 128 else 1
    return at


def chunk_notes(coded: bytes) -> dict[int, str]:
    """Where the one chunk of an entropy-coded stream begins (the only place from which its sizes lead to the end), and its parts."""
    for at in range(6, len(coded) - 6):
        words, raw = (int.from_bytes(coded[i : i + 3], "little") for i in (at, at + 3))
        lanes, size = 1 << (words >> 20), words & 0xFFFFF
        if at + 6 + 4 * lanes + size + raw == len(coded):
            found = {
                at: f"{size} bytes of words, {lanes} lanes",
                at + 3: f"{raw} bytes of raw bits",
                at + 6: "states, words, raw bits",
            }
            return {k: v for k, v in found.items() if k < len(coded)}
    raise AssertionError("no chunk")


def coded_notes(name: str, coded: bytes) -> dict[int, str]:
    """What stands at which offset of an example's coded vector."""
    match name:
        case "fp16":
            return {0: f"{SHORT} values"}
        case "blk4 to nearest":
            return {0: "scale of block 0, float32", 4: "64 codes", 36: "scale of block 1", 40: "6 codes"}
        case "rot-2":
            return {0: "scale of window 0, float32", 4: "codes of its first 6 values, 2 bits each", 6: "scale of the window of values 6 to 69",
                    10: "its 64 codes"}  # fmt: skip
        case "ec-dither":
            return {
                0: "kind 0, no offsets of columns",
                1: "log2 of bins",
                2: "tables",
                3: "step, float32",
                7: "tables",
            } | chunk_notes(coded)
        case "ec-dz":
            return {0: "kind 1, no offsets of columns", 1: "log2 of bins", 2: "tables", 3: "step, float32", 7: "points, 3 x float32",
                    19: "tables"} | chunk_notes(coded)  # fmt: skip
        case "topk":
            return {
                0: "7 values",
                4: "top: the largest magnitude's bits",
                6: "tables of gaps and magnitudes",
            } | chunk_notes(coded)
        case "lossless":
            return plane_notes(coded)
        case "ring":
            return {0: f"{SHORT} integers mod 2^16"}
    return {
        0: "large tensors in codec 5, ec-dither",
        1: "its parameter",
        2: "bias, 33 values in fp16",
        68: "stream of the 1320 values of weight",
    }


def coded_example(name: str) -> str:
    """One codec's bytes in SPEC.md."""
    made = payload(EXAMPLES[name], layout_of(name))
    coded = made[2 + int.from_bytes(made[:2], "little") :]
    return f"\n**{name}**, {len(coded)} bytes. {NOTES[name]}\n```\n{dump(coded, coded_notes(name, coded))}\n```\n"


def spec_with_example(text: str) -> str:
    """SPEC.md with its example made new."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + example() + END + rest.split(END)[1]


def main() -> None:
    (HERE / "vectors.json").write_text(json.dumps(make(), indent=1) + "\n")
    SPEC.write_text(spec_with_example(SPEC.read_text()))


if __name__ == "__main__":
    main()
