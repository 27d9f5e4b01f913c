"""ONNX files put together from bytes: what onnx's own package would refuse to write, too.

A message is a dict of field numbers; a value is an int (varint), bytes or text (with their length), another message, or a list of these.
"""

from typing import Any

from fleetgrad.wire import plan
from fleetgrad.wire.plan import Manifest

Value = Any


def varint(number: int) -> bytes:
    """An unsigned or, below 0, a 64-bit two's complement varint."""
    number %= 1 << 64
    out = bytearray()
    while number >= 128:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: Value) -> bytes:
    """One field's tag and value."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, dict):
        value = message(value)
    raw = value.encode() if isinstance(value, str) else bytes(value)
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def message(fields: dict[int, Value]) -> bytes:
    """A message's bytes."""
    return b"".join(
        field(number, each)
        for number, value in fields.items()
        for each in (value if isinstance(value, list) else [value])
    )


def entry(key: str, value: str) -> dict[int, Value]:
    return {1: key, 2: value}


def tensor(name: str, dims: list[int], raw: bytes = b"", kind: int = 1, **more: Value) -> dict[int, Value]:
    """A TensorProto; `more` are fields as f13=... ."""
    found: dict[int, Value] = {1: dims, 2: kind, 8: name}
    if raw:
        found[9] = raw
    return found | numbered(more)


def attribute(name: str, kind: int, **value: Value) -> dict[int, Value]:
    return {1: name, 20: kind} | numbered(value)


def node(op: str, inputs: list[str], outputs: list[str], domain: str = "", **more: Value) -> dict[int, Value]:
    return {1: inputs, 2: outputs, 4: op, 7: domain} | numbered(more)


def value(name: str, kind: int, shape: list[int | str]) -> dict[int, Value]:
    dims = [{1: n} if isinstance(n, int) else {2: n} for n in shape]
    return {1: name, 2: {1: {1: kind, 2: {1: dims}}}}


def numbered(more: dict[str, Value]) -> dict[int, Value]:
    return {int(name[1:]): found for name, found in more.items()}


# --- a small plan, and what can be wrong with it ---
MANIFEST = Manifest(
    schema=plan.SCHEMA, model="m", loss="cross-entropy", profile="cpu-native", gradients="int8", op_abi=1,
    inputs=(plan.Feed(name="x", shape=(4,), dtype="float32"),), label=plan.Feed(name=plan.LABEL, shape=(), dtype="int64"),
    output=(3,), tensors=plan.lay_out([("w", (4, 3), "trainable")]), travels=16, length=16,
    optimizer=plan.Optimizer(learning_rate=0.1, momentum=0.0, weight_decay=0.0, batch_size=4), files={},
)  # fmt: skip
INPUTS = [value("x", 1, ["N", 4]), value(plan.LABEL, 7, ["N"]), value("w", 1, [4, 3])]
OUTPUTS = [value(plan.LOSS, 1, []), value(plan.GRADIENT + "w", 1, [4, 3])]
NODES = [
    node("MatMul", ["x", "w"], ["y"]),
    node("ReduceMean", ["y"], [plan.LOSS]),
    node("Identity", ["w"], [plan.GRADIENT + "w"]),
]
OPSETS = [{1: "", 2: 21}, {1: "fleetgrad", 2: 1}]
PLACE = [entry("location", "params.bin"), entry("offset", "0"), entry("length", "48")]


def model(graph: dict[int, Value] | None = None, **fields: Value) -> bytes:
    """A small train.onnx that passes, with some fields of its graph and (f8=...) its model replaced."""
    own = {1: NODES, 2: "g", 11: INPUTS, 12: OUTPUTS} | (graph or {})
    return message({1: 10, 7: own, 8: OPSETS} | {int(name[1:]): v for name, v in fields.items()})


def with_node(*more: dict[int, Value]) -> bytes:
    return model({1: [*NODES, *more]})


def with_attribute(*attributes: dict[int, Value], op: str = "Relu") -> bytes:
    return with_node(node(op, ["y"], ["z"], f5=list(attributes)))


def with_tensor(found: dict[int, Value]) -> bytes:
    return model({5: [found]})


def infer(initializer: dict[int, Value]) -> bytes:
    return message(
        {1: 8, 7: {1: [NODES[0]], 5: [initializer], 11: [INPUTS[0]], 12: [value("y", 1, ["N", 3])]}, 8: OPSETS[:1]}
    )


def placed(*entries: dict[int, Value], name: str = "w", dims: tuple[int, ...] = (4, 3)) -> bytes:
    """An infer.onnx whose weights lie at `entries`."""
    return infer(tensor(name, list(dims), f13=list(entries), f14=1))


def nested(depth: int) -> bytes:
    graph = message({1: [node("Identity", ["y"], ["i"])], 2: "leaf"})
    for _ in range(depth - 1):
        graph = message({1: [branch(graph)], 2: "branch"})
    return model({1: [*NODES, branch(graph)]})


def branch(graph: bytes) -> dict[int, Value]:
    return node("If", ["c"], ["o"], f5=[attribute("then_branch", 5, f6=graph)])


def function(name: str, calls: str) -> dict[int, Value]:
    return {1: name, 10: "own", 7: [node(calls, ["a"], ["b"], "own" if calls in "fgh" else "")], 9: [{1: "", 2: 21}]}


def functions(*made: dict[int, Value]) -> bytes:
    return message(
        {1: 8, 7: {1: [node("f", ["x"], ["y"], "own")]}, 8: [{1: "", 2: 21}, {1: "own", 2: 1}], 25: list(made)}
    )
