"""The gate before onnxruntime: an ONNX file of a plan is walked, bounded and held to its manifest before a session sees it.

A plan comes signed; the gate is the second line, for what a signature can't vouch for. It refuses

    size        a file beyond MAX_FILE_BYTES, more than MAX_NODES nodes, graphs nested deeper than MAX_DEPTH, other budgets below
    form        fields that ONNX hasn't got or that are there twice, numbers and lengths cut short, attributes of two types
    ops         domains and ops that are not in OPS; functions, but in the model for use (infer.onnx), and there no recursion
    tensors     a size that isn't its dimensions'; sparse ones; data in another file, but for infer.onnx's initializers,
                which are the manifest's tensors at their places in params.bin
    interface   inputs and outputs of train.onnx and eval.onnx with another name, type or shape than the manifest's

Files in question: CVE-2022-25882, CVE-2024-27318, CVE-2024-5187 (external data that leaves its folder), onnx's and onnxruntime's
reports of attribute injection and of addresses as locations.
"""

import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from fleetgrad.edge.training import onnx_tables as onnx
from fleetgrad.edge.training.onnx_tables import OPS
from fleetgrad.edge.training.plan_dir import Plan
from fleetgrad.edge.training.protobuf import Malformed, Message, fields, signed, utf8
from fleetgrad.wire import plan
from fleetgrad.wire.plan import Manifest, PlanError

MAX_FILE_BYTES = 4 * plan.MAX_FLOATS + (1 << 20)
MAX_NODES = 10_000
MAX_DEPTH = 4  # graphs within graphs
MAX_VALUES = 100_000  # inputs, outputs, initializers and names of nodes' values
MAX_ATTRIBUTES = 64  # of a node
MAX_TEXT = 4096  # bytes of a name
MAX_TENSOR_BYTES = 4 * plan.MAX_FLOATS  # of all tensors in a file
SUBGRAPHS = {"If", "Loop", "Scan"}
FLOAT = 1
TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "bool": 9, "float64": 11}


class Refused(PlanError):
    """A file that onnxruntime is not given; the message says where and why."""


def check_plan(opened: Plan) -> None:
    """Holds all graphs of a plan to the rules; raises Refused. Reads the files page by page: they may be larger than memory."""
    for name in (plan.TRAIN, plan.EVAL, plan.INFER):
        path = opened.path(name)
        size = path.stat().st_size
        if not 0 < size <= MAX_FILE_BYTES:
            raise Refused(f"plan refused: {name} has {size} bytes, 1 to {MAX_FILE_BYTES} are possible")
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed with its last view
        check(name, memoryview(mapped), opened.manifest)


def check(name: str, raw: bytes | memoryview, manifest: Manifest) -> None:
    """Raises Refused unless `raw` is what the file `name` of a plan with this manifest may be."""
    try:
        view = memoryview(raw)
        if len(view) > MAX_FILE_BYTES:
            raise Malformed(f"{len(view)} bytes, at most {MAX_FILE_BYTES}")
        walk = _Walk(manifest, name == plan.INFER)
        graph = walk.model(view)
        if name != plan.INFER:
            _interface(graph, manifest, training=name == plan.TRAIN)
    except Malformed as e:
        raise Refused(f"plan refused: {name}: {e}") from None


Name = tuple[str, str]  # domain and name


