"""The MQTT session's limits, counted in packets at a broker played byte by byte: window, size, rate, silence, back pressure, poison."""

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from fleetgrad.wire import mqtt
from fleetgrad.wire.address import Address
from fleetgrad.wire.mqtt import backoff as backoff_module
from fleetgrad.wire.mqtt import connection as connection_module
from fleetgrad.wire.mqtt import session as session_module
from fleetgrad.wire.mqtt.profiles import Name
from tests.wire.fake_broker import (
    DISCONNECT,
    PINGREQ,
    PUBLISH,
    SECONDS,
    SUBACK,
    SUBSCRIBE,
    FakeBroker,
    Packet,
    Peer,
)  # fmt: skip

RECEIVE_MAXIMUM, MAXIMUM_PACKET_SIZE, RETAIN_UNAVAILABLE = b"\x21\x00\x03", b"\x27\x00\x00\x04\x00", b"\x25\x00"
CLOSED = bytes([DISCONNECT << 4, 2, 0x80, 0])  # DISCONNECT: unspecified error
TAKEN_OVER = bytes([DISCONNECT << 4, 2, 0x8E, 0])


class Client:
    """A session, its inbox and the broker that it talks to."""

    def __init__(
        self, broker: FakeBroker, profile: Name = "auto", keepalive: int = 60, inbox: mqtt.Inbox | None = None
    ) -> None:
        self.broker, self.inbox = broker, inbox or mqtt.Inbox()
        endpoint = mqtt.Endpoint(Address("127.0.0.1", broker.port), profile=profile, keepalive=keepalive)
        self.session = mqtt.Session(
            endpoint, "dev-1", inbox=self.inbox, random=random.Random(0), first_backoff=0.02, most_backoff=0.05
        )
        self.session.start()

    def up(self, properties: bytes = b"") -> Peer:
        """Connects by MQTT 5."""
        peer = self.broker.connect(properties)
        self.until(mqtt.Connected)
        return peer

    def until(self, kind: type[mqtt.Event]) -> mqtt.Event:
        """The next event of a kind; others are passed over."""
        while True:
            event: mqtt.Event = self.inbox.get(timeout=SECONDS)
            if isinstance(event, kind):
                return event


MakeClient = Callable[..., Client]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeClient]:
    monkeypatch.setattr(session_module, "PROBE_SECONDS", 0.1)
    made: list[Client] = []

    def client(**options: object) -> Client:
        made.append(Client(FakeBroker(), **options))  # type: ignore[arg-type]
        return made[-1]

    yield client
    for each in made:
        each.broker.close()
        each.session.stop()


def test_in_flight_is_never_over_the_window_nor_over_what_the_broker_said(make: MakeClient) -> None:
    for properties, window in ((b"", 8), (RECEIVE_MAXIMUM, 3)):
        client = make()
        peer = client.up(properties)
        for i in range(40):
            assert client.session.publish("fl1/t/a", b"%d" % i)
        first = [peer.expect(PUBLISH) for _ in range(window)]
        assert peer.quiet(0.2)
        peer.puback(first[0])
        peer.expect(PUBLISH)
        assert peer.quiet(0.2)


def test_a_reconnect_replays_nothing_and_keeps_to_the_window(make: MakeClient) -> None:
    client = make()
    peer = client.up()
    for i in range(50):
        client.session.publish("fl1/t/a", b"%d" % i)
    peer.expect(PUBLISH)
    peer.socket.close()
    client.until(mqtt.Disconnected)
    peer = client.up()
    assert peer.quiet(0.2)  # whoever published repeats it, when it is told that the connection is new
    for i in range(50):
        client.session.publish("fl1/t/a", b"again %d" % i)
    for _ in range(8):
        assert peer.expect(PUBLISH).qos == 1
    assert peer.quiet(0.2)


def test_a_full_queue_says_no_and_then_that_there_is_room(make: MakeClient) -> None:
    client = make()
    peer = client.up()
    taken = 0
    while client.session.publish("fl1/t/a", b"x"):
        taken += 1
    assert taken == 64
    for _ in range(32):
        peer.puback(peer.expect(PUBLISH))
    client.until(mqtt.Ready)
    assert client.session.publish("fl1/t/a", b"x")


