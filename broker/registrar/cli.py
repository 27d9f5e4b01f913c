"""`fleetgrad device`, `fleetgrad broker-files`: the registrar's commands. They work on its folder alone."""

import json
import re
import sys
import time
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from fleetgrad.broker.registrar.broker_files import Kind
from fleetgrad.wire.command_line import Format, make_console, parse_shape
from fleetgrad.wire.data_options import ArrayX, ArrayY, Scale, Shape
from fleetgrad.wire.link_options import Insecure, Patience

if TYPE_CHECKING:
    from fleetgrad.broker.registrar.registrar import Registrar
    from fleetgrad.wire.kit import Data

devices = typer.Typer(no_args_is_help=True, help="Add devices to a federation, list and revoke them.")
enroll = typer.Typer(no_args_is_help=True, help="One-time codes by which boards join that make their own keys.")
registrar_app = typer.Typer(
    no_args_is_help=True, help="Run the registrar, who says which devices belong; make logins at the broker."
)
out = make_console()

DataPath = Annotated[str, typer.Option(help="The data's .npz file, as seen from the device's edge.toml.")]
Folder = Annotated[Path, typer.Option("--dir", help="The registrar's folder, or the federation's that holds it.")]


@devices.command("add")
def device_add(
    name: Annotated[str, typer.Argument(help="The device's id: a-z, 0-9 and '-'.")],
    directory: Folder = Path(),
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The kit's file; default: kits/NAME.kit.")
    ] = None,
    data: DataPath = "data.npz",
    x: ArrayX = "x",
    y: ArrayY = "y",
    scale: Scale = 1.0,
    shape: Shape = None,
    broker: Annotated[str | None, typer.Option(help="mqtts://host:port as seen from the device.")] = None,
    insecure: Insecure = False,
) -> None:
    """Add a device: writes its kit, one file with its keys and settings, and lists it in the aggregator's roster.

    Carry the kit to the board, where `fleetgrad-edge join` takes it. What was cut short is completed when it is run again.

    Example: `fleetgrad device add dev-01 --dir digits --data digits-01.npz --scale 0.0625 --shape 1,8,8`
    """
    from fleetgrad.broker.registrar.registrar import KITS, Registrar, RegistrarError
    from fleetgrad.wire import kit
    from fleetgrad.wire.membership import check_device

    check_device(name)
    settings = _data(data, x, y, scale, shape)
    registrar = Registrar(directory)
    path = output or registrar.folder / KITS / f"{name}{kit.SUFFIX}"
    if path.exists() and registrar.register.device(name) is None:
        raise RegistrarError(f"kit {path} exists: remove it if it was never used")
    if output and (path.is_dir() or not path.parent.is_dir()):
        raise RegistrarError(f"kit {path}: {'a folder, and a kit is a file' if path.is_dir() else 'no such folder'}")
    registrar.add(name, data=settings, url=broker, insecure=insecure, hand=lambda made: kit.write(made, path))
    out.say(
        f"{path}: the whole of {name}, with its private keys. Carry it to the board by a way that nobody reads along, remove it "
        f"here, and run there\n  fleetgrad-edge join {quote(path.name)}"
    )
    _say_who_tells(registrar)


@devices.command("list")
def device_list(directory: Folder = Path(), format: Format = "table") -> None:  # noqa: A002
    """List the devices that the registrar knows, the revoked ones too.

    Example: `fleetgrad device list --dir digits-registrar`
    """
    from fleetgrad.broker.registrar.registrar import Registrar
    from fleetgrad.wire.membership import Member

    registrar = Registrar(directory)
    found = registrar.register.devices()
    kids = {
        d.name: Member(
            federation=registrar.federation, device=d.name, key=d.key, serial=d.serial, not_after=d.not_after
        ).public().kid
        for d in found
    }  # fmt: skip
    if format == "json":
        rows = [
            {"device": d.name, "key": kids[d.name], "not-after": d.not_after, "revoked": d.revoked, "reason": d.reason}
            for d in found
        ]
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    table = Table(Column("device", no_wrap=True), "key", "certificate until", "state")
    for d in found:
        state = f"revoked {d.reason}".strip() if d.revoked else "member"
        table.add_row(d.name, kids[d.name], time.strftime("%Y-%m-%d", time.gmtime(d.not_after)), state)
    out.print(table)


