"""Turns a user's ONNX model into a plan: training, evaluation and inference graphs over one flat vector.

    model --read--> nodes, weights --differentiate--> train.onnx   (weights as inputs, gradients as outputs)
                                                      eval.onnx    (the same inputs, loss and prediction)
                                                      infer.onnx   (the user's graph, weights in params.bin)

The graphs run once, on made-up data: the manifest says what memory that took and what it gave. On one machine, the same
model and options give the same bytes, but for the memory of plans without custom ops: onnxruntime orders their nodes anew in
each process.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx

from fleetgrad.edge.autodiff import dropout, losses
from fleetgrad.edge.autodiff.assembling import graphs
from fleetgrad.edge.autodiff.choosing import choose
from fleetgrad.edge.autodiff.errors import ModelError, UnsupportedModel
from fleetgrad.edge.autodiff.exporting import LITTLE, check_folder, inference, write
from fleetgrad.edge.autodiff.front import Model, read
from fleetgrad.edge.autodiff.graph import DOMAIN, OPSET, Builder
from fleetgrad.edge.autodiff.registry import objections, path, reached
from fleetgrad.edge.autodiff.rehearsal import index_limits, rehearse
from fleetgrad.edge.autodiff.statistics import in_training, merging
from fleetgrad.edge.autodiff.survey import notes, untrained
from fleetgrad.edge.training import gate
from fleetgrad.native.kernels import OP_ABI
from fleetgrad.wire import plan
from fleetgrad.wire.choice import ALL, Choice
from fleetgrad.wire.loss import LossName, LossOptions
from fleetgrad.wire.loss import check as check_loss


def compile_model(
    model: bytes | Path | onnx.ModelProto,
    *,
    loss: LossName,
    loss_options: LossOptions = LossOptions(),  # noqa: B008 - frozen
    gradients: plan.Gradients = "int8",
    activations: plan.Activations = "int8",
    recompute: plan.Recompute = "none",
    profile: plan.Profile = "cpu-native",
    batch_norm: plan.BatchNorm = "batch",
    choice: Choice = ALL,
    dims: Mapping[str, int] | None = None,
    output: Path,
    optimizer: plan.Optimizer = plan.Optimizer(),  # noqa: B008 - frozen
    name: str | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> plan.Manifest:
    """Compiles a model into the plan directory `output` and returns its manifest.

    Every float32 initializer that the loss depends on is trained, unless `choice` (wire/choice.py) leaves it out; `loss_options`
    are those of wire/loss.py. `dims` gives sizes to dynamic dimensions of the inputs, by
    their names. A plan of the profile cpu-std or cuda has no custom ops, so its gradients are fp32. With int8 gradients, `activations` "int8"
    keeps what they alone read rounded as they round it: the same numbers in less memory. With `recompute` "cheap", what follows from batch normalisation's input is
    computed again for the backward pass and not kept. With batch_norm "batch", the
    batch normalisation layers that are trained normalise with the batch's statistics, as in torch's train(), and their
    running statistics stay on the device (role personal); with "shared" they travel and are averaged (role statistic). `output` appears whole or not at all, and replaces an older plan.
    `name` defaults to the file's or the graph's name. `notice` is told what the user may not expect. Raises ModelError
    (UnsupportedModel when ops have no gradient), and OSError when the disk fails.
    """
    if profile != "cpu-native" and gradients == "int8":
        raise ModelError(
            f"int8 gradients are made by custom ops, which the profile {profile} has not: take fp32 gradients"
        )
    if profile != "cpu-native" and recompute == "cheap":
        raise ModelError(f"what is computed again needs the custom ops, which the profile {profile} has not: keep it")
    check_loss(loss, loss_options)
    check_folder(output)  # before the work, not after it
    plain, dropped = dropout.settle(read(model, dims, scalar=loss == "output"))
    goal = losses.target(plain.nodes, plain.output, loss, loss_options, plain.shapes)
    chosen = choose(plain, goal, choice)
    found = chosen.model
    passed = refuse_unsupported(found, goal, chosen.trained)
    trained = with_gradient(found, goal, chosen.trained)
    training, statistics = in_training(found, trained, passed) if batch_norm != "frozen" else (found, [])
    training, noise = dropout.in_training(training, dropped)
    for text in (*notes(found), *chosen.notes):
        notice(text)
    running = {name for n in found.nodes if n.op_type == "BatchNormalization" for name in n.input[3:5]}
    for weight, reason in untrained(found, goal, trained).items():
        if weight not in running | chosen.left and not choice.unasked(weight):
            notice(f"{weight!r} stays as it is: {reason}")
    if name is None:
        name = model.stem if isinstance(model, Path) else found.source.graph.name or "model"

    roles: list[tuple[str, tuple[int, ...], plan.Role]] = []
    measured: plan.Role = "statistic" if batch_norm == "shared" else "personal"
    for weight, value in found.weights.items():
        role: plan.Role = "trainable" if weight in trained else measured if weight in statistics else "frozen"
        roles.append((weight, value.shape, role))
    tensors = plan.lay_out(roles)
    vector = np.zeros(tensors[-1].end, LITTLE)
    for tensor in tensors:
        vector[tensor.offset : tensor.offset + tensor.size] = found.weights[tensor.name].ravel()

    options = {
        "int8": gradients == "int8", "narrow": activations == "int8", "repeat": recompute == "cheap",
        "native": profile == "cpu-native", "elementary": profile == "cuda",
    }  # fmt: skip
    objective = (loss, loss_options, goal)
    steps, evaluate, label = graphs(found, training, objective, trained, statistics, noise, **options)
    files = {
        plan.TRAIN: steps.SerializeToString(deterministic=True),
        plan.EVAL: evaluate.SerializeToString(deterministic=True),
        plan.INFER: inference(found.source, tensors).SerializeToString(deterministic=True),
        plan.PARAMS: vector.tobytes(),
    }
    manifest = plan.check(
        plan.Manifest(
            schema=plan.SCHEMA,
            model=name,
            loss=loss,
            loss_options=loss_options,
            profile=profile,
            gradients=gradients,
            activations=activations if gradients == "int8" else "fp32",
            op_abi=OP_ABI if any(n.domain == DOMAIN for n in steps.graph.node) else 0,
            inputs=found.inputs,
            label=label,
            noise=noise,
            output=found.shapes[found.output][1:],
            tensors=tensors,
            adapters=chosen.adapters,
            statistics=merging(found, statistics) if batch_norm == "shared" else plan.Statistics(),
            travels=max(t.end for t in tensors if t.role in ("trainable", "statistic")),
            length=tensors[-1].end,
            optimizer=optimizer,
            files={file: hashlib.sha256(raw).hexdigest() for file, raw in files.items()},
        )
    )
    limits = index_limits(found.nodes, found.shapes, found.inputs)
    memory, trial = rehearse(manifest, files, vector, limits, notice)
    manifest = msgspec.structs.replace(manifest, memory=memory, trial=trial)
    for file in (plan.TRAIN, plan.EVAL, plan.INFER):
        try:
            gate.check(file, files[file], manifest)
        except gate.Refused as e:
            raise ModelError(f"no board would open this model's plan: {e}") from e
    write({**files, plan.MANIFEST: plan.encode(manifest)}, output)
    return manifest


def refuse_unsupported(model: Model, goal: str, trained: Sequence[str]) -> set[str]:
    """The outputs of the nodes between trained weights and the loss; raises UnsupportedModel with all that have no gradient."""
    nodes = path(model.nodes, trained, [goal], model.floats)
    bad = objections(
        nodes, trained, lambda: Builder(model.shapes, model.shapes, known=model.known), model.floats, OPSET
    )
    if bad:
        raise UnsupportedModel([(n.op_type, n.name or n.output[0], reason) for n, reason in bad])
    return {name for node in nodes for name in node.output}


def with_gradient(model: Model, goal: str, trained: Sequence[str]) -> list[str]:
    """Those of `trained` that get a gradient; raises ModelError when none does."""
    g = Builder(model.shapes, model.shapes, known=model.known)
    found = reached(model.nodes, goal, trained, model.floats, g, OPSET)
    if not found:
        raise ModelError("the model has no trainable weights: no gradient of the loss comes to any of them")
    return found