def test_an_oversize_publish_is_refused_and_never_sent(make: MakeClient) -> None:
    client = make()
    peer = client.up(MAXIMUM_PACKET_SIZE)  # 1,024 bytes
    assert client.session.publish("fl1/t/big", b"x" * 1024)
    assert client.session.publish("fl1/t/small", b"x" * 900)
    refused = client.until(mqtt.Refused)
    assert isinstance(refused, mqtt.Refused)
    assert (refused.topic, refused.size) == ("fl1/t/big", 1024)
    assert "the broker takes 1,024" in refused.reason
    assert peer.expect(PUBLISH).topic == "fl1/t/small"


def test_quality_of_service_2_cannot_be_asked_for(make: MakeClient) -> None:
    client = make()
    peer = client.up()
    with pytest.raises(ValueError, match="QoS 2"):
        client.session.publish("fl1/t/a", b"x", qos=2)
    client.session.publish("fl1/t/a", b"x")
    client.session.subscribe(["fl1/t/b"])
    found = [peer.read(), peer.read()]
    assert all(p.qos == 1 for p in found if p.kind == PUBLISH)
    assert all(p.body[-1] & 3 == 1 for p in found if p.kind == SUBSCRIBE)


def test_nothing_is_retained_on_a_broker_that_retains_nothing(make: MakeClient) -> None:
    client = make()
    peer = client.up(RETAIN_UNAVAILABLE)
    client.session.publish("fl1/t/a", b"x", retain=True)
    assert not peer.expect(PUBLISH).flags & 1


def test_long_lists_of_filters_are_asked_for_in_pieces(make: MakeClient) -> None:
    client = make(profile="aws-iot")
    peer = client.up()
    client.session.subscribe([f"fl1/t/m/{i}" for i in range(20)])
    sizes = [peer.expect(SUBSCRIBE).body.count(b"fl1/t/m/") for _ in range(3)]
    assert sizes == [8, 8, 4]


def test_a_refused_filter_is_named(make: MakeClient) -> None:
    client = make()
    peer = client.up()
    client.session.subscribe(["fl1/t/mine", "fl1/t/yours"])
    asked = peer.expect(SUBSCRIBE)
    peer.socket.sendall(bytes([SUBACK << 4, 5]) + asked.packet_id + b"\x00\x01\x87")
    refused = client.until(mqtt.Refused)
    assert isinstance(refused, mqtt.Refused)
    assert refused.topic == "fl1/t/yours"
    assert "Not authorized" in refused.reason


def test_a_publish_that_the_broker_refuses_is_named(make: MakeClient) -> None:
    client = make()
    peer = client.up()
    client.session.publish("fl1/t/yours", b"123")
    publish = peer.expect(PUBLISH)
    peer.socket.sendall(bytes([0x40, 3]) + publish.packet_id + b"\x87")
    refused = client.until(mqtt.Refused)
    assert isinstance(refused, mqtt.Refused)
    assert (refused.topic, refused.size) == ("fl1/t/yours", 3)
    assert "Not authorized" in refused.reason


