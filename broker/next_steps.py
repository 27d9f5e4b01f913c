"""What is to be done after `fleetgrad new`, as commands that work as they stand: a broker, the registrar, the aggregator, a board."""

from pathlib import Path
from shlex import quote

from fleetgrad.wire.address import PORTS, parse

SEEN_AS = "/etc/mosquitto/fleetgrad"  # where a broker on another machine finds its files


def next_steps(directory: Path, registrar: Path | None, url: str) -> str:
    """The commands for a federation in `directory`, whose registrar is in `registrar` or in it. Lines with two spaces are commands."""
    where = parse(url)
    fleet, apart = quote(str(directory)), quote(str(registrar or f"{directory}-registrar"))
    files = f"{fleet}/broker"
    lines = ["next, each that runs in a terminal or a service of its own:"]
    if registrar is None:
        lines.append(
            f"  mv {fleet}/registrar {apart}  # serve won't start where it can read the CA key; --registrar PATH puts it elsewhere at once"
        )
    if where.tls:
        lines.append(f"  chown mosquitto: {files}/*  # only where root starts mosquitto, which becomes that user")
        lines.append(f"  mosquitto -c {files}/mosquitto.conf")
    elif where.loopback and not where.websocket:
        lines.append(f"  mosquitto -p {where.port}")
    lines += [
        f"  fleetgrad registrar serve {apart}",
        f"  fleetgrad serve {fleet}",
        f"  fleetgrad device add dev-01 --dir {apart} --data data.npz",
        f"on the board, with {apart}/kits/dev-01.kit carried there, and data.npz put into the folder dev-01 that it makes:",
        "  fleetgrad-edge join dev-01.kit",
        "  fleetgrad-edge run --config dev-01/edge.toml",
    ]
    if where.loopback:
        lines.append("boards that are other machines need a federation made with --broker mqtts://NAME of this one")
    elif where.tls:
        lines += [
            "where mosquitto runs on another machine, instead of the lines with mosquitto:",
            f"  fleetgrad broker-files {apart} --for mosquitto -o {files} --seen-as {SEEN_AS}",
            f"  scp -r {files} root@{where.host}:{SEEN_AS}",
            f"  ssh root@{where.host} 'chown mosquitto: {SEEN_AS}/* && mosquitto -c {SEEN_AS}/mosquitto.conf'",
        ]
        if where.port != PORTS["mqtts"]:
            lines.append(f"boards that enrol by a code need port {where.port + 1} as well")
    lines += [
        f"{apart} belongs to who says which devices join, {fleet}/aggregator to who runs serve: best two users, or two machines. Each moves as a",
        "whole; what the registrar can't write into the other's folder, its serve tells over the broker",
    ]
    return "\n".join(lines)
