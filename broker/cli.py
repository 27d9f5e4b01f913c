"""`fleetgrad`: the operator's command.

Exit codes: 0 fine; 1 failed at work; 2 bad usage, settings or input; 3 no broker within --timeout; 130 interrupted.
"""

import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import typer
from rich.console import Group
from rich.live import Live

from fleetgrad.broker import release_cli
from fleetgrad.broker.codec_options import Bits, Bytes, Codec, Fraction, Rounding_, Step, spec_of
from fleetgrad.broker.registrar import cli as registrar
from fleetgrad.broker.release_cli import Directory
from fleetgrad.edge.training.scores import told
from fleetgrad.wire import address, model_options
from fleetgrad.wire.command_line import Format, make_app, make_console, parse_shape, run_app
from fleetgrad.wire.data_options import ArrayX, ArrayY, Shape
from fleetgrad.wire.exits import EXIT_FAILED
from fleetgrad.wire.link_options import Insecure, Patience
from fleetgrad.wire.loss import parse
from fleetgrad.wire.plan import Gradients
from fleetgrad.wire.settings import MOST_SECONDS
from fleetgrad.wire.signing import load_public_key

app = make_app(
    "Federated learning that runs on boards: the operator's side.\n\n"
    "Begin with `fleetgrad demo`: a whole federation on this machine. A real one: `fleetgrad new` makes its folders and says which commands "
    "come next: a broker, `registrar serve`, `serve`, and for each board `device add`, whose kit `fleetgrad-edge join` takes. "
    "`watch` follows it."
)
app.add_typer(registrar.devices, name="device")
app.add_typer(registrar.enroll, name="enroll")
app.add_typer(registrar.registrar_app, name="registrar")
app.add_typer(release_cli.releases, name="release")
out, err = make_console(), make_console(stderr=True)


@app.command()
def new(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    model: Annotated[Path, typer.Option(help="An ONNX file: the model that is trained.")],
    name: Annotated[str | None, typer.Option(help="The federation's name; default: the folder's.")] = None,
    loss: model_options.Loss = "cross-entropy",
    loss_option: model_options.LossOption = None,
    gradients: Annotated[Gradients, typer.Option(help="Arithmetic of weight gradients.")] = "int8",
    activations: model_options.Kept = "int8",
    recompute: model_options.Repeated = "none",
    train: model_options.Train = None,
    freeze: model_options.Freeze = None,
    last: model_options.Last = None,
    biases_only: model_options.BiasesOnly = False,
    lora: model_options.LoraGlobs = None,
    lora_rank: model_options.LoraRank = None,
    lora_alpha: model_options.LoraAlpha = None,
    lora_freeze_a: model_options.LoraFreezeA = False,
    dim: model_options.Dim = None,
    batch_norm: Annotated[
        Literal["shared", "frozen"],
        typer.Option(help="Running statistics: measured by devices and averaged, or as the model has them."),
    ] = "shared",
    rounds: Annotated[int, typer.Option(min=1, help="How many versions are made.")] = 15,
    codec: Codec = "blk8",
    bits: Bits = None,
    size: Bytes = None,
    fraction: Fraction = None,
    step: Step = None,
    rounding: Rounding_ = None,
    broker: Annotated[
        str, typer.Option(help="mqtts://host:port, as devices see it; mqtt:// where nothing needs to be hidden.")
    ] = "mqtts://localhost:8883",
    insecure: Insecure = False,
    registrar: Annotated[
        Path | None,
        typer.Option(help="Where the registrar's folder, with the fleet's CA key, is made; default: in DIR."),
    ] = None,
) -> None:
    """Make a federation from an ONNX model: the aggregator's folder, the registrar's, and the broker's files.

    It says what comes next. Settings are in DIR/aggregator/federation.toml, whose other keys have defaults; `fleetgrad-edge check MODEL`
    says beforehand what of the model trains.

    Example: `fleetgrad new digits --model model.onnx --broker mqtts://broker.lan --registrar digits-registrar`
    """
    from fleetgrad.broker import founding
    from fleetgrad.broker.next_steps import next_steps
    from fleetgrad.broker.settings import Broker, Round, Settings
    from fleetgrad.wire.codecs import shortfall
    from fleetgrad.wire.coding.layout import VectorLayout
    from fleetgrad.wire.messages import Training

    address.check_plain(address.parse(broker), insecure)
    choice = model_options.choice_of(train, freeze, last, biases_only, lora, lora_rank, lora_alpha, lora_freeze_a)
    settings = Settings(
        name=name or directory.resolve().name,
        loss=loss,
        loss_options=parse(loss_option or []),
        gradients=gradients,
        broker=Broker(url=broker, insecure=insecure),
        training=Training(learning_rate=choice.learning_rate),
        codec=spec_of(codec, bits, size, fraction, step, rounding),
        round=Round(rounds=rounds),
    )
    manifest = founding.create(
        directory,
        model,
        settings,
        choice=choice,
        batch_norm=batch_norm,
        activations=activations,
        recompute=recompute,
        dims=model_options.dims_of(dim),
        registrar=registrar,
        notice=lambda text: err.say(f"note: {text}"),
    )
    if reason := shortfall(settings.codec, VectorLayout.of(manifest)):
        err.say(f"warning: {reason}")
    out.say(
        f"{directory}: federation {settings.name!r}, {sum(t.size for t in manifest.of_role('trainable')):,} parameters train\n"
        f"settings are in {directory}/aggregator/federation.toml\n{next_steps(directory, registrar, broker)}"
    )


