"""A TCP proxy that does to connections what networks do.

    delay        each piece comes later, in order          cut         a part of the next piece arrives, then the end
    rate         so many bytes a second                    reset       RST to both sides at once
    drip         some bytes, a pause, some bytes           half open   one side is told nothing, the other has gone
    black hole   both sides send into nothing

python -m tests.chaos.proxy --listen 2883 --to 127.0.0.1:1883 --seed 7 --every 0.5 --seconds 60     a seeded schedule by itself

A stream that has lost bytes isn't mended: a hole or a half open connection ends with a reset after its time.
"""

import argparse
import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

Kind = Literal["delay", "rate", "drip", "cut", "reset", "half open", "black hole"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PIECE = 16384  # bytes read at a time
DRIP_BYTES, DRIP_SECONDS = 7, 0.02


@dataclass(eq=False, slots=True)
class Link:
    """One connection through the proxy, and what it suffers now."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    fault: Kind | None = None
    amount: float = 0.0  # delay in seconds, rate in bytes a second
    until: float = 0.0

    def reset(self) -> None:
        for writer in (self.near, self.far):
            # Linger 0: the kernel sends RST instead of FIN.
            sock: socket.socket = writer.get_extra_info("socket")
            if sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


@dataclass
class Proxy:
    """Listens on 127.0.0.1; `strike` and `calm` are called in the loop's thread."""

    host: str
    port: int
    random: random.Random
    links: list[Link] = field(default_factory=list)
    struck: Counter[str] = field(default_factory=Counter)
    forwarded: int = 0

    async def listen(self, port: int = 0) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", port)

    def strike(self, kind: Kind, seconds: float = 3.0) -> bool:
        """Makes one connection, chosen at random, suffer; whether there was one that didn't already."""
        free = [link for link in self.links if link.fault is None]
        if not free:
            return False
        link = self.random.choice(free)
        self.struck[kind] += 1
        if kind == "reset":
            link.reset()
            return True
        link.fault, link.until = kind, asyncio.get_running_loop().time() + seconds
        link.amount = self.random.uniform(0.05, 0.5) if kind == "delay" else self.random.uniform(5e3, 1e5)
        if kind == "half open":
            self.random.choice([link.near, link.far]).close()
        if kind in ("cut", "half open", "black hole"):
            asyncio.get_running_loop().call_later(seconds, link.reset)
        return True

    def calm(self) -> None:
        """Nothing suffers any more; what has lost bytes ends."""
        for link in list(self.links):
            if link.fault in ("cut", "half open", "black hole"):
                link.reset()
            link.fault = None

    async def _accept(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        try:
            back, far = await asyncio.open_connection(self.host, self.port)
        except OSError:
            near.transport.abort()
            return
        link = Link(near, far)
        self.links.append(link)
        try:
            await asyncio.gather(self._pump(reader, far, link), self._pump(back, near, link))
        finally:
            self.links.remove(link)
            near.transport.abort()
            far.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
        try:
            while piece := await reader.read(PIECE):
                if link.fault and asyncio.get_running_loop().time() > link.until:
                    link.fault = None
                match link.fault:
                    case "black hole" | "half open":
                        continue
                    case "cut":
                        writer.write(piece[: self.random.randrange(len(piece))])
                        await writer.drain()
                        break
                    case "delay":
                        await asyncio.sleep(link.amount)
                    case "rate":
                        await asyncio.sleep(min(len(piece) / link.amount, 2.0))
                    case "drip":
                        while link.fault == "drip" and len(piece) > DRIP_BYTES:
                            writer.write(piece[:DRIP_BYTES])
                            piece = piece[DRIP_BYTES:]
                            await asyncio.sleep(DRIP_SECONDS)
                            if asyncio.get_running_loop().time() > link.until:
                                break
                writer.write(piece)
                self.forwarded += len(piece)
                await writer.drain()
        except OSError:
            pass
        if link.fault not in ("half open", "black hole"):
            writer.close()


class ProxyThread:
    """A proxy in a thread of its own, for callers without an event loop."""

    def __init__(self, port: int, seed: int) -> None:
        """Forwards to 127.0.0.1:`port`."""
        self.proxy = Proxy("127.0.0.1", port, random.Random(seed))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self.proxy.listen(), self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    def call(self, act: Callable[[], bool | None]) -> bool | None:
        """Runs `act` in the proxy's loop; its result."""

        async def run() -> bool | None:
            return act()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def stop(self) -> None:
        async def end() -> None:
            self._server.close()
            for link in list(self.proxy.links):
                link.reset()
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _alone(options: argparse.Namespace) -> None:
    host, _, port = options.to.rpartition(":")
    rng = random.Random(options.seed)
    proxy = Proxy(host, int(port), rng)
    server = await proxy.listen(options.listen)
    print(f"listening on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    end = asyncio.get_running_loop().time() + options.seconds
    while asyncio.get_running_loop().time() < end:
        await asyncio.sleep(rng.expovariate(1 / options.every))
        kind = rng.choice(options.kinds)
        if proxy.strike(kind, rng.uniform(0.5, 5)):
            print(kind, flush=True)
    proxy.calm()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", type=int, default=0, help="port of 127.0.0.1; 0: any")
    parser.add_argument("--to", default="127.0.0.1:1883", metavar="HOST:PORT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between faults, on average")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    asyncio.run(_alone(parser.parse_args()))


if __name__ == "__main__":
    main()
