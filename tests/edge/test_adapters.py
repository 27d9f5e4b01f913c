"""Low-rank adapters: gradients by torch, a start that changes nothing, weights that are whole again, and what takes none."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleetgrad.edge.autodiff import ModelError, compile_model, export_model, survey, zoo
from fleetgrad.edge.data.dataset import fit
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Trainer
from fleetgrad.wire import plan
from fleetgrad.wire.choice import Choice, Lora
from tests.edge.test_autodiff_compile import node, ones, session

Form = tuple[list[onnx.NodeProto], tuple[int, ...], tuple[int, ...], str, Callable[..., Any]]
TURN = node("Transpose", "w", "t", perm=[1, 0])
CONV = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 0], "dilations": [1, 2]}

# What an adapter stands beside: nodes from x, w and a bias c to y, the shapes of w and of a sample, the factors' order, and
# y by torch.nn.functional f.
FORMS: dict[str, Form] = {
    "matmul": ([node("MatMul", "x w", "y")], (6, 5), (6,), "ab", lambda f, x, w, c: x @ w),
    "tokens": ([node("MatMul", "x w", "y")], (6, 5), (3, 6), "ab", lambda f, x, w, c: x @ w),
    "turned": ([TURN, node("MatMul", "x t", "y")], (5, 6), (3, 6), "ba", lambda f, x, w, c: x @ w.T),
    "gemm": ([node("Gemm", "x w c", "y", alpha=0.5, beta=2.0)], (6, 5), (6,), "ab",
             lambda f, x, w, c: 0.5 * x @ w + 2 * c),
    "linear": ([node("Gemm", "x w c", "y", transB=1)], (5, 6), (6,), "ba", lambda f, x, w, c: f.linear(x, w, c)),
    "turned-gemm": ([TURN, node("Gemm", "x t", "y", transB=1)], (6, 5), (6,), "ab", lambda f, x, w, c: x @ w),
    "conv": ([node("Conv", "x w c", "y", **CONV)], (5, 4, 3, 2), (4, 6, 5), "ba",
             lambda f, x, w, c: f.conv2d(x, w, c, stride=(2, 1), padding=(1, 0), dilation=(1, 2))),
    "conv1d": ([node("Conv", "x w", "y", auto_pad="SAME_UPPER")], (5, 4, 3), (4, 7), "ba",
               lambda f, x, w, c: f.conv1d(x, w, padding=1)),
    "conv3d": ([node("Conv", "x w", "y")], (5, 4, 2, 2, 2), (4, 3, 3, 3), "ba", lambda f, x, w, c: f.conv3d(x, w)),
}  # fmt: skip


def from_x_to_y(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], size: tuple[int, ...], ir_version: int = 8
) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *size])]
    tensors = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    if ir_version < 4:
        values += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *(f"d{i}" for i in range(len(size)))])
    graph = helper.make_graph(nodes, "test", values, [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=ir_version)


def model_of(form: str) -> onnx.ModelProto:
    nodes, shape, size, _, _ = FORMS[form]
    weights = {"w": ones(*shape), "c": ones(5)}
    return from_x_to_y(nodes, {n: w for n, w in weights.items() if any(n in k.input for k in nodes)}, size)


def predict(model: Path | onnx.ModelProto, x: np.ndarray, name: str = "x") -> np.ndarray:
    """The first output; warnings of constants that went unused aren't shown."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    raw = str(model) if isinstance(model, Path) else model.SerializeToString()
    found = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"]).run(None, {name: x})[0]
    assert isinstance(found, np.ndarray)
    return found


def randomised(folder: Path) -> tuple[plan.Manifest, np.ndarray, dict[str, np.ndarray]]:
    """A plan's manifest and its vector with random factors B, also written to its params.bin; the tensors are views of it."""
    manifest = plan.decode((folder / plan.MANIFEST).read_bytes())
    vector = np.fromfile(folder / plan.PARAMS, "<f4")
    tensors = {t.name: vector[t.offset : t.offset + t.size].reshape(t.shape) for t in manifest.tensors}
    random = np.random.Generator(np.random.PCG64(6))
    for adapter in manifest.adapters:
        assert not tensors[adapter.b].any()
        tensors[adapter.b][:] = random.standard_normal(tensors[adapter.b].shape) / 4
    vector.tofile(folder / plan.PARAMS)
    files = {**manifest.files, plan.PARAMS: hashlib.sha256(vector.tobytes()).hexdigest()}
    (folder / plan.MANIFEST).write_bytes(plan.encode(msgspec.structs.replace(manifest, files=files)))
    return manifest, vector, tensors


