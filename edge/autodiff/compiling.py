"""Turns a user's ONNX model into a plan: training, evaluation and inference graphs over one flat vector.

    model --read--> nodes, weights --differentiate--> train.onnx   (weights as inputs, gradients as outputs)
                                                      eval.onnx    (the same inputs, loss and prediction)
                                                      infer.onnx   (the user's graph, weights in params.bin)

The same model and options give the same bytes.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fleetgrad.edge.autodiff import dropout, losses
from fleetgrad.edge.autodiff.choosing import Choice, trainable
from fleetgrad.edge.autodiff.errors import ModelError, UnsupportedModel
from fleetgrad.edge.autodiff.front import Model, read
from fleetgrad.edge.autodiff.graph import DOMAIN, DOMAIN_VERSION, IR_VERSION, OPSET, Builder
from fleetgrad.edge.autodiff.measuring import kind
from fleetgrad.edge.autodiff.registry import differentiate, objections, path, reached, upstream
from fleetgrad.edge.autodiff.statistics import in_training
from fleetgrad.edge.autodiff.survey import notes, untrained
from fleetgrad.native.kernels import OP_ABI
from fleetgrad.wire import plan
from fleetgrad.wire.loss import LossName, LossOptions
from fleetgrad.wire.loss import check as check_loss

LITTLE = np.dtype("<f4")


def compile_model(
    model: bytes | Path | onnx.ModelProto,
    *,
    loss: LossName,
    loss_options: LossOptions = LossOptions(),  # noqa: B008 - frozen
    gradients: plan.Gradients = "int8",
    profile: plan.Profile = "cpu-native",
    batch_norm: plan.BatchNorm = "batch",
    freeze: Sequence[str] = (),
    train: Sequence[str] = (),
    last: int | None = None,
    biases_only: bool = False,
    dims: Mapping[str, int] | None = None,
    output: Path,
    optimizer: plan.Optimizer = plan.Optimizer(),  # noqa: B008 - frozen
    name: str | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> plan.Manifest:
    """Compiles a model into the plan directory `output` and returns its manifest.

    `freeze` holds globs of initializer names that stay as they are; every other float32 initializer that the loss depends
    on is trained. `loss_options` are those of wire/loss.py. `dims` gives sizes to dynamic dimensions of the inputs, by
    their names. A plan of the profile cpu-std has no custom ops, so its gradients are fp32. With batch_norm "batch", the
    batch normalisation layers that are trained normalise with the batch's statistics, as in torch's train(), and their
    running statistics stay on the device (role personal). `output` appears whole or not at all, and replaces an older plan.
    `name` defaults to the file's or the graph's name. `notice` is told what the user may not expect. Raises ModelError
    (UnsupportedModel when ops have no gradient), and OSError when the disk fails.
    """
    if profile == "cpu-std" and gradients == "int8":
        raise ModelError(
            "int8 gradients are made by custom ops, which the profile cpu-std has not: take fp32 gradients"
        )
    check_loss(loss, loss_options)
    found, dropped = dropout.settle(read(model, dims, scalar=loss == "output"))
    goal = losses.target(found.nodes, found.output, loss, loss_options, found.shapes)
    choice = Choice(train, freeze, last, biases_only)
    possible, trained = trainable(found, goal, choice)
    left = set(possible) - set(trained)
    passed = refuse_unsupported(found, goal, trained)
    trained = with_gradient(found, goal, trained)
    training, statistics = in_training(found, trained, passed) if batch_norm == "batch" else (found, [])
    training, noise = dropout.in_training(training, dropped)
    for text in notes(found):
        notice(text)
    running = {name for n in found.nodes if n.op_type == "BatchNormalization" for name in n.input[3:5]}
    for weight, reason in untrained(found, goal, trained).items():
        if weight not in running | left and not choice.unasked(weight):
            notice(f"{weight!r} stays as it is: {reason}")
    if name is None:
        name = model.stem if isinstance(model, Path) else found.source.graph.name or "model"

    roles: list[tuple[str, tuple[int, ...], plan.Role]] = []
    for weight, value in found.weights.items():
        role: plan.Role = "trainable" if weight in trained else "personal" if weight in statistics else "frozen"
        roles.append((weight, value.shape, role))
    tensors = plan.lay_out(roles)
    vector = np.zeros(tensors[-1].end, LITTLE)
    for tensor in tensors:
        vector[tensor.offset : tensor.offset + tensor.size] = found.weights[tensor.name].ravel()

    options = {"int8": gradients == "int8", "native": profile == "cpu-native"}
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
            gradients=gradients,
            op_abi=OP_ABI if any(n.domain == DOMAIN for n in steps.graph.node) else 0,
            inputs=found.inputs,
            label=label,
            noise=noise,
            output=found.shapes[found.output][1:],
            tensors=tensors,
            travels=max(t.end for t in tensors if t.role == "trainable"),
            length=tensors[-1].end,
            optimizer=optimizer,
            files={file: hashlib.sha256(raw).hexdigest() for file, raw in files.items()},
        )
    )
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


def graphs(
    model: Model,
    training: Model,
    objective: tuple[LossName, LossOptions, str],
    trained: Sequence[str],
    statistics: Sequence[str],
    noise: Sequence[plan.Feed],
    *,
    int8: bool,
    native: bool,
) -> tuple[onnx.ModelProto, onnx.ModelProto, plan.Feed]:
    """The training graph, of the model as it is in `training`, the evaluation graph and the label's feed."""
    fed, (loss, options, goal) = [*trained, *statistics], objective
    label = plan.Feed(
        name=plan.LABEL,
        shape=losses.label_shape(loss, options, model.shapes[goal]),
        dtype="int64" if loss == "cross-entropy" else "float32",
    )
    feeds = [
        *(helper.make_tensor_value_info(f.name, kind(f), [plan.BATCH, *f.shape]) for f in model.inputs),
        helper.make_tensor_value_info(
            plan.LABEL, TensorProto.INT64 if label.dtype == "int64" else TensorProto.FLOAT, [plan.BATCH, *label.shape]
        ),
        *(helper.make_tensor_value_info(w, TensorProto.FLOAT, model.weights[w].shape) for w in fed),
    ]
    scalar = helper.make_tensor_value_info(plan.LOSS, TensorProto.FLOAT, [])

    g = Builder(model.shapes, model.shapes, int8=int8, known=model.known, native=native)
    mean, seed = losses.emit(g, goal, loss, options, gradient=True)
    found = differentiate(training.nodes, {goal: seed}, trained, model.floats, g, OPSET)
    names = {mean: plan.LOSS}
    for weight in trained:
        value = found[weight]
        if value in names or not any(value in n.output for n in g.nodes):
            value = g.op("Identity", value)
        names[value] = plan.GRADIENT + weight
    fetches = [
        helper.make_tensor_value_info(kind + w, TensorProto.FLOAT, model.weights[w].shape)
        for kind, ws in ((plan.GRADIENT, trained), (plan.STATISTIC, statistics))
        for w in ws
    ]
    drawn = [helper.make_tensor_value_info(f.name, kind(f), [plan.BATCH, *f.shape]) for f in noise]
    train = assemble(training, g, names, [*feeds, *drawn], [scalar, *fetches], fed)

    g = Builder(model.shapes, model.shapes)
    mean, _ = losses.emit(g, goal, loss, options, gradient=False)
    prediction = g.op("Identity", model.output)
    shape = [plan.BATCH if d == -1 else d if d > 0 else None for d in model.shapes[model.output]]
    fetch = helper.make_tensor_value_info(plan.PREDICTION, TensorProto.FLOAT, shape)
    evaluate = assemble(model, g, {mean: plan.LOSS, prediction: plan.PREDICTION}, feeds, [scalar, fetch], fed)
    return train, evaluate, label


