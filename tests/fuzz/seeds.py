"""Inputs that real encoders write, as first members of the fuzz corpora; see targets/fuzz.h for the bytes before a payload."""

import base64
import hashlib
import itertools
import json
import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleetgrad.native import codecs, entropy, lossless, rotation, topk
from fleetgrad.wire import frames, plan, trial
from fleetgrad.wire.codecs import encode_payload, read_info
from fleetgrad.wire.enrolment import Answer, Ask
from fleetgrad.wire.kit import Kit
from fleetgrad.wire.membership import Issued, Member, Renewal
from tests.edge import onnx_bytes
from tests.fuzz import parsers
from tests.native import programs

COUNTS = (0, 1, 2, 63, 64, 65, 100, 128, 255)
Options = tuple[int, int, int, int]


def of(target: str) -> list[bytes]:
    """Seeds of a target."""
    return list(globals()[f"_{target}"]())


def _input(count: int, payload: bytes, options: Options = (0, 0, 0, 0), *, long: bool = False) -> bytes:
    """`count` values: below 256, or that plus a window of 4096, or plus 65536 where long."""
    rest = count - 65536 if long else count
    size = 254 if rest >= 4096 else 0
    rest -= 4096 if size else 0
    assert 0 <= rest < 256, count
    return bytes([rest, size, 255 if long else 0, 0, *options]) + payload


