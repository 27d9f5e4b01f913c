"""A Debian arm64 userland with this package and its wheels for aarch64, in build/arm64, whose programs run under qemu-user in a chroot.

    python -m tests.board.arm64 COMMAND ...     runs `/usr/bin/python3.11 COMMAND ...` in it, after making it

Packages are unpacked (mmdebstrap --variant=extract), no script of theirs runs; wheels come from pip's configured index; the C core is cross-compiled.
The root is kept under a hash of what it was made of (this file and the package's requirements); the package's own files are renewed each time.
No binfmt_misc is needed: the emulator is copied into the root and started by name. Needs root, for chroot.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from tests.native import programs

PACKAGES = (
    "python3",
    "libpython3.11-dev",
    "libstdc++6",
    "libgcc-s1",
    "ca-certificates",
    "libffi8",
    "python3-distutils",
)
SUITE = "bookworm"
PYTHON = "3.11"  # Debian bookworm's
PLATFORMS = [f"manylinux_2_{glibc}_aarch64" for glibc in (36, 35, 34, 31, 28, 27, 26, 24, 17)] + [
    "manylinux2014_aarch64"
]
FOR_TESTS = ("pytest", "hypothesis")
BUILT = programs.ROOT / "build" / "arm64"
SITE = Path("opt/site")
PLACE = Path("srv")  # of the repository's tests in the root
EMULATOR = "qemu-aarch64-static"
ROOMS = ("native", "wire", "edge", "broker", "hardware")


def usable() -> bool:
    """Whether this machine can make the userland and run it."""
    tools = (EMULATOR, "aarch64-linux-gnu-gcc", "mmdebstrap", "chroot")
    return os.geteuid() == 0 and all(shutil.which(tool, path=os.environ["PATH"] + ":/usr/sbin") for tool in tools)


def requirements() -> list[str]:
    """What the package needs on a device, and what its tests need."""
    project = tomllib.loads((programs.ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *FOR_TESTS]


def make() -> Path:
    """The root folder, with the package as it is in the working tree."""
    key = hashlib.sha256(Path(__file__).read_bytes() + "\0".join(requirements()).encode()).hexdigest()[:16]
    root = BUILT / key
    BUILT.mkdir(parents=True, exist_ok=True)
    with (BUILT / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            fresh = BUILT / "fresh"
            shutil.rmtree(fresh, ignore_errors=True)
            _unpack(fresh)
            fresh.rename(root)
        _install(root)
    return root


def _call(*command: str) -> None:
    done = subprocess.run(command, cwd=programs.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def _unpack(root: Path) -> None:
    """Debian's packages, the wheels and the emulator."""
    _call("mmdebstrap", "--arch=arm64", "--variant=extract", f"--include={','.join(PACKAGES)}", SUITE, str(root))
    _call(
        sys.executable, "-m", "pip", "install", "--quiet", "--target", str(root / SITE), "--only-binary=:all:",
        "--implementation=cp", f"--python-version={PYTHON}", "--abi=cp311", "--abi=abi3", "--abi=none",
        *(f"--platform={platform}" for platform in PLATFORMS), *requirements(),
    )  # fmt: skip
    emulator = shutil.which(EMULATOR)
    assert emulator is not None
    shutil.copy(emulator, root / "usr/bin" / EMULATOR)
    for folder in ("proc", "sys", "dev", "tmp", PLACE):
        (root / folder).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    for node, minor in (("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)):
        if not (root / "dev" / node).exists():
            os.mknod(root / "dev" / node, 0o20666, os.makedev(1, minor))


def _install(root: Path) -> None:
    """The package's Python files, and the C core as cffi's extension module."""
    package = root / SITE / "fleetgrad"
    shutil.rmtree(package, ignore_errors=True)
    for room in ROOMS:
        shutil.copytree(
            programs.ROOT / room, package / room, ignore=shutil.ignore_patterns("*.so", "__pycache__", "src", "include")
        )
    tests = root / PLACE / "tests"
    shutil.rmtree(tests, ignore_errors=True)
    shutil.copytree(programs.ROOT / "tests", tests, ignore=shutil.ignore_patterns("__pycache__", "corpus"))
    shutil.copy(programs.ROOT / "pyproject.toml", root / PLACE)
    generated = root / PLACE / "_core.c"
    _call(
        sys.executable, "-c", "import runpy, sys; runpy.run_path('native/build_kernels.py')['ffibuilder'].emit_c_code(sys.argv[1])",
        str(generated),
    )  # fmt: skip
    objects = programs.compile_objects(programs.ARM64_GCC, programs.core(ort=True), *programs.ARM64_GCC.flags)
    _call(
        *programs.ARM64_GCC.compiler, "-O2", "-fPIC", "-shared", "-DPy_LIMITED_API=0x030b0000", "-Inative/include",
        f"-I{root}/usr/include/python{PYTHON}", f"-I{root}/usr/include", str(generated), *map(str, objects),
        "-o", str(package / "native" / "_core.abi3.so"),
    )  # fmt: skip


def command(root: Path, arguments: Sequence[str]) -> list[str]:
    """The command line that runs Python in the root."""
    return ["chroot", str(root), f"/usr/bin/{EMULATOR}", f"/usr/bin/python{PYTHON}", *arguments]


def run(root: Path, arguments: Sequence[str], *, cpu: str = "cortex-a72", timeout: float) -> str:
    """What Python in the root prints; folder PLACE holds the repository's tests. Fails the test that asked where its exit code isn't 0."""
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": f"/{SITE}:/{PLACE}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "QEMU_CPU": cpu,
        "HOME": "/tmp",
    }
    done = subprocess.run(
        command(root, arguments), env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"python {' '.join(arguments)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


if __name__ == "__main__":
    print(run(make(), sys.argv[1:], timeout=3600), end="")
