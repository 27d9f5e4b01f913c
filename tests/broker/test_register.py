"""The registrar's database, damaged: refused in words, and what is read of it is of the types that were written."""

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fleetgrad.broker.registrar.register import FILE, Code, Device, Register, RegisterError
from fleetgrad.wire.files import DiskError

DEVICES = [Device(f"dev-{i}", "ab" * 32, i, 2_000_000_000, i == 2, statement=b"{}") for i in range(6)]
CODES = [Code(f"code-{i}", b"k" * 32, 2_000_000_000 + i, i == 1) for i in range(4)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A register with members and codes, closed."""
    register = Register(tmp_path)
    with register.transaction():
        for device in DEVICES:
            register.put(device)
            register.add_certificate(device.serial + 2**70, device.name, device.not_after, "pem", "request")
        for code in CODES:
            register.put_code(code)
    register.close()
    return tmp_path / FILE


def read(path: Path) -> tuple[list[Device], list[Code]]:
    """All that it holds, by each way to ask for it."""
    with closing(Register(path.parent)) as register:
        for device in DEVICES:
            register.device(device.name)
        for code in CODES:
            register.code(code.id)
        register.revoked_serials()
        return register.devices(), register.codes()


def test_what_was_put_comes_back(path: Path) -> None:
    assert read(path) == (DEVICES, CODES)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE devices SET name = NULL WHERE name = 'dev-1'",
        "UPDATE devices SET not_after = 'never' WHERE name = 'dev-1'",
        "UPDATE devices SET key = x'00ff' WHERE name = 'dev-1'",
        "UPDATE codes SET expires = 1.5 WHERE id = 'code-0'",
        "UPDATE codes SET reason = CAST(x'e9' AS TEXT) WHERE id = 'code-0'",
        "UPDATE certificates SET serial = 'none' WHERE device = 'dev-2'",
    ],
)
def test_a_value_that_is_never_written_is_damage(path: Path, damage: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(damage)
    with pytest.raises(RegisterError, match=f"register {path}"):
        read(path)


def test_a_flipped_bit_is_refused_in_words_or_read_as_values_of_the_same_types(path: Path, seed: int) -> None:
    print(f"seed {seed}")
    dice, whole, refused = random.Random(seed), path.read_bytes(), 0
    for _ in range(100):
        raw = bytearray(whole)
        raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
        path.write_bytes(raw)
        for side in ("-wal", "-shm"):
            path.with_name(path.name + side).unlink(missing_ok=True)
        try:
            devices, codes = read(path)
        except (RegisterError, DiskError):  # the disk's, where SQLite takes a damaged page for a failed read
            refused += 1
        else:
            assert all(isinstance(d.name, str) and isinstance(d.statement, bytes) for d in devices)
            assert all(isinstance(c.key, bytes) and isinstance(c.auto, bool) for c in codes)
    print(f"{refused} refused")
