"""The gate: hostile ONNX files are refused for what is wrong with them, before onnxruntime sees them; what the compiler makes passes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from fleetgrad.edge.autodiff import zoo
from fleetgrad.edge.autodiff.compiling import compile_model
from fleetgrad.edge.training import gate, onnx_tables
from fleetgrad.edge.training.gate import Refused
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.wire.plan import EVAL, INFER, TRAIN
from tests.edge.onnx_bytes import (
    INPUTS,
    MANIFEST,
    NODES,
    OPSETS,
    OUTPUTS,
    PLACE,
    attribute,
    entry,
    field,
    function,
    functions,
    message,
    model,
    nested,
    node,
    placed,
    tensor,
    value,
    varint,
    with_attribute,
    with_node,
    with_tensor,
)  # fmt: skip

ROOT = Path(__file__).resolve().parents[2]
HOSTILE: dict[str, tuple[str, Callable[[], bytes], str]] = {
    # form
    "empty": (TRAIN, lambda: b"", "has no graph"),
    "text": (TRAIN, lambda: b"#!/bin/sh\nrm -rf /\n", "field|number"),
    "cut in a number": (TRAIN, lambda: model() + b"\xff", "cut short"),
    "a number of more than 64 bits": (TRAIN, lambda: model() + b"\x28" + b"\xff" * 10 + b"\1", "more than 64 bits"),
    "cut in a message": (TRAIN, lambda: model()[:-5], "bytes are left|are left|cut short"),
    "a length of 2^62": (TRAIN, lambda: model() + varint(2 << 3 | 2) + varint(1 << 62), "says 4611686018427387904 bytes"),
    "an unknown field": (TRAIN, lambda: model(f99="x"), "unknown field 99"),
    "a group": (TRAIN, lambda: model() + varint(7 << 3 | 3), "field 'graph' at byte .* has wire type 3"),
    "a second graph": (TRAIN, lambda: model() + field(7, {2: "other"}), "field 'graph' is there twice"),
    "a second op of a node": (
        TRAIN, lambda: model({1: [message(NODES[0]) + field(4, "Evil"), *NODES[1:]]}), "field 'op_type' is there twice",
    ),
    "a name that is no text": (TRAIN, lambda: with_node(node("Relu", ["y"], []) | {2: [b"\xff\xfe"]}), "isn't UTF-8"),
    "a name without end": (TRAIN, lambda: with_node(node("Relu", ["y" * 5000], ["z"])), "a name of 5000 bytes, at most 4096"),
    # ops
    "a foreign domain": (TRAIN, lambda: with_node(node("Evil", ["y"], ["z"], "com.evil")), "op 'Evil' of the domain 'com.evil'"),
    "an imported domain": (TRAIN, lambda: model(f8=[*OPSETS, {1: "com.evil", 2: 1}]), "imports the domain 'com.evil'"),
    "an op that executes": (TRAIN, lambda: with_node(node("PyOp", ["y"], ["z"], "com.microsoft")), "op 'PyOp'"),
    "an op of the core that it hasn't got": (TRAIN, lambda: with_node(node("Free", ["y"], ["z"], "fleetgrad")), "op 'Free'"),
    "a function": (TRAIN, lambda: model(f25=[function("f", "Relu")]), "has functions"),
    "a function that calls itself": (INFER, lambda: functions(function("f", "g"), function("g", "f")), "'f' calls itself"),
    "a function within itself": (
        INFER, lambda: functions({1: "f", 10: "own", 7: [
            node("If", ["c"], ["b"], f5=[attribute("then_branch", 5, f6={1: [node("f", ["a"], ["b"], "own")]})])]}),
        "'f' calls itself",
    ),
    "a function over another": (INFER, lambda: functions(function("f", "Relu"), function("f", "Sin")), "'f' is there twice"),
    "graphs without end": (TRAIN, lambda: nested(2000), "nested deeper than 4"),
    "a graph where none belongs": (TRAIN, lambda: with_attribute(attribute("body", 5, f6={2: "g"})), "has a graph as the"),
    "too many nodes": (TRAIN, lambda: model({1: NODES * 4000}), "more than 10000 nodes"),
    "too many values": (TRAIN, lambda: with_node(node("Concat", ["y"] * 100_001, ["z"])), "more than 100000 values"),
    "training info": (TRAIN, lambda: model(f20=[{1: {2: "init"}}]), "training_info"),
    # attributes
    "an attribute of two types": (TRAIN, lambda: with_attribute(attribute("a", 2, f3=1, f4="s")), "but holds 's'"),
    "an attribute twice": (TRAIN, lambda: with_attribute(attribute("a", 2, f3=1), attribute("a", 2, f3=2)), "'a' twice"),
    "an attribute of no type": (TRAIN, lambda: with_attribute(attribute("a", 0, f3=1)), "has type 0"),
    "an attribute that refers": (TRAIN, lambda: with_attribute(attribute("a", 2, f21="b")), "refers to another"),
    "too many attributes": (TRAIN, lambda: with_attribute(*(attribute(f"a{i}", 2, f3=i) for i in range(65))), "65 attributes"),
    # tensors
    "fewer bytes than dimensions": (TRAIN, lambda: with_tensor(tensor("t", [4, 4], bytes(60))), "holds 60 bytes, .* say 64"),
    "more bytes than dimensions": (TRAIN, lambda: with_tensor(tensor("t", [3], bytes(16))), "holds 16 bytes"),
    "dimensions that overflow": (TRAIN, lambda: with_tensor(tensor("t", [1 << 32, 1 << 32], bytes(4))), "more than 268435456"),
    "a negative dimension": (TRAIN, lambda: with_tensor(tensor("t", [-1], bytes(4))), "dimensions \\[-1\\]"),
    "data twice": (TRAIN, lambda: with_tensor(tensor("t", [1], bytes(4), f4=bytes(4))), "raw_data and float_data"),
    "data of another type": (TRAIN, lambda: with_tensor(tensor("t", [1], kind=7, f4=bytes(4))), "has its data as float_data"),
    "a type that isn't": (TRAIN, lambda: with_tensor(tensor("t", [1], bytes(4), kind=77)), "type 77"),
    "texts": (TRAIN, lambda: with_tensor(tensor("t", [1], kind=8, f6=["x"])), "holds texts"),
    "a tensor twice": (TRAIN, lambda: model({5: [tensor("t", [1], bytes(4))] * 2}), "initializer 't' is there twice"),
    "a sparse tensor": (TRAIN, lambda: model({15: [{3: [4]}]}), "sparse initializer"),
    "a part of a tensor": (TRAIN, lambda: with_tensor(tensor("t", [1], bytes(4), f3={1: 0, 2: 1})), "is a segment"),
    # data in other files
    "external data in training": (TRAIN, lambda: with_tensor(tensor("w", [4, 3], f13=PLACE, f14=1)), "data in another file"),
    "external data of an attribute": (
        INFER, lambda: with_attribute(attribute("value", 4, f5=tensor("w", [4, 3], f13=PLACE, f14=1)), op="Constant"),
        "data in another file",
    ),
    "an absolute path": (INFER, lambda: placed(entry("location", "/etc/shadow"), *PLACE[1:]), "lies at .*/etc/shadow"),
    "a path upwards": (INFER, lambda: placed(entry("location", "../params.bin"), *PLACE[1:]), "lies at .*\\.\\./params"),
    "another file beside": (INFER, lambda: placed(entry("location", "device.key"), *PLACE[1:]), "lies at .*device.key"),
    "an address in memory": (INFER, lambda: placed(entry("location", "*/_ORT_MEM_ADDR_/*"), *PLACE[1:]), "_ORT_MEM_ADDR_"),
    "an offset beyond": (INFER, lambda: placed(PLACE[0], entry("offset", "4096"), PLACE[2]), "'offset': '4096'"),
    "a negative offset": (INFER, lambda: placed(PLACE[0], entry("offset", "-48"), PLACE[2]), "'offset': '-48'"),
    "a length of the whole disk": (INFER, lambda: placed(*PLACE[:2], entry("length", "99999999999")), "99999999999"),
    "a checksum key": (INFER, lambda: placed(*PLACE, entry("checksum", "0")), "'checksum': '0'"),
    "a location twice": (INFER, lambda: placed(*PLACE, entry("location", "/etc/shadow")), "'location' of its file twice"),
    "a tensor of another name": (INFER, lambda: placed(*PLACE, name="v"), "'v' .* none of the manifest's"),
    "a tensor of another shape": (INFER, lambda: placed(*PLACE, dims=(3, 4)), "none of the manifest's"),
    # interface
    "another input": (TRAIN, lambda: model({11: [*INPUTS, value("key", 1, [1])]}), "input 'key' is none of the manifest's"),
    "an input less": (TRAIN, lambda: model({11: INPUTS[:2]}), "input 'w' of the manifest isn't there"),
    "an input of another shape": (TRAIN, lambda: model({11: [*INPUTS[:2], value("w", 1, [4, 4])]}), "shape \\[4, 4\\]"),
    "an input of another type": (TRAIN, lambda: model({11: [*INPUTS[:2], value("w", 7, [4, 3])]}), "has type 7"),
    "an input that is no tensor": (TRAIN, lambda: model({11: [*INPUTS[:2], {1: "w", 2: {4: {}}}]}), "'w' is no tensor"),
    "another output": (TRAIN, lambda: model({12: [*OUTPUTS, value("x", 1, ["N", 4])]}), "output 'x' is none"),
    "a gradient in evaluation": (EVAL, model, "output 'fleetgrad.gradient.w' is none of the manifest's"),
}  # fmt: skip


def test_what_the_hostile_files_are_made_from_passes() -> None:
    gate.check(TRAIN, model(), MANIFEST)
    gate.check(INFER, placed(*PLACE), MANIFEST)
    gate.check(INFER, functions(function("f", "g"), function("g", "Relu")), MANIFEST)
    gate.check(TRAIN, nested(4), MANIFEST)
    assert onnx.ModelProto.FromString(model()).graph.node[0].op_type == "MatMul", "onnx reads it as it is meant"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_for_its_reason(name: str) -> None:
    file, made, reason = HOSTILE[name]
    with pytest.raises(Refused, match=f"plan refused: {file}: ") as refused:
        gate.check(file, made(), MANIFEST)
    assert re.search(reason, str(refused.value)), refused.value
    assert len(str(refused.value)) < 600


def test_every_cut_of_a_file_is_refused_or_lacks_only_what_follows_its_graph() -> None:
    whole = model()
    for size in range(len(whole)):
        try:
            gate.check(TRAIN, whole[:size], MANIFEST)
        except Refused:
            continue
        onnx.ModelProto.FromString(whole[:size])  # the last fields are the opsets


def test_a_hostile_plan_in_a_folder_is_refused_before_a_session(tmp_path: Path) -> None:
    compile_model(zoo.mlp(inputs=8, hidden=4, classes=3), loss="cross-entropy", output=tmp_path / "p")
    opened = open_plan(tmp_path / "p")
    gate.check_plan(opened)
    raw = opened.path(INFER).read_bytes()
    opened.path(INFER).write_bytes(raw.replace(b"params.bin", b"/etc/group"))
    with pytest.raises(Refused, match="/etc/group"):
        gate.check_plan(opened)
    opened.path(INFER).write_bytes(b"")
    with pytest.raises(Refused, match=r"infer\.onnx has 0 bytes"):
        gate.check_plan(opened)


def test_the_ops_are_those_of_onnx_and_of_the_core() -> None:
    known: dict[str, set[str]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        known.setdefault(schema.domain, set()).add(schema.name)
    texts = {"ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"}
    core = {
        name
        for file in (ROOT / "native" / "src" / "ort").glob("*.c")
        for text in [file.read_text()]
        for name in re.findall(r'OP_DEFINE(?:_TYPED)?\(\w+,\s*"(\w+)"|#define OP "(\w+)"', text)
        for name in name
        if name
    }
    assert onnx_tables.OPS["fleetgrad"] == core
    assert onnx_tables.OPS[""] == known[""] - texts
    for domain in ("ai.onnx.ml", "ai.onnx.preview.training"):
        assert onnx_tables.OPS[domain] == known[domain]


@pytest.mark.parametrize("table", ["MODEL", "GRAPH", "NODE", "ATTRIBUTE", "TENSOR", "FUNCTION"])
def test_the_tables_are_onnxs_own(table: str) -> None:
    protos: dict[str, Any] = {
        "MODEL": onnx.ModelProto, "GRAPH": onnx.GraphProto, "NODE": onnx.NodeProto, "ATTRIBUTE": onnx.AttributeProto,
        "TENSOR": onnx.TensorProto, "FUNCTION": onnx.FunctionProto,
    }  # fmt: skip
    fields = {f.number: f for f in protos[table].DESCRIPTOR.fields}
    rows = getattr(onnx_tables, table)
    assert {n: r.name for n, r in rows.items()} == {n: f.name for n, f in fields.items()}
    kinds = {
        1: "fixed64",
        2: "fixed32",
        3: "varint",
        4: "varint",
        5: "varint",
        14: "varint",
        9: "bytes",
        11: "bytes",
        12: "bytes",
    }
    assert {n: r.kind for n, r in rows.items()} == {n: kinds[f.type] for n, f in fields.items()}
    assert {n: r.repeated for n, r in rows.items()} == {n: f.is_repeated for n, f in fields.items()}


def test_a_manifest_of_another_model_refuses_the_graphs(tmp_path: Path) -> None:
    other = compile_model(zoo.mlp(inputs=8, hidden=5, classes=3), loss="cross-entropy", output=tmp_path / "a")
    compile_model(zoo.mlp(inputs=8, hidden=4, classes=3), loss="cross-entropy", output=tmp_path / "b")
    for file in (TRAIN, EVAL, INFER):
        with pytest.raises(Refused, match=r"shape|none of the manifest's"):
            gate.check(file, (tmp_path / "b" / file).read_bytes(), other)
