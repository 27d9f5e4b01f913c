"""The bytes between a client and its broker: TCP, or TLS over it, and WebSocket frames (RFC 6455) around both.

What the client library has for WebSockets drops the rest of a frame that the socket takes only in part, and masks byte by byte in
Python; so frames are made here. Opening has one deadline for all its steps: a peer that drips bytes can't hold it.
"""

import base64
import contextlib
import hashlib
import os
import select
import socket
import ssl
import struct
import time

import numpy as np

from fleetgrad.wire.address import Address
from fleetgrad.wire.tls import Credentials, Floor, check_time, context, explain

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
MOST_HEADER = 8192  # bytes of the answer to a WebSocket request
MOST_FRAME = 2**28  # bytes; MQTT's own limit for a packet
READ_AHEAD = 128 * 1024  # bytes that one call reads at most
SMALL, MOST_UNSENT = (
    1024,
    16 * 1024,
)  # bytes: packets up to the first wait for each other, while they are less than the second
BINARY, CONTINUATION, CLOSE, PING, PONG = 2, 0, 8, 9, 10


class OpenFailed(OSError):
    """No transport could be opened; the message says why, in words. `strerror` holds it."""

    def __init__(self, reason: str) -> None:
        super().__init__(0, reason)


class Transport:
    """A non-blocking socket as the client library wants one; `fault` is the error that ended it.

    The library reads a packet's first bytes one by one, and writes each acknowledgement by itself: here a call reads what has come,
    and small packets leave together, when `flush` is called.
    """

    def __init__(self, raw: socket.socket) -> None:
        self._raw = raw
        self.fault: OSError | None = None
        self._ahead = memoryview(bytearray(READ_AHEAD))
        self._at = self._end = 0  # of `_ahead`: what has come and isn't read yet
        self._out = bytearray()

    def recv(self, size: int) -> bytes:
        if self._at == self._end:
            self._at, self._end = 0, self._fill()
        found = bytes(self._ahead[self._at : min(self._end, self._at + size)])
        self._at += len(found)
        return found

    def _fill(self) -> int:
        try:
            return self._raw.recv_into(self._ahead)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as e:
            raise BlockingIOError from e
        except BlockingIOError:
            raise
        except OSError as e:
            self.fault = e
            raise

    def send(self, data: bytes | bytearray) -> int:
        """Takes all of a small packet, which `flush` sends; of a large one what the socket takes."""
        if len(data) <= SMALL and len(self._out) < MOST_UNSENT:
            self._out += data
            return len(data)
        self.flush()
        if self._out:
            raise BlockingIOError
        return self._write(data)

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return self._raw.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as e:
            raise BlockingIOError from e
        except BlockingIOError:
            raise
        except OSError as e:
            self.fault = self.fault or self._last_word() or e
            raise

    def _last_word(self) -> OSError | None:
        """The alert that a peer sent before it closed: it refuses a client's certificate after the handshake is done for us."""
        try:
            self._raw.recv(1)
        except OSError as e:
            return e if isinstance(e, ssl.SSLError) and "ALERT" in (e.reason or "") else None
        return None

    @property
    def unsent(self) -> bool:
        """Whether bytes that `send` has taken still wait for `flush`."""
        return bool(self._out)

    def flush(self) -> None:
        """Sends what waits, as far as the socket takes it."""
        with contextlib.suppress(BlockingIOError):
            while self._out:
                del self._out[: self._write(self._out)]

    def pending(self) -> int:
        """Bytes that can be read without the socket being readable."""
        return self._end - self._at + (self._raw.pending() if isinstance(self._raw, ssl.SSLSocket) else 0)

    def fileno(self) -> int:
        return self._raw.fileno()

    def setblocking(self, flag: bool) -> None:
        self._raw.setblocking(flag)

    def interrupt(self) -> None:
        """Ends all reading and writing at once; from any thread."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._raw, socket.SHUT_RDWR)

    def close(self) -> None:
        """Sends what still waits, if that can be done at once, and closes."""
        if self.fault is None:
            with contextlib.suppress(OSError):
                self.flush()
        self._raw.close()


class WebSocket(Transport):
    """MQTT's bytes in binary frames."""

    def __init__(self, raw: socket.socket) -> None:
        super().__init__(raw)
        self._in = bytearray()  # raw bytes, at most a frame and what came with it
        self._data = bytearray()  # payload not yet read
        self._closed = False

    def recv(self, size: int) -> bytes:
        while not self._data and not self._closed:
            if not self._unwrap():
                raw = super().recv(65536)
                if not raw:
                    self._closed = True
                self._in += raw
        found = bytes(self._data[:size])
        del self._data[: len(found)]
        return found

    def send(self, data: bytes | bytearray) -> int:
        """Takes all of `data`, or none while too much still waits."""
        if len(self._out) >= MOST_UNSENT:
            self.flush()
            if self._out:
                raise BlockingIOError
        self._out += _frame(BINARY, data)
        self.flush()
        return len(data)

    def pending(self) -> int:
        return len(self._data) + len(self._in) + super().pending() if self._whole() or self._data else super().pending()

    def _header(self) -> tuple[int, int, int] | None:
        """(opcode, start of the payload, its length) of the first frame in `_in`, or None while it is short."""
        if len(self._in) < 2:
            return None
        opcode, length, start = self._in[0] & 15, self._in[1] & 127, 2
        if length == 126:
            start = 4
        elif length == 127:
            start = 10
        if len(self._in) < start:
            return None
        if start > 2:
            length = int.from_bytes(self._in[2:start], "big")
        if self._in[1] & 128 or length > MOST_FRAME:
            self.fault = OpenFailed("the broker sent what is no WebSocket frame")
            raise self.fault
        return opcode, start, length

    def _whole(self) -> bool:
        header = self._header()
        return header is not None and len(self._in) >= header[1] + header[2]

    def _unwrap(self) -> bool:
        """Takes one whole frame out of `_in`; False while there is none."""
        header = self._header()
        if header is None or len(self._in) < header[1] + header[2]:
            return False
        opcode, start, length = header
        payload = bytes(self._in[start : start + length])
        del self._in[: start + length]
        if opcode in (BINARY, CONTINUATION):
            self._data += payload
        elif opcode == CLOSE:
            self._closed = True
        elif opcode == PING:
            self._out += _frame(PONG, payload[:125])
            self.flush()
        return True


