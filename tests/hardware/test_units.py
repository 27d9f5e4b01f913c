"""The systemd units: systemd accepts them, they are confined, and they start commands that exist."""

import configparser
import re
import subprocess
from pathlib import Path

import pytest

from fleetgrad.hardware.fleet import console_script

FOLDER = Path(__file__).parents[2] / "hardware" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
MOST_EXPOSED = 30  # of 100, by systemd-analyze security; a unit without any confinement has about 96


def service(path: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=True, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser["Service"]


def test_every_part_has_a_unit() -> None:
    assert [u.name for u in UNITS] == [
        "fleetgrad-aggregator.service", "fleetgrad-edge.service", "fleetgrad-registrar.service",
    ]  # fmt: skip


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.name)
def test_a_unit_starts_an_installed_command_and_does_not_repeat_what_settings_forbid(unit: Path) -> None:
    found = service(unit)
    program, *words = found["ExecStart"].split()
    verbs = [w for w in words if w.isalpha()]
    assert Path(program).parent == Path("/opt/fleetgrad/bin")
    done = subprocess.run(
        [console_script(Path(program).name), *verbs, "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert found["RestartPreventExitStatus"] == "2"
    assert found["Restart"] == "always"
    assert found["Type"] == "exec"  # the daemons don't send READY=1
    assert found["WorkingDirectory"] == "/var/lib/" + found["StateDirectory"]
    assert found["WorkingDirectory"] in found["ExecStart"]


@pytest.mark.needs("systemd")
@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.name)
def test_systemd_accepts_a_unit(unit: Path, tmp_path: Path) -> None:
    here = Path(console_script("fleetgrad")).parent
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/fleetgrad/bin", str(here)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, timeout=60, check=False
    )
    ours = [line for line in (done.stdout + done.stderr).splitlines() if unit.name in line]
    assert not ours
    assert done.returncode == 0, done.stderr


@pytest.mark.needs("systemd")
@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.name)
def test_a_unit_is_confined(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager", str(unit)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    overall = re.findall(r"Overall exposure level.*", done.stdout)
    assert done.returncode == 0, overall or done.stderr
