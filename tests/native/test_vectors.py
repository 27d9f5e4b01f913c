"""Every kernel gives the same bytes under sanitizers, on x86 and on emulated ARM boards, each with the instruction sets that it has."""

import pytest

from fleetgrad.native import binding
from tests.native import programs

# A line a family, as every capability must print it; a change here is a change of the wire format or of results.
GOLDEN = (programs.VECTORS / "golden.txt").read_text().splitlines()
# What gcc can't unroll between the sanitizers' checks it warns of; test_compilers.py is where warnings are errors.
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover", "-Wno-error")

# What a capability needs beyond NEON, and what the emulated processors have: the kernel's names in /proc/cpuinfo.
FEATURES = {"neon": set[str](), "neondotprod": {"asimddp"}, "neoni8mm": {"asimddp", "i8mm"}}
ARMV8 = {
    "cortex-a53": set[str](),  # Raspberry Pi 3
    "cortex-a72": set[str](),  # Raspberry Pi 4
    "cortex-a76": {"asimddp"},  # Raspberry Pi 5
    "max": {"asimddp", "i8mm"},
}
ARMV7 = ("cortex-a7", "cortex-a9", "cortex-a15")  # Raspberry Pi 2, and what 32-bit boards have


def test_the_golden_lines_cover_every_family() -> None:
    families = [path.stem for path in sorted(programs.VECTORS.glob("*.c")) if path.stem != "main"]
    assert [line.split()[0] for line in GOLDEN] == families


@pytest.mark.needs("gcc")
def test_every_capability_gives_the_golden_bytes_with_sanitizers_on() -> None:
    sources = [*programs.core(ort=False), *sorted(programs.VECTORS.glob("*.c"))]
    objects = programs.compile_objects(programs.X86_GCC, sources, "-O1", *SANITIZERS)
    lines = programs.run_vectors(programs.link(programs.X86_GCC, "vectors", objects, *SANITIZERS))
    assert tuple(lines) == binding.capabilities()
    assert {name: text for name, text in lines.items() if text != GOLDEN} == {}


@pytest.mark.needs("qemu")
@pytest.mark.parametrize("cpu", ARMV8)
def test_an_emulated_armv8_board_runs_what_its_processor_has_and_gives_the_golden_bytes(cpu: str) -> None:
    neon = [name for name in binding.CAPABILITIES if name.startswith("neon")]
    lines = programs.run_vectors(programs.vectors(programs.ARM64_GCC), "qemu-aarch64-static", QEMU_CPU=cpu)
    assert list(lines) == ["serial", *(name for name in neon if FEATURES[name] <= ARMV8[cpu])]
    assert {name: text for name, text in lines.items() if text != GOLDEN} == {}


@pytest.mark.needs("armv7")
@pytest.mark.parametrize("cpu", ARMV7)
def test_an_emulated_armv7_board_runs_neon_and_gives_the_golden_bytes(cpu: str) -> None:
    lines = programs.run_vectors(programs.vectors(programs.ARMV7_GCC), "qemu-arm-static", QEMU_CPU=cpu)
    assert list(lines) == ["serial", "neon"]
    assert {name: text for name, text in lines.items() if text != GOLDEN} == {}