def assemble(
    model: Model,
    g: Builder,
    names: dict[str, str],
    feeds: list[onnx.ValueInfoProto],
    fetches: list[onnx.ValueInfoProto],
    fed: Sequence[str],
) -> onnx.ModelProto:
    """A model of the forward nodes and those of g that the fetches depend on; `names` renames values of g."""
    nodes = [*g.forward(model.nodes), *(_renamed(n, names) for n in g.nodes)]
    used = upstream(nodes, [f.name for f in fetches])
    kept = [n for n in nodes if used.intersection(n.output)]
    constants: list[onnx.TensorProto] = [
        *(numpy_helper.from_array(v, k) for k, v in model.weights.items() if k not in fed),
        *model.constants,
        *g.constants.values(),
    ]
    graph = helper.make_graph(kept, "fleetgrad", feeds, fetches, [t for t in constants if t.name in used])
    opsets = [helper.make_opsetid("", OPSET)]
    if any(n.domain == DOMAIN for n in kept):
        opsets.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="fleetgrad")


def _renamed(node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    return copy


def inference(source: onnx.ModelProto, tensors: Iterable[plan.Tensor]) -> onnx.ModelProto:
    """The user's model with the flat vector's tensors as external data of params.bin."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    own = {t.name: t for t in model.graph.initializer}
    for tensor in tensors:
        proto = onnx.TensorProto(
            name=tensor.name, dims=tensor.shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
        )
        for key, value in (("location", plan.PARAMS), ("offset", 4 * tensor.offset), ("length", 4 * tensor.size)):
            proto.external_data.add(key=key, value=str(value))
        own[tensor.name].CopyFrom(proto)
    return model


def check_target(path: Path) -> None:
    """Raises ModelError where a file can't be put: no such folder, or a folder, device or pipe is there."""
    if not path.parent.is_dir():
        raise ModelError(f"can't write {path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():  # the rename below would replace /dev/null itself
        raise ModelError(f"can't write {path}: it is no ordinary file")


def export_model(plan_dir: Path, params: NDArray[np.float32], path: Path) -> None:
    """Writes the user's model with `params` (the flat vector, float32 [length]) as one self-contained ONNX file.

    Raises ModelError when the vector's length or type isn't the plan's or `path` is no place for a file.
    """
    check_target(path)
    manifest = plan.decode((plan_dir / plan.MANIFEST).read_bytes())
    if params.dtype != np.float32 or params.shape != (manifest.length,):
        raise ModelError(
            f"can't export: the vector is {params.dtype} {list(params.shape)}, the plan has float32 [{manifest.length}]"
        )
    model = onnx.ModelProto.FromString((plan_dir / plan.INFER).read_bytes())
    own = {t.name: t for t in model.graph.initializer}
    for tensor in manifest.tensors:
        values = params[tensor.offset : tensor.offset + tensor.size].reshape(tensor.shape)
        own[tensor.name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, LITTLE), tensor.name))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write(files: dict[str, bytes], output: Path) -> None:
    """Writes a plan directory beside its place and moves it there; replaces nothing but a plan."""
    if (
        output.exists()
        and not (output / plan.MANIFEST).is_file()
        and not (output.is_dir() and not any(output.iterdir()))
    ):
        raise ModelError(
            f"won't overwrite {output}: it isn't a plan (it has no {plan.MANIFEST}); choose another output"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        for file, raw in files.items():
            (temporary / file).write_bytes(raw)
        temporary.chmod(0o755)
        if output.exists():
            shutil.rmtree(output)
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
