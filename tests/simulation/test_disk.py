"""The simulated disk itself: it keeps what was synced, and shows that `put` is what makes a file durable."""

import random

import pytest

from fleetgrad.wire.files import DiskError, put
from tests.simulation.disk import Crashed, Disk


def lives(seed: int) -> Disk:
    return Disk(random.Random(seed))


def test_what_was_put_survives_every_power_cut() -> None:
    for seed in range(200):
        disk = lives(seed)
        put(disk, "spool/a", b"first")
        put(disk, "spool/a", b"second, longer")
        put(disk, "b", b"x")
        disk.power_cut()
        assert (disk.read("spool/a"), disk.read("b")) == (b"second, longer", b"x")


def test_a_crash_anywhere_in_a_put_leaves_the_old_file_or_the_new_one() -> None:
    found = set()
    for seed in range(400):
        disk = lives(seed)
        put(disk, "spool/a", b"old")
        left = random.Random(seed).randrange(9)

        def crash(act: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Crashed(act)

        disk.before = crash
        with pytest.raises(Crashed):
            put(disk, "spool/a", b"new and longer")
        disk.power_cut()
        found.add(disk.read("spool/a"))
    assert found == {b"old", b"new and longer"}


def test_what_was_only_written_may_be_whole_torn_empty_or_gone() -> None:
    found = set()
    for seed in range(300):
        disk = lives(seed)
        disk.write("a", b"abc")
        disk.power_cut()
        found.add(disk.read("a") if disk.names("") else None)
    assert {None, b"", b"a", b"ab", b"abc"} <= found


def test_a_rename_without_a_sync_of_the_file_can_leave_a_torn_one() -> None:
    found = set()
    for seed in range(300):
        disk = lives(seed)
        put(disk, "a", b"old")
        disk.write("a.tmp", b"new")
        disk.rename("a.tmp", "a")
        disk.fsync_directory("")
        disk.power_cut()
        found.add(disk.read("a"))
    assert b"n" in found, "the simulation must punish a missing fsync"


def test_a_full_disk_refuses_writes_and_keeps_what_it_has() -> None:
    disk = lives(1)
    put(disk, "a", b"old")
    disk.full = True
    with pytest.raises(DiskError, match="No space left"):
        put(disk, "a", b"new")
    assert disk.read("a") == b"old"
