"""The C core outside Python: strict warnings, sanitizers, and the same bytes on x86 and on emulated ARM boards."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("vectors")
CORE = (p for p in (ROOT / "native" / "src").rglob("*.c") if p.parent.name != "ort")
SOURCES = sorted(str(p) for p in (*CORE, *PROGRAM.glob("*.c")))
STRICT = [
    "-std=c11",
    "-D_POSIX_C_SOURCE=200809L",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Werror",
    "-ffp-contract=off",
    "-fno-math-errno",
]
# A line a family, as every capability must print it; a change here is a change of the wire format or of results.
GOLDEN = (PROGRAM / "golden.txt").read_text().splitlines()


def build(compiler: str, output: Path, *flags: str) -> Path:
    include = ["-I", str(ROOT / "native" / "include")]
    command = [compiler, *STRICT, *flags, *include, *SOURCES, "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output


def run(*command: str) -> dict[str, list[str]]:
    """Capability -> its lines, one a family."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, text = line.split(" ", 1)
        lines.setdefault(name, []).append(text)
    return lines


def test_the_golden_lines_cover_every_family() -> None:
    assert [line.split()[0] for line in GOLDEN] == [
        "codecs",
        "entropy",
        "gradients",
        "layers",
        "optimizers",
        "recurrent",
    ]


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
def test_every_capability_gives_the_golden_bytes_with_sanitizers_on(tmp_path: Path) -> None:
    program = build("gcc", tmp_path / "vectors", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover")
    lines = run(str(program))
    assert "serial" in lines
    assert {name: text for name, text in lines.items() if text != GOLDEN} == {}


@pytest.mark.needs("qemu")
@pytest.mark.parametrize(("cpu", "best"), [("cortex-a72", "neon"), ("cortex-a76", "neondotprod")])
def test_an_emulated_arm_board_gives_the_golden_bytes(tmp_path: Path, cpu: str, best: str) -> None:
    program = build("aarch64-linux-gnu-gcc", tmp_path / "vectors", "-O3", "-static")
    lines = run("qemu-aarch64-static", "-cpu", cpu, str(program))
    assert list(lines)[-1] == best
    assert {name: text for name, text in lines.items() if text != GOLDEN} == {}
