"""What every suite shares: tools that a test needs, and the seed of this run's sample, hypothesis's too."""

import hashlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

SAMPLE = os.environ.get("FLEETGRAD_SAMPLE", "none")  # 'full', or a text that seeds this run's sample (the commit)
SEED = int.from_bytes(hashlib.sha256(SAMPLE.encode()).digest()[:4], "little")

hypothesis.settings.register_profile(
    "sample", max_examples=2000 if SAMPLE == "full" else 100, deadline=None, database=None, print_blob=True
)
hypothesis.settings.load_profile("sample")

TOOLS: dict[str, Callable[[], bool]] = {
    "nats": lambda: shutil.which("nats-server", path=os.environ.get("PATH", "") + ":/usr/sbin") is not None,
    "rabbitmq": lambda: any(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*")),
    "amqtt": lambda: importlib.util.find_spec("amqtt") is not None,
    "mosquitto": lambda: shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin") is not None,
    "gcc": lambda: shutil.which("gcc") is not None,
    "clang": lambda: shutil.which("clang") is not None,
    "armv7": lambda: bool(shutil.which("qemu-arm-static") and shutil.which("arm-linux-gnueabihf-gcc")),
    "qemu": lambda: bool(shutil.which("qemu-aarch64-static") and shutil.which("aarch64-linux-gnu-gcc")),
    "arm64": lambda: os.geteuid() == 0 and bool(shutil.which("qemu-aarch64-static") and shutil.which("mmdebstrap")),
    "atheris": lambda: importlib.util.find_spec("atheris") is not None,
    "torch": lambda: importlib.util.find_spec("torch") is not None,
    "onnxscript": lambda: importlib.util.find_spec("onnxscript") is not None,
    "tuf": lambda: importlib.util.find_spec("tuf") is not None,
    "hpke": lambda: importlib.util.find_spec("cryptography.hazmat.primitives.hpke") is not None,
    "docker": lambda: shutil.which("dockerd") is not None,
    "systemd": lambda: shutil.which("systemd-analyze") is not None,
}


def required() -> set[str]:
    """Tools that must not be missing: FLEETGRAD_REQUIRE=mosquitto,qemu,..."""
    return {name for name in os.environ.get("FLEETGRAD_REQUIRE", "").split(",") if name}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*tools): skip without these tools, fail if FLEETGRAD_REQUIRE names them")
    if unknown := required() - set(TOOLS):
        raise pytest.UsageError(f"FLEETGRAD_REQUIRE names unknown tools: {', '.join(sorted(unknown))}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Seeds each property from the sample: the same commit draws the same examples."""
    for item in items:
        if SAMPLE != "full" and isinstance(item, pytest.Function) and hypothesis.is_hypothesis_test(item.obj):
            hypothesis.seed(SEED)(item.obj)


def need(tool: str) -> None:
    """Skips the test, or the file that is being imported, without a tool; fails if it is required."""
    if not TOOLS[tool]():
        if tool in required():
            pytest.fail(f"{tool} is missing, and FLEETGRAD_REQUIRE names it", pytrace=False)
        pytest.skip(f"{tool} is not installed", allow_module_level=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for tool in marker.args:
            need(tool)


@pytest.fixture(scope="session")
def sample() -> str:
    """'full', or a text that seeds this run's sample (the commit)."""
    return SAMPLE


@pytest.fixture(scope="session")
def seed() -> int:
    """An integer drawn from the commit; printed by the tests that use it."""
    return SEED


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the data sets (FLEETGRAD_DATA); the test is skipped without it."""
    folder = os.environ.get("FLEETGRAD_DATA")
    if not folder:
        pytest.skip("FLEETGRAD_DATA names no folder of data sets")
    return Path(folder)