@pytest.mark.parametrize("form", FORMS)
def test_the_model_starts_as_it_was_and_its_factors_merge_into_the_weight(tmp_path: Path, form: str) -> None:
    model, (_, _, size, order, _) = model_of(form), FORMS[form]
    lora = Lora(["w"], rank=2, alpha=3.0)
    compile_model(model, loss="mse", choice=Choice(lora=lora), output=tmp_path / "p")
    x = np.random.Generator(np.random.PCG64(5)).standard_normal((4, *size), np.float32)
    expected = predict(model, x)
    np.testing.assert_array_equal(predict(tmp_path / "p" / plan.INFER, x), expected)
    manifest, vector, tensors = randomised(tmp_path / "p")
    (adapter,) = manifest.adapters
    assert (adapter.order, adapter.scale) == (order, 1.5)
    assert {t.name for t in manifest.of_role("trainable")} == {"w.lora_A", "w.lora_B"}
    assert {"w.base"} <= {t.name for t in manifest.of_role("frozen")}
    label = np.zeros_like(expected)
    fed = {"x": x, plan.LABEL: label, **{t.name: tensors[t.name] for t in manifest.of_role("trainable")}}
    adapted = session(tmp_path / "p" / plan.EVAL).run([plan.PREDICTION], fed)[0]
    assert np.abs(adapted - expected).max() > 0.05
    export_model(tmp_path / "p", vector, tmp_path / "out.onnx")
    for merged in (tmp_path / "p" / plan.INFER, tmp_path / "out.onnx"):
        np.testing.assert_allclose(predict(merged, x), adapted, rtol=1e-5, atol=1e-5)
    out = onnx.load(tmp_path / "out.onnx").graph
    assert [t.name for t in out.initializer] == [t.name for t in model.graph.initializer]
    assert list(out.node) == list(model.graph.node)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("profile", ["cpu-native", "cpu-std"])
@pytest.mark.parametrize("form", FORMS)
def test_the_factors_have_torchs_gradients(tmp_path: Path, form: str, profile: plan.Profile) -> None:
    import torch
    from torch.nn import functional

    _, shape, size, order, forward = FORMS[form]
    choice = Choice(lora=Lora(["w"], rank=2, alpha=3.0))
    compile_model(model_of(form), loss="mse", gradients="fp32", profile=profile, choice=choice, output=tmp_path / "p")
    _, _, tensors = randomised(tmp_path / "p")
    random = np.random.Generator(np.random.PCG64(7))
    x = random.standard_normal((4, *size), np.float32)
    a, b = (torch.tensor(tensors[n].astype(np.float64), requires_grad=True) for n in ("w.lora_A", "w.lora_B"))
    left, right = (a, b) if order == "ab" else (b.reshape(shape[0], 2), a.reshape(2, -1))
    w = torch.tensor(ones(*shape).astype(np.float64)) + 1.5 * (left @ right).reshape(shape)
    y = forward(functional, torch.tensor(x.astype(np.float64)), w, torch.tensor(ones(5).astype(np.float64)))
    label = random.standard_normal(tuple(y.shape), np.float32)
    loss = functional.mse_loss(y, torch.tensor(label.astype(np.float64)))
    loss.backward()
    fed = {"x": x, plan.LABEL: label, **{n: tensors[n] for n in tensors if ".lora_" in n}}
    if "c" in tensors:
        assert "c" not in {i.name for i in session(tmp_path / "p" / plan.TRAIN).get_inputs()}
    names = [plan.LOSS, plan.GRADIENT + "w.lora_A", plan.GRADIENT + "w.lora_B"]
    found = session(tmp_path / "p" / plan.TRAIN).run(names, fed)
    assert found[0] == pytest.approx(float(loss.detach()), rel=1e-5)
    for value, exact in zip(found[1:], (a.grad, b.grad), strict=True):
        assert exact is not None
        assert np.linalg.norm(value - exact.numpy()) <= 2e-6 * np.linalg.norm(exact.numpy())