@dataclass(slots=True)
class _Walk:
    """One file's budgets. `outside`: initializers may lie in params.bin, and functions are allowed."""

    manifest: Manifest
    outside: bool
    nodes: int = 0
    values: int = 0
    tensor_bytes: int = 0
    functions: dict[Name, set[Name]] = field(default_factory=dict)  # and those that each calls
    calls: set[Name] | None = None  # of the function that is being walked

    def model(self, raw: memoryview) -> Message:
        """The whole file; gives its graph."""
        model = fields(raw, onnx.MODEL)
        for what in ("training_info", "configuration"):
            if model.has(what):
                raise Malformed(f"it has {what}, which no plan has")
        if not model.has("graph"):
            raise Malformed("it has no graph")
        self._opsets(model)
        bodies = [fields(f, onnx.FUNCTION) for f in model.all("functions")]
        if bodies and not self.outside:
            raise Malformed(f"it has functions, which only {plan.INFER} may have")
        for body in bodies:
            own = self._name(body, "domain"), self._name(body, "name")
            if own in self.functions:
                raise Malformed(f"function {own[1]!r} is there twice")
            self.functions[own] = set()
        for body in bodies:
            self._opsets(body)
            self.calls = self.functions[self._name(body, "domain"), self._name(body, "name")]
            for node in body.all("node"):
                self._node(node, 0)
        self.calls = None
        self._check_recursion()
        return self._graph(model.all("graph")[0], 0)

    def _opsets(self, owner: Message) -> None:
        seen = set()
        for raw in owner.all("opset_import"):
            domain = self._name(fields(raw, onnx.OPSET_ID), "domain")
            own = {d for d, _ in self.functions} | ({domain} if self.outside and domain not in OPS else set())
            if domain not in OPS and domain not in own:
                raise Malformed(f"it imports the domain {domain!r}: {', '.join(map(repr, OPS))} are known")
            if domain in seen:
                raise Malformed(f"it imports the domain {domain!r} twice")
            seen.add(domain)

    def _check_recursion(self) -> None:
        """Takes away functions that call none that is left, until none is left."""
        left = {name: calls & self.functions.keys() for name, calls in self.functions.items()}
        while left:
            done = [name for name, calls in left.items() if not calls & left.keys()]
            if not done:
                raise Malformed(f"function {sorted(left)[0][1]!r} calls itself")
            for name in done:
                del left[name]

    def _graph(self, raw: memoryview, depth: int) -> Message:
        if depth > MAX_DEPTH:
            raise Malformed(f"graphs are nested deeper than {MAX_DEPTH}")
        graph = fields(raw, onnx.GRAPH)
        if graph.has("sparse_initializer"):
            raise Malformed("it has a sparse initializer")
        self._count_values(sum(graph.counts.get(n, 0) for n in ("input", "output", "value_info", "initializer")))
        names = set()
        for tensor in graph.all("initializer"):
            found = self._tensor(tensor, initializer=depth == 0)
            if found in names:
                raise Malformed(f"initializer {found!r} is there twice")
            names.add(found)
        for node in graph.all("node"):
            self._node(node, depth)
        return graph

    def _node(self, raw: memoryview, depth: int) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise Malformed(f"it has more than {MAX_NODES} nodes")
        node = fields(raw, onnx.NODE)
        op, domain = self._name(node, "op_type"), self._name(node, "domain")
        if (domain, op) in self.functions:
            if self.calls is not None:
                self.calls.add((domain, op))
        elif op not in OPS.get(domain, ()):
            raise Malformed(f"op {op!r} of the domain {domain!r} is none that a plan may use")
        if node.has("device_configurations"):
            raise Malformed(f"a node {op!r} has device_configurations")
        self._count_values(node.counts.get("input", 0) + node.counts.get("output", 0))
        for value in (*node.all("input"), *node.all("output")):
            self._text(value)
        if node.counts.get("attribute", 0) > MAX_ATTRIBUTES:
            raise Malformed(f"a node {op!r} has {node.counts['attribute']} attributes, at most {MAX_ATTRIBUTES}")
        names = set()
        for attribute in node.all("attribute"):
            name = self._attribute(attribute, op, depth)
            if name in names:
                raise Malformed(f"a node {op!r} has the attribute {name!r} twice")
            names.add(name)

    def _attribute(self, raw: memoryview, op: str, depth: int) -> str:
        attribute = fields(raw, onnx.ATTRIBUTE)
        name, kind = self._name(attribute, "name"), attribute.number("type")
        if not name:
            raise Malformed(f"a node {op!r} has an attribute without a name")
        if attribute.has("ref_attr_name"):
            if self.calls is not None:
                return name  # of a function: its value is the caller's attribute, which is checked there
            raise Malformed(f"attribute {name!r} of a node {op!r} refers to another, outside a function")
        if kind not in onnx.VALUES:
            raise Malformed(f"attribute {name!r} of a node {op!r} has type {kind}, which no plan has")
        if wrong := [f for f in attribute.counts if f not in ("name", "type", "doc_string", onnx.VALUES[kind])]:
            raise Malformed(
                f"attribute {name!r} of a node {op!r} has type {kind} ({onnx.VALUES[kind]}), but holds '{wrong[0]}'"
            )
        for tensor in (*attribute.all("t"), *attribute.all("tensors")):
            self._tensor(tensor, initializer=False)
        for graph in attribute.all("g"):
            if op not in SUBGRAPHS:
                raise Malformed(f"a node {op!r} has a graph as the attribute {name!r}")
            self._graph(graph, depth + 1)
        if attribute.has("graphs"):
            raise Malformed(f"a node {op!r} has several graphs as the attribute {name!r}")
        return name

    def _tensor(self, raw: memoryview, *, initializer: bool) -> str:
        """A tensor's name, when its data are as long as its dimensions say."""
        tensor = fields(raw, onnx.TENSOR)
        name, kind = self._name(tensor, "name"), tensor.number("data_type")
        dims = [signed(n) for n in tensor.numbers.get("dims", [])]
        if len(dims) > plan.MAX_RANK or any(n < 0 for n in dims):
            raise Malformed(f"tensor {name!r} has {len(dims)} dimensions {dims[:8]}")
        count = 1
        for n in dims:
            count *= n
            if count > plan.MAX_FLOATS:
                raise Malformed(f"tensor {name!r} has more than {plan.MAX_FLOATS} values")
        if tensor.has("segment"):
            raise Malformed(f"tensor {name!r} is a segment of another")
        stored = [f for f in ("raw_data", *onnx.TYPED) if tensor.has(f)]
        if tensor.has("external_data") or tensor.number("data_location"):
            if stored or not initializer or not self.outside:
                raise Malformed(f"tensor {name!r} has its data in another file")
            self._external(name, kind, dims, tensor)
            return name
        if kind == onnx.STRING:
            if not self.outside or stored not in ([], ["string_data"]) or tensor.counts.get("string_data", 0) != count:
                raise Malformed(f"tensor {name!r} holds texts")
            return name
        if kind not in onnx.ITEM_BITS:
            raise Malformed(f"tensor {name!r} has type {kind}, which is unknown")
        size = -(-count * onnx.ITEM_BITS[kind] // 8)
        self.tensor_bytes += size
        if self.tensor_bytes > MAX_TENSOR_BYTES:
            raise Malformed(f"its tensors take more than {MAX_TENSOR_BYTES} bytes")
        if len(stored) > 1:
            raise Malformed(f"tensor {name!r} has its data twice, as {' and '.join(stored)}")
        if stored == ["raw_data"]:
            held, expected, what = len(tensor.all("raw_data")[0]), size, "bytes"
        else:
            typed = stored[0] if stored else ""
            if typed and kind not in onnx.TYPED[typed]:
                raise Malformed(f"tensor {name!r} of type {kind} has its data as {typed}")
            held, expected, what = tensor.counts.get(typed, 0), -(-count // max(1, 8 // onnx.ITEM_BITS[kind])), "values"
        if held != expected:
            raise Malformed(f"tensor {name!r} {dims} holds {held} {what}, its dimensions say {expected}")
        return name

    def _external(self, name: str, kind: int, dims: list[int], tensor: Message) -> None:
        """An initializer of infer.onnx that is a tensor of the manifest, at its very place."""
        said: dict[str, str] = {}
        for raw in tensor.all("external_data"):
            entry = fields(raw, onnx.ENTRY)
            key = self._name(entry, "key")
            if key in said:
                raise Malformed(f"tensor {name!r} says {key!r} of its file twice")
            said[key] = self._name(entry, "value")
        own = next((t for t in self.manifest.tensors if t.name == name), None)
        if own is None or kind != FLOAT or tuple(dims) != own.shape:
            raise Malformed(f"tensor {name!r} {dims} lies in another file, and is none of the manifest's")
        due = {"location": plan.PARAMS, "offset": str(4 * own.offset), "length": str(4 * own.size)}
        if said != due:
            shown = {k[:40]: v[:80] for k, v in list(said.items())[:8]}
            raise Malformed(f"tensor {name!r} lies at {shown}, the manifest's lies at {due}")

    def _count_values(self, count: int) -> None:
        self.values += count
        if self.values > MAX_VALUES:
            raise Malformed(f"it has more than {MAX_VALUES} values")

    def _name(self, message: Message, name: str) -> str:
        found = message.all(name)
        return self._text(found[0]) if found else ""

    @staticmethod
    def _text(raw: memoryview) -> str:
        if len(raw) > MAX_TEXT:
            raise Malformed(f"a name of {len(raw)} bytes, at most {MAX_TEXT}")
        return utf8(raw)


Shape = tuple[int, tuple[int | str, ...]]


def _interface(graph: Message, manifest: Manifest, *, training: bool) -> None:
    """Raises Malformed unless the graph takes and gives just what the manifest says."""
    feeds = [*manifest.inputs, manifest.label, *(manifest.noise if training else ())]
    weights = [*manifest.of_role("trainable"), *manifest.measured]
    wanted: dict[str, Shape] = {f.name: (TYPES[f.dtype], (plan.BATCH, *f.shape)) for f in feeds}
    wanted |= {t.name: (FLOAT, t.shape) for t in weights}
    given: dict[str, Shape | None] = {plan.LOSS: (FLOAT, ())}
    if training:
        given |= {plan.GRADIENT + t.name: (FLOAT, t.shape) for t in manifest.of_role("trainable")}
        given |= {plan.STATISTIC + t.name: (FLOAT, t.shape) for t in manifest.measured}
    else:
        given |= {plan.PREDICTION: None}  # whatever shape the user's model has
    _same("input", _values(graph.all("input")), wanted)
    _same("output", _values(graph.all("output")), given)


def _same(what: str, found: Iterable[tuple[str, Shape]], wanted: "dict[str, Shape] | dict[str, Shape | None]") -> None:
    seen = set()
    for name, shape in found:
        if name in seen:
            raise Malformed(f"{what} {name!r} is there twice")
        seen.add(name)
        if name not in wanted:
            raise Malformed(f"{what} {name!r} is none of the manifest's")
        due = wanted[name]
        if due is not None and shape != due:
            raise Malformed(
                f"{what} {name!r} has type {shape[0]} and shape {list(shape[1])}, the manifest says {list(due[1])}"
            )
    if lacking := sorted(wanted.keys() - seen):
        raise Malformed(f"{what} {lacking[0]!r} of the manifest isn't there")


def _values(raws: Iterable[memoryview]) -> Iterator[tuple[str, Shape]]:
    """Names, types and shapes of a graph's inputs or outputs."""
    for raw in raws:
        value = fields(raw, onnx.VALUE)
        name = value.text("name")
        kind = fields(value.all("type")[0], onnx.TYPE) if value.has("type") else Message()
        if not kind.has("tensor_type"):
            raise Malformed(f"value {name[:80]!r} is no tensor")
        tensor = fields(kind.all("tensor_type")[0], onnx.TENSOR_TYPE)
        dims: list[int | str] = []
        for shape in tensor.all("shape"):
            for each in fields(shape, onnx.SHAPE).all("dim"):
                dim = fields(each, onnx.DIMENSION)
                dims.append(signed(dim.number("dim_value")) if dim.has("dim_value") else dim.text("dim_param"))
        yield name, (tensor.number("elem_type"), tuple(dims))