@app.command()
def serve(
    directory: Directory,
    insecure: Insecure = False,
    timeout: Patience = 0.0,
    exit_when_done: Annotated[bool, typer.Option("--exit-when-done", help="End after the last round.")] = False,
) -> None:
    """Run the aggregator of a federation, until stopped.

    Started again, it carries on where it was. The newest model is DIR/aggregator/model.onnx, and rounds.jsonl beside it has a row a round;
    the log goes to standard error. The broker must run; devices come by `fleetgrad device add`.

    Example: `fleetgrad serve digits`
    """
    from fleetgrad.broker import server

    raise typer.Exit(server.serve(directory, insecure=insecure, timeout=timeout, exit_when_done=exit_when_done))


@app.command()
def status(
    directory: Directory,
    insecure: Insecure = False,
    format: Format = "table",  # noqa: A002
    timeout: Annotated[float, typer.Option(min=0, max=MOST_SECONDS, help="Seconds to wait for the broker.")] = 2.0,
) -> None:
    """Show a federation: what is published, and what its topics say now.

    Example: `fleetgrad status digits`
    """
    from fleetgrad.broker import settings, watching
    from fleetgrad.broker.results import ROUNDS, read_rounds
    from fleetgrad.broker.roster import Roster

    directory = settings.home(directory)
    config = settings.load(directory)
    roster = Roster(directory, load_public_key(directory / settings.REGISTRAR_KEY), config.name)
    rows = read_rounds(directory / ROUNDS)
    live, problem = watching.View(), ""
    try:
        with watching.Watch(config.broker.endpoint(directory, insecure=insecure), config.name) as watch:
            live = watch.view
            watch.until(lambda v: v.aggregator is not None, timeout)
            watch.settle()
    except watching.WatchError as e:
        problem = str(e)
    if format == "json":
        found = {
            "federation": config.name, "roster": roster.names(), "rounds": rows, "aggregator": live.aggregator,
            "devices": live.devices, "problem": problem,
        }  # fmt: skip
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
        return
    last = rows[-1] if rows else None
    out.print(f"{config.name}: {len(rows)} of {config.round.rounds} rounds published, {roster.size()} devices")
    if last:
        accuracy = "" if last.accuracy is None else f", accuracy {last.accuracy:.2%}"
        scores = f", {told(last.scores)}" if last.scores else ""
        out.print(f"last: round {last.round}, version {last.version}, {last.members} members{accuracy}{scores}")
    out.print(problem or watching.headline(live))
    if live.devices:
        out.print(watching.DevicesTable(live))


@app.command()
def watch(
    directory: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="A federation's directory.")] = None,
    broker: Annotated[str | None, typer.Option(help="Instead of DIR: mqtt[s]://host:port")] = None,
    federation: Annotated[str | None, typer.Option(help="Instead of DIR: the federation's name.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Print what is retained, and end.")] = False,
    insecure: Insecure = False,
    timeout: Annotated[float, typer.Option(min=0, max=MOST_SECONDS, help="With --once: seconds to wait.")] = 5.0,
    ca: Annotated[str | None, typer.Option(help="Who may have signed the broker's certificate.")] = None,
    certificate: Annotated[str | None, typer.Option(help="Shown to the broker; PEM.")] = None,
    key: Annotated[str | None, typer.Option(help="The certificate's.")] = None,
) -> None:
    """Follow a fleet in the terminal, by its MQTT topics alone, until Ctrl-C.

    With TLS on another machine than the aggregator's, `fleetgrad registrar login operator` makes what --certificate wants.

    Example: `fleetgrad watch digits`, or `fleetgrad watch --broker mqtt://127.0.0.1:1883 --federation digits`
    """
    from fleetgrad.broker import settings, watching
    from fleetgrad.wire.mqtt import BrokerSettings

    directory = None if directory is None else settings.home(directory)
    if directory is not None and broker is None:
        config = settings.load(directory)
        where, federation = config.broker.endpoint(directory, insecure=insecure), federation or config.name
    elif broker is not None and (federation is not None or directory is not None):
        given = BrokerSettings(url=broker, ca=ca, certificate=certificate, key=key)
        where = given.endpoint(Path(), insecure=insecure)
        federation = federation or settings.load(directory or Path()).name
    else:
        raise typer.BadParameter("give a federation's DIR, or --broker and --federation")
    with watching.Watch(where, federation) as follow:
        if once:
            follow.until(lambda v: v.aggregator is not None, timeout)
            follow.settle()
            out.print(watching.headline(follow.view), watching.DevicesTable(follow.view))
            return
        _follow(follow)