def test_what_a_broker_refuses_is_asked_anew_on_another_connection_since_permissions_get_mended(
    make: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(backoff_module, "REFUSED_FIRST", 0.2)
    client = make()
    peer = client.up()
    client.session.publish("fl1/t/yours", b"two")
    client.session.publish("fl1/t/mine", b"one")
    peer.socket.sendall(b"\x40\x03" + peer.expect(PUBLISH).packet_id + b"\x87")
    peer.puback(peer.expect(PUBLISH))
    left = client.until(mqtt.Disconnected)
    assert isinstance(left, mqtt.Disconnected)
    assert "left, to ask anew for what the broker has refused" in left.reason
    peer = client.up()
    assert peer.quiet(0.3)  # with nothing refused a connection stays


@pytest.mark.parametrize("how", ["closes", "sends DISCONNECT"])
def test_a_publish_on_which_the_broker_hangs_up_three_times_is_dropped_and_others_go_on(
    make: MakeClient, how: str
) -> None:
    client, poison = make(), b"poison" * 100
    hang_ups = 0

    def serve(peer: Peer) -> list[Packet]:
        """Takes publishes as a broker does that hangs up on the poison."""
        taken: list[Packet] = []
        while len(taken) < 5:
            packet = peer.expect(PUBLISH)
            if packet.body.endswith(poison):
                if how != "closes":
                    peer.socket.sendall(CLOSED)
                peer.socket.close()
                return []
            taken.append(packet)
            peer.puback(packet)
        return taken

    while True:
        peer = client.up()
        for i in range(2):
            client.session.publish(f"fl1/t/{i}", b"fine")
        client.session.publish("fl1/t/bad", poison)
        for i in range(2, 5):
            client.session.publish(f"fl1/t/{i}", b"fine")
        if serve(peer):
            break
        hang_ups += 1
        client.until(mqtt.Disconnected)
    assert hang_ups == 3
    refused = client.until(mqtt.Refused)
    assert isinstance(refused, mqtt.Refused)
    assert (refused.topic, refused.size) == ("fl1/t/bad", len(poison))


def test_silence_of_one_and_a_half_keepalives_ends_a_connection(make: MakeClient) -> None:
    client = make(keepalive=1)
    peer = client.up()
    peer.expect(PINGREQ)
    peer.socket.sendall(b"\xd0\x00")  # answered once, and then no more: a half-open connection
    peer.expect(PINGREQ)
    down = client.until(mqtt.Disconnected)
    assert isinstance(down, mqtt.Disconnected)
    assert "nothing heard" in down.reason


def test_the_socket_stays_unread_while_the_inbox_is_full(make: MakeClient) -> None:
    client = make(inbox=mqtt.Inbox(most_bytes=10_000, most_messages=1000))
    peer = client.broker.connect_older()
    client.until(mqtt.Connected)
    sent = 0
    peer.socket.settimeout(0.5)
    payload = b"x" * 1000
    with pytest.raises(TimeoutError):  # the kernel's buffers fill up, and then nothing more is taken
        while True:
            peer.send("fl1/t/a", payload)
            sent += 1
    assert sent > 10
    got = 0
    while got < sent:
        event = client.until(mqtt.Message)
        assert isinstance(event, mqtt.Message)
        assert event.payload == payload
        got += 1


def test_a_reader_that_is_slow_gets_all_within_the_bound() -> None:
    inbox = mqtt.Inbox(most_bytes=100, most_messages=3)
    calls: list[int] = []
    inbox.on_room(lambda: calls.append(1))
    for size in (10, 10, 10):
        inbox.put(mqtt.Message("t", b"x" * size, False))
    inbox.put("something else")
    full = [inbox.full]
    assert inbox.get().payload == b"x" * 10
    full.append(inbox.full)
    assert calls == [1]
    inbox.get()
    inbox.put(mqtt.Message("t", b"x" * 95, False))
    full.append(inbox.full)
    assert [type(inbox.get_nowait()) for _ in range(3)] == [mqtt.Message, str, mqtt.Message]
    assert [*full, inbox.full] == [True, False, True, False]


def test_of_a_crowded_topic_what_is_too_much_is_left_out_and_told_once() -> None:
    inbox = mqtt.Inbox()
    inbox.limit("fl1/t/up/", 3)
    flood, other = "fl1/t/up/0/bad", "fl1/t/up/0/good"
    for i in range(10):
        inbox.put(mqtt.Message(flood, b"%d" % i, False))
        inbox.put(mqtt.Message("fl1/t/birth/bad", b"", False))
    inbox.put(mqtt.Message(other, b"", False))
    items = [inbox.get_nowait() for _ in range(3 + 10 + 1 + 1)]
    assert [i.payload for i in items if isinstance(i, mqtt.Message) and i.topic == flood] == [b"0", b"1", b"2"]
    assert [i for i in items if isinstance(i, mqtt.Crowded)] == [mqtt.Crowded(flood, 7)]
    assert items[-1].topic == other
    for _ in range(5):  # what was read makes room
        inbox.put(mqtt.Message(flood, b"", False))
    assert [type(inbox.get_nowait()) for _ in range(4)] == [*[mqtt.Message] * 3, mqtt.Crowded]
    with pytest.raises(queue.Empty):
        inbox.get_nowait()
    assert not inbox.full


def test_a_connection_whose_thread_dies_is_reported_and_made_anew(
    make: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make()
    client.up()

    def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    with monkeypatch.context() as patched:
        patched.setattr(connection_module.Connection, "_hand_over", broken)
        client.session.publish("fl1/t/a", b"x")  # wakes the loop
        down = client.until(mqtt.Disconnected)
    assert isinstance(down, mqtt.Disconnected)
    assert "thread died: RuntimeError: a fault of ours" in down.reason
    client.up()


def test_a_connection_whose_thread_is_stuck_is_given_up_and_made_anew(
    make: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(session_module, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(connection_module, "IDLE_SECONDS", 0.1)
    client = make()
    client.up()
    free = threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(connection_module.Connection, "_hand_over", lambda *_: free.wait(SECONDS) and 0.0)
        client.session.publish("fl1/t/a", b"x")
        down = client.until(mqtt.Disconnected)
    assert isinstance(down, mqtt.Disconnected)
    assert "stuck" in down.reason
    client.up()
    free.set()


def test_the_first_retry_after_a_lost_session_is_spread_over_the_servers_window(make: MakeClient) -> None:
    client = make()
    peer = client.up()
    client.session.backoff.window = 1e6
    peer.socket.close()
    down = client.until(mqtt.Disconnected)
    assert isinstance(down, mqtt.Disconnected)
    assert down.retry_in > 1e3  # back-off alone would give 0.05 s at most


def test_a_session_that_another_one_took_over_says_so_and_stands_back(make: MakeClient) -> None:
    client = make()
    client.up().socket.sendall(TAKEN_OVER)
    down = client.until(mqtt.Disconnected)
    assert isinstance(down, mqtt.Disconnected)
    assert "another connection has taken the name 'dev-1'" in down.reason
    assert 15 <= down.retry_in <= 30


@pytest.mark.parametrize("version", [FakeBroker.connect, FakeBroker.connect_older], ids=["5", "3.1.1"])
def test_a_broker_that_hangs_up_again_and_again_without_a_word_is_asked_about_another_of_the_name(
    make: MakeClient, version: Callable[[FakeBroker], Peer]
) -> None:
    client, reasons = make(), []
    for _ in range(3):
        peer = version(client.broker)
        client.until(mqtt.Connected)
        peer.socket.close()
        down = client.until(mqtt.Disconnected)
        assert isinstance(down, mqtt.Disconnected)
        reasons.append("connect as 'dev-1'?" in down.reason)
    assert reasons == [False, False, True]


@pytest.mark.parametrize("code", [0x89, 0x8B], ids=["busy", "shutting down"])
def test_a_broker_that_says_why_it_hangs_up_is_not_asked_about_another_of_the_name(make: MakeClient, code: int) -> None:
    client = make()
    for _ in range(4):
        client.up().socket.sendall(bytes([DISCONNECT << 4, 2, code, 0]))
        down = client.until(mqtt.Disconnected)
        assert isinstance(down, mqtt.Disconnected)
        assert "connect as" not in down.reason
        assert down.retry_in <= 0.05


def test_rates_are_kept_to(make: MakeClient) -> None:
    client = make(profile="emqx-serverless")  # 10 a second, of which 9 are used
    peer = client.up()
    began = time.monotonic()
    for i in range(8):
        client.session.publish("fl1/t/a", b"%d" % i)
    for _ in range(8):
        peer.puback(peer.expect(PUBLISH))
    assert time.monotonic() - began > 5 / 9  # the first of a burst cost nothing; no upper bound: machines differ