def connect(address: Address, credentials: Credentials, floor: Floor, seconds: float) -> Transport:
    """Opens all layers within `seconds`, then non-blocking; raises OpenFailed."""
    end = time.monotonic() + seconds
    try:
        raw = socket.create_connection((address.host, address.port), timeout=seconds)
    except OSError as e:
        raise OpenFailed(e.strerror or str(e)) from e
    try:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if address.tls:
            raw.settimeout(max(0.1, end - time.monotonic()))
            secured = context(credentials, floor).wrap_socket(
                raw, server_hostname=address.host, do_handshake_on_connect=False
            )
            raw = secured
            secured.do_handshake()
            check_time(secured, credentials, floor)
        if address.websocket:
            _upgrade(raw, address, end)
        raw.setblocking(False)
    except OSError as e:  # before ValueError: a certificate that fails is both
        raw.close()
        raise OpenFailed(explain(e, address, credentials)) from e
    except ValueError as e:
        raw.close()
        raise OpenFailed(str(e)) from e
    return WebSocket(raw) if address.websocket else Transport(raw)


def listens(address: Address, seconds: float) -> bool:
    """Whether a TCP connection is taken there and stays for so long, though nothing is said; each of the two has `seconds`.

    A process that dies may close its connections before its port: what was still taken by that is reset with it.
    """
    try:
        with socket.create_connection((address.host, address.port), timeout=seconds) as probe:
            return not select.select([probe], [], [], seconds)[0]
    except OSError:
        return False


def _upgrade(raw: socket.socket, address: Address, end: float) -> None:
    """Asks for a WebSocket that carries MQTT; raises OpenFailed unless the server agrees."""
    key = base64.b64encode(os.urandom(16))
    host = f"[{address.host}]" if ":" in address.host else address.host
    raw.sendall(
        f"GET {address.path} HTTP/1.1\r\nHost: {host}:{address.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key.decode()}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n".encode()
    )
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):  # byte by byte: what follows belongs to the first frame
        left = end - time.monotonic()
        if left <= 0:
            raise OpenFailed("no answer to the WebSocket request in time")
        raw.settimeout(left)
        try:
            byte = raw.recv(1)
        except TimeoutError as e:
            raise OpenFailed("no answer to the WebSocket request in time") from e
        head += byte
        if not byte or len(head) > MOST_HEADER:
            raise OpenFailed("no WebSocket is served there")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if " 101" not in first[:13]:
        raise OpenFailed(f"no WebSocket is served at {address.path}: the server answered {first[:60]!r}")
    proof = base64.b64encode(hashlib.sha1(key + GUID).digest()).decode()  # noqa: S324  (RFC 6455 says SHA-1)
    if fields.get("sec-websocket-accept") != proof:
        raise OpenFailed("the answer to the WebSocket request isn't one to ours")


def _frame(opcode: int, data: bytes | bytearray) -> bytes:
    """One final frame, masked as RFC 6455 wants it of clients."""
    length, mask = len(data), os.urandom(4)
    if length < 126:
        head = struct.pack("!BB", 128 | opcode, 128 | length)
    elif length < 65536:
        head = struct.pack("!BBH", 128 | opcode, 128 | 126, length)
    else:
        head = struct.pack("!BBQ", 128 | opcode, 128 | 127, length)
    key = np.frombuffer((mask * (length // 4 + 1))[:length], np.uint8)
    return head + mask + np.bitwise_xor(np.frombuffer(bytes(data), np.uint8), key).tobytes()
