"""The fuzz targets in Python, under atheris: what arrives over MQTT is refused in the documented way, or comes back as it was sent.

python tests/fuzz/parsers.py frame|message|payload|manifest|gate LIBFUZZER-OPTIONS
"""

import base64
import contextlib
import dataclasses
import sys
from collections.abc import Callable
from types import UnionType
from typing import Any

import msgspec
import numpy as np
import onnx
from google.protobuf.message import DecodeError

try:
    import atheris
except ImportError:  # seeds.py uses the rest of this file
    atheris = None

with atheris.instrument_imports(include=["fleetgrad"]) if __name__ == "__main__" else contextlib.nullcontext():
    from fleetgrad.edge.training import gate as gates
    from fleetgrad.edge.training import onnx_tables
    from fleetgrad.native import kernels
    from fleetgrad.wire import chunks, codecs, enrolment, frames, kit, plan
    from fleetgrad.wire import membership as members
    from fleetgrad.wire import messages as wire
    from fleetgrad.wire.coding.layout import VectorLayout
    from fleetgrad.wire.coding.spec import DEFAULTS, NAMES, CodecSpec
    from fleetgrad.wire.seeds import Keys
    from fleetgrad.wire.signing import PrivateKey, Untrusted, sign_message, verify_message
    from fleetgrad.wire.strict import MALFORMED

PLAN = plan.Manifest(
    schema=plan.SCHEMA, model="m", loss="cross-entropy", profile="cpu-native", gradients="int8", op_abi=1,
    inputs=(plan.Feed(name="x", shape=(4,), dtype="float32"),), label=plan.Feed(name=plan.LABEL, shape=(), dtype="int64"),
    output=(3,), tensors=plan.lay_out([("w", (4, 3), "trainable")]), travels=16, length=16,
    optimizer=plan.Optimizer(learning_rate=0.1, momentum=0.0, weight_decay=0.0, batch_size=4), files={},
)  # fmt: skip

KEY = PrivateKey.from_seed(bytes(range(32)))
KEYS = Keys(own=1, shared=2)
LAYOUT = VectorLayout.stacked(
    [("w", (20, 60)), ("b", (60,)), ("v", (3,))]
)  # small tensors and a large one, and padding
NORMED = VectorLayout.stacked([("w", (20, 60)), ("mean", (9,)), ("var", (9,))])
LAYOUTS = (LAYOUT, dataclasses.replace(NORMED, statistics=NORMED.parts[1:], variances=NORMED.parts[2:], exponent=12))
SPECS = [CodecSpec(name=name, **DEFAULTS.get(name, {})) for name in NAMES]
MOST = 200_000  # bytes of the largest body that the frame's reader accepts
SIGNED = (wire.HEAD, wire.BIRTH, wire.COMMAND, wire.WANT, members.MEMBER, members.RENEWAL, members.ISSUED)
# What each kind of message may be.
MESSAGES: tuple[tuple[str, type | UnionType], ...] = (
    (wire.HEAD, wire.Head),
    (wire.BIRTH, wire.Birth),
    (wire.COMMAND, wire.Command),
    ("status", wire.DeviceStatus),
    ("aggregator", wire.AggregatorStatus),
    ("metrics", wire.Metrics),
    (wire.WANT, wire.Want),
    (members.MEMBER, members.Member),
    (members.RENEWAL, members.Renewal),
    (members.ISSUED, members.Issued),
    ("ask", enrolment.Ask),
    ("answer", enrolment.Answer),
    ("kit", kit.Kit),
)


def frame(data: bytes) -> None:
    """u8 options (bit 0: make the CRC right, as anyone can) | frame."""
    raw = bytearray(data[1:])
    if data[:1] and data[0] & 1 and len(raw) >= frames.HEADER_BYTES:
        raw[118:122] = bytes(4)
        raw[118:122] = kernels.crc32c(bytes(raw)).to_bytes(4, "little")
    try:
        header, chunk = frames.parse(bytes(raw), most=MOST)
    except Untrusted:
        return
    assert frames.frame(header, header.seq, chunk) == raw, "an accepted frame is written to the same bytes"
    assembly = chunks.Assembly(header)
    assert assembly.add(header, chunk) and not assembly.add(header, chunk), "a chunk is new once"
    assert chunks.absent(assembly.received, header.nchunks) == [i for i in range(header.nchunks) if i != header.seq]
    if assembly.complete:
        frames.signature_holds(KEY.public, header, assembly.body)


