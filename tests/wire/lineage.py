"""Versions of a federation that follow from each other, for tests."""

import hashlib

import msgspec

from fleetgrad.wire.messages import Head, ObjectRef, Policy, Record

PLAN = ObjectRef(sha256="4" * 64, size=100)


def chain(length: int, salt: str = "") -> tuple[list[Head], list[str]]:
    """The heads of `length` versions and their records."""
    heads: list[Head] = []
    records: list[str] = []
    parent = "0" * 64
    for version in range(length):
        params = ObjectRef(sha256=hashlib.sha256(f"{salt}{version}".encode()).hexdigest(), size=10)
        heads.append(
            Head(
                federation="test", version=version, plan=PLAN, params=params, parent=parent, policy=Policy(),
                seal="1" * 64, boot=1, sequence=version + 1, expires=60.0,
            )
        )  # fmt: skip
        record = Record(
            config="2" * 64, members="3" * 64, params=params.sha256, parent=parent, round=version, version=version
        )
        records.append(msgspec.json.encode(record).decode())
        parent = hashlib.sha256(records[-1].encode()).hexdigest()
    return heads, records