@devices.command("revoke")
def device_revoke(
    name: Annotated[str, typer.Argument(help="The device's id.")],
    directory: Folder = Path(),
    reason: Annotated[str, typer.Option(help="Told in the aggregator's log.")] = "",
) -> None:
    """End a device's membership, for good: the aggregator drops what it sends, the broker its certificate.

    Example: `fleetgrad device revoke dev-01 --dir digits --reason stolen`
    """
    from fleetgrad.broker.registrar.registrar import CRL, Registrar

    registrar = Registrar(directory)
    registrar.revoke(name, reason)
    out.say(
        f"{name} is revoked: the aggregator drops it as soon as it hears of it\n"
        f"the broker refuses its certificate once it has {registrar.folder / CRL} and was told to read it (mosquitto: SIGHUP)"
    )
    _say_who_tells(registrar)


def broker_files(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The registrar's folder, or the federation's that holds it.")
    ],
    kind: Annotated[Kind, typer.Option("--for", help="Which broker.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="A folder for the files.")] = Path(),
    seen_as: Annotated[
        Path | None, typer.Option(help="Where the broker will find that folder, as /etc/mosquitto/fleetgrad.")
    ] = None,
) -> None:
    """Write a broker's configuration and permissions: a device writes only its own topics, and reads only what is for it.

    Example: `fleetgrad broker-files digits --for mosquitto -o digits/broker --seen-as /etc/mosquitto/fleetgrad`
    """
    from fleetgrad.broker.registrar import broker_files as files
    from fleetgrad.broker.registrar.registrar import Registrar
    from fleetgrad.wire import address

    if not output.is_dir():
        raise typer.BadParameter(f"--output {output}: no such folder")
    registrar = Registrar(directory)
    where = address.parse(registrar.settings.broker.url)
    for path in files.write(kind, registrar.federation, output, where, seen_as):
        out.say(str(path))


@registrar_app.command("serve")
def registrar_serve(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The registrar's folder, or the federation's that holds it.")
    ],
    insecure: Insecure = False,
    timeout: Patience = 0.0,
) -> None:
    """Run the registrar, until stopped: it tells the aggregator who belongs, enrols boards with codes and renews certificates.

    Example: `fleetgrad registrar serve digits-registrar`
    """
    from fleetgrad.broker.registrar import server

    raise typer.Exit(server.serve(directory, insecure=insecure, timeout=timeout))


@registrar_app.command("login")
def registrar_login(
    role: Annotated[str, typer.Argument(help="aggregator, registrar, cosigner or operator (who watches); or broker.")],
    directory: Folder = Path(),
    output: Annotated[Path, typer.Option("-o", "--output", help="A new PEM file, with certificate and key.")] = Path(
        "tls.pem"
    ),
    host: Annotated[list[str] | None, typer.Option(help="With broker: a name or address of it; several times.")] = None,
) -> None:
    """Make a login at the broker for one of the operator's own processes, or the broker's own certificate.

    Example: `fleetgrad registrar login operator --dir digits-registrar -o me.pem`, then
    `fleetgrad watch --broker mqtts://broker.lan --federation digits --ca digits-registrar/ca.pem --certificate me.pem`
    """
    from fleetgrad.broker.registrar.registrar import Registrar
    from fleetgrad.wire.signing import save_private

    registrar = Registrar(directory)
    if (role == "broker") != bool(host):
        raise typer.BadParameter("--host belongs to the role broker, which needs at least one")
    text = registrar.broker_certificate(host) if host else registrar.login(role)
    save_private(text.encode(), output)
    out.say(f"{output}: certificate and key of {role}")
    if host:
        out.say(
            "it takes the place of both server.pem and server.key among the broker's files; then start the broker again"
        )


@enroll.command("new")
def enroll_new(
    directory: Folder = Path(),
    count: Annotated[int, typer.Option(min=1, max=10_000, help="How many codes.")] = 1,
    expires: Annotated[str, typer.Option(help="How long they can be used: 30m, 12h, 7d.")] = "7d",
    auto_approve: Annotated[
        bool, typer.Option("--auto-approve", help="Whoever has a code is a member at once; else `approve` it.")
    ] = False,
    kit: Annotated[
        Path | None,
        typer.Option(help="Also write what all boards may know (address, CA) to this file, for their image."),
    ] = None,
    data: DataPath = "data.npz",
    x: ArrayX = "x",
    y: ArrayY = "y",
    scale: Scale = 1.0,
    shape: Shape = None,
    format: Format = "table",  # noqa: A002
) -> None:
    """Print one-time codes, each of which lets one board join.

    A code is shown here and never again. `fleetgrad registrar serve` answers the boards; without --auto-approve `enroll approve` lets each in.

    Example: `fleetgrad enroll new --dir digits-registrar --count 20 --kit fleet.kit`, and on each board
    `fleetgrad-edge join fleet.kit --code CODE`
    """
    from fleetgrad.broker.registrar.enrolling import new_codes
    from fleetgrad.broker.registrar.registrar import Registrar
    from fleetgrad.wire import kit as kits

    seconds, settings = _seconds(expires), _data(data, x, y, scale, shape)
    registrar = Registrar(directory)
    fleet = registrar.fleet_kit(settings)
    if kit:
        kits.write(fleet, kit)
    codes = new_codes(registrar, count, seconds, auto=auto_approve, data=settings)
    if format == "json":
        sys.stdout.write(json.dumps(codes) + "\n")
        return
    for code in codes:
        out.say(code)


