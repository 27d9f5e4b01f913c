"""Which weights train: those that the loss depends on, narrowed by names, by the last layers and to biases; or adapters.

A layer is a node that reads weights and data, and the Add of a bias right after it; what is computed of weights alone, such
as a transposed one, counts as the weight.
"""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from fleetgrad.edge.autodiff.adapters import insert
from fleetgrad.edge.autodiff.errors import ModelError
from fleetgrad.edge.autodiff.front import Model
from fleetgrad.edge.autodiff.quantized import ADVICE, integer_ops
from fleetgrad.edge.autodiff.registry import downstream, reads, upstream
from fleetgrad.wire.choice import Choice, matches
from fleetgrad.wire.plan import Adapter

BIAS_INPUT = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "LayerNormalization": 2, "BatchNormalization": 2,
              "InstanceNormalization": 2, "GroupNormalization": 2, "LSTM": 3, "GRU": 3, "RNN": 3}  # fmt: skip


def reaching(model: Model, goal: str) -> list[str]:
    """The weights that a gradient of the value `goal` could come to."""
    return [name for name in model.weights if goal in downstream(model.nodes, [name], model.floats)]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A model, with adapters where those were chosen, the weights that train, those that could and were left, and what the
    user may not expect."""

    model: Model
    trained: list[str]
    left: frozenset[str]
    adapters: tuple[Adapter, ...] = ()
    notes: Sequence[str] = ()


def choose(model: Model, goal: str, choice: Choice) -> Chosen:
    """What a choice makes of a model whose loss is taken of the value `goal`; raises ModelError when it leaves nothing."""
    possible = reaching(model, goal)
    whole = _narrowed(model, goal, possible, choice) if choice.whole else []
    if choice.lora is None:
        return Chosen(model, whole, frozenset(possible) - set(whole))
    apart = {*whole, *(name for name in possible if matches(name, choice.freeze))}
    adapted, adapters, notes = insert(model, choice.lora, possible, apart)
    factors = {n for a in adapters for n in ((a.b,) if choice.lora.freeze_a else (a.a, a.b))}
    trained = [name for name in adapted.weights if name in factors or name in whole]
    left = {*possible, *(n for a in adapters for n in (a.base, a.a))} - set(trained)
    return Chosen(adapted, trained, frozenset(left), adapters, notes)


def _narrowed(model: Model, goal: str, possible: Sequence[str], choice: Choice) -> list[str]:
    for option, globs in (("--train", choice.train), ("--freeze", choice.freeze)):
        for glob in globs:
            if not fnmatch.filter(model.weights, glob):
                known = ", ".join(sorted(model.weights)) or "none"
                raise ModelError(f"{option} {glob!r} matches no float32 weight of the model (it has: {known})")
    found = [name for name in possible if not choice.unasked(name)]
    if choice.last is not None:
        stack = layers(model, goal, possible)
        if not 1 <= choice.last <= len(stack):
            raise ModelError(
                f"--last {choice.last}: the model has {len(stack)} layers with weights, 1 or more can train"
            )
        kept = set[str]().union(*stack[-choice.last :])
        found = [name for name in found if name in kept]
    if choice.biases_only:
        kept = biases(model)
        found = [name for name in found if name in kept]
    if not found:
        count = f"({len(model.weights)} float32 initializers)"
        if not possible:
            advice = f"; it computes in integers: {ADVICE}" if integer_ops(model.source) else ""
            raise ModelError(
                f"the model has no trainable weights: no float32 initializer reaches the output {count}{advice}"
            )
        why = "all are frozen" if choice == Choice(freeze=choice.freeze) else "none is chosen"
        raise ModelError(f"the model has no trainable weights: {why} {count}; these could train: {', '.join(possible)}")
    return found


def layers(model: Model, goal: str, possible: Sequence[str]) -> list[set[str]]:
    """The trainable weights of each layer that the loss depends on, in the graph's order."""
    carried = {name: {name} for name in possible}  # by the values that are computed of weights alone
    fixed = {t.name for t in model.constants} | model.weights.keys() | model.known.keys()
    reach, small = upstream(model.nodes, [goal]), biases(model)
    found, makers = list[set[str]](), dict[str, set[str]]()
    for node in model.nodes:
        own = set[str]().union(*(carried.get(name, set()) for name in reads(node)))
        if not own or not reach.intersection(node.output):
            continue
        if reads(node) <= fixed:
            fixed.update(node.output)
            carried.update((name, own) for name in node.output)
            continue
        before = next((makers[name] for name in node.input if name in makers), None)
        if node.op_type == "Add" and before is not None and own <= small:
            before |= own
            continue
        found.append(own)
        makers.update((name, own) for name in node.output)
    return found


def biases(model: Model) -> set[str]:
    """The weights that are nothing but added: bias inputs of layers, and vectors that an Add spreads."""
    found, others = set[str](), set[str]()
    for node in model.nodes:
        for i, name in enumerate(node.input):
            if name in model.weights:
                (found if _is_bias(model, node, i) else others).add(name)
    return found - others


def _is_bias(model: Model, node: onnx.NodeProto, i: int) -> bool:
    if node.op_type == "Add":
        return bool(sum(d != 1 for d in model.weights[node.input[i]].shape) <= 1)
    return bool(i == BIAS_INPUT.get(str(node.op_type)))
