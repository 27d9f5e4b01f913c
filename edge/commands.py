"""The commands of `fleetgrad-edge` that run once: compile, check, train.

Only what reads or writes ONNX files imports `onnx`, which a board needn't have.
"""

import math
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import numpy as np
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fleetgrad.edge import membership_commands as membership
from fleetgrad.edge.data import npz, split
from fleetgrad.edge.doctor.command import doctor
from fleetgrad.edge.training import memory
from fleetgrad.edge.training import trainer as training
from fleetgrad.edge.training.pieces import least
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.scores import told
from fleetgrad.wire import model_options
from fleetgrad.wire.command_line import Format, make_app, make_console, parse_shape, run_app
from fleetgrad.wire.data_options import ArrayX, ArrayY, Scale, Shape
from fleetgrad.wire.exits import EXIT_FAILED
from fleetgrad.wire.loss import LossName, parse
from fleetgrad.wire.plan import BatchNorm, Gradients, Optimizer, Profile
from fleetgrad.wire.sizes import megabytes, parse_size

app = make_app(
    "Trains ONNX models on this board, by itself or in a federation.\n\n"
    "By itself: `check` a model, `compile` it, `train` it. In a federation: `join` with the kit that its operator gave, `run`; `status` and "
    "`doctor` say how it is, `leave` ends it."
)
app.command()(membership.join)
app.command()(membership.leave)
app.command()(doctor)
MOST_THREADS = 64  # as in edge.toml

out, err = make_console(), make_console(stderr=True)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as e:
        raise typer.BadParameter(f"--max-rss {e}") from e


@app.command("run")
def run(config: Annotated[Path, typer.Option(help="The device's settings, edge.toml.")]) -> NoReturn:
    """Take part in a federation until stopped (see `fleetgrad-edge run --help`).

    Example: `fleetgrad-edge run --config edge.toml`
    """
    raise typer.BadParameter("'run' must be the first word: fleetgrad-edge run --config edge.toml")


@app.command("compile")
def compile_(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the plan.")],
    loss: model_options.Loss = "cross-entropy",
    loss_option: model_options.LossOption = None,
    gradients: Annotated[Gradients, typer.Option(help="Arithmetic of weight gradients.")] = "int8",
    activations: model_options.Kept = "int8",
    recompute: model_options.Repeated = "none",
    profile: Annotated[
        Profile, typer.Option(help="cpu-native uses the C core's ops, cpu-std and cuda none (fp32).")
    ] = "cpu-native",
    batch_norm: Annotated[BatchNorm, typer.Option(help="What trained layers normalise with.")] = "batch",
    train: model_options.Train = None,
    freeze: model_options.Freeze = None,
    last: model_options.Last = None,
    biases_only: model_options.BiasesOnly = False,
    lora: model_options.LoraGlobs = None,
    lora_rank: model_options.LoraRank = None,
    lora_alpha: model_options.LoraAlpha = None,
    lora_freeze_a: model_options.LoraFreezeA = False,
    dim: model_options.Dim = None,
) -> None:
    """Compile an ONNX model into a plan that a board can train.

    The plan is a folder of ONNX graphs, the weights and manifest.json. A federation needs none: `fleetgrad new` compiles.

    Example: `fleetgrad-edge compile model.onnx --loss cross-entropy -o plan/`
    """
    from fleetgrad.edge.autodiff.compiling import compile_model

    choice = model_options.choice_of(train, freeze, last, biases_only, lora, lora_rank, lora_alpha, lora_freeze_a)
    manifest = compile_model(
        model,
        loss=loss,
        loss_options=parse(loss_option or []),
        gradients=gradients,
        activations=activations,
        recompute=recompute,
        profile=profile,
        batch_norm=batch_norm,
        choice=choice,
        dims=model_options.dims_of(dim),
        output=output,
        notice=lambda text: err.say(f"note: {text}"),
        optimizer=Optimizer(learning_rate=choice.learning_rate),
    )
    trained = manifest.of_role("trainable")
    frozen = len(manifest.tensors) - len(trained)
    out.print(
        f"{output}: {sum(t.size for t in trained):,} parameters in {len(trained)} tensors train, {frozen} tensors stay; "
        f"{4 * manifest.travels:,} bytes travel as fp32"
    )
    if manifest.memory:
        size = manifest.optimizer.batch_size
        whole, fewest = memory.growth(manifest, size), least(manifest)
        pieces = memory.growth(manifest, fewest, pieces=True)
        less = f"; with --micro-batch {fewest} about {megabytes(pieces)}" if pieces < whole else ""
        out.print(f"training takes about {megabytes(whole)} of memory in batches of {size}{less}")