def _follow(follow: Any) -> None:
    from fleetgrad.broker import watching
    from fleetgrad.wire import mqtt

    if out.is_terminal:
        with Live(console=out, refresh_per_second=4) as live:
            while True:
                event = follow.step(1.0)
                note = watching.shown(event.reason, "red") if isinstance(event, mqtt.Disconnected) else ""
                live.update(Group(watching.headline(follow.view), watching.DevicesTable(follow.view), note))
    while True:
        event = follow.step(1.0)
        if isinstance(event, mqtt.Message):
            out.print(
                watching.shown(f"{time.strftime('%H:%M:%S')} {event.topic} {event.payload.decode(errors='replace')}"),
                soft_wrap=True,
            )
        elif isinstance(event, mqtt.Disconnected):
            err.say(f"{event.reason}; next try in {event.retry_in:.1f} s")


@app.command()
def demo(
    number: Annotated[int, typer.Option("--devices", min=1, max=500, help="Edge daemons, a process each.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="How many versions are made.")] = 15,
    alpha: Annotated[float, typer.Option(help="Dirichlet skew of the labels: 0.1 strong, inf none.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and of the first model.")] = 0,
    codec: Codec = "blk8",
    bits: Bits = None,
    size: Bytes = None,
    fraction: Fraction = None,
    step: Step = None,
    rounding: Rounding_ = None,
    gradients: Annotated[Gradients, typer.Option(help="Arithmetic of weight gradients.")] = "int8",
    broker: Annotated[str, typer.Option(help="auto, embedded, mosquitto, or mqtt://host:port")] = "auto",
    insecure: Insecure = False,
    model: Annotated[Path | None, typer.Option(help="Your own ONNX model.")] = None,
    loss: model_options.Loss = "cross-entropy",
    loss_option: model_options.LossOption = None,
    data: Annotated[Path | None, typer.Option(help="Your own arrays, an .npz file.")] = None,
    x: ArrayX = "x",
    y: ArrayY = "y",
    scale: Annotated[float | None, typer.Option(help="Factor for the samples.")] = None,
    shape: Shape = None,
    local_epochs: Annotated[int, typer.Option(min=1, help="Of each device, in a round.")] = 4,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Of the devices' SGD.")] = 0.05,
    momentum: Annotated[float, typer.Option(min=0, max=0.999, help="Of the devices' SGD.")] = 0.9,
    name: Annotated[str | None, typer.Option(help="Folder under runs/; default: date and time.")] = None,
    runs: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    only_set_up: Annotated[bool, typer.Option("--only-set-up", help="Make the federation, start nothing.")] = False,
) -> None:
    """Run a whole federation on this machine: a broker, an aggregator and N edge daemons train a CNN on real digits.

    It leaves runs/NAME: model.onnx, rounds.jsonl, report.html and every process's log.

    Example: `fleetgrad demo`, or with your own model and data
    `fleetgrad demo --model model.onnx --data mine.npz --x images --y labels --scale 0.00392 --shape 1,28,28`
    """
    from fleetgrad.broker import demo as demonstration
    from fleetgrad.broker.demo_data import Options
    from fleetgrad.hardware.fleet import FleetError
    from fleetgrad.wire.messages import Training

    if data is not None and model is None:
        raise typer.BadParameter("--data needs --model: the demo's own model takes 8x8 digits")
    if only_set_up and "://" not in broker:
        raise typer.BadParameter("--only-set-up needs --broker mqtt://host:port: which broker will there be?")
    chosen = Options(
        directory=runs / (name or time.strftime("demo-%Y%m%d-%H%M%S")),
        devices=number, rounds=rounds, alpha=alpha, seed=seed, codec=spec_of(codec, bits, size, fraction, step, rounding), gradients=gradients, loss=loss, loss_options=parse(loss_option or []),
        broker=broker, insecure=insecure, only_set_up=only_set_up, model=model, data=data, x=x, y=y, scale=scale, shape=parse_shape(shape),
        training=Training(
            local_epochs=local_epochs, batch_size=batch_size, learning_rate=learning_rate, momentum=momentum
        ),
    )  # fmt: skip
    try:
        demonstration.run(chosen, out)
    except FleetError as e:
        err.say(f"fleetgrad: {e}", "red")
        raise typer.Exit(EXIT_FAILED) from e


app.command("broker-files")(registrar.broker_files)


def main() -> None:
    """The console script; foreseeable faults become one line and an exit code."""
    sys.exit(run_app(app, "fleetgrad", err))