def test_int8_gradients_of_a_kernels_factors_come_from_one_window_and_point_where_fp32_ones_do(tmp_path: Path) -> None:
    choice, found = Choice(lora=Lora(["conv2.weight"], rank=4)), []
    random = np.random.Generator(np.random.PCG64(8))
    x, y = random.random((16, 1, 8, 8), np.float32), random.integers(0, 10, 16)
    for kind in ("fp32", "int8"):
        how: dict[str, Any] = {"gradients": kind, "choice": choice}
        compile_model(zoo.digits_cnn(), loss="cross-entropy", output=tmp_path / kind, **how)
        _, _, tensors = randomised(tmp_path / kind)
        factors = {n: v for n, v in tensors.items() if ".lora_" in n}
        names = [plan.GRADIENT + n for n in factors]
        found.append(session(tmp_path / kind / plan.TRAIN).run(names, {"image": x, plan.LABEL: y, **factors}))
    kinds = [n.op_type for n in onnx.load(tmp_path / "int8" / plan.TRAIN).graph.node]
    assert (kinds.count("ConvWeightGrad"), kinds.count("MatMulWeightGrad")) == (1, 0)
    for exact, rounded in zip(*found, strict=True):
        cosine = (exact * rounded).sum() / np.linalg.norm(exact) / np.linalg.norm(rounded)
        assert 0.9995 <= cosine < 1


@pytest.mark.parametrize("freeze_a", [False, True])
def test_training_moves_the_factors_alone_and_learns(tmp_path: Path, freeze_a: bool) -> None:
    model = zoo.digits_cnn()
    choice = Choice(lora=Lora(["conv2.weight", "dense*.weight"], rank=4, alpha=4.0, freeze_a=freeze_a))
    manifest = compile_model(model, loss="cross-entropy", choice=choice, output=tmp_path / "p")
    names = {t.name for t in manifest.of_role("trainable")}
    kinds = ("B",) if freeze_a else ("A", "B")
    assert names == {f"{w}.weight.lora_{kind}" for w in ("conv2", "dense1", "dense2") for kind in kinds}
    assert manifest.travels == sum(plan.padded(t.size) for t in manifest.of_role("trainable"))
    random = np.random.Generator(np.random.PCG64(3))
    x = random.random((160, 1, 8, 8), np.float32)
    y = (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).astype(np.int64)
    data, trainer = fit("d", x, y, manifest), Trainer(open_plan(tmp_path / "p"))
    before = trainer.model.copy()
    result = trainer.run_epochs(data, epochs=8, batch_size=16, learning_rate=0.02, momentum=0.9, seed=1)
    assert result.loss < result.first_loss / 2
    assert np.array_equal(trainer.model[manifest.travels :], before[manifest.travels :])
    export_model(tmp_path / "p", trainer.model, tmp_path / "out.onnx")
    right = (predict(tmp_path / "out.onnx", x, "image").argmax(1) == y).mean()
    accuracy = trainer.evaluate(data).accuracy
    assert accuracy is not None
    assert abs(right - accuracy) <= 1 / 160  # a merged weight rounds otherwise: a near tie may fall the other way


def test_other_weights_train_as_a_whole_where_they_are_named(tmp_path: Path) -> None:
    how: list[tuple[Choice, set[str]]] = [
        (Choice(train=["dense2.*"], lora=Lora(["dense*.weight"])), {"dense1.weight.lora_A", "dense1.weight.lora_B",
                                                                    "dense2.weight", "dense2.bias"}),
        (Choice(freeze=["dense1*"], lora=Lora(["dense*.weight"])), {"dense2.weight.lora_A", "dense2.weight.lora_B"}),
        (Choice(last=1, biases_only=True, lora=Lora(["dense1.weight"], freeze_a=True)), {"dense1.weight.lora_B",
                                                                                         "dense2.bias"}),
    ]  # fmt: skip
    for choice, expected in how:
        manifest = compile_model(zoo.digits_cnn(), loss="cross-entropy", choice=choice, output=tmp_path / "p")
        assert {t.name for t in manifest.of_role("trainable")} == expected
        found = survey(zoo.digits_cnn(), choice=choice)
        assert {w.name for w in found.weights if w.trains} == expected
        assert found.totals is not None
        assert (found.totals.travels, found.totals.length) == (manifest.travels, manifest.length)