def message(data: bytes) -> None:
    """u8 kind (bit 7: a finished JWS; else JSON, which is signed here, as a broken signer would) | text."""
    if not data:
        return
    typ, kind = MESSAGES[(data[0] & 127) % len(MESSAGES)]
    raw = data[1:]
    signed = typ in SIGNED
    try:
        if signed:
            read = verify_message(KEY.public, typ, raw if data[0] & 128 else sign(typ, raw), kind)
        else:
            read = msgspec.json.decode(raw, type=kind)
    except (Untrusted, *MALFORMED):
        return
    again: Any = msgspec.json.decode(msgspec.json.encode(read), type=kind)
    assert again == read, "an accepted message says the same when it is written again"
    if signed:
        assert verify_message(KEY.public, typ, sign_message(KEY, typ, read), kind) == read


def payload(data: bytes) -> None:
    """u8 codec, and one of the layouts (bit 7: an info that is right is put before) | payload."""
    if not data:
        return
    again, number = divmod(data[0] & 127, len(SPECS))
    spec, layout = SPECS[number], LAYOUTS[again % len(LAYOUTS)]
    raw = data[1:]
    if data[0] & 128:
        codec = codecs.codec_of(spec)
        rate = 8.0 * len(raw) / layout.count
        info = wire.UpdateInfo(
            codec=codec.id, parameter=codec.parameter, count=layout.count, rate=rate, weight=1, steps=1, loss=0.5
        )
        text = msgspec.msgpack.encode(info)
        raw = len(text).to_bytes(2, "little") + text + raw
    out = np.empty(layout.count, np.float32)
    try:
        info, coded = codecs.read_info(raw)
        assert len(coded) < len(raw)
        assert codecs.decode_payload(raw, spec, layout, KEYS, out) == info
    except codecs.CodecError:
        return
    assert np.isfinite(out).all(), "an accepted payload decodes to finite values"
    assert len(raw) <= codecs.payload_bound(spec, layout), "and is within the bound that a reader is told"


def manifest(data: bytes) -> None:
    """A plan's manifest."""
    try:
        read = plan.decode(data)
    except plan.PlanError:
        return
    assert plan.decode(plan.encode(read)) == read, "an accepted manifest says the same when it is written again"
    assert read.travels <= read.length <= plan.MAX_FLOATS


def gate(data: bytes) -> None:
    """u8 which file of a plan | an ONNX file; what onnx's own parser reads of one that passes is within the rules, too."""
    if not data:
        return
    try:
        gates.check((plan.TRAIN, plan.EVAL, plan.INFER)[data[0] % 3], data[1:], PLAN)
    except gates.Refused:
        return
    try:
        read = onnx.ModelProto.FromString(data[1:])
    except DecodeError:
        return  # in a part that says nothing of what is computed
    own = {(f.domain, f.name) for f in read.functions}
    nodes = nodes_of(read.graph) + [n for f in read.functions for n in f.node]
    assert all((n.domain, n.op_type) in own or n.op_type in onnx_tables.OPS[n.domain] for n in nodes)
    outside = [t for t in read.graph.initializer if t.external_data or t.data_location]
    assert all((t.name, list(t.dims), t.external_data[0].value) == ("w", [4, 3], plan.PARAMS) for t in outside)
    assert not any(a.t.external_data or a.t.data_location for n in nodes for a in n.attribute)


def nodes_of(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """A graph's nodes, and those of the graphs within."""
    return [*graph.node, *(n for each in graph.node for a in each.attribute if a.HasField("g") for n in nodes_of(a.g))]


def sign(typ: str, raw: bytes) -> bytes:
    """Any bytes as the message of a JWS that verifies."""
    header = msgspec.json.encode({"alg": "EdDSA", "typ": typ, "kid": KEY.public.kid})
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (header, raw))
    return text + b"." + base64.urlsafe_b64encode(KEY.sign(text)).rstrip(b"=")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "frame": frame,
    "message": message,
    "payload": payload,
    "manifest": manifest,
    "gate": gate,
}

if __name__ == "__main__":
    name = sys.argv.pop(1)
    target = TARGETS[name]
    sys.argv[0] = f"{sys.executable} {__file__} {name}"  # libFuzzer starts itself anew to merge, through a shell
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
