"""Every MQTT topic of a federation, in one table that both sides, the documentation and the tests read.

A topic is `fl1/{federation}/` and the path of its row. Names (federation, device) are 1 to 64 of a-z, 0-9 and '-': they
can't hold '/', '+' or '#', so no name reaches into another's topics.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

ROOT = "fl1"
NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")

Sender = Literal["device", "aggregator", "registrar", "cosigner"]


class NameRefused(ValueError):
    """A federation's or a device's name that can't be part of a topic."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One row of the table. `qos` is MQTT's; `retained` means that the broker keeps the last message."""

    path: str
    sender: Sender
    qos: int
    retained: bool
    payload: str
    purpose: str


TABLE = {
    "head": Topic("head", "aggregator", 1, True, "JWS", "the release: which model and which round policy"),
    "root": Topic(
        "root/{version}", "aggregator", 1, True, "JWS", "the next root of trust: whose signatures make a head"
    ),
    "object": Topic("m/{sha16}/{index}", "aggregator", 1, True, "frame", "chunks of a plan or a model, by content"),
    "birth": Topic("birth/{device}", "device", 1, False, "JWS", "who is here, which model it holds, what it does"),
    "status": Topic("st/{device}", "device", 1, True, "JSON", "for people and dashboards; last will: offline"),
    "command": Topic("cmd/{device}", "aggregator", 1, False, "JWS", "select, receipt, bitmap, retry-after"),
    "update": Topic("up/{shard}/{device}", "device", 1, False, "frame", "chunks of an update, and queries"),
    "want": Topic("want/{device}", "device", 1, False, "JWS", "chunks of an object that didn't come"),
    "served": Topic("dl/{device}", "aggregator", 1, False, "frame", "the chunks that a device wanted"),
    "member": Topic("reg/{device}", "registrar", 1, True, "JWS", "who belongs: a device's key, or that it was revoked"),
    "renew": Topic("renew/{device}", "device", 1, False, "JWS", "a member asks for its next certificate, or leaves"),
    "issued": Topic("issued/{device}", "registrar", 1, True, "JWS", "a member's next certificate, or that it is due"),
    "enrol": Topic("enrol/{code}", "device", 1, False, "JSON", "who isn't a member yet asks, with a one-time code"),
    "enrolled": Topic("enrolled/{code}", "registrar", 1, False, "JSON", "what is answered"),
    "candidate": Topic("agg/candidate", "aggregator", 1, True, "JWS", "the head to be, for those who must sign it too"),
    "signature": Topic("sig/{kid}", "cosigner", 1, True, "JWS", "that head, signed by one of them"),
    "aggregator": Topic("agg/st", "aggregator", 1, True, "JSON", "state of the round; last will: offline"),
    "metrics": Topic("agg/metrics", "aggregator", 1, True, "JSON", "accuracy, loss and bytes of the last round"),
}


def check_name(name: str, what: str) -> str:
    """Returns `name`, or raises NameRefused that says which letters it may have."""
    if not NAME.fullmatch(name):
        raise NameRefused(
            f"{what} {name[:80]!r} refused: 1 to 64 letters a-z, digits and '-', not starting or ending with '-'"
        )
    return name


@lru_cache(maxsize=4096)
def name_hash(name: str) -> bytes:
    """The 16 bytes that stand for a federation's or a device's name in a frame."""
    return hashlib.sha256(name.encode()).digest()[:16]


def shard_of(device: str, shards: int) -> int:
    """The shard of a device: first byte of SHA-256 of its id, modulo the number of shards (1 to 256)."""
    return hashlib.sha256(device.encode()).digest()[0] % shards


@dataclass(frozen=True, slots=True)
class Topics:
    """Topics of one federation, with names filled in."""

    federation: str

    def __post_init__(self) -> None:
        check_name(self.federation, "federation name")

    def fill(self, row: str, **names: str | int) -> str:
        """The full topic of a row of the table."""
        return f"{ROOT}/{self.federation}/{TABLE[row].path.format(**names)}"

    @property
    def head(self) -> str:
        return self.fill("head")

    def root(self, version: int) -> str:
        return self.fill("root", version=version)

    @property
    def candidate(self) -> str:
        return self.fill("candidate")

    def signature(self, kid: str) -> str:
        return self.fill("signature", kid=check_name(kid, "key id"))

    @property
    def aggregator(self) -> str:
        return self.fill("aggregator")

    @property
    def metrics(self) -> str:
        return self.fill("metrics")

    def object(self, sha256_hex: str, index: int) -> str:
        """Topic of chunk `index` of an object, named by the first 16 hex digits of its SHA-256."""
        return self.fill("object", sha16=sha256_hex[:16], index=index)

    def birth(self, device: str) -> str:
        return self.fill("birth", device=check_name(device, "device id"))

    def status(self, device: str) -> str:
        return self.fill("status", device=check_name(device, "device id"))

    def command(self, device: str) -> str:
        return self.fill("command", device=check_name(device, "device id"))

    def want(self, device: str) -> str:
        return self.fill("want", device=check_name(device, "device id"))

    def served(self, device: str) -> str:
        return self.fill("served", device=check_name(device, "device id"))

    def member(self, device: str) -> str:
        return self.fill("member", device=check_name(device, "device id"))

    def renew(self, device: str) -> str:
        return self.fill("renew", device=check_name(device, "device id"))

    def issued(self, device: str) -> str:
        return self.fill("issued", device=check_name(device, "device id"))

    def enrol(self, code: str) -> str:
        return self.fill("enrol", code=check_name(code, "code's id"))

    def enrolled(self, code: str) -> str:
        return self.fill("enrolled", code=check_name(code, "code's id"))

    def update(self, device: str, shards: int) -> str:
        return self.fill("update", shard=shard_of(device, shards), device=check_name(device, "device id"))

    def every(self, row: str) -> str:
        """MQTT filter for all topics of a row."""
        return self.fill(row, **dict.fromkeys(("sha16", "index", "device", "shard", "code", "version", "kid"), "+"))

    def parts(self, topic: str) -> tuple[str, str]:
        """(row's first path element, last element) of a topic of this federation, or ('', '') if it is none.

        `fl1/demo/up/0/dev-1` gives ('up', 'dev-1').
        """
        prefix = f"{ROOT}/{self.federation}/"
        if not topic.startswith(prefix):
            return "", ""
        path = topic[len(prefix) :].split("/")
        return path[0], path[-1]