def test_an_adapter_is_the_same_whichever_others_there_are_and_another_by_another_seed(tmp_path: Path) -> None:
    found = []
    for lora in (Lora(["dense1.weight"]), Lora(["*.weight"]), Lora(["dense1.weight"], seed=1)):
        compile_model(zoo.digits_cnn(), loss="cross-entropy", choice=Choice(lora=lora), output=tmp_path / "p")
        found.append(randomised(tmp_path / "p")[2]["dense1.weight.lora_A"])
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert found[0].std() == pytest.approx((3 * 512) ** -0.5, rel=0.05)  # 4,096 draws: the deviation is right to 1.1 %


def test_the_mean_of_merged_models_is_the_merged_mean_where_a_is_frozen(tmp_path: Path) -> None:
    """And only there: (A1 B1 + A2 B2) / 2 isn't (A1 + A2) (B1 + B2) / 4."""
    gaps = []
    for freeze_a in (True, False):
        choice = Choice(lora=Lora(["w"], rank=2, freeze_a=freeze_a))
        manifest = compile_model(model_of("linear"), loss="mse", choice=choice, output=tmp_path / "p")
        vectors = [np.fromfile(tmp_path / "p" / plan.PARAMS, "<f4") for _ in range(2)]
        random = np.random.Generator(np.random.PCG64(9))
        for vector in vectors:
            vector[: manifest.travels] += random.standard_normal(manifest.travels).astype(np.float32)
        weights = []
        for vector in (*vectors, (vectors[0] + vectors[1]) / 2):
            export_model(tmp_path / "p", vector, tmp_path / "out.onnx")
            weights += [
                numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer if t.name == "w"
            ]
        gaps.append(float(np.abs((weights[0] + weights[1]) / 2 - weights[2]).max()))
    assert gaps[0] < 1e-5
    assert gaps[1] > 0.5


def test_a_model_whose_initializers_are_inputs_keeps_its_form(tmp_path: Path) -> None:
    nodes = [node("Gemm", "x w c", "y")]
    model = from_x_to_y(nodes, {"w": ones(6, 5), "c": ones(5)}, (6,), ir_version=3)
    compile_model(model, loss="mse", choice=Choice(lora=Lora(["w"], rank=1)), output=tmp_path / "p")
    _, vector, _ = randomised(tmp_path / "p")
    export_model(tmp_path / "p", vector, tmp_path / "out.onnx")
    out = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(out)
    assert [v.name for v in out.graph.input] == ["x", "w", "c"]
    x = ones(2, 6)
    np.testing.assert_allclose(predict(out, x), predict(tmp_path / "p" / plan.INFER, x), rtol=1e-5, atol=1e-6)


def test_a_weight_whose_shape_is_asked_for_too_takes_an_adapter(tmp_path: Path) -> None:
    """torch's newer exporter writes so for a convolution without bias."""
    nodes = [
        node("Shape", "w", "size"), node("ConstantOfShape", "size", "zeros"), node("MatMul", "x w", "h"),
        node("ReduceSum", "zeros", "none", keepdims=0), node("Add", "h none", "y"),
    ]  # fmt: skip
    model = from_x_to_y(nodes, {"w": ones(6, 5)}, (6,))
    manifest = compile_model(model, loss="mse", choice=Choice(lora=Lora(["w"], rank=1)), output=tmp_path / "p")
    assert [a.base for a in manifest.adapters] == ["w.base"]
    x = ones(2, 6)
    np.testing.assert_array_equal(predict(tmp_path / "p" / plan.INFER, x), predict(model, x))


