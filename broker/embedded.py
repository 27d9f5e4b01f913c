"""The embedded broker (amqtt, MQTT 3.1.1): for demos and tests where mosquitto isn't installed. It listens on 127.0.0.1
alone and forgets everything when it ends.

    python -m fleetgrad.broker.embedded --port 1883
"""

import argparse
import asyncio
import logging
import signal
import sys

PLUGINS = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}


async def serve(port: int) -> None:
    """Serves until SIGTERM or SIGINT; raises OSError when the port is taken."""
    from amqtt.broker import Broker
    from amqtt.errors import BrokerError

    broker = Broker({"listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}}, "plugins": PLUGINS})
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        await broker.start()
    except BrokerError as e:
        raise OSError(f"the embedded broker can't listen on 127.0.0.1:{port}: {e}") from e
    await stopping.wait()
    await broker.shutdown()


def main() -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(description="MQTT 3.1.1 broker on 127.0.0.1 for demos and tests")
    parser.add_argument("--port", type=int, required=True)
    logging.basicConfig(level=logging.CRITICAL)  # its faults are told in one line below
    try:
        asyncio.run(serve(parser.parse_args().port))
    except OSError as e:
        sys.stderr.write(f"fleetgrad: {e}\n")
        return 2
    except ImportError as e:
        sys.stderr.write(
            f"fleetgrad: the embedded broker needs the extra 'demo': pip install 'fleetgrad[demo]' ({e})\n"
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
