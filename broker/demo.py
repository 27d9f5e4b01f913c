"""`fleetgrad demo`: a whole federation on this machine, as real processes: a broker, an aggregator, N edge daemons.

Everything lands in runs/NAME/: the federation's directory, logs/, model.onnx, rounds.jsonl, report.html.
"""

import secrets
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from fleetgrad.broker import founding, report, watching
from fleetgrad.broker.demo_data import FEDERATION, DemoError, Held, Options, evaluation_data, set_up
from fleetgrad.broker.monitor import MODEL
from fleetgrad.broker.results import ROUNDS, read_rounds
from fleetgrad.broker.screen import Screen
from fleetgrad.broker.settings import FOLDER, Data
from fleetgrad.edge.data.dataset import fit
from fleetgrad.hardware.fleet import Fleet, FleetError, find_mosquitto, free_port
from fleetgrad.wire import address, mqtt
from fleetgrad.wire.plan import Manifest

IDLE_SECONDS, LAST_SECONDS, REACH_SECONDS = 300.0, 3.0, 10.0


def run(options: Options, console: Console) -> None:
    """Runs the demo; raises ValueError or FleetError with the reason when it can't."""
    where, plain = _broker(options)
    # A broker that others use too may hold another demo's topics.
    name = f"demo-{secrets.token_hex(3)}" if plain == "external" else "demo"
    root = options.directory
    if root.exists() and any(root.iterdir()):
        raise DemoError(f"{root} exists: give the run another --name")
    root.mkdir(parents=True, exist_ok=True)
    fleet = Fleet(root / "logs")
    try:
        manifest, x, y = set_up(options, where, name)
        console.print(
            f"{options.devices} devices train {manifest.model!r}, {manifest.travels:,} parameters with padding; "
            f"broker {plain} on {where}; logs in {root / 'logs'}"
        )
        if options.only_set_up:
            return
        began = time.monotonic()
        view = _serve(options, where, plain, name, fleet, console)
        seconds = time.monotonic() - began
    finally:
        fleet.stop()
    _finish(options, manifest, view, seconds, (x, y), console)


def _broker(options: Options) -> tuple[address.Address, str]:
    """Where the broker is or will be, and what it is."""
    if options.broker.startswith("mqtt:") or "://" in options.broker:
        where = address.parse(options.broker)
        address.check_plain(where, options.insecure)
        if not options.only_set_up:
            _reach(where)
        return where, "external"
    if options.broker not in ("auto", "embedded", "mosquitto"):
        raise DemoError(f"--broker {options.broker!r}: expected embedded, mosquitto or mqtt://host:port")
    kind = options.broker
    if kind == "auto":
        kind = "mosquitto" if find_mosquitto() else "embedded"
    if kind == "mosquitto" and not find_mosquitto():
        raise DemoError("--broker mosquitto: mosquitto isn't installed; --broker embedded needs nothing")
    return address.Address("127.0.0.1", free_port()), kind


def _reach(where: address.Address) -> None:
    """Raises ConnectionError unless something listens there."""
    try:
        socket.create_connection((where.host, where.port), timeout=REACH_SECONDS).close()
    except OSError as e:
        raise ConnectionError(f"no broker at {where}: {e.strerror or e}") from e


def _serve(
    options: Options, where: address.Address, kind: str, name: str, fleet: Fleet, console: Console
) -> watching.View:
    """Starts every process and follows them to the end."""
    federation = options.directory / FEDERATION
    if kind == "mosquitto":
        fleet.broker(where.port)
    elif kind == "embedded":
        fleet.embedded_broker(where.port)
    flags = ["--insecure"] if options.insecure else []
    names = sorted(p.name for p in (federation / founding.DEVICES).iterdir())
    fleet.aggregator(federation, "--exit-when-done", *flags)
    for device in names:
        fleet.edge(device, federation / founding.DEVICES / device / "edge.toml", *flags)
    with watching.Watch(where, name) as watch, Screen(console, options.rounds) as screen:
        _follow(options, watch, fleet, screen, names)
        return watch.view


