"""Real brokers in a folder of their own, on 127.0.0.1 alone and on free ports: started, killed as a power cut would, started again."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from fleetgrad.hardware.fleet import Fleet, find_mosquitto, free_port
from fleetgrad.wire.mqtt import BrokerSettings
from fleetgrad.wire.mqtt.profiles import Name
from tests.wire.certificates import Authority

START_SECONDS = 90.0  # a hang guard: RabbitMQ takes 14 s on a quiet machine
CLIENTS = ("aggregator", "dev-1", "dev-2", "watch")


@dataclass
class Broker:
    """One broker; `ways` are the settings by which each client reaches it."""

    folder: Path
    fleet: Fleet
    profile: Name = "auto"
    ways: dict[str, BrokerSettings] = field(default_factory=dict)
    down: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prepare()

    def prepare(self) -> None:
        """Chooses ports and writes its files."""
        raise NotImplementedError

    def launch(self) -> None:
        """Starts its processes and returns at once."""
        raise NotImplementedError

    def ready(self) -> None:
        """Waits until it listens."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """Its processes, those that are killed to break it."""
        return ["broker"]

    def start(self) -> None:
        self.launch()
        self.ready()

    def kill(self) -> None:
        self.down = self.names()
        for name in self.down:
            self.fleet.kill(name)

    def everywhere(self, port: int) -> None:
        """All clients come by plain MQTT to one port."""
        way = BrokerSettings(url=f"mqtt://127.0.0.1:{port}", profile=self.profile)
        self.ways = dict.fromkeys(CLIENTS, way)


class Mosquitto(Broker):
    """Plain MQTT to the aggregator, TLS 1.3 with client certificates to devices, wss to who watches.

    Version 2.0.11 sends what is larger than 4 KiB over WebSockets at one message a second (its issue #2252): no device is there.
    """

    more: tuple[str, ...] = ()  # lines of its settings

    def prepare(self) -> None:
        authority = Authority(self.folder / "certificates")
        server = authority.sign("broker")
        self.plain, self.tls, self.wss = (free_port() for _ in range(3))
        self.profile = "mosquitto"
        ca = str(authority.certificate)
        self.ways = {
            "aggregator": BrokerSettings(url=f"mqtt://127.0.0.1:{self.plain}"),
            "watch": BrokerSettings(url=f"wss://127.0.0.1:{self.wss}", ca=ca),
        }
        for name in ("dev-1", "dev-2"):
            pair = authority.sign(name)
            self.ways[name] = BrokerSettings(
                url=f"mqtts://127.0.0.1:{self.tls}", ca=ca, certificate=str(pair.certificate), key=str(pair.key)
            )
        secured = [f"cafile {ca}", f"certfile {server.certificate}", f"keyfile {server.key}", "tls_version tlsv1.3"]
        lines = [
            "per_listener_settings false", "allow_anonymous true", "persistence false",
            *(["user root"] if os.geteuid() == 0 else []),
            f"listener {self.plain} 127.0.0.1",
            f"listener {self.tls} 127.0.0.1", *secured, "require_certificate true",
            f"listener {self.wss} 127.0.0.1", "protocol websockets", *secured,
        ]  # fmt: skip
        (self.folder / "mosquitto.conf").write_text("\n".join([*self.more, *lines]) + "\n")

    def launch(self) -> None:
        path = find_mosquitto()
        assert path
        self.fleet.start("broker", [path, "-c", str(self.folder / "mosquitto.conf")])

    def ready(self) -> None:
        for port in (self.plain, self.tls, self.wss):
            self.fleet.await_port("broker", port)


class Forgetful(Mosquitto):
    """One that retains nothing, and says so in MQTT 5's CONNACK."""

    more = ("retain_available false",)


class Nats(Broker):
    """One nats-server, one device at its MQTT port and one at its WebSockets with TLS; MQTT rests on JetStream, which needs a server_name."""

    nodes = 1

    def prepare(self) -> None:
        self.ports = [free_port() for _ in range(self.nodes)]
        routes = [free_port() for _ in range(self.nodes)]
        self.profile = "nats"
        for i, port in enumerate(self.ports):
            folder = self.folder / f"n{i}"
            lines = [
                f"server_name: n{i}", f"listen: 127.0.0.1:{free_port()}",
                f'jetstream {{ store_dir: "{folder}" }}', f"mqtt {{ listen: 127.0.0.1:{port} }}",
            ]  # fmt: skip
            if self.nodes > 1:
                others = ", ".join(f"nats-route://127.0.0.1:{r}" for r in routes)
                lines.append(f"cluster {{ name: c, listen: 127.0.0.1:{routes[i]}, routes: [{others}] }}")
            (self.folder / f"n{i}.conf").write_text("\n".join(lines) + "\n")
        for i, client in enumerate(CLIENTS):
            self.ways[client] = BrokerSettings(url=f"mqtt://127.0.0.1:{self.ports[i % self.nodes]}", profile="nats")
        if self.nodes == 1:
            self._add_websockets()

    def _add_websockets(self) -> None:
        authority, port = Authority(self.folder / "certificates"), free_port()
        pair = authority.sign("broker")
        with (self.folder / "n0.conf").open("a") as config:
            tls = f'cert_file: "{pair.certificate}", key_file: "{pair.key}"'
            config.write(f"websocket {{ listen: 127.0.0.1:{port}, tls {{ {tls} }} }}\n")
        self.ways["dev-2"] = BrokerSettings(
            url=f"wss://127.0.0.1:{port}", ca=str(authority.certificate), profile="nats"
        )

    def launch(self) -> None:
        path = shutil.which("nats-server", path=os.environ.get("PATH", "") + ":/usr/sbin")
        assert path
        for name in self.down or [f"nats-{i}" for i in range(self.nodes)]:
            self.fleet.start(name, [path, "-c", str(self.folder / f"n{name[-1]}.conf")])

    def ready(self) -> None:
        for i, port in enumerate(self.ports):
            self.fleet.await_port(f"nats-{i}", port, START_SECONDS)

    def names(self) -> list[str]:
        return [f"nats-{i}" for i in range(self.nodes)]


class NatsCluster(Nats):
    """Three of them, each client at another one; it is broken by killing the one of the first device."""

    nodes = 3

    def names(self) -> list[str]:
        return ["nats-1"]


class RabbitMq(Broker):
    """RabbitMQ with its MQTT plugin; Erlang's node name, cookie, port mapper and folders are its own."""

    def prepare(self) -> None:
        self.port, self.mapper = free_port(), free_port()
        self.profile = "rabbitmq"
        self.everywhere(self.port)
        (self.folder / "plugins").write_text("[rabbitmq_mqtt].\n")
        (self.folder / "environment.conf").write_text("")
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{free_port()}\nmqtt.listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "mqtt.allow_anonymous = true\nlog.console = true\nlog.file = false\n"
        )
        self.distribution = free_port()

    def launch(self) -> None:
        f = self.folder
        settings = {
            "HOME": f, "RABBITMQ_NODENAME": f"t{self.port}@localhost", "RABBITMQ_DIST_PORT": self.distribution,
            "RABBITMQ_MNESIA_BASE": f / "mnesia", "RABBITMQ_LOG_BASE": f / "log", "RABBITMQ_ENABLED_PLUGINS_FILE": f / "plugins",
            "RABBITMQ_CONFIG_FILE": f / "rabbitmq.conf", "RABBITMQ_CONF_ENV_FILE": f / "environment.conf",
            "RABBITMQ_PID_FILE": f / "pid", "ERL_EPMD_PORT": self.mapper, "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_ALLOW_INPUT": "1",  # or its script starts the server as a child, which outlives it
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput",
        }  # fmt: skip
        self.fleet.start("mapper", ["epmd", "-port", str(self.mapper), "-address", "127.0.0.1"])
        self.fleet.await_port("mapper", self.mapper)
        script = next(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server"))
        self.fleet.start("broker", ["env", *(f"{k}={v}" for k, v in settings.items()), str(script)])

    def ready(self) -> None:
        self.fleet.await_port("broker", self.port, START_SECONDS)

    def names(self) -> list[str]:
        return ["broker", "mapper"]


class Embedded(Broker):
    """amqtt, which comes with the extra `demo`."""

    def prepare(self) -> None:
        self.port = free_port()
        self.everywhere(self.port)

    def launch(self) -> None:
        self.fleet.embedded_broker(self.port)

    def ready(self) -> None:
        self.fleet.await_port("broker", self.port)