@app.command()
def check(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    loss: Annotated[LossName | None, typer.Option(help="Also say whether this loss fits the model.")] = None,
    loss_option: model_options.LossOption = None,
    train: model_options.Train = None,
    freeze: model_options.Freeze = None,
    last: model_options.Last = None,
    biases_only: model_options.BiasesOnly = False,
    lora: model_options.LoraGlobs = None,
    lora_rank: model_options.LoraRank = None,
    lora_alpha: model_options.LoraAlpha = None,
    lora_freeze_a: model_options.LoraFreezeA = False,
    batch_norm: Annotated[
        BatchNorm, typer.Option(help="As in compile; new takes shared unless told otherwise.")
    ] = "batch",
    dim: model_options.Dim = None,
    format: Format = "table",  # noqa: A002
) -> None:
    """List what of a model can train, or would by --train and such, and what can't, and why.

    The exit code is 1 when it can't.

    Example: `fleetgrad-edge check model.onnx --last 1`
    """
    from fleetgrad.edge.autodiff.survey import survey

    if loss_option and loss is None:
        raise typer.BadParameter(f"--loss-option {loss_option[0]}: --loss says of which loss")
    found = survey(
        model,
        model_options.dims_of(dim),
        choice=model_options.choice_of(train, freeze, last, biases_only, lora, lora_rank, lora_alpha, lora_freeze_a),
        batch_norm=batch_norm,
        loss=loss,
        loss_options=parse(loss_option or []),
    )
    if format == "json":
        told = {"trains": found.trains, **{name: getattr(found, name) for name in found.__slots__}}
        sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
    else:
        nodes = Table("node", "operator", "trains", "reason", title=f"{model.name}: operators", title_justify="left")
        for node in found.nodes:
            nodes.add_row(node.name, node.op, "yes" if node.trains else Text("no", "red"), node.reason)
        weights = Table("weight", "shape", "type", "size", "trains", "reason", title="weights", title_justify="left")
        for w in found.weights:
            shape = "x".join(map(str, w.shape))
            weights.add_row(w.name, shape, w.dtype, f"{w.size:,}", "yes" if w.trains else "no", w.reason)
        out.print(nodes, weights)
        for text in found.notes:
            out.say(f"note: {text}")
        if found.trains and (sums := found.totals):
            out.say(
                f"{sums.trained:,} of {sums.numbers:,} numbers train; {sums.travels:,} of the plan's {sums.length:,} floats "
                f"travel, {4 * sums.travels:,} bytes as fp32"
            )
        out.print("This model can train." if found.trains else Text("This model can't train.", "red"))
    if not found.trains:
        raise typer.Exit(1)