def _follow(options: Options, watch: watching.Watch, fleet: Fleet, screen: Screen, names: list[str]) -> None:
    """Follows the topics until the last round is reported and every device has heard of it."""
    heard, view = time.monotonic(), watch.view
    while True:
        event = watch.step(0.25)
        now = time.monotonic()
        if isinstance(event, mqtt.Message):
            heard = now
        screen.update(view)
        fleet.check("aggregator")
        if now - heard > IDLE_SECONDS:
            raise FleetError(
                f"nothing has happened for {IDLE_SECONDS:.0f} s; the aggregator said:\n{fleet.tail('aggregator')}"
            )
        done = {n for n, d in view.devices.items() if d.updates >= options.rounds}
        if options.rounds in view.metrics and (done >= set(names) or now - heard > LAST_SECONDS):
            return


def _finish(
    options: Options, manifest: Manifest, view: watching.View, seconds: float, held: Held, console: Console
) -> None:
    """Tables, report, and the model proven by a bare onnxruntime session."""
    root = options.directory
    federation = root / FEDERATION / FOLDER
    rows = read_rounds(federation / ROUNDS)
    shutil.copyfile(federation / ROUNDS, root / ROUNDS)
    shutil.copyfile(federation / MODEL, root / MODEL)
    table = Table("round", "accuracy", "loss", "up", "bits", "down", "seconds", title="rounds", title_justify="left")
    for r in rows:
        table.add_row(
            str(r.round), "" if r.accuracy is None else f"{r.accuracy:.2%}", "" if r.loss is None else f"{r.loss:.4f}",
            watching.size(r.bytes_up), "" if r.bits is None else f"{r.bits:.3f}", watching.size(r.bytes_down), "" if r.seconds is None else f"{r.seconds:.2f}",
        )  # fmt: skip
    devices = Table("device", "samples", "updates", "bytes up", "bytes down", title="devices", title_justify="left")
    for name, d in sorted(view.devices.items()):
        devices.add_row(name, str(d.samples), str(d.updates), f"{d.bytes_up:,}", f"{d.bytes_down:,}")
    console.print(table, devices)
    fp32 = 4 * sum(t.size for t in manifest.tensors if t.role in ("trainable", "statistic"))
    sent = sum(r.bytes_up for r in rows)
    plain = sum(r.members for r in rows) * fp32
    console.print(f"updates: {sent:,} bytes, {plain / sent:.2f} times fewer than fp32 ({plain:,})", highlight=False)
    report.write(
        root / "report.html",
        f"fleetgrad: {manifest.model}",
        {
            "devices": options.devices, "rounds": options.rounds, "Dirichlet alpha": options.alpha, "seed": options.seed,
            "codec": str(options.codec), "gradients": options.gradients, "local epochs": options.training.local_epochs,
            "batch size": options.training.batch_size, "learning rate": options.training.learning_rate,
            "momentum": options.training.momentum, "seconds": f"{seconds:.1f}",
            "updates against fp32": f"{plain / sent:.2f} times fewer bytes",
        },
        rows, [view.devices[n] for n in sorted(view.devices)], fp32 * options.devices,
    )  # fmt: skip
    told = _bare_accuracy(root / MODEL, evaluation_data(options), manifest, held)
    console.print(f"{root / MODEL}, run by a bare onnxruntime.InferenceSession: {told}", highlight=False)
    console.print(f"{len(rows)} rounds in {seconds:.1f} s; {root / 'report.html'} has the curves", highlight=False)


def _bare_accuracy(model: Path, data: Data, manifest: Manifest, held: Held) -> str:
    """Held-out accuracy (or mean squared error) of an ONNX file, with nothing of ours between."""
    fitted = fit("held-out data", *held, manifest, scale=data.scale, shape=data.shape)
    x, y = fitted.batch(np.arange(len(fitted)))
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0]
    size = feed.shape[0] if isinstance(feed.shape[0], int) else len(x)
    parts = [session.run(None, {feed.name: x[i : i + size]})[0] for i in range(0, len(x) - len(x) % size, size)]
    output = np.concatenate(parts)
    target = y[: len(output)]
    if manifest.loss == "cross-entropy":
        return f"held-out accuracy {(output.argmax(manifest.loss_options.class_axis) == target).mean():.2%} on {len(target)} samples"
    return f"held-out mean squared error {((output - target) ** 2).mean():.6f} on {len(target)} samples"
