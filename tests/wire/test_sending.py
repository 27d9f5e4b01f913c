"""Publishes on their way, without a clock or a socket: window in bytes, token buckets, suspects and parole."""

from fleetgrad.wire.mqtt.profiles import PROFILES, Connack, limits
from fleetgrad.wire.mqtt.sending import PAROLE_SECONDS, STRIKES, SUSPECTS, Bucket, Outgoing, Sending


def publish(payload: bytes = b"x", topic: str = "fl1/t/a") -> Outgoing:
    return Outgoing(topic, payload, 1, False)


def opened(profile: str = "mosquitto") -> Sending:
    sending = Sending()
    sending.opened(limits(PROFILES[profile], Connack()))
    return sending


def let_out(sending: Sending, now: float = 1.0) -> list[Outgoing]:
    """All that may leave now; each gets a packet id."""
    found: list[Outgoing] = []
    while isinstance(taken := sending.take(now), Outgoing):
        sending.sent(1000 * int(now) + len(found), taken)
        found.append(taken)
    return found


def test_the_window_counts_bytes_where_a_broker_does() -> None:
    sending = opened("azure-eventgrid")
    for i in range(5):
        assert sending.offer(publish(b"%d" % i * 28 * 1024), 0.0) == ""
    assert len(let_out(sending)) == 2
    assert sending.acknowledged(1000) is not None
    assert len(let_out(sending, 2.0)) == 1


def test_a_packet_larger_than_the_window_in_bytes_goes_alone() -> None:
    sending = opened("azure-eventgrid")
    sending.offer(publish(), 0.0)
    sending.offer(publish(b"x" * 100_000), 0.0)
    assert len(let_out(sending)) == 1
    sending.acknowledged(1000)
    assert len(let_out(sending, 2.0)) == 1


def test_a_bucket_gives_its_rate_and_a_short_burst() -> None:
    bucket = Bucket(rate=100.0)
    now, given = 10.0, 0
    while now < 20.0:
        wait = bucket.wait(1.0, now)
        if wait > 0:
            now += wait
        else:
            bucket.take(1.0)
            given += 1
    assert 1000 <= given <= 1026


def test_a_bucket_smaller_than_a_message_lets_it_pass_and_then_waits_for_all_of_it() -> None:
    bucket = Bucket(rate=100.0)
    assert bucket.wait(1000.0, 1.0) == 0.0
    bucket.take(1000.0)
    assert bucket.wait(1.0, 1.0) > 9.0


def test_a_suspect_is_sent_alone_and_an_acknowledgement_clears_it() -> None:
    sending = opened()
    batch = [publish(b"%d" % i) for i in range(4)]
    for each in batch:
        sending.offer(each, 0.0)
    assert len(let_out(sending)) == 4
    assert sending.lost(hung_up=True, now=2.0) == []
    sending.opened(limits(PROFILES["mosquitto"], Connack()))
    for each in [*batch, publish(b"new")]:
        sending.offer(each, 2.0)
    for i in range(4):
        assert [p.payload for p in let_out(sending, 3.0 + i)] == [b"%d" % i]
        assert sending.acknowledged(1000 * (3 + i)) is not None
    assert [p.payload for p in let_out(sending, 9.0)] == [b"new"]


def test_a_connection_that_ends_by_itself_makes_no_suspects() -> None:
    sending = Sending()
    for i in range(STRIKES + 1):
        sending.opened(limits(PROFILES["mosquitto"], Connack()))
        assert sending.offer(publish(), 0.0) == ""
        let_out(sending, 1.0 + i)
        assert sending.lost(hung_up=False, now=2.0) == []


def test_who_broke_three_connections_running_is_refused_for_a_while_and_then_tried_again() -> None:
    sending, bad = Sending(), publish(b"bad")
    for i in range(STRIKES):
        sending.opened(limits(PROFILES["mosquitto"], Connack()))
        assert sending.offer(publish(b"bad"), 0.0) == ""
        assert len(let_out(sending, 1.0 + i)) == 1
        guilty = sending.lost(hung_up=True, now=10.0)
        assert [p.key for p in guilty] == ([bad.key] if i == STRIKES - 1 else [])
    sending.opened(limits(PROFILES["mosquitto"], Connack()))
    assert "hung up 3 times" in sending.offer(bad, 11.0)
    assert sending.offer(publish(b"bad", "fl1/t/other"), 11.0) == ""
    assert sending.offer(bad, 10.0 + PAROLE_SECONDS) == ""


def test_a_hang_up_without_it_clears_a_suspect() -> None:
    sending = Sending()
    for i, payload in enumerate([b"bad", b"bad", b"other", b"bad", b"bad"]):
        sending.opened(limits(PROFILES["mosquitto"], Connack()))
        sending.offer(publish(payload), 0.0)
        let_out(sending, 1.0 + i)
        assert sending.lost(hung_up=True, now=2.0) == []


def test_what_is_remembered_of_broken_connections_is_bounded() -> None:
    sending = Sending()
    for i in range(3 * SUSPECTS):
        for j in range(STRIKES):
            sending.opened(limits(PROFILES["mosquitto"], Connack()))
            sending.offer(publish(b"%d" % i), 0.0)
            let_out(sending, 1.0 + 10 * i + j)
            sending.lost(hung_up=True, now=2.0)
    assert len(sending._barred) == SUSPECTS
    assert len(sending._strikes) <= SUSPECTS
