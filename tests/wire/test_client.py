"""What of the client library's insides is relied on, and that another series of it is refused in words."""

import ast
import inspect
import tomllib
from pathlib import Path

import pytest
from paho import mqtt as paho_mqtt
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from fleetgrad.wire import mqtt
from fleetgrad.wire.address import Address
from fleetgrad.wire.mqtt import client

ROOT = Path(__file__).parents[2]
OVERRIDDEN, USED = {"_create_socket", "_handle_publish"}, {"_in_packet", "_send_puback"}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_of_the_librarys_insides_no_more_is_relied_on_than_is_written_down() -> None:
    own = {name for name in vars(client.Client) if private(name)}
    assert {name for name in own if hasattr(paho.Client, name)} == OVERRIDDEN
    tree = ast.parse(Path(client.__file__).read_text())
    assert {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and private(n.attr)} - own == USED
    assert "client._" not in (ROOT / "wire" / "mqtt" / "connection.py").read_text()
    assert all(f"{name}(" in str(client.__doc__) or f"`{name}`" in str(client.__doc__) for name in OVERRIDDEN | USED)


def test_the_library_has_and_calls_them() -> None:
    made = paho.Client(CallbackAPIVersion.VERSION2)
    assert {"command", "packet"} <= set(made._in_packet)
    assert list(inspect.signature(made._send_puback).parameters) == ["mid"]
    source = inspect.getsource(paho.Client)
    for name in OVERRIDDEN:
        assert f"self.{name}()" in source


def test_a_session_refuses_a_library_of_another_series(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("2.1.0", "2.3.0", "2.20.0", "3.2.0"):
        monkeypatch.setattr(paho_mqtt, "__version__", version)
        with pytest.raises(client.LibraryUnfit, match=rf"paho-mqtt {version} is installed, and 2\.2 is needed: pip "):
            mqtt.Session(Address("127.0.0.1", 1), "dev-1", inbox=mqtt.Inbox())


def test_the_package_asks_for_that_series() -> None:
    major, minor = client.SERIES
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"paho-mqtt>={major}.{minor},<{major}.{minor + 1}" in wanted
