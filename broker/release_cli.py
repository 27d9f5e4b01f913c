"""`fleetgrad release`: keys that sign heads, the next root of trust that names them, and co-signers on other machines."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from fleetgrad.wire.command_line import make_console
from fleetgrad.wire.link_options import Insecure, Patience

releases = typer.Typer(no_args_is_help=True, help="Keys that sign what devices run, and who may change them.")
out = make_console()

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A federation's directory.")]


@releases.command("key")
def release_key(
    name: Annotated[str, typer.Argument(help="The key's name: a-z, 0-9 and '-'.")],
    folder: Annotated[Path, typer.Option("--output", "-o", help="Folder for NAME.key and NAME.pub.")] = Path(),
) -> None:
    """Make a key pair, on whatever machine is to keep it.

    Example: `fleetgrad release key root-1 -o /media/stick`
    """
    from fleetgrad.broker import releasing

    public = releasing.make_key(folder, name)
    out.say(
        f"{folder / name}.key: keep it secret; {folder / name}.pub ({public.kid}) is for 'fleetgrad release rotate'"
    )


@releases.command("show")
def release_show(directory: Directory) -> None:
    """Show the root of trust: which keys, and how many of them, sign roots and heads.

    Example: `fleetgrad release show digits`
    """
    from fleetgrad.broker import releasing, settings
    from fleetgrad.broker.server import KEY
    from fleetgrad.wire.signing import load_private_key

    home = settings.home(directory)
    root, _ = releasing.chain(home, settings.load(home).name, load_private_key(home / KEY).public)
    out.say(f"root {root.version}")
    for name, role in (("root", root.root), ("release", root.release)):
        kids = ", ".join(key.kid for key in role.public())
        out.say(f"  {name}: {role.threshold} of {len(role.keys)} keys: {kids}")


@releases.command("rotate")
def release_rotate(
    directory: Directory,
    root: Annotated[list[Path] | None, typer.Option(help="Public key that may sign roots; several times.")] = None,
    root_threshold: Annotated[
        int | None, typer.Option(min=1, max=16, help="How many of them must; default: 1.")
    ] = None,
    release: Annotated[list[Path] | None, typer.Option(help="Public key that may sign heads; several times.")] = None,
    release_threshold: Annotated[
        int | None, typer.Option(min=1, max=16, help="How many of them must; default: 1.")
    ] = None,
    sign_with: Annotated[
        list[Path] | None, typer.Option(help="Private key of the old or the new root; several times.")
    ] = None,
) -> None:
    """Name other keys: writes the next root, which devices follow once the aggregator has been started again.

    Example: `fleetgrad release rotate digits --root root-1.pub --sign-with root-1.key` takes the right to name keys from the aggregator.
    """
    from fleetgrad.broker import releasing, settings
    from fleetgrad.broker.server import KEY
    from fleetgrad.wire.release import ROOTS, Role
    from fleetgrad.wire.signing import load_private_key, load_public_key

    def role(option: str, paths: list[Path] | None, threshold: int | None) -> Role | None:
        keys = tuple(load_public_key(path).raw.hex() for path in paths or ())
        if threshold and not keys:
            raise typer.BadParameter(f"{option}-threshold {threshold}: of which keys? Name them all with {option}")
        return Role(threshold=threshold or 1, keys=keys) if keys else None

    home = settings.home(directory)
    new = releasing.rotate(
        home, settings.load(home).name, load_private_key(home / KEY), [load_private_key(p) for p in sign_with or ()],
        root=role("--root", root, root_threshold), release_role=role("--release", release, release_threshold),
    )  # fmt: skip
    out.say(f"{home / ROOTS / f'{new.version}.json'}: start the aggregator again to publish it")


@releases.command("withdraw")
def release_withdraw(
    directory: Directory,
    version: Annotated[
        int | None, typer.Argument(min=0, help="The version, with all that came from it; default: the current one.")
    ] = None,
) -> None:
    """Take back a version, while the aggregator is stopped: devices go back to the one before, and rounds go on from there.

    Example: `fleetgrad release withdraw digits`, then `fleetgrad serve digits`
    """
    from fleetgrad.broker import settings, withdrawing
    from fleetgrad.broker.journal import SqliteJournal
    from fleetgrad.broker.server import JOURNAL
    from fleetgrad.wire.files import PosixFiles

    home = settings.home(directory)
    settings.load(home)
    if not (home / JOURNAL).exists():
        raise withdrawing.WithdrawalError("nothing to withdraw: no version was published yet")
    journal = SqliteJournal(home / JOURNAL)
    try:
        done = withdrawing.withdraw(journal, PosixFiles(home), version)
    finally:
        journal.close()
    names = ", ".join(str(v.number) for v in done.versions)
    again = f"; round {done.abandoned.round} begins again" if done.abandoned else ""
    out.say(f"withdrawn: {names}. Start the aggregator again: version {done.current.number} is current{again}")


@releases.command("export")
def release_export(
    directory: Directory,
    folder: Annotated[Path, typer.Option("--output", "-o", help="A new folder.")],
) -> None:
    """Write what a co-signer on another machine needs: settings, the aggregator's public key, the root of trust.

    Nothing of it is secret. It says what comes next there.

    Example: `fleetgrad release export digits -o cosigner`
    """
    from fleetgrad.broker.cosigner import folder as cosigner
    from fleetgrad.broker.cosigner.server import KEY

    root = cosigner.export(directory, folder)
    out.say(
        f"{folder}: root {root.version}. Carry it to the co-signer's machine by a way that nobody alters, put its key there as {KEY} and its "
        f"login as {cosigner.TLS} ('fleetgrad registrar login cosigner'), and run\n  fleetgrad release cosign {quote(folder.name)}"
    )


@releases.command("cosign")
def release_cosign(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What 'fleetgrad release export' has written.")],
    key: Annotated[Path | None, typer.Option(help="Private key; default: release.key in FOLDER.")] = None,
    allow_policy_change: Annotated[
        bool,
        typer.Option(
            "--allow-policy-change",
            help="Sign one head with another plan, policy, seal key, number of shards or expiry than the last one, or that withdraws versions; or the first of all.",
        ),
    ] = False,
    insecure: Insecure = False,
    timeout: Patience = 0.0,
) -> None:
    """Sign heads beside the aggregator, until stopped: each that follows from the last one, and none with other terms.

    Example: `fleetgrad release cosign cosigner --key release-2.key --allow-policy-change`, the first time.
    """
    from fleetgrad.broker.cosigner import server

    code = server.serve(folder, key, allowed=allow_policy_change, insecure=insecure, timeout=timeout)
    raise typer.Exit(code)