@enroll.command("list")
def enroll_list(directory: Folder = Path(), format: Format = "table") -> None:  # noqa: A002
    """List the codes: not themselves, but their ids, and what was asked with each.

    Example: `fleetgrad enroll list --dir digits-registrar`; then `approve` or `refuse` who waits.
    """
    from fleetgrad.broker.registrar.enrolling import state_of
    from fleetgrad.broker.registrar.registrar import Registrar

    registrar = Registrar(directory)
    now = registrar.seconds()
    rows = [(c.id, state_of(c, now), c.device, c.expires, c.wrong, c.reason) for c in registrar.register.codes()]
    if format == "json":
        names = ("id", "state", "device", "expires", "wrong", "reason")
        sys.stdout.write(json.dumps([dict(zip(names, row, strict=True)) for row in rows]) + "\n")
        return
    table = Table(Column("code's id", no_wrap=True), "state", "device", "until", "wrong proofs", "reason")
    for id_, state, device, expires, wrong, reason in rows:
        until = time.strftime("%Y-%m-%d %H:%M", time.gmtime(expires))
        table.add_row(id_[:8], state, device, until, str(wrong), reason)
    out.print(table)


@enroll.command("approve")
def enroll_approve(
    code_id: Annotated[str, typer.Argument(metavar="ID", help="The code's id, or its beginning, as `list` shows it.")],
    directory: Folder = Path(),
) -> None:
    """Let the board in that asked with this code.

    Example: `fleetgrad enroll approve 3f9c21aa --dir digits-registrar`
    """
    from fleetgrad.broker.registrar.enrolling import decide
    from fleetgrad.broker.registrar.registrar import Registrar

    out.print(f"{decide(Registrar(directory), code_id, approve=True)} is a member; it hears so when it asks again")


@enroll.command("refuse")
def enroll_refuse(
    code_id: Annotated[str, typer.Argument(metavar="ID", help="The code's id, or its beginning, as `list` shows it.")],
    directory: Folder = Path(),
    reason: Annotated[str, typer.Option(help="Told to the board.")] = "",
) -> None:
    """Turn the board away that asked with this code.

    Example: `fleetgrad enroll refuse 3f9c21aa --dir digits-registrar --reason "not one of ours"`
    """
    from fleetgrad.broker.registrar.enrolling import decide
    from fleetgrad.broker.registrar.registrar import Registrar

    out.print(f"{decide(Registrar(directory), code_id, approve=False, reason=reason)} is refused")


def _seconds(text: str) -> int:
    """'30m', '12h' or '7d' in seconds."""
    units = {"m": 60, "h": 3600, "d": 86400}
    number, unit = text[:-1], text[-1:]
    if (
        unit not in units
        or not number.isascii()
        or not number.isdigit()
        or not 0 < int(number) * units[unit] <= 366 * 86400
    ):
        raise typer.BadParameter(f"--expires {text!r}: expected a time as 30m, 12h or 7d, a year at most")
    return int(number) * units[unit]


def _data(path: str, x: str, y: str, scale: float, shape: str | None) -> "Data":
    """The table [data], as a board will be able to read it."""
    from fleetgrad.wire.kit import MAX_ARRAY_NAME, MAX_PATH, MAX_SCALE, PLAIN, Data

    for flag, text, most in (("--data", path, MAX_PATH), ("--x", x, MAX_ARRAY_NAME), ("--y", y, MAX_ARRAY_NAME)):
        if not 0 < len(text) <= most or not re.search(PLAIN, text):
            raise typer.BadParameter(
                f"{flag} of {len(text)} characters: expected 1 to {most}, without control characters"
            )
    if not 0 < scale <= MAX_SCALE:
        raise typer.BadParameter(f"--scale {scale:g}: samples are multiplied by it: above 0, {MAX_SCALE:g} at most")
    return Data(path=path, x=x, y=y, scale=scale, shape=parse_shape(shape))


def _say_who_tells(registrar: "Registrar") -> None:
    """Where the aggregator's folder can't be written to from here, it hears by the broker alone."""
    if "roster" in registrar.unreached():
        out.say(
            f"the aggregator hears of it from 'fleetgrad registrar serve {quote(str(registrar.folder))}', which must run for that"
        )
