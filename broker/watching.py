"""Follows a federation's MQTT topics and keeps what they last said: the one source of `watch`, `status` and the demo."""

import queue
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text

from fleetgrad.wire import mqtt
from fleetgrad.wire.address import Address
from fleetgrad.wire.messages import AggregatorStatus, DeviceStatus, Metrics
from fleetgrad.wire.strict import MALFORMED
from fleetgrad.wire.topics import Topics

SETTLE_SECONDS, SETTLE_MOST = 0.3, 1.5
STATE_STYLES = {"training": "cyan", "uploading": "magenta", "offline": "red", "refused": "red", "fetching": "yellow"}
NARROW = 100  # columns of a terminal
COUNTERS = ("samples", "bits", "sent", "received", "updates", "spooled", "resent")


class WatchError(ConnectionError):
    """No broker, or nobody there who says anything."""


@dataclass(slots=True)
class View:
    """What the topics last said."""

    aggregator: AggregatorStatus | None = None
    devices: dict[str, DeviceStatus] = field(default_factory=dict)
    metrics: dict[int, Metrics] = field(default_factory=dict)

    def take(self, topics: Topics, topic: str, payload: bytes) -> bool:
        """Takes one message; whether it was one of ours."""
        kind, last = topics.parts(topic)
        try:
            if kind == "st":
                self.devices[last] = msgspec.json.decode(payload, type=DeviceStatus)
            elif topic == topics.aggregator:
                self.aggregator = msgspec.json.decode(payload, type=AggregatorStatus)
            elif topic == topics.metrics:
                row = msgspec.json.decode(payload, type=Metrics)
                self.metrics[row.round] = row
            else:
                return False
        except MALFORMED:
            return False
        return True


class Watch:
    """A connection that only listens."""

    def __init__(self, broker: mqtt.Endpoint | Address, federation: str) -> None:
        self.topics, self.view = Topics(federation), View()
        self._inbox = mqtt.Inbox()
        self._address = broker.address if isinstance(broker, mqtt.Endpoint) else broker
        name = f"watch-{secrets.token_hex(6)}"
        self._session = mqtt.Session(broker, name, inbox=self._inbox)

    def __enter__(self) -> "Watch":
        self._session.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._session.stop()

    def step(self, seconds: float) -> mqtt.Event | None:
        """Waits up to `seconds` for one event and takes it into the view; None if nothing came."""
        try:
            event: mqtt.Event = self._inbox.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None
        if isinstance(event, mqtt.Connected):
            self._session.subscribe([self.topics.every("status"), self.topics.aggregator, self.topics.metrics])
        elif isinstance(event, mqtt.Message):
            self.view.take(self.topics, event.topic, event.payload)
        return event

    def settle(self) -> None:
        """Takes what is retained: until SETTLE_SECONDS pass without a message, or SETTLE_MOST with."""
        end = time.monotonic() + SETTLE_MOST
        while time.monotonic() < end and self.step(SETTLE_SECONDS) is not None:
            continue

    def until(self, done: Callable[[View], bool], seconds: float) -> None:
        """Follows until `done`; raises WatchError after `seconds`, with the connection's last word."""
        end, reason = time.monotonic() + seconds, f"{self._address}: nothing was heard of the federation"
        while not done(self.view):
            if (left := end - time.monotonic()) <= 0:
                raise WatchError(f"{reason} within {seconds:g} s")
            event = self.step(left)
            if isinstance(event, mqtt.Disconnected):
                reason = event.reason


def shown(said: str, style: str = "") -> Text:
    """What anyone may have published, for a terminal: no markup, and no control characters."""
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in said), style)


class DevicesTable:
    """A line per device; in a narrow terminal what its counters say is left out, so that names and reasons aren't cut."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> RenderResult:
        narrow = options.max_width < NARROW
        names = (
            "device", "state", "round", "loss", "samples", "bits", "sent", "received", "updates", "spooled", "resent", "reason",
        )  # fmt: skip
        left = [i for i, name in enumerate(names) if not (narrow and name in COUNTERS)]
        table = Table(*(Column(names[i], no_wrap=names[i] == "device", overflow="fold") for i in left), box=None)
        for name, d in sorted(self._view.devices.items()):
            row = (
                shown(name), shown(d.state, STATE_STYLES.get(d.state, "")), str(d.round or ""), "" if d.loss is None else f"{d.loss:.4f}", str(d.samples),
                "" if d.bits is None else f"{d.bits:.2f}", size(d.bytes_up), size(d.bytes_down), str(d.updates), str(d.spooled), str(d.resent), shown(d.reason),
            )  # fmt: skip
            table.add_row(*(row[i] for i in left))
        yield table


def headline(view: View) -> str:
    """The aggregator in one line."""
    a = view.aggregator
    if a is None:
        return "aggregator: not heard of yet"
    where = f"round {a.round} of {a.rounds}, attempt {a.attempt}: " if a.round else ""
    away = ", ".join(f"{count} {kind}" for kind, count in a.turned_away.items())
    return (
        f"{a.federation}: {where}{a.state}, {a.received} of {a.goal} updates, version {a.version}, {a.members} devices"
        + (f"; turned away: {away}" if away else "")
        + (
            f"; the newest head waits for {a.signatures_missing} more of the signatures of {', '.join(a.unsigned_by)}"
            if a.unsigned_by
            else ""
        )
        + (f"; two boards seem to use the identity of {', '.join(a.clones)}" if a.clones else "")
    )


def size(count: int) -> str:
    """Bytes for people: 1.2 MB."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
