"""TLS to a broker: what is refused and in which words, the time in certificates on boards without a clock, WebSocket frames."""

import contextlib
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509

from fleetgrad.wire import mqtt, tls
from fleetgrad.wire.address import Address, Scheme
from fleetgrad.wire.mqtt import transport
from fleetgrad.wire.tls import CertificateRefused, Credentials, CredentialsRefused, Floor
from tests.wire.certificates import DAY, NOW, Authority, Pair
from tests.wire.fake_broker import SECONDS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "another CA")


Serve = Callable[[ssl.SSLContext | None], int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that shakes hands, says what it was asked to, and hangs up; its port."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def run(listener: socket.socket, context: ssl.SSLContext | None) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), connection:
                connection.settimeout(SECONDS)
                if context is None:
                    connection.sendall(b"\x20\x02\x00\x00")  # MQTT without TLS
                    connection.recv(4096)
                    continue
                with context.wrap_socket(connection, server_side=True) as secured:
                    secured.recv(4096)

    def start(context: ssl.SSLContext | None) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threads.append(threading.Thread(target=run, args=(listener, context), daemon=True))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(SECONDS)


def server_context(pair: Pair, clients: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if clients:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    return context


def reason(port: int, credentials: Credentials, host: str = "127.0.0.1") -> str:
    """Why a session says that it can't connect."""
    inbox = mqtt.Inbox()
    endpoint = mqtt.Endpoint(Address(host, port, "mqtts"), credentials)
    session = mqtt.Session(endpoint, "dev-1", inbox=inbox, random=random.Random(0))
    session.start()
    down = inbox.get(timeout=SECONDS)
    session.stop()
    assert isinstance(down, mqtt.Disconnected)
    return down.reason


def test_each_fault_of_tls_is_named_with_what_to_do(authority: Authority, stranger: Authority, serve: Serve) -> None:
    good, theirs = authority.sign("broker"), Credentials(stranger.certificate)
    ours = Credentials(authority.certificate)
    port = serve(server_context(good))
    assert f"isn't signed by {stranger.certificate}" in reason(port, theirs)
    assert "isn't for 'localhost'" in reason(port, ours, host="localhost")
    expired = serve(server_context(authority.sign("old", begin=NOW - 9 * DAY, end=NOW - 2 * DAY)))
    assert "(CN=old) expired on" in reason(expired, ours)
    early = serve(server_context(authority.sign("early", begin=NOW + 2 * DAY, end=NOW + 9 * DAY)))
    assert "(CN=early) isn't valid before" in reason(early, ours)
    assert "is it right?" in reason(early, ours)
    assert "no TLS is spoken on port" in reason(serve(None), ours)
    older = server_context(good)
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    assert "doesn't speak TLS 1.3" in reason(serve(older), ours)


def test_a_broker_that_wants_to_know_the_client_says_so(
    authority: Authority, stranger: Authority, serve: Serve
) -> None:
    port = serve(server_context(authority.sign("broker"), clients=authority.certificate))
    assert "wants a client certificate" in reason(port, Credentials(authority.certificate))
    foreign = stranger.sign("dev-1")
    said = reason(port, Credentials(authority.certificate, foreign.certificate, foreign.key))
    assert (
        f"the broker refused the client certificate {foreign.certificate}: unknown ca (it was issued for another fleet)"
        in said
    )
    expired = authority.sign("dev-2", begin=NOW - 9 * DAY, end=NOW - 2 * DAY)
    said = reason(port, Credentials(authority.certificate, expired.certificate, expired.key))
    assert (
        f"the broker refused the client certificate {expired.certificate}: certificate expired (a device needs a new kit"
        in said
    )


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    pair, other = authority.sign("one"), authority.sign("two")
    junk = tmp_path / "junk.pem"
    junk.write_text("no PEM")
    for credentials, said in [
        (Credentials(tmp_path / "none.pem"), "CA certificate .*none.pem: No such file"),
        (Credentials(junk), "CA certificate .*junk.pem: holds no certificate"),
        (Credentials(authority.certificate, junk, pair.key), "client certificate .*junk.pem: no certificate"),
        (Credentials(authority.certificate, pair.certificate, other.key), "isn't the one of certificate"),
        (Credentials(authority.certificate, pair.certificate, tmp_path / "none.key"), "key .*none.key: No such file"),
        (Credentials(authority.certificate, pair.certificate, junk), "holds no private key"),
        (Credentials(authority.certificate, None, pair.key), "no use without its certificate"),
    ]:
        with pytest.raises(CredentialsRefused, match=said):
            tls.context(credentials)


def test_a_clock_that_cannot_be_right_is_not_believed(authority: Authority) -> None:
    now = NOW.timestamp()
    day = DAY.total_seconds()
    floor = Floor()
    floor.raise_to(now - 5 * day)

    def load(pair: Pair) -> x509.Certificate:
        return x509.load_pem_x509_certificate(pair.certificate.read_bytes())

    current = load(authority.sign("current"))
    newer = load(authority.sign("newer", begin=NOW + DAY, end=NOW + 9 * DAY))
    ended = load(authority.sign("ended", begin=NOW - 9 * DAY, end=NOW - 6 * DAY))
    recent = load(authority.sign("recent", begin=NOW - 9 * DAY, end=NOW - DAY))
    for clock in (
        0.0,
        now - 6 * day,
    ):  # behind the floor: nothing is too new, and only what had ended before the floor is too old
        for fine in (current, newer, recent):
            tls.verify_times([fine], floor, clock)
        with pytest.raises(CertificateRefused, match=r"expired .*or later"):
            tls.verify_times([ended], floor, clock)
    tls.verify_times([current], floor, now)
    for bad, said in ((newer, "isn't valid before"), (recent, "expired"), (ended, "expired")):
        with pytest.raises(CertificateRefused, match=said):
            tls.verify_times([current, bad], floor, now)


def test_the_floor_survives_a_restart_and_never_falls(tmp_path: Path) -> None:
    path, now = tmp_path / "clock", time.time() + 10 * 86400
    floor = Floor(path)
    assert floor.time == tls.BUILT
    floor.raise_to(now)
    floor.raise_to(now - 1000)
    assert Floor(path).time == pytest.approx(now, abs=1)
    floor.raise_to(now + 60)
    assert Floor(path).time == pytest.approx(now, abs=1)  # within a day nothing is written: it would wear an SD card
    path.write_text("no number")
    assert Floor(path).time == tls.BUILT


# --- WebSocket frames ----------------------------------------------------------------------------------------------
def frame(opcode: int, payload: bytes) -> bytes:
    """A server's frame: not masked."""
    if len(payload) < 126:
        return bytes([128 | opcode, len(payload)]) + payload
    if len(payload) < 65536:
        return bytes([128 | opcode, 126]) + len(payload).to_bytes(2, "big") + payload
    return bytes([128 | opcode, 127]) + len(payload).to_bytes(8, "big") + payload


def unmask(raw: bytes) -> tuple[int, bytes, bytes]:
    """(opcode, payload, what follows) of a client's first frame."""
    assert raw[1] & 128, "a client's frames are masked"
    length, at = raw[1] & 127, 2
    if length == 126:
        length, at = int.from_bytes(raw[2:4], "big"), 4
    elif length == 127:
        length, at = int.from_bytes(raw[2:10], "big"), 10
    mask, data = raw[at : at + 4], raw[at + 4 : at + 4 + length]
    return raw[0] & 15, bytes(b ^ mask[i % 4] for i, b in enumerate(data)), raw[at + 4 + length :]


@pytest.fixture
def pair() -> Iterator[tuple[transport.WebSocket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(SECONDS)
    yield transport.WebSocket(ours), theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 100_000])
def test_a_frame_is_unpacked_to_its_bytes_whatever_its_length(
    pair: tuple[transport.WebSocket, socket.socket], size: int
) -> None:
    ours, theirs = pair
    data = random.Random(size).randbytes(size)
    assert ours.send(data) == size
    raw = b""
    expected = size + 6 + (0 if size < 126 else 2 if size < 65536 else 8)
    while len(raw) < expected:
        ours.flush()
        raw += theirs.recv(1 << 20)
    assert unmask(raw) == (2, data, b"")


def test_what_the_socket_takes_in_part_is_sent_to_its_end_and_nothing_between(
    pair: tuple[transport.WebSocket, socket.socket],
) -> None:
    ours, theirs = pair
    first, second = b"a" * 3_000_000, b"b" * 1000
    assert ours.send(first) == len(first)
    assert ours.unsent
    with pytest.raises(BlockingIOError):
        ours.send(second)
    raw = b""
    while len(raw) < 3_000_014:
        raw += theirs.recv(1 << 20)
        ours.flush()
    assert ours.send(second) == len(second)
    while len(raw) < 3_000_014 + 1008:
        raw += theirs.recv(1 << 20)
    opcode, payload, rest = unmask(raw)
    assert (opcode, payload == first) == (2, True)
    assert unmask(rest)[1] == second


def test_frames_are_joined_pings_answered_and_a_close_is_an_end(
    pair: tuple[transport.WebSocket, socket.socket],
) -> None:
    ours, theirs = pair
    raw = frame(2, b"ab") + frame(9, b"ping") + frame(2, b"c" * 300) + frame(8, b"")
    found = bytearray()
    for byte in raw:
        theirs.sendall(bytes([byte]))
        with contextlib.suppress(BlockingIOError):
            while piece := ours.recv(7):
                found += piece
    assert bytes(found) == b"ab" + b"c" * 300
    assert unmask(theirs.recv(4096))[:2] == (10, b"ping")
    assert ours.recv(10) == b""
    assert ours.pending() == 0


def test_bytes_that_wait_behind_a_read_are_pending(pair: tuple[transport.WebSocket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(frame(2, b"abc") + frame(2, b"d"))
    assert ours.recv(1) == b"a"
    assert ours.pending() > 0  # or a loop that waits for the socket would never read them
    assert ours.recv(10) == b"bc"
    assert ours.pending() > 0
    assert ours.recv(10) == b"d"
    assert ours.pending() == 0


@pytest.mark.parametrize("raw", [b"\x82\xff" + b"\xff" * 8, b"\x82\x7f" + b"\xff" * 8], ids=["masked", "length bomb"])
def test_what_is_no_frame_of_a_server_ends_the_connection(
    pair: tuple[transport.WebSocket, socket.socket], raw: bytes
) -> None:
    ours, theirs = pair
    theirs.sendall(raw)
    with pytest.raises(OSError, match="no WebSocket frame"):
        ours.recv(1)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "no WebSocket is served at /mqtt: the server answered 'HTTP/1.1 404"),
        (b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\n\r\n", "isn't one to ours"),
        (b"x" * 10_000, "no WebSocket is served there"),
        (b"", "no WebSocket is served there"),
    ],
)
def test_a_server_that_serves_no_websocket_is_told_from_one_that_does(answer: bytes, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        scheme: Scheme = "ws"
        address = Address("127.0.0.1", listener.getsockname()[1], scheme, "/mqtt")

        def reply() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                with contextlib.suppress(OSError):
                    connection.recv(4096)

        thread = threading.Thread(target=reply, daemon=True)
        thread.start()
        with pytest.raises(transport.OpenFailed, match=said):
            transport.connect(address, Credentials(), Floor(), 5.0)
        thread.join(SECONDS)


def test_plain_settings_refuse_certificates_that_would_do_nothing(authority: Authority) -> None:
    given = mqtt.BrokerSettings(url="mqtt://127.0.0.1", ca=str(authority.certificate))
    with pytest.raises(ValueError, match="of no use without TLS"):
        given.endpoint(Path())


def test_settings_become_an_endpoint_with_paths_of_their_folder(authority: Authority) -> None:
    pair = authority.sign("dev-9")
    folder = pair.certificate.parent
    given = mqtt.BrokerSettings(
        url="wss://10.0.0.9",
        ca=authority.certificate.name,
        certificate=pair.certificate.name,
        key=pair.key.name,
        keepalive=1200,
    )
    endpoint = given.endpoint(folder)
    assert endpoint.address == Address("10.0.0.9", 443, "wss", "/mqtt")
    assert endpoint.credentials == Credentials(authority.certificate, pair.certificate, pair.key)
    assert endpoint.keepalive == 1200
    with pytest.raises(ValueError, match="--insecure"):
        mqtt.BrokerSettings(url="ws://10.0.0.9").endpoint(folder)
