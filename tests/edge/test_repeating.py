"""Activations computed again for the backward pass: gradients but for rounding, in less memory, and only where it is cheap."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from fleetgrad.edge.autodiff import ModelError, compile_model
from fleetgrad.edge.autodiff.passes import repeat
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Trainer
from fleetgrad.wire import plan
from tests.edge.test_autodiff_compile import make, node
from tests.edge.test_edge_command import run_here
from tests.edge.test_passes import graph, shown

NORMED = helper.make_node("BatchNorm", ["c", "s", "b"], ["n", "mean", "var", "inv"], domain="fleetgrad")
FORWARD = [node("Conv", "x w", "c"), NORMED, node("Relu", "n", "y"), node("ReduceMean", "y", plan.LOSS)]
SEED = helper.make_node("Expand", [plan.LOSS, "k"], ["d"])
MASK, BACK = node("ReluGrad", "y d", "e"), node("BatchNormGrad", "c e s mean inv", "g")


def repeated(nodes: list[onnx.NodeProto]) -> list[str]:
    return shown(repeat(graph(nodes, {"k": [1]}, f"{plan.LOSS} g", repeat=True)))


def test_what_follows_from_a_kept_input_comes_again_when_its_reader_has_a_gradient() -> None:
    found = repeated([*FORWARD, SEED, MASK, BACK])
    assert found[:5] == shown(graph([*FORWARD, SEED]))
    assert found[5:] == [
        "Size(d) n.size.again", "Add(n.size.again fleetgrad.again.every) n.end.again",
        "Slice(b fleetgrad.again.zero n.end.again) n.bias.again", "BatchNormalization(c s n.bias.again mean var) n.again",
        "Relu(n.again) y.again", "ReluGrad(y.again d) e", "BatchNormGrad(c e s mean inv) g",
    ]  # fmt: skip


@pytest.mark.parametrize("nodes", [
    [*FORWARD, SEED, MASK, node("Neg", "e", "g")],  # the input isn't kept
    [*FORWARD[:2], node("Softmax", "n", "y"), FORWARD[3], SEED, MASK, BACK],  # not cheap
    [FORWARD[0], node("Relu", "c", "y"), FORWARD[3], SEED, MASK, node("Mul", "c e", "g")],  # onnxruntime would find the twin
])  # fmt: skip
def test_other_values_are_kept(nodes: list[onnx.NodeProto]) -> None:
    assert repeated(nodes) == shown(graph(nodes))


def deep() -> onnx.ModelProto:
    """Four convolutions with batch normalisation and an activation each."""
    random = np.random.Generator(np.random.PCG64(3))
    nodes, weights, last = list[onnx.NodeProto](), {}, "x"
    for i, activation in enumerate(("Relu", "Clip", "HardSwish", "LeakyRelu")):
        weights[f"w{i}"] = random.standard_normal((8, 1 if i == 0 else 8, 3), np.float32) / 3
        for name, value in (("s", 1), ("b", 0.1), ("m", 0), ("v", 1)):
            weights[f"{name}{i}"] = np.full(8, value, np.float32)
        bounds = " low high" if activation == "Clip" else ""
        nodes += [
            node("Conv", f"{last} w{i}", f"c{i}", kernel_shape=[3], pads=[1, 1]),
            node("BatchNormalization", f"c{i} s{i} b{i} m{i} v{i}", f"n{i}"), node(activation, f"n{i}{bounds}", f"y{i}"),
        ]  # fmt: skip
        last = f"y{i}"
    nodes += [node("GlobalAveragePool", last, "p"), node("Flatten", "p", "f"), node("MatMul", "f w", "y")]
    bounds_of = {"low": np.array(0, np.float32), "high": np.array(6, np.float32)}
    return make(nodes, {**weights, **bounds_of, "w": weights["w1"][:, :3, 0]}, ("N", 1, 128))


@pytest.mark.parametrize(("gradients", "most_left"), [("fp32", 0.92), ("int8", 0.8)])
def test_gradients_stay_and_memory_goes_down(gradients: plan.Gradients, most_left: float, tmp_path: Path) -> None:
    random = np.random.Generator(np.random.PCG64(4))
    x, y = random.standard_normal((16, 1, 128), np.float32), random.integers(0, 3, 16)
    found, most = {}, {}
    kinds: tuple[plan.Recompute, ...] = ("none", "cheap")
    for kind in kinds:
        manifest = compile_model(
            deep(), loss="cross-entropy", gradients=gradients, recompute=kind, output=tmp_path / kind
        )
        assert manifest.memory
        most[kind] = max(line.at(64) for line in manifest.memory.train.arena)
        trainer = Trainer(open_plan(tmp_path / kind))
        found[kind] = trainer.step(x, y), trainer.gradients(), trainer.model
    assert most["cheap"] < most_left * most["none"], most
    assert found["cheap"][0] == found["none"][0], "the forward pass is the same"
    assert np.array_equal(found["cheap"][2], found["none"][2]), "and so are running statistics"
    for name, value in found["none"][1].items():
        off = np.linalg.norm(found["cheap"][1][name] - value) / np.linalg.norm(value)
        assert off < (1e-5 if gradients == "fp32" else 1e-3), (name, off)


def test_plans_of_standard_ops_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the profile cpu-std has not: keep it"):
        compile_model(
            deep(), loss="mse", gradients="fp32", profile="cpu-std", recompute="cheap", output=tmp_path / "plan"
        )


def test_the_command_takes_both_options(tmp_path: Path) -> None:
    onnx.save(deep(), str(tmp_path / "m.onnx"))
    flags = ("--recompute", "cheap", "--activations", "fp32")
    found = run_here("compile", tmp_path / "m.onnx", "-o", tmp_path / "plan", *flags)
    assert found.returncode == 0, found.stderr
    names = {n.name for n in onnx.load(tmp_path / "plan" / plan.TRAIN).graph.node}
    assert any(name.endswith(".again") for name in names)
    assert open_plan(tmp_path / "plan").manifest.activations == "fp32"