@pytest.mark.parametrize(
    ("nodes", "shape", "message"),
    [
        ([node("MatMul", "x w", "h"), node("MatMul", "h w", "y")], (4, 4), "'w': it is tied"),
        ([TURN, node("MatMul", "x t", "h"), node("MatMul", "h t", "y")], (4, 4), "'w': it is tied"),
        ([node("MatMul", "x w", "h"), node("ReduceMean", "w", "m", keepdims=0), node("Add", "h m", "y")], (4, 9), "tied"),
        ([node("Unsqueeze", "x two", "u"), node("MatMul", "w u", "y")], (3, 4), "MatMul reads it: .* the right matrix"),
        ([node("Mul", "x w", "y")], (1, 4), "Mul reads it"),
        ([node("Add", "x w", "y")], (4,), "'w': a vector has no factors"),
        ([node("Unsqueeze", "x two", "u"), node("Conv", "u w", "y", group=4)], (8, 1, 1), "4 groups, and factors would join"),
        ([node("MatMul", "x w", "y")], (4, 5), "of rank 8 would have no fewer numbers than it has .72 and 20"),
    ],
)  # fmt: skip
def test_what_takes_no_adapter_is_refused_with_the_reason(
    tmp_path: Path, nodes: list[onnx.NodeProto], shape: tuple[int, ...], message: str
) -> None:
    weights = {"w": ones(*shape), "two": np.array([2])}
    model = from_x_to_y(nodes, {n: v for n, v in weights.items() if any(n in k.input for k in nodes)}, (4,))
    with pytest.raises(ModelError, match=f"--lora 'w': no weight of the model takes an adapter \n.*{message}"):
        compile_model(model, loss="mse", choice=Choice(lora=Lora(["w"])), output=tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_a_glob_leaves_out_what_takes_none_and_says_so(tmp_path: Path) -> None:
    told: list[str] = []
    choice = Choice(lora=Lora(["*"], rank=8))
    compile_model(zoo.digits_cnn(), loss="cross-entropy", choice=choice, output=tmp_path / "p", notice=told.append)
    assert told == [
        "no adapter beside 'conv1.weight': factors of rank 8 would have no fewer numbers than it has (200 and 144)",
        "no adapter beside 'conv1.bias', 'conv2.bias', 'dense1.bias', 'dense2.bias': a vector has no factors",
    ]


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (Lora(["fc*"]), r"--lora 'fc\*': no weight of the model takes an adapter \(it has: conv1.bias"),
        (Lora(["*"], rank=0), "rank 0: from 1 to 1024"),
        (Lora(["*"], rank=1025), "rank 1025"),
        (Lora(["*"], alpha=float("nan")), "alpha nan: above 0 and finite"),
        (Lora(["*"], alpha=0.0), "alpha 0"),
    ],
)
def test_settings_of_adapters_have_bounds(tmp_path: Path, lora: Lora, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        compile_model(zoo.digits_cnn(), loss="cross-entropy", choice=Choice(lora=lora), output=tmp_path / "p")


@pytest.mark.parametrize("taken", ["w.base", "w.lora_A", "w.lora_product", "h.base", "h.lora_low"])
def test_a_name_that_an_adapter_needs_is_refused_where_the_model_has_it(tmp_path: Path, taken: str) -> None:
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", taken), node("Identity", taken, "y")]
    if taken.startswith("w"):
        nodes = [node("MatMul", "x w", "h"), node("Mul", f"h {taken}", "y")]
    weights = {"w": ones(6, 5)} | ({taken: ones(5)} if taken.startswith("w") else {})
    model = from_x_to_y(nodes, weights, (6,))
    with pytest.raises(ModelError, match=f"the adapter beside 'w' needs the name '{taken}', which is taken"):
        compile_model(model, loss="mse", choice=Choice(lora=Lora(["w"], rank=1)), output=tmp_path / "p")
    compile_model(model, loss="mse", output=tmp_path / "p")


def test_a_manifest_whose_adapters_fit_nothing_is_refused(tmp_path: Path) -> None:
    choice = Choice(lora=Lora(["w"], rank=2))
    manifest = compile_model(model_of("linear"), loss="mse", choice=choice, output=tmp_path / "p")
    (adapter,) = manifest.adapters
    for change, message in (
        ({"a": "nothing"}, "names the tensor 'nothing', which the plan has not"),
        ({"order": "ab"}, r"'w.lora_B' \[5, 2\] trainable, the product is a b"),
        ({"base": "c"}, "'c' .5. frozen"),
        ({"b": "w.base", "base": "w.lora_B"}, "don't fit"),
        ({"scale": 0.0}, "scale 0: above 0"),
    ):
        bad = msgspec.structs.replace(manifest, adapters=(msgspec.structs.replace(adapter, **change),))
        with pytest.raises(plan.PlanError, match=message):
            plan.check(bad)
