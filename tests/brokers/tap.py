"""A tap on one client's connections to a broker: it passes every byte on and reads the packets.

in flight    PUBLISH of QoS 1 seen from the client, less PUBACK seen from the broker: never more than the client has in flight
"""

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

from fleetgrad.wire import frames
from tests.wire.fake_broker import PUBACK, PUBLISH, Packet

MOST_FRAME = 1 << 30


class Packets:
    """Takes a stream apart."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> Iterator[Packet]:
        self._rest += piece
        while (end := self._end()) is not None:
            start, stop = end
            yield Packet(self._rest[0] >> 4, self._rest[0] & 15, self._rest[start:stop])
            self._rest = self._rest[stop:]

    def _end(self) -> tuple[int, int] | None:
        """Where the body of the first packet begins and ends, once it is whole."""
        length = 0
        for i, byte in enumerate(self._rest[1:5]):
            length |= (byte & 127) << 7 * i
            if byte < 128:
                return (2 + i, 2 + i + length) if len(self._rest) >= 2 + i + length else None
        return None


class Tap:
    """Listens on `port` and connects to 127.0.0.1:`broker`. `chunks` counts how often each chunk of an update was sent."""

    def __init__(self, broker: int) -> None:
        self._broker = broker
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = self.most_in_flight = 0
        self.chunks: Counter[tuple[bytes, int]] = Counter()
        self.on_chunk: Callable[[frames.Header], None] = lambda header: None  # called before the chunk goes on
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, name="tap", daemon=True).start()

    def cut(self) -> None:
        """Ends the connections under way, and with them what they carried."""
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._broker))
            except OSError:
                near.close()
                continue
            self.connections += 1
            self._open |= {near, far}
            for each in (near, far):  # or each small packet waits for the last one's delayed acknowledgement
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            in_flight: set[bytes] = set()
            for source, target, see in ((near, far, self._from_client), (far, near, self._from_broker)):
                threading.Thread(target=self._pump, args=(source, target, see, in_flight), daemon=True).start()

    def _pump(
        self, source: socket.socket, target: socket.socket, see: Callable[[Packet, set[bytes]], None], in_flight: set[bytes]
    ) -> None:  # fmt: skip
        packets = Packets()
        with suppress(OSError):
            while piece := source.recv(65536):
                for packet in packets.feed(piece):
                    see(packet, in_flight)
                target.sendall(piece)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)
        source.close()

    def _from_client(self, packet: Packet, in_flight: set[bytes]) -> None:
        if packet.kind != PUBLISH or packet.qos == 0:
            return
        in_flight.add(packet.packet_id)
        self.most_in_flight = max(self.most_in_flight, len(in_flight))
        if "/up/" not in packet.topic:
            return
        at = packet.body.index(frames.MAGIC, 4 + len(packet.topic))  # behind MQTT 5's properties
        header, _ = frames.parse(packet.body[at:], most=MOST_FRAME)
        if header.type == frames.UPDATE:
            self.chunks[header.payload_sha256, header.seq] += 1
            self.on_chunk(header)

    def _from_broker(self, packet: Packet, in_flight: set[bytes]) -> None:
        if packet.kind == PUBACK:
            in_flight.discard(packet.body[:2])