def _vector(count: int) -> NDArray[np.float32]:
    """Heavy-tailed values with stretches of zeros."""
    rng = np.random.default_rng(count)
    values = rng.standard_normal(count).astype(np.float32) ** 3
    values[(np.arange(count) // 64) % 4 == 2] = 0
    return values


def _blocks() -> Iterator[bytes]:
    for count in (*COUNTS, 4096, 4100):
        for option, (size, encode) in enumerate(
            ((codecs.blk8_size, codecs.blk8_encode), (codecs.blk4_size, codecs.blk4_encode))
        ):
            out = np.empty(size(count), np.uint8)
            encode(_vector(count), out, 7 if count % 2 else None)
            yield _input(count, out.tobytes(), (option, 0, 0, 0))


def _floats() -> Iterator[bytes]:
    for count in (*COUNTS, 300):
        for option, dtype in enumerate(("<f4", "<f2")):
            if count < 256:
                yield _input(count, _vector(count).astype(dtype).tobytes(), (option, 0, 0, 0))
    extremes = np.array([0, -0.0, 6e-8, 6.1e-5, 65504, -65504], np.float32)
    yield _input(6, extremes.astype("<f2").tobytes(), (1, 0, 0, 0))


def _rot() -> Iterator[bytes]:
    for k in range(1, 9):
        for count in (1, 3, 64, 100, 255, 4096, 4100):
            out = np.empty(rotation.rot_size(count, k), np.uint8)
            rotation.rot_encode(_vector(count), out, k=k, key=3, stream=5)
            yield _input(count, out.tobytes(), (k - 1, 3, 5, 0))


def _ring() -> Iterator[bytes]:
    for option, r in enumerate(rotation.RING_BITS):
        for count in (1, 2, 65, 255):
            total = rotation.ring_encode(_vector(count), step=0.01, most=2**15, shared=1, own=2)
            out = np.empty(rotation.ring_size(count, r), np.uint8)
            rotation.ring_pack(total, out, r=r)
            yield _input(count, out.tobytes(), (option, 1, 0, 0))


def _ec() -> Iterator[bytes]:
    for kind in (0, 1):
        for width in (0, 5):
            for count in (*COUNTS, 4100):
                head = count // 4
                body = (count - 2 * head) // width * width if width else 0
                layout = entropy.Layout(
                    np.array([head, body, count - head - body], np.uintp), np.array([0, width, 0], np.uintp)
                )
                for bits in (0.3, 1.2, 4.0):
                    coded = entropy.encode(
                        _vector(count),
                        kind="dead-zone" if kind else "dither",
                        key=9,
                        bits=bits,
                        stream=1,
                        layout=layout,
                    )
                    yield _input(count, coded.tobytes(), (kind | width << 1, 9, 1, 0))
    sparse = np.zeros(65536 + 130, np.float32)
    sparse[::701] = 1.0
    coded = entropy.encode(sparse, kind="dither", key=9, bits=0.05, stream=1)
    yield _input(sparse.size, coded.tobytes(), (0, 9, 1, 0), long=True)


def _topk() -> Iterator[bytes]:
    for count in (1, 2, 64, 255, 4100):
        for kept in sorted({1, max(1, count // 10), count}):
            yield _input(count, topk.encode(_vector(count), kept).tobytes())
    sparse = np.zeros(65536 + 100, np.float32)
    sparse[::977] = _vector(sparse[::977].size) + 5
    yield _input(sparse.size, topk.encode(sparse, 60).tobytes(), long=True)


def _lossless() -> Iterator[bytes]:
    for count in (1, 2, 64, 255):
        yield _input(count, lossless.encode(_vector(count)).tobytes())
        yield _input(count, lossless.encode(np.zeros(count, np.float32)).tobytes())
    yield _input(4100, lossless.encode(np.round(_vector(4100))).tobytes())
    yield _input(65636, lossless.encode(np.zeros(65636, np.float32)).tobytes(), long=True)


def _vectors() -> dict[str, Any]:
    """The wire format's golden vectors."""
    vectors: dict[str, Any] = json.loads((programs.ROOT / "tests" / "wire" / "vectors.json").read_text())
    return vectors


def _frame() -> Iterator[bytes]:
    for body, chunk_bytes in ((b"p", 61_440), (bytes(100), 61_440), (bytes(70_000), 61_440), (bytes(3000), 1024)):
        digest = hashlib.sha256(body).digest()
        ids = (b"f" * 16, 7, 2, b"d" * 16, b"m" * 32, b"c" * 32)
        update = frames.update_header(frames.UPDATE, *ids, len(body), digest, chunk_bytes)
        for raw in frames.frames(update, body + frames.sign_body(parsers.KEY, update)):
            yield b"\1" + raw[:4000]
        for raw in frames.frames(frames.object_header(len(body), digest, chunk_bytes), body):
            yield b"\0" + raw[:4000]
    yield b"\0" + bytes.fromhex(_vectors()["query"])


def _message() -> Iterator[bytes]:
    for token in _vectors()["jws"].values():
        text = base64.urlsafe_b64decode(token.split(".")[1] + "==")
        for kind, (typ, _) in enumerate(parsers.MESSAGES):
            yield bytes([kind]) + text
            yield bytes([kind | 128]) + (parsers.sign(typ, text) if typ in parsers.SIGNED else text)
    yield b'\3{"state":"training","device":"d-1","boot":1,"loss":0.5}'
    yield b'\4{"state":"collecting","federation":"demo","boot":1}'
    ours = (
        Member(federation="demo", device="d-1", key="0" * 64, serial=1, not_after=2),
        Renewal(federation="demo", device="d-1", instance="0" * 32, count=1, request="x"),
        Issued(federation="demo", device="d-1", now=1, count=1, certificate="x"),
        Ask(federation="demo", name=None, key="0" * 64, request="x", nonce="0" * 32),
        Answer(nonce="0" * 32, status="pending", now=1),
        Kit(federation="demo", url="mqtts://b.lan"),
    )
    first = [kind for _, kind in parsers.MESSAGES].index(Member)
    for number, struct_ in enumerate(ours, first):
        yield bytes([number]) + msgspec.json.encode(struct_)
    yield b'\5{"round":1,"version":1,"members":2,"accuracy":0.5,"loss":null,"bytes_up":1,"bytes_down":2,"seconds":null}'


def _payload() -> Iterator[bytes]:
    for number, (layout, spec) in enumerate(itertools.product(parsers.LAYOUTS, parsers.SPECS)):
        values = _vector(layout.count) * np.float32(0.1)
        layout.clear_padding(values)
        payload = encode_payload(spec, layout, values, keys=parsers.KEYS, weight=5, steps=2, loss=0.25)
        yield bytes([number]) + payload
        yield bytes([number | 128]) + bytes(read_info(payload)[1])


def _gate() -> Iterator[bytes]:
    made = [(0, onnx_bytes.model()), (2, onnx_bytes.placed(*onnx_bytes.PLACE)), (0, onnx_bytes.nested(3))]
    made += [(2, onnx_bytes.functions(onnx_bytes.function("f", "g"), onnx_bytes.function("g", "Relu")))]
    texts = onnx_bytes.attribute("a", 8, f9=["x", "y"]), onnx_bytes.attribute("b", 6, f7=struct.pack("<3f", 1, 2, 3))
    made += [(0, onnx_bytes.with_attribute(*texts, onnx_bytes.attribute("c", 7, f8=[1, 2, 1 << 40])))]
    made += [(0, onnx_bytes.with_tensor(onnx_bytes.tensor("t", [2, 3], kind=7, f7=b"\1\2\3\4\5\6")))]
    for kind, raw in made:
        yield bytes([kind]) + raw


def _manifest() -> Iterator[bytes]:
    tensors = plan.lay_out([("w", (3, 4), "trainable"), ("v", (4,), "statistic"), ("f", (2, 2, 2), "frozen")])
    feed = plan.Feed(name="x", shape=(3,), dtype="float32")
    label = plan.Feed(name="y", shape=(), dtype="int64")
    made = plan.Manifest(
        schema=plan.SCHEMA, model="m", loss="cross-entropy", gradients="fp32", op_abi=1, inputs=(feed,), label=label,
        output=(4,), tensors=tensors, travels=tensors[1].end, length=tensors[-1].end, files={"train.onnx": "0" * 64},
    )  # fmt: skip
    yield plan.encode(made)
    factors = [
        ("w.lora_A", (1, 4), "trainable"),
        ("w.lora_B", (3, 1), "trainable"),
        ("v", (4,), "statistic"),
        ("w.base", (3, 4), "frozen"),
    ]
    adapted = plan.lay_out(factors)  # type: ignore[arg-type]
    adapter = plan.Adapter(base="w.base", a="w.lora_A", b="w.lora_B", scale=2.0, order="ba")
    yield plan.encode(msgspec.structs.replace(
        made, tensors=adapted, adapters=(adapter,), statistics=plan.Statistics(exponent=9, variances=("v",)),
        travels=adapted[2].end, length=adapted[-1].end,
    ))  # fmt: skip
    line = trial.Line(fixed=-7, per_sample=5)
    usage = trial.Usage(nodes=3, arena=(line, line), scratch=line)
    known = trial.Trial(seed=9, limits={"x": 2}, loss=0.5, norm=1.5, projection=-1.0)
    yield plan.encode(msgspec.structs.replace(made, memory=trial.Memory(train=usage, evaluation=usage), trial=known))
