"""The trainer as a real process: killed, it repeats its payload byte for byte; what it can't do it says in one reply."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from fleetgrad.edge.autodiff import zoo
from fleetgrad.edge.autodiff.compiling import compile_model
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.wire import bundle, plan
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.messages import Policy
from fleetgrad.wire.seal import SealKey

SEAL = SealKey.from_bytes(bytes(range(32)))


class Child:
    """A trainer and its pipes. Its allocator gives free memory back at once, so that what lies there is what the trainer holds."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fleetgrad.edge.trainer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={**os.environ, "MALLOC_TRIM_THRESHOLD_": "131072"},
        )  # fmt: skip

    def ask(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(request) + b"\n")
        self.process.stdin.flush()

    def reply(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = msgspec.json.decode(self.process.stdout.readline())
        return found

    def resident(self) -> int:
        """Its bytes in memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * 4096

    def last(self) -> dict[str, Any]:
        while (reply := self.reply())["kind"] == "progress":
            continue
        return reply


def test_a_trainer_whose_daemon_has_gone_ends_without_a_word(request_: dict[str, Any]) -> None:
    """As the kernel's signal at the daemon's death, should that come later than the next reply."""
    trainer = subprocess.Popen(
        [sys.executable, "-m", "fleetgrad.edge.trainer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert trainer.stdin
    assert trainer.stdout
    trainer.stdout.close()
    trainer.stdin.write(msgspec.json.encode(request_ | {"params": "objects/none"}) + b"\n")
    trainer.stdin.flush()
    assert trainer.stderr
    said = trainer.stderr.read()
    assert (trainer.wait(), b"Traceback" in said) == (0, False), said


def unsealed(reply: dict[str, Any]) -> dict[str, Any]:
    """A reply without what the sealing makes different each time."""
    return {k: v for k, v in reply.items() if k != "sha256"}


@pytest.fixture
def child() -> Iterator[Child]:
    made = Child()
    yield made
    made.process.kill()
    made.process.wait()


@pytest.fixture
def request_(tmp_path: Path) -> dict[str, Any]:
    compile_model(zoo.mlp(inputs=8, classes=3), loss="cross-entropy", output=tmp_path / "plan")
    opened = open_plan(tmp_path / "plan")
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "aa").write_bytes(bundle.pack(tmp_path / "plan"))
    (tmp_path / "objects" / "bb").write_bytes(opened.initial_parameters()[: opened.manifest.travels].tobytes())
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.random((300, 8)), y=rng.integers(0, 3, 300))
    return {
        "round": 3, "attempt": 1, "plan": "objects/aa", "params": "objects/bb", "policy": Policy(local_epochs=30),
        "seed": 1, "keys": {"own": 2, "shared": 3}, "output": "updates/3-1.sealed", "seal": SEAL.public.hex(), "sealed-with": b"header".hex(),
        "spool": str(tmp_path),
        "data": {"path": str(tmp_path / "data.npz")}, "threads": 1,
    }  # fmt: skip


def test_a_trainer_killed_while_it_trains_repeats_its_payload_byte_for_byte(
    child: Child, request_: dict[str, Any], tmp_path: Path
) -> None:
    sealed = tmp_path / "updates" / "3-1.sealed"
    child.ask(request_)
    first = child.last()
    assert first["kind"] == "trained"
    assert first["weight"] == 300
    raw = sealed.read_bytes()
    assert (first.pop("sha256"), first["size"]) == (hashlib.sha256(raw).hexdigest(), len(raw))
    assert first["plain"] == hashlib.sha256(SEAL.open(raw, b"header")).hexdigest()
    sealed.unlink()
    victim = Child()
    victim.ask(request_)
    assert victim.reply()["kind"] == "progress"  # in the middle of its epochs
    victim.process.kill()
    victim.process.wait()
    assert not sealed.exists()
    again = Child()
    again.ask(request_)
    assert unsealed(again.last()) == first
    assert sealed.read_bytes() != raw, "no two are sealed by one ephemeral key"
    again.process.kill()
    again.process.wait()
    child.ask(request_)  # and in the process that has trained before
    assert unsealed(child.last()) == first


def test_a_trainer_killed_under_error_feedback_repeats_payload_and_residual(
    child: Child, request_: dict[str, Any], tmp_path: Path
) -> None:
    """The second update carries the first, undelivered one; killed and asked again, it has the same bytes."""
    feedback = {**request_, "policy": Policy(local_epochs=30, codec=CodecSpec(name="ec-dz", bits=0.5))}
    feedback |= {"residual-output": "residuals/3-1.f32", "plain-output": "updates/3-1.payload"}
    child.ask(feedback)
    first = child.last()
    left = tmp_path / "residuals" / "3-1.f32"
    assert first["residual"] == hashlib.sha256(left.read_bytes()).hexdigest()
    carried = {
        "plan": "0" * 64, "round": 3, "attempt": 1, "name": "residuals/3-1.f32", "sha256": first["residual"],
        "payload-name": "updates/3-1.payload", "payload": first["plain"],
        "codec": {"name": "ec-dz", "bits": 0.5}, "keys": {"own": 2, "shared": 3}, "undelivered": True,
    }  # fmt: skip
    second = {
        **feedback,
        "round": 4,
        "carried": carried,
        "output": "updates/4-1.sealed",
        "residual-output": "residuals/4-1.f32",
        "plain-output": "updates/4-1.payload",
    }
    outcomes = []
    for _ in range(2):
        victim = Child()
        victim.ask(second)
        assert victim.reply()["kind"] == "progress"
        victim.process.kill()
        victim.process.wait()
        assert left.read_bytes(), "what is carried stays until the next update's fate is known"
        child.ask(second)
        outcomes.append((unsealed(child.last()), (tmp_path / "residuals" / "4-1.f32").read_bytes()))
    assert outcomes[0] == outcomes[1]
    child.ask({**second, "carried": {**carried, "sha256": "0" * 64}})
    assert child.last()["plain"] != outcomes[0][0]["plain"], "without what was carried it is another update"


@pytest.mark.parametrize(
    ("change", "match", "lasting"),
    [
        ({"data": {"path": "/nowhere.npz"}}, "nowhere.npz", False),
        ({"data": {"path": "data.npz", "scale": 1e30}}, "lower learning rate", False),
        ({"params": "objects/none"}, "No such file", False),
        ({"plan": "objects/bb"}, "plan bundle", True),
        ({"data": {"path": "data.npz", "x": "y"}}, "data.npz", True),
        ({"max-rss": 10_000_000}, "MB would do", True),
    ],
)
def test_what_it_cannot_do_is_one_reply_and_the_trainer_lives_on(
    child: Child, request_: dict[str, Any], change: dict[str, Any], match: str, lasting: bool
) -> None:
    if "path" in change.get("data", {}) and not change["data"]["path"].startswith("/"):
        change = {"data": {**change["data"], "path": request_["data"]["path"]}}
    child.ask({**request_, **change})
    reply = child.last()
    if reply["kind"] == "trained":
        pytest.fail(f"expected a failure: {reply}")
    assert match in reply["reason"]
    assert reply.get("lasting", False) == lasting
    child.ask({**request_, "policy": Policy(local_epochs=1)})
    assert child.last()["kind"] == "trained"


def test_a_trainer_runs_batches_in_pieces_where_its_limit_says_so(
    child: Child, request_: dict[str, Any], tmp_path: Path
) -> None:
    """The limit that the refusal names allows one sample at once, and no batch of 512 with its 34 MB of inputs."""
    compile_model(zoo.mlp(inputs=16384, hidden=8, classes=3), loss="cross-entropy", output=tmp_path / "wide")
    (tmp_path / "objects" / "cc").write_bytes(bundle.pack(tmp_path / "wide"))
    opened = open_plan(tmp_path / "wide")
    (tmp_path / "objects" / "dd").write_bytes(opened.initial_parameters()[: opened.manifest.travels].tobytes())
    rng = np.random.default_rng(0)
    (tmp_path / "data.npz").rename(tmp_path / "small.npz")
    np.savez(tmp_path / "data.npz", x=rng.random((600, 16384), np.float32), y=rng.integers(0, 3, 600))
    wide = {
        **request_,
        "plan": "objects/cc",
        "params": "objects/dd",
        "policy": Policy(batch_size=512, local_epochs=2, learning_rate=0.001),
    }
    child.ask({**wide, "max-rss": 10_000_000})
    reason = child.last()["reason"]
    assert "with a micro-batch of 1" in reason
    would_do = int(reason.rpartition("max-rss ")[2].removesuffix("MB would do"))
    taken, losses = [], []
    for limit in ((would_do + 3) * 1_000_000, None):
        other = {"plan": "objects/aa", "params": "objects/bb", "data": {"path": str(tmp_path / "small.npz")}}
        for asked in (wide, {**wide, **other}, wide):  # in between another plan, which leaves no trace
            child.ask({**asked, "max-rss": limit})
            done = child.last()
            assert done["kind"] == "trained", done
        assert done["steps"] == 4
        taken.append(child.resident())
        losses.append(done["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert taken[0] < 1.1 * (would_do + 3) * 1_000_000
    assert taken[1] - taken[0] > 8_000_000


def test_the_trainer_ends_when_its_daemon_is_gone(child: Child) -> None:
    assert child.process.stdin is not None
    child.process.stdin.close()
    assert child.process.wait(60) == 0


def test_a_plan_that_the_gate_refuses_fails_for_good_and_reaches_no_session(
    child: Child, request_: dict[str, Any], tmp_path: Path
) -> None:
    graph = onnx.load(str(tmp_path / "plan" / "train.onnx"))
    graph.graph.node[0].domain = "com.evil"
    raw = graph.SerializeToString()
    manifest = plan.decode((tmp_path / "plan" / "manifest.json").read_bytes())
    files = {**manifest.files, "train.onnx": hashlib.sha256(raw).hexdigest()}
    (tmp_path / "plan" / "train.onnx").write_bytes(raw)
    (tmp_path / "plan" / "manifest.json").write_bytes(plan.encode(msgspec.structs.replace(manifest, files=files)))
    (tmp_path / "objects" / "aa").write_bytes(bundle.pack(tmp_path / "plan"))
    child.ask(request_)
    reply = child.last()
    assert (reply["kind"], reply["lasting"]) == ("failed", True)
    assert re.search("plan refused: train.onnx: op '.*' of the domain 'com.evil'", reply["reason"])
