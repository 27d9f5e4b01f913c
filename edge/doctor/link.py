"""Reaches for the broker as the daemon does, layer by layer, under another client id and without a last will: a daemon beside isn't disturbed.

name -> port -> TLS -> login -> what is retained for this device
"""

import contextlib
import ipaddress
import queue
import secrets
import socket
import time
from collections.abc import Iterator

import msgspec

from fleetgrad.edge.daemon import CLOCK
from fleetgrad.edge.doctor import findings
from fleetgrad.edge.doctor.board import Board
from fleetgrad.edge.doctor.findings import Finding, Heard, failed
from fleetgrad.wire import mqtt
from fleetgrad.wire.messages import AggregatorStatus
from fleetgrad.wire.mqtt import transport
from fleetgrad.wire.mqtt.profiles import profile_for
from fleetgrad.wire.strict import MALFORMED
from fleetgrad.wire.tls import Floor
from fleetgrad.wire.topics import Topics

FIRST_SECONDS, QUIET_SECONDS = 5.0, 1.0  # for what is retained to come: the first message, and each after it
ROOTS = 8  # of the roots after the board's own that are asked for
PERMISSIONS = "the broker's permissions and the name in the certificate: 'fleetgrad broker-files' writes the first"


def examine(board: Board, insecure: bool, patience: float) -> Iterator[Finding]:
    """A finding a layer, up to the first that fails; each waits up to `patience` seconds."""
    config, floor = board.config, board.spool / CLOCK
    try:
        endpoint = config.broker.endpoint(board.folder, insecure=insecure, floor=floor)
    except ValueError as e:
        yield failed("broker", "read how to reach the broker", str(e), "mend [broker] in edge.toml, or its files")
        return
    address = endpoint.address
    yield (found := _name(address.host))
    if found.state == "failed":
        return
    try:
        socket.create_connection((address.host, address.port), timeout=patience).close()
    except OSError as e:
        yield failed("port", f"connect to {address}", e.strerror or str(e),
            "does the broker run, on that port? does a firewall let this board out?",
        )  # fmt: skip
        return
    yield Finding("port", f"connect to {address}", "ok", "somebody listens")
    if address.tls or address.websocket:
        tried = f"begin {'TLS' if address.tls else 'a WebSocket'} with {address.host}"
        try:
            transport.connect(address, endpoint.credentials, Floor(floor), patience).close()
        except transport.OpenFailed as e:
            yield failed(
                "tls",
                tried,
                str(e.strerror),
                "[broker] url and ca in edge.toml must be this broker's; 'fleetgrad registrar login broker' makes its certificate",
            )
            return
        yield Finding("tls", tried, "ok", "its certificate holds" if address.tls else "done")
    if profile_for(endpoint.profile, address).named:
        yield Finding(
            "login",
            "log in",
            "note",
            "not tried: this broker takes the device's own name alone, and would cut the daemon off",
        )
        return
    yield from _retained(board, endpoint, patience)


def _name(host: str) -> Finding:
    tried = f"look up {host}"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return Finding("name", tried, "ok", "it is an address")
    try:
        found = sorted({str(row[4][0]) for row in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)})
    except (OSError, UnicodeError) as e:
        said = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        return failed("name", tried, said, "is [broker] url in edge.toml right? does this board reach a name server?")
    return Finding("name", tried, "ok", ", ".join(found))


def _retained(board: Board, endpoint: mqtt.Endpoint, patience: float) -> Iterator[Finding]:
    """Logs in, and judges what the broker has for this device."""
    inbox, heard, tried = mqtt.Inbox(), Heard(), "log in, as another client than the daemon"
    session = mqtt.Session(endpoint, board.client_id or f"doctor-{secrets.token_hex(8)}", inbox=inbox)
    session.start()
    try:
        try:
            first = inbox.get(timeout=patience)
        except queue.Empty:
            yield failed("login", tried, f"no answer within {patience:g} s", "is it an MQTT broker? see its log")
            return
        if not isinstance(first, mqtt.Connected):
            yield failed("login", tried, first.reason, "see the broker's log")
            return
        retains = "" if first.retained else ", which retains nothing"
        yield Finding("login", tried, "ok", f"taken{retains}; a chunk may have {first.chunk_bytes} bytes")
        heard.retains = first.retained
        reason = _listen(board, session, inbox, heard, patience)
    finally:
        session.stop()
    if reason:
        yield failed("topics", "subscribe to what is for this device", reason, PERMISSIONS)
        return
    device, federation = board.config.device.id, board.config.federation.name
    if board.registrar:
        yield findings.membership(heard, board.registrar, federation, device, board.keys)
    if board.root:
        yield findings.head(heard, board.root, board.head)
    yield findings.aggregator(heard)


def _listen(board: Board, session: mqtt.Session, inbox: mqtt.Inbox, heard: Heard, patience: float) -> str:
    """Takes in what is retained, until no more of it comes; why the connection ended, or nothing."""
    topics, device = Topics(board.config.federation.name), board.config.device.id
    known = board.root.version if board.root else 0
    roots = {topics.root(version): version for version in range(known + 1, known + 1 + ROOTS)}
    session.subscribe([topics.head, topics.member(device), topics.aggregator, *roots])
    end = time.monotonic() + patience
    quiet_at = min(end, time.monotonic() + FIRST_SECONDS)
    while (left := quiet_at - time.monotonic()) > 0:
        try:
            event = inbox.get(timeout=left)
        except queue.Empty:
            break
        if isinstance(event, mqtt.Disconnected):
            return event.reason
        if isinstance(event, mqtt.Refused):
            heard.refused.append(f"{event.topic}: {event.reason}")
        elif isinstance(event, mqtt.Message):
            if event.retained:  # what is said anew while rounds go on has no end
                quiet_at = min(end, time.monotonic() + QUIET_SECONDS)
            if event.topic == topics.head:
                heard.head = event.payload
            elif event.topic == topics.member(device):
                heard.member = event.payload
            elif event.topic in roots:
                heard.roots[roots[event.topic]] = event.payload
            elif event.topic == topics.aggregator:
                with contextlib.suppress(*MALFORMED):
                    heard.aggregator = msgspec.json.decode(event.payload, type=AggregatorStatus)
    return ""
