"""Tells what of a model can train, or what a choice would train, without compiling it: one row per node and one per weight."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from fleetgrad.edge.autodiff import dropout, losses
from fleetgrad.edge.autodiff.choosing import Chosen, choose, reaching
from fleetgrad.edge.autodiff.front import Model, read, unknown_ops
from fleetgrad.edge.autodiff.graph import OPSET, Builder
from fleetgrad.edge.autodiff.hidden import folded
from fleetgrad.edge.autodiff.loading import load
from fleetgrad.edge.autodiff.quantized import ADVICE, integer_ops
from fleetgrad.edge.autodiff.registry import FLAT, barrier, objections, path, reached, reads, upstream
from fleetgrad.edge.autodiff.statistics import in_training
from fleetgrad.wire.choice import ALL, Choice
from fleetgrad.wire.loss import LossName, LossOptions
from fleetgrad.wire.plan import BatchNorm, padded


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node: whether a gradient can pass it, and the reason when it can't."""

    op: str
    name: str
    trains: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WeightRow:
    """An initializer: whether it would be trained, and the reason when it wouldn't; `size` counts its numbers."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    trains: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Totals:
    """Numbers that would be trained, of all float32 ones; and the floats, padding included, of the plan's manifest: those
    that would be exchanged, of the whole vector."""

    trained: int
    numbers: int
    travels: int
    length: int


@dataclass(frozen=True, slots=True)
class Survey:
    """What `fleetgrad-edge check` prints. `trains` says whether the whole model compiles."""

    nodes: tuple[NodeRow, ...]
    weights: tuple[WeightRow, ...]
    notes: tuple[str, ...] = ()
    totals: Totals | None = None

    @property
    def trains(self) -> bool:
        """Whether no node objects and some weight trains."""
        return all(n.trains for n in self.nodes) and any(w.trains for w in self.weights)


def survey(
    model: bytes | Path | onnx.ModelProto,
    dims: Mapping[str, int] | None = None,
    *,
    choice: Choice = ALL,
    batch_norm: BatchNorm = "batch",
    loss: LossName | None = None,
    loss_options: LossOptions = LossOptions(),  # noqa: B008 - frozen
) -> Survey:
    """Looks at every node and initializer of a model, its dynamic dimensions as in `dims`.

    Without a loss, gradients are those of the model's output. Raises ModelError when it isn't a model that can be read, when
    the loss doesn't fit it, or the choice leaves nothing.
    """
    source = load(model)
    unknown = unknown_ops(source)
    if unknown:
        # The model can't run here, so nothing of it is measured: only what the ops' names tell.
        reasons = {(op, name): reason for op, name, reason in unknown}
        nodes = [
            NodeRow(n.op_type, n.name, (n.op_type, n.name) not in reasons, reasons.get((n.op_type, n.name), ""))
            for n in source.graph.node
        ]
        return Survey(tuple(nodes), _weights(source, set(), lambda _: "the model has unknown ops"))
    found, _ = dropout.settle(read(source, dims, scalar=loss == "output"))
    goal = found.output
    if loss is not None:
        goal = losses.target(found.nodes, found.output, loss, loss_options, found.shapes)
        losses.label_shape(loss, loss_options, found.shapes[goal])
    picked = choose(found, goal, choice) if reaching(found, goal) else Chosen(found, [], frozenset())
    found, trained = picked.model, picked.trained
    reach = upstream(found.nodes, [goal])
    objecting = _objecting(found, goal, trained)
    if not objecting:
        g = Builder(found.shapes, found.shapes, known=found.known)
        trained = reached(found.nodes, goal, trained, found.floats, g, OPSET)
    rows = []
    for node in found.nodes:
        name = node.name or node.output[0]
        if reason := objecting.get(node.output[0], ""):
            rows.append(NodeRow(node.op_type, name, False, reason))
        else:
            rows.append(
                NodeRow(node.op_type, name, True, "" if reach.intersection(node.output) else "doesn't reach the output")
            )
    why = untrained(found, goal, trained) | dict.fromkeys(picked.left, "not chosen")
    weights = _weights(found.source, trained, lambda name: why.get(name, "says how to compute"))
    part, whole = ([found.weights[name].size for name in names] for names in (trained, found.weights))
    shared = list[str]()
    if batch_norm == "shared" and not objecting:
        passed = {name for node in path(found.nodes, trained, [goal], found.floats) for name in node.output}
        _, shared = in_training(found, trained, passed)
    travels = sum(map(padded, [*part, *(found.weights[name].size for name in shared)]))
    totals = Totals(sum(part), sum(whole), travels, sum(map(padded, whole)))
    return Survey(tuple(rows), weights, (*notes(found), *picked.notes), totals)


def notes(model: Model) -> tuple[str, ...]:
    """What of a model trains otherwise than its author may expect."""
    found = []
    if names := folded(model.source):
        found.append(
            f"batch normalisation was multiplied into {len(names)} layers ({names[0]!r} ...) and won't normalise while "
            "training: export with training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False, or with dynamo=True "
            "the module in train() and optimize=False"
        )
    if names := integer_ops(model.source):
        found.append(
            f"{len(names)} nodes ({names[0]!r} ...) compute in integers, and nothing before them trains: {ADVICE}"
        )
    used = set[str]().union(*(reads(node) for node in model.nodes))
    stay = [name for name in model.dequantized if name in used - model.weights.keys()]
    moved = [name for name in model.dequantized if name not in stay]  # hidden.py took them, or what is made of them
    for names, what in ((stay, "stay as they are"), (moved, "count as float32 weights, and leave as such")):
        if names:
            found.append(
                f"{len(names)} quantized constants ({names[0]!r} ...) {what}: integers of 4 bits, in blocks, in Constant "
                "nodes, or moved before DequantizeLinear aren't trained as integers"
            )
    return tuple(found)


def untrained(model: Model, goal: str, trained: Collection[str]) -> dict[str, str]:
    """Why each weight that isn't in `trained` gets no gradient of the value `goal`."""
    reach, found = upstream(model.nodes, [goal]), dict[str, str]()
    for name in model.weights:
        if name in trained:
            continue
        node = barrier(model.nodes, name, goal, model.floats)
        if name not in reach:
            found[name] = "doesn't reach the output"
        elif node is None:
            found[name] = "no gradient comes to it"
        elif node.op_type == "BatchNormalization" and name in node.input[3:5]:
            found[name] = "running statistics, which training measures"
        else:
            flat = "is flat" if node.op_type in FLAT else "only reads it as a setting or a statistic"
            why = flat if model.floats.intersection(node.output) else "gives no float32"
            found[name] = f"no gradient passes {node.op_type} {node.name or node.output[0]!r}, which {why}"
    return found


def _objecting(model: Model, goal: str, trained: Sequence[str]) -> dict[str, str]:
    nodes = path(model.nodes, trained, [goal], model.floats)
    bad = objections(
        nodes, trained, lambda: Builder(model.shapes, model.shapes, known=model.known), model.floats, OPSET
    )
    return {node.output[0]: reason for node, reason in bad}


def _weights(
    source: onnx.ModelProto, trained: Collection[str], otherwise: Callable[[str], str]
) -> tuple[WeightRow, ...]:
    rows = []
    for t in source.graph.initializer:
        dtype = onnx.TensorProto.DataType.Name(t.data_type).lower()
        if t.name in trained:
            reason = ""
        elif t.data_type != onnx.TensorProto.FLOAT:
            reason = "not float32"
        elif not t.dims:
            reason = "a scalar counts as a constant"
        else:
            reason = otherwise(t.name)
        rows.append(WeightRow(t.name, tuple(t.dims), dtype, math.prod(t.dims), t.name in trained, reason))
    return tuple(rows)
