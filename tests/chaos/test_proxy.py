"""The proxy does to a connection what it says, and nothing else."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.chaos.proxy import Kind, ProxyThread

WHOLE = bytes(range(256)) * 2000


class Echo:
    """A server that sends back what it gets."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(client,), daemon=True).start()

    @staticmethod
    def _echo(client: socket.socket) -> None:
        with client:
            try:
                while data := client.recv(65536):
                    client.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def proxy() -> Iterator[ProxyThread]:
    server = Echo()
    made = ProxyThread(server.port, 1)
    yield made
    made.stop()
    server.close()


def connected(proxy: ProxyThread) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
    client.sendall(b"hello")
    assert client.recv(5) == b"hello"
    return client


def echoed(client: socket.socket, data: bytes) -> bytes:
    """What comes back until all of it did, or the connection ended."""
    threading.Thread(target=_send, args=(client, data), daemon=True).start()
    back = b""
    try:
        while len(back) < len(data) and (more := client.recv(65536)):
            back += more
    except ConnectionError:
        pass
    return back


def _send(client: socket.socket, data: bytes) -> None:
    try:
        client.sendall(data)
    except OSError:
        return


def strike(proxy: ProxyThread, kind: Kind, seconds: float = 0.3) -> None:
    assert proxy.call(lambda: proxy.proxy.strike(kind, seconds))


@pytest.mark.parametrize("kind", [None, "delay", "rate", "drip"])
def test_what_only_slows_down_loses_nothing(kind: Kind | None, proxy: ProxyThread) -> None:
    with connected(proxy) as client:
        if kind:
            strike(proxy, kind)
        assert echoed(client, WHOLE) == WHOLE


def test_a_cut_lets_a_part_through_and_then_ends(proxy: ProxyThread) -> None:
    with connected(proxy) as client:
        strike(proxy, "cut")
        back = echoed(client, WHOLE)
        assert len(back) < len(WHOLE)
        assert WHOLE.startswith(back)


def test_a_reset_is_one(proxy: ProxyThread) -> None:
    with connected(proxy) as client:
        strike(proxy, "reset")
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_black_hole_takes_everything_and_says_nothing_until_its_time_is_over(proxy: ProxyThread) -> None:
    with connected(proxy) as client:
        strike(proxy, "black hole")
        client.sendall(b"into nothing")
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_of_a_half_open_connection_one_side_has_gone_and_the_other_is_told_nothing_until_its_time_is_over(
    proxy: ProxyThread,
) -> None:
    with connected(proxy) as client:
        strike(proxy, "half open")
        client.sendall(b"into nothing")
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        while proxy.proxy.links:
            time.sleep(0.02)


def test_calm_ends_what_suffers_and_leaves_the_rest(proxy: ProxyThread) -> None:
    with connected(proxy) as first, connected(proxy) as second:
        strike(proxy, "black hole", 60)
        proxy.call(proxy.proxy.calm)
        alive = 0
        for client in (first, second):
            try:
                client.sendall(b"again")
                alive += client.recv(5) == b"again"
            except ConnectionError:
                pass
        assert alive == 1


def test_a_server_that_is_away_is_a_connection_that_ends(proxy: ProxyThread) -> None:
    proxy.proxy.port = 1  # nobody listens there
    client = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
    with client, contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""
