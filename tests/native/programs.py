"""Builds the C core outside Python, for any of the supported compilers and machines, warnings as errors; keeps what is built in build/programs.

What is kept is named by a hash of the sources, the compiler's version and the flags: so nothing is built twice in a run, whichever test or worker
asks first, and nothing stale is ever used.
"""

import fcntl
import hashlib
import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "native"
VECTORS = Path(__file__).with_name("vectors")
BUILT = ROOT / "build" / "programs"
STRICT = (
    "-std=c11",
    "-D_POSIX_C_SOURCE=200809L",
    "-Wall",
    "-Wextra",
    "-Wconversion",
    "-Werror",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-I",
    str(NATIVE / "include"),
)


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A compiler for a machine; `emulator` runs its static programs (None: this machine does)."""

    name: str
    compiler: tuple[str, ...]
    emulator: str | None
    tools: tuple[str, ...]  # of the marker `needs`

    @property
    def flags(self) -> tuple[str, ...]:
        """For the core's objects. gcc's are optimised as in the wheel; clang's less, which compiles in half the time."""
        return (*SHARED, "-O2" if "clang" in self.name else "-O3")


X86_GCC = Toolchain("x86-gcc", ("gcc",), None, ("gcc",))
X86_CLANG = Toolchain("x86-clang", ("clang",), None, ("clang",))
ARM64_GCC = Toolchain("arm64-gcc", ("aarch64-linux-gnu-gcc",), "qemu-aarch64-static", ("qemu",))
ARM64_CLANG = Toolchain(
    "arm64-clang", ("clang", "--target=aarch64-linux-gnu"), "qemu-aarch64-static", ("clang", "qemu")
)
# gcc has NEON for the one file that asks for it, as on any ARMv7 system; clang only for all files.
ARMV7_GCC = Toolchain("armv7-gcc", ("arm-linux-gnueabihf-gcc",), "qemu-arm-static", ("armv7",))
ARMV7_CLANG = Toolchain(
    "armv7-clang",
    ("clang", "--target=arm-linux-gnueabihf", "-march=armv7-a", "-mfpu=neon"),
    "qemu-arm-static",
    ("clang", "armv7"),
)
TOOLCHAINS = (X86_GCC, X86_CLANG, ARM64_GCC, ARM64_CLANG, ARMV7_GCC, ARMV7_CLANG)


def core(*, ort: bool) -> list[Path]:
    """The C core's source files, with or without the custom ops."""
    return sorted(path for path in (NATIVE / "src").rglob("*.c") if ort or path.parent.name != "ort")


@contextmanager
def _folder(name: str, *parts: bytes) -> Iterator[Path]:
    """The folder for what is made of `parts`, held against other workers meanwhile."""
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    folder = BUILT / f"{name}-{digest[:24]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def _content(paths: Iterable[Path]) -> bytes:
    return b"\0".join(str(path).encode() + b"\0" + path.read_bytes() for path in sorted(paths))


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


def compile_objects(toolchain: Toolchain, sources: Sequence[Path], *flags: str) -> list[Path]:
    """One object file per source, in the same order."""
    command = [*toolchain.compiler, *STRICT, *flags]
    version = subprocess.run([*toolchain.compiler, "--version"], capture_output=True, check=True).stdout
    headers = _content({*NATIVE.rglob("*.h"), *(header for path in sources for header in path.parent.glob("*.h"))})
    objects = []
    for source in sources:
        parts = (version, " ".join(command).encode(), headers, _content([source]))
        with _folder(f"{toolchain.name}-{source.stem}", *parts) as folder:
            output, fresh = folder / "code.o", folder / "fresh.o"
            if not output.exists():
                _run([*command, "-c", str(source), "-o", str(fresh)])
                fresh.rename(output)
            objects.append(output)
    return objects


def link(toolchain: Toolchain, output: str, objects: Sequence[Path], *flags: str) -> Path:
    """A program or shared object; its objects' folders carry the hash of what they were made of in their names."""
    command = [*toolchain.compiler, *flags, *(str(path) for path in objects)]
    with _folder(f"{toolchain.name}-{output}", " ".join(command).encode()) as folder:
        linked, fresh = folder / output, folder / "fresh"
        if not linked.exists():
            _run([*command, "-o", str(fresh)])
            fresh.rename(linked)
    return linked


SHARED = ("-fPIC", "-fvisibility=hidden")


def shared_objects(toolchain: Toolchain) -> tuple[Path, Path]:
    """The core alone and the core with the custom ops, each complete in itself: an undefined symbol is an error."""
    whole = ("-shared", "-Wl,-z,defs")
    return (
        link(toolchain, "core.so", compile_objects(toolchain, core(ort=False), *toolchain.flags), *whole),
        link(toolchain, "ops.so", compile_objects(toolchain, core(ort=True), *toolchain.flags), *whole),
    )


def vectors(toolchain: Toolchain) -> Path:
    """The program of tests/native/vectors, static where it is for an emulator, from the same objects as the shared ones."""
    objects = compile_objects(toolchain, core(ort=False), *toolchain.flags)
    objects += compile_objects(toolchain, sorted(VECTORS.glob("*.c")), "-O1")
    return link(toolchain, "vectors", objects, *(("-static",) if toolchain.emulator else ()))


def run_vectors(program: Path, *command: str, **environment: str) -> dict[str, list[str]]:
    """Capability -> its lines, one a family."""
    done = subprocess.run(
        [*command, str(program)], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    lines: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, text = line.split(" ", 1)
        lines.setdefault(name, []).append(text)
    return lines
