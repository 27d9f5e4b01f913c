"""One MQTT connection that comes back by itself and hides nothing: `Session`, and the events that it puts into an `Inbox`."""

from fleetgrad.wire.events import Connected, Disconnected, Message
from fleetgrad.wire.mqtt.events import Crowded, Event, Inbox, Ready, Refused
from fleetgrad.wire.mqtt.session import Session, Will
from fleetgrad.wire.mqtt.settings import BrokerSettings, Endpoint

__all__ = [
    "BrokerSettings",
    "Connected",
    "Crowded",
    "Disconnected",
    "Endpoint",
    "Event",
    "Inbox",
    "Message",
    "Ready",
    "Refused",
    "Session",
    "Will",
]