@app.command()
def train(
    plan: Annotated[Path, typer.Argument(help="A plan's folder, made by `compile`.")],
    data: Annotated[Path, typer.Option(help="An .npz file with samples and targets.")],
    x: ArrayX = "x",
    y: ArrayY = "y",
    scale: Scale = 1.0,
    shape: Shape = None,
    epochs: Annotated[int, typer.Option(min=1, help="Times through the data.")] = 10,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Default: the plan's.")] = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Run batches as pieces of so many samples: less memory, the same model.")
    ] = None,
    max_rss: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Resident memory that training may take, as 200MB: chooses the micro-batch."),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Default: the plan's.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Default: the plan's.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**64 - 1, help="Order of the samples; drawn and printed without.")
    ] = None,
    eval_fraction: Annotated[float, typer.Option(min=0, max=0.9, help="Held out for evaluation.")] = 0.2,
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="Of onnxruntime.")] = 1,
    output: Annotated[Path | None, typer.Option(help="Write the trained model here, as ONNX.")] = None,
    format: Format = "table",  # noqa: A002
) -> None:
    """Train a plan on this machine's data, without any federation.

    Example: `fleetgrad-edge train plan/ --data digits.npz --epochs 10 --output trained.onnx`
    """
    if learning_rate is not None and not 0 < learning_rate <= 1000:
        raise typer.BadParameter(f"--learning-rate {learning_rate:g}: above 0 and at most 1000")
    if momentum is not None and not 0 <= momentum < 1:
        raise typer.BadParameter(f"--momentum {momentum:g}: 0 or more, and under 1")
    if micro_batch is not None and max_rss is not None:
        raise typer.BadParameter("--micro-batch and --max-rss: one of them is needed, the limit chooses the other")
    limit = None if max_rss is None else _size(max_rss)
    if output:
        from fleetgrad.edge.autodiff.exporting import check_target, export_model

        check_target(output)  # before training, not after hours of it
    opened = open_plan(plan)
    manifest, defaults = opened.manifest, opened.manifest.optimizer
    everything = npz.load(data, manifest, x=x, y=y, scale=scale, shape=parse_shape(shape))
    seed = secrets.randbits(32) if seed is None else seed
    classes = everything.y if manifest.loss == "cross-entropy" and everything.y.ndim == 1 else np.zeros(len(everything))
    kept, held = split.held_out(classes, eval_fraction, seed)
    if not len(kept):
        raise training.TrainingError(f"{len(everything)} samples: none is left to train on")
    own, others = everything.subset(kept), everything.subset(held) if len(held) else None
    size = batch_size or defaults.batch_size
    evaluated = training.EVAL_BATCH
    if limit is not None:
        whole = min(size, len(kept))
        micro_batch = memory.micro_batch(manifest, whole, limit, memory.resident(), evaluation=others is not None)
        evaluated = micro_batch or whole
        if micro_batch:
            err.print(f"note: batches of {size} run in pieces of {micro_batch} samples, to stay within {max_rss}")
    trainer = training.Trainer(opened, threads, micro_batch)
    rows: list[dict[str, Any]] = []
    bar = Progress(
        TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"), console=err, disable=format == "json" or not err.is_terminal,
    )  # fmt: skip
    steps = epochs * math.ceil(len(kept) / size)
    with bar:
        task = bar.add_task("train", total=steps, epoch=1, loss=0.0)

        def progress(p: training.Progress) -> None:
            bar.update(task, completed=p.epoch * p.steps + p.step, epoch=p.epoch + 1, loss=p.loss)
            if p.step == p.steps:
                row: dict[str, Any] = {"epoch": p.epoch + 1, "loss": p.loss}
                if others is not None:
                    found = trainer.evaluate(others, evaluated)
                    row |= {"eval_loss": found.loss, "eval_accuracy": found.accuracy, "eval_scores": found.scores}
                rows.append(row)

        trainer.run_epochs(
            own,
            epochs=epochs,
            batch_size=size,
            learning_rate=defaults.learning_rate if learning_rate is None else learning_rate,
            momentum=defaults.momentum if momentum is None else momentum,
            weight_decay=defaults.weight_decay,
            seed=seed,
            micro_batch=micro_batch,
            progress=progress,
        )
    try:
        if limit is None:  # two more vectors could be over it
            trainer.delta(opened.initial_parameters()[: manifest.travels])
    except training.TrainingError as e:  # which is fine on this machine alone
        err.say(f"note: no federation could take this: {e}")
    if output:
        export_model(plan, trainer.model, output)
    if format == "json":
        sys.stdout.write(msgspec.json.encode({"seed": seed, "samples": len(kept), "epochs": rows}).decode() + "\n")
        return
    table = Table("epoch", "loss", "held-out loss", "held-out accuracy", "other scores")
    for row in rows:
        accuracy = row.get("eval_accuracy")
        table.add_row(
            str(row["epoch"]), f"{row['loss']:.4f}", f"{row['eval_loss']:.4f}" if "eval_loss" in row else "",
            "" if accuracy is None else f"{accuracy:.2%}",
            told(row.get("eval_scores", {})),
        )  # fmt: skip
    out.print(table)
    out.print(f"{len(kept)} samples, seed {seed}" + (f"; model in {output}" if output else ""))


@app.command()
def status(
    config: Annotated[Path, typer.Option(help="The device's settings, edge.toml.")],
    format: Format = "table",  # noqa: A002
) -> None:
    """Show what is in this board's spool: which model, which updates on their way, what is waited for.

    The daemon may be running. `fleetgrad-edge doctor` says why it takes no part.

    Example: `fleetgrad-edge status --config edge.toml`
    """
    from fleetgrad.edge import config as configs
    from fleetgrad.edge import spool_report

    settings, folder = configs.load(config)
    report = spool_report.read(settings, folder, configs.beginning(settings.federation, folder))
    if format == "json":
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        return
    model = "none" if report.installed is None else f"version {report.installed}"
    model += "" if report.before is None else f", and {report.before} to fall back to"
    if report.to_fetch:
        model += f"; version {report.offered}: {megabytes(report.fetched)} of {megabytes(report.to_fetch)} fetched"
    out.say(f"{report.device} of {report.federation}, boot {report.boot}; waits for {report.waits_for}")
    if report.not_connected:
        out.say(f"not connected: {report.not_connected}", "red")
    out.say(f"model: {model}")
    if report.updates:
        table = Table("round", "attempt", "size", "bits", "state", title="updates on their way", title_justify="left")
        for u in report.updates:
            table.add_row(str(u.round), str(u.attempt), megabytes(u.bytes), f"{u.bits:g}", u.state)
        out.print(table)
    if report.carried_from is not None:
        out.print(f"error feedback carries what round {report.carried_from} left out")
    out.say(
        f"spool: {megabytes(report.held)} in {report.spool}; {megabytes(report.free)} free, training needs "
        f"{megabytes(report.free_needed)}; written today: {megabytes(report.written)} of {megabytes(report.written_a_day)}"
    )
    for row, reason in report.damaged.items():
        out.say(f"damaged: {row}: {reason}", "red")


def run_command() -> int:
    """Runs the command line; the exit code."""
    return run_app(app, "fleetgrad-edge", err, {training.TrainingError: EXIT_FAILED})
