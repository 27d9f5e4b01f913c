"""Broker addresses: what is taken, what is refused and why, and that what can be read stays on this machine."""

import pytest

from fleetgrad.wire.address import Address, AddressRefused, check_plain, parse


@pytest.mark.parametrize(
    ("url", "address", "loopback"),
    [
        ("mqtt://127.0.0.1", Address("127.0.0.1", 1883), True),
        ("mqtt://127.9.9.9:5/", Address("127.9.9.9", 5), True),
        ("mqtt://localhost:1884", Address("localhost", 1884), True),
        ("mqtt://[::1]:1885", Address("::1", 1885), True),
        ("mqtt://192.168.1.4", Address("192.168.1.4", 1883), False),
        ("mqtt://broker.example", Address("broker.example", 1883), False),
        ("mqtt://localhost.example", Address("localhost.example", 1883), False),
        ("mqtts://192.168.1.4", Address("192.168.1.4", 8883, "mqtts"), False),
        ("ws://127.0.0.1", Address("127.0.0.1", 80, "ws", "/mqtt"), True),
        ("ws://broker.example:9001/", Address("broker.example", 9001, "ws", "/mqtt"), False),
        ("wss://broker.example", Address("broker.example", 443, "wss", "/mqtt"), False),
        ("wss://[::2]:9/some/where", Address("::2", 9, "wss", "/some/where"), False),
    ],
)
def test_an_address_is_read_and_known_to_be_this_machine_or_not(url: str, address: Address, loopback: bool) -> None:
    assert parse(url) == address
    assert address.loopback is loopback
    assert parse(str(address)) == address
    check_plain(address, insecure=True)
    if loopback or address.tls:
        check_plain(address, insecure=False)
    else:
        with pytest.raises(AddressRefused, match="--insecure"):
            check_plain(address, insecure=False)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "expected mqtt, mqtts"), ("127.0.0.1", "expected mqtt, mqtts"), ("http://a", "expected mqtt, mqtts"), ("mqtt://", "expected"),
        ("mqtt://a:99999", "Port out of range"), ("mqtt://a:x", "Port could not"),
        ("mqtt://u:p@a", "user name and password"), ("mqtt://a/topic", "only a host"), ("mqtt://a?x=1", "only a host"), ("mqtt://[::1", "IPv6"),
        ("mqtts://a/topic", "only a host"), ("ws://a/b?c", "a path can"), ("wss://a/b c", "printable"),
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_used_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(AddressRefused, match=reason):
        parse(url)
