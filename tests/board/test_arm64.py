"""The package on an arm64 system, with aarch64 wheels under emulation, against x86: decoding and merging to the byte, training within tolerance."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fleetgrad.edge.autodiff import zoo
from fleetgrad.edge.autodiff.compiling import compile_model
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.wire.codecs import decode_payload, encode_payload
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import NAMES
from fleetgrad.wire.plan import Gradients
from tests.board import arm64, replay
from tests.native.test_vectors import ARMV8, FEATURES

pytestmark = pytest.mark.needs("arm64")

RTOL = 1e-4  # of a step: onnxruntime's float kernels add in another order on each architecture
CPUS = ("cortex-a72", "cortex-a76")
# Suites of the C core's faces that compile nothing and need no second package, in groups that take about as long under emulation.
COMPILE_FREE = (
    ("test_kernels.py", "test_blk4.py", "test_rotation.py", "test_ring.py"),
    ("test_plain.py", "test_entropy.py", "test_topk.py", "test_lossless.py"),
)
LEFT_OUT = (
    "mean_of", "theory", "on_average", "rate", "feedback",  # statistics over many runs: they say nothing about a machine
    "1048577", "65537", "serial-",  # slow, and no other code than smaller vectors or x86's serial kernels run
    "environment",  # starts Python anew, which without binfmt_misc only this machine's kernel could run
)  # fmt: skip


@pytest.fixture(scope="session")
def root() -> Path:
    return arm64.make()


def record(folder: Path, gradients: Gradients) -> Path:
    """A plan, and three devices' updates of heavy-tailed noise in every codec, made on this machine."""
    compile_model(zoo.digits_cnn(), loss="cross-entropy", gradients=gradients, output=folder / "plan")
    layout = VectorLayout.of(open_plan(folder / "plan").manifest)
    for name in NAMES:
        for number, device in enumerate(("dev-1", "dev-2", "dev-3")):
            rng = np.random.default_rng(number)
            delta = (rng.standard_normal(layout.count) ** 3 * 1e-3).astype(np.float32)
            delta[(np.arange(layout.count) // 200) % 3 == 0] = 0
            layout.clear_padding(delta)
            payload = encode_payload(
                replay.spec_of(name), layout, delta, keys=replay.keys_of(device), weight=100 + number, steps=5, loss=0.5
            )
            (folder / f"{name}.{device}.payload").write_bytes(payload)
    return folder


@pytest.fixture(scope="module", params=["fp32", "int8"])
def recorded(request: pytest.FixtureRequest, root: Path) -> Path:
    """Recorded files, in a folder of the root."""
    folder = root / arm64.PLACE / f"recorded-{request.param}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return record(folder, request.param)


def inside(root: Path, path: Path) -> str:
    """The path as programs in the root see it."""
    return f"/{path.relative_to(root)}"


def test_decoded_updates_merged_models_and_a_step_are_those_of_x86(root: Path, recorded: Path) -> None:
    here = replay.replay(recorded)
    replay.step(recorded, recorded / "x86")
    assert len(here) == len(NAMES) * 4
    expected = np.load(recorded / "x86" / "step.npz")
    layout = VectorLayout.of(open_plan(recorded / "plan").manifest)
    for cpu in CPUS:
        output = recorded / cpu
        arguments = [f"/{arm64.PLACE}/tests/board/replay.py", inside(root, recorded), inside(root, output)]
        said = json.loads(arm64.run(root, arguments, cpu=cpu, timeout=300).splitlines()[-1])
        best = [name for name, needs in FEATURES.items() if needs <= ARMV8[cpu]][-1]
        assert said["capability"] == best
        assert said["hashes"] == here
        found = np.load(output / "step.npz")
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=RTOL)
        error = np.linalg.norm(found["delta"] - expected["delta"]) / np.linalg.norm(expected["delta"])
        print(f"{cpu}: the step differs by {error:.1e} of its norm")
        assert error < RTOL
        decoded = np.empty(layout.count, np.float32)
        payload = (output / "own.bin").read_bytes()
        decode_payload(payload, replay.spec_of(replay.OWN), layout, replay.keys_of("own"), decoded)
        np.testing.assert_array_equal(decoded, found["decoded"], err_msg="its own update, decoded there and here")


@pytest.mark.parametrize("suites", COMPILE_FREE, ids=["fixed", "variable"])
def test_the_suites_that_compile_nothing_pass_on_arm64(root: Path, suites: tuple[str, ...]) -> None:
    said = arm64.run(
        root,
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", f"not ({' or '.join(LEFT_OUT)})", "-x"]
        + [f"/{arm64.PLACE}/tests/native/{name}" for name in suites],
        cpu="cortex-a76", timeout=600,
    )  # fmt: skip
    print(said)
    assert " passed" in said


def test_the_replay_fails_where_one_bit_of_an_update_differs(recorded: Path) -> None:
    path = recorded / "raw32.dev-1.payload"
    before, original = replay.replay(recorded), path.read_bytes()
    exponent = len(original) - 4 * VectorLayout.of(open_plan(recorded / "plan").manifest).count + 4 * 300 + 3
    try:
        path.write_bytes(original[:exponent] + bytes([original[exponent] ^ 1]) + original[exponent + 1 :])
        after = replay.replay(recorded)
    finally:
        path.write_bytes(original)
    assert {key for key in before if before[key] != after[key]} == {"raw32.dev-1", "raw32 merged"}
