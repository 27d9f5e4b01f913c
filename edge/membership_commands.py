"""`fleetgrad-edge join` and `leave`: a board becomes a member of a federation, and ends its part."""

import contextlib
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from fleetgrad.wire.command_line import make_console
from fleetgrad.wire.exits import EXIT_NO_BROKER
from fleetgrad.wire.link_options import Insecure
from fleetgrad.wire.settings import MOST_SECONDS

if TYPE_CHECKING:
    from fleetgrad.wire.kit import Kit

out, err = make_console(), make_console(stderr=True)


def join(
    kit: Annotated[
        Path | None, typer.Argument(help="A kit: the file of `fleetgrad device add`, or of `enroll new --kit`.")
    ] = None,
    into: Annotated[Path | None, typer.Option(help="The device's folder; default: named by its id, here.")] = None,
    code: Annotated[str | None, typer.Option(help="A one-time code, of `fleetgrad enroll new`.")] = None,
    broker: Annotated[str | None, typer.Option(help="With --code: mqtts://host:port where boards enrol.")] = None,
    ca: Annotated[Path | None, typer.Option(help="With --code: who signed the broker's certificate, ca.pem.")] = None,
    federation: Annotated[str | None, typer.Option(help="With --code: the federation's name.")] = None,
    name: Annotated[str | None, typer.Option(help="With --code: the id to ask for; default: drawn.")] = None,
    insecure: Insecure = False,
    timeout: Annotated[
        float, typer.Option(min=0, max=MOST_SECONDS, help="With --code: seconds to wait for an answer; 0: for ever.")
    ] = 0.0,
) -> None:
    """Make this board a member of a federation: installs a kit's keys and settings, or asks for them with a one-time code.

    Examples: `fleetgrad-edge join dev-01.kit --into /var/lib/fleetgrad/edge`,
    `fleetgrad-edge join fleet.kit --code 4F7K-... --into edge`, or all by hand:
    `fleetgrad-edge join --code 4F7K-... --broker mqtts://broker.lan:8884 --ca ca.pem --federation digits`
    """
    from fleetgrad.edge.config import rehearse
    from fleetgrad.wire import kit as kits

    options = {"--broker": broker, "--ca": ca, "--federation": federation, "--name": name}
    if code is not None:
        found, folder = _enrol(kit, into, code, broker, ca, federation, name, insecure=insecure, timeout=timeout)
        if found is None:
            out.print(f"{folder} is a device's already, by this very code")
            return
        made = found
    elif kit is None:
        raise typer.BadParameter("give a kit, or --code")
    elif without := [flag for flag, value in options.items() if value is not None]:
        raise typer.BadParameter(f"{', '.join(without)}: only with --code; {kit} says it for the board that it is")
    else:
        made = kits.read(kit)
        folder = into or Path(made.device or "")
        if not kits.install(made, folder, str(kit), rehearse=rehearse):
            out.print(f"{folder} is {made.device} of {made.federation} already, by this very kit: nothing is changed")
            return
    remove = f"remove {quote(str(kit))}, " if kit and code is None else ""
    out.say(
        f"{folder}: this board is {made.device} of {made.federation}; {remove}put the data at {folder / made.data.path}, and run\n"
        f"  fleetgrad-edge run --config {quote(str(folder / kits.SETTINGS))}"
    )


def _enrol(
    kit: Path | None,
    into: Path | None,
    code: str,
    broker: str | None,
    ca: Path | None,
    federation: str | None,
    name: str | None,
    *,
    insecure: bool,
    timeout: float,
) -> "tuple[Kit | None, Path]":
    """Asks with a code, by what a fleet's kit or the flags say; the kit that the answer gave, and the folder it is in."""
    from fleetgrad.edge import enrolling
    from fleetgrad.wire import enrolment
    from fleetgrad.wire import kit as kits
    from fleetgrad.wire.files import replace_file
    from fleetgrad.wire.membership import check_device
    from fleetgrad.wire.mqtt import BrokerSettings

    enrolment.parse_code(code)
    fleet = kits.read(kit) if kit else None
    url = broker or (fleet.enrol_url or fleet.url if fleet else None)
    federation = federation or (fleet.federation if fleet else None)
    if url is None or federation is None:
        raise typer.BadParameter("--code needs --broker and --federation, or a fleet's kit")
    if name:
        check_device(name)
    folder = (into or Path(name or "edge")).resolve()
    kits.joined(folder)  # raises where there can be no folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    if fleet and fleet.ca and ca is None and url.startswith(("mqtts:", "wss:")):
        ca = folder.parent / f".{folder.name}.ca.pem"
        replace_file(ca, fleet.ca.encode())
    try:
        settings = BrokerSettings(url=url, ca=str(ca.resolve()) if ca else None)
        endpoint = settings.endpoint(Path(), insecure=insecure or bool(fleet and fleet.insecure))
        made = enrolling.enrol(code, federation, endpoint, folder, name, timeout=timeout, say=err.say)
    finally:
        (folder.parent / f".{folder.name}.ca.pem").unlink(missing_ok=True)
    return made, folder


def leave(
    config: Annotated[Path, typer.Option(help="The device's settings, edge.toml.")],
    wipe: Annotated[bool, typer.Option("--wipe", help="Also remove keys, settings and spool from this board.")] = False,
    insecure: Insecure = False,
    timeout: Annotated[
        float, typer.Option(min=0, max=MOST_SECONDS, help="Seconds to wait for the registrar's word.")
    ] = 15.0,
) -> None:
    """End this board's part in its federation: the registrar is told, signed by the device, and revokes it.

    Stop the daemon first. Your data stays. Without an answer within --timeout the exit code is 3, and it says what to run where the registrar is.

    Example: `fleetgrad-edge leave --wipe --config edge/edge.toml`
    """
    from fleetgrad.edge import leaving
    from fleetgrad.edge.config import load
    from fleetgrad.edge.daemon import DaemonError, lock
    from fleetgrad.wire.command_line import fault
    from fleetgrad.wire.signing import load_private_key, load_public_key

    settings, folder = load(config)
    spool = folder / settings.device.spool
    try:
        held = lock(spool) if spool.is_dir() else contextlib.nullcontext()
    except DaemonError as e:
        raise DaemonError(
            f"leave refused: a daemon runs on {spool}. Stop it first: 'systemctl stop fleetgrad-edge', or Ctrl-C where it was started by hand"
        ) from e
    with held:
        told, why = False, f"hasn't answered within {timeout:g} s"
        try:
            key = load_private_key(folder / settings.device.key)
            registrar = load_public_key(folder / settings.federation.registrar_key)
            endpoint = settings.broker.endpoint(folder, insecure=insecure)
            told = leaving.leave(key, folder, registrar, endpoint, timeout)
        except (ValueError, OSError) as e:  # keys that a wipe has removed before it was cut short, a full disk
            if not wipe:
                raise
            why = f"couldn't be told ({fault(e)})"
        if told:
            out.print(f"the registrar has revoked {settings.device.id}: nothing that it sent counts from now on")
        else:
            err.say(
                f"the registrar {why}: have 'fleetgrad device revoke {settings.device.id}' run there, unless the board gets a new kit of that name"
            )
        if wipe:
            removed, elsewhere = leaving.wipe(config, settings, folder)
            out.say(f"removed from {folder}: {', '.join(removed)}; what else lies there is yours")
            if elsewhere:
                out.say(f"left, since it lies elsewhere: {', '.join(elsewhere)}")
    if not told:
        raise typer.Exit(EXIT_NO_BROKER)
