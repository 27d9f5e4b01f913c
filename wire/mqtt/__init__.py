"""One MQTT connection that comes back by itself and hides nothing: `Session`, and the events that it puts into an `Inbox`."""

from fleetgrad.wire.mqtt.events import Down, Event, Inbox, Message, Ready, Refused, Up
from fleetgrad.wire.mqtt.session import Session, Will
from fleetgrad.wire.mqtt.settings import BrokerSettings, Endpoint

__all__ = [
    "BrokerSettings",
    "Down",
    "Endpoint",
    "Event",
    "Inbox",
    "Message",
    "Ready",
    "Refused",
    "Session",
    "Up",
    "Will",
]
