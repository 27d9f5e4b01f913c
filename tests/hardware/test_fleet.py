"""The emulated fleet: logs, clear errors, and nothing left behind, even when the starter is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fleetgrad.hardware.fleet import Fleet, FleetError, console_script

WAITS = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)"]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_stop_ends_every_process(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    pids = [fleet.start(name, WAITS).pid for name in ("a", "b")]
    assert all(map(alive, pids))
    fleet.stop()
    assert not any(map(alive, pids))


def test_a_process_that_has_ended_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.start("a", [sys.executable, "-c", "import sys; sys.stderr.write('no disk\\n'); sys.exit(3)"])
    assert fleet.wait("a", 30) == 3
    with pytest.raises(FleetError, match=r"a has ended with code 3:\n  no disk"):
        fleet.check("a")
    fleet.start("b", [sys.executable, "-c", ""])
    assert fleet.wait("b", 30) == 0
    with pytest.raises(FleetError, match="a has ended with code 3"):
        fleet.check("b")
    fleet.stop()


def test_processes_die_with_a_killed_parent(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from fleetgrad.hardware.fleet import Fleet\n"
        f"child = Fleet(Path({str(tmp_path)!r})).start('a', {WAITS!r}); print(child.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    handle = os.pidfd_open(pid)
    assert alive(pid)
    parent.kill()
    parent.wait()
    import select

    assert select.select([handle], [], [], 30)[0], "the child outlived its parent"
    os.close(handle)


def test_a_command_that_is_not_installed_is_named() -> None:
    with pytest.raises(FleetError, match="fleetgrad-nothing isn't installed"):
        console_script("fleetgrad-nothing")


def test_a_broker_that_ends_while_it_is_awaited_is_told(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.start("broker", [sys.executable, "-c", "import sys; sys.exit(5)"])
    with pytest.raises(FleetError, match="broker has ended with code 5"):
        fleet.await_port("broker", 1, seconds=30)
