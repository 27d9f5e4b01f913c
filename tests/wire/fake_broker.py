"""A broker played byte by byte by the test: it listens, and every packet is read and answered by hand."""

import socket
from dataclasses import dataclass

SECONDS = 30.0  # a hang guard
CONNACK = {4: b"\x20\x02\x00\x00", 5: b"\x20\x03\x00\x00\x00"}
CONNECT, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, UNSUBSCRIBE, PINGREQ, PINGRESP, DISCONNECT = 1, 3, 4, 8, 9, 10, 12, 13, 14


@dataclass(frozen=True)
class Packet:
    kind: int
    flags: int
    body: bytes

    @property
    def qos(self) -> int:
        return self.flags >> 1 & 3

    @property
    def topic(self) -> str:
        return self.body[2 : 2 + int.from_bytes(self.body[:2], "big")].decode()

    @property
    def packet_id(self) -> bytes:
        at = 2 + len(self.topic) if self.kind == PUBLISH else 0
        return self.body[at : at + 2]


class Peer:
    """One client that has connected."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        connection.settimeout(SECONDS)

    def exactly(self, count: int) -> bytes:
        """Raises EOFError when the client closes."""
        found = b""
        while len(found) < count:
            more = self.socket.recv(count - len(found))
            if not more:
                raise EOFError
            found += more
        return found

    def read(self) -> Packet:
        first = self.exactly(1)[0]
        length = shift = 0
        while True:
            byte = self.exactly(1)[0]
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        return Packet(first >> 4, first & 15, self.exactly(length))

    def expect(self, kind: int) -> Packet:
        """The next packet, which must be of this kind."""
        packet = self.read()
        assert packet.kind == kind, packet
        return packet

    def quiet(self, seconds: float) -> bool:
        """Whether nothing comes within `seconds`."""
        self.socket.settimeout(seconds)
        try:
            return self.socket.recv(1, socket.MSG_PEEK) == b""
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(SECONDS)

    def puback(self, publish: Packet) -> None:
        self.socket.sendall(bytes([PUBACK << 4, 2]) + publish.packet_id)

    def send(self, topic: str, payload: bytes) -> None:
        """A PUBLISH of QoS 0, without MQTT 5's properties: for a client that speaks 3.1.1."""
        body = len(topic).to_bytes(2, "big") + topic.encode() + payload
        head, length = bytearray([PUBLISH << 4]), len(body)
        while True:
            head.append(length & 127 | (128 if length > 127 else 0))
            length >>= 7
            if not length:
                break
        self.socket.sendall(bytes(head) + body)


class FakeBroker:
    """Listens, and takes one connection after the other."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self._listener.settimeout(SECONDS)
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []

    def accept(self) -> tuple[Peer, int]:
        """The next connection and the protocol level of its CONNECT: 5, or 4 for 3.1.1. One that ends before it was a look whether we listen."""
        while True:
            connection, _ = self._listener.accept()
            self._open.append(connection)
            peer = Peer(connection)
            try:
                packet = peer.expect(CONNECT)
            except EOFError:
                continue
            break
        assert packet.body[:6] == b"\x00\x04MQTT", packet
        return peer, packet.body[6]

    def connect(self, properties: bytes = b"") -> Peer:
        """Takes a connection of MQTT 5 with these properties in the CONNACK."""
        peer, level = self.accept()
        assert level == 5
        peer.socket.sendall(bytes([0x20, 3 + len(properties), 0, 0, len(properties)]) + properties)
        return peer

    def connect_older(self) -> Peer:
        """Takes a connection of MQTT 3.1.1: hangs up on MQTT 5 first."""
        peer, level = self.accept()
        if level == 5:
            peer.socket.close()
            peer, level = self.accept()
        assert level == 4
        peer.socket.sendall(CONNACK[4])
        return peer

    def close(self) -> None:
        for each in [*self._open, self._listener]:
            each.close()
