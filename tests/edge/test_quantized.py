"""Quantized models in QDQ form: they start and leave as they were, gradients pass straight through, other forms get advice."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fleetgrad.edge.autodiff import ModelError, UnsupportedModel, compile_model, export_model, survey, zoo
from fleetgrad.edge.autodiff.checker import _model, _run
from fleetgrad.edge.autodiff.graph import OPSET, Builder
from fleetgrad.edge.autodiff.registry import differentiate
from fleetgrad.edge.data.dataset import fit
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Trainer
from fleetgrad.native import kernels
from fleetgrad.wire import plan
from fleetgrad.wire.choice import Choice, Lora
from tests.edge.test_adapters import predict
from tests.edge.test_autodiff_compile import make, node, ones

SETTINGS = {"batch_size": 16, "learning_rate": 0.01, "momentum": 0.9, "seed": 1}


def halves(axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures, and whether their first half along an axis is the brighter one."""
    random = np.random.Generator(np.random.PCG64(2))
    x = random.random((160, 1, 8, 8), np.float32)
    first, last = np.split(x, 2, axis)
    return x, (first.mean((1, 2, 3)) > last.mean((1, 2, 3))).astype(np.int64)


def quantized(folder: Path, form: str, per_channel: bool, kind: str) -> Path:
    """A CNN that knows the upper half from the lower, as onnxruntime's static quantization writes it."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    x, y = halves(2)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            self.batches = iter([{"image": x[:80]}, {"image": x[80:]}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    manifest = compile_model(zoo.digits_cnn(), loss="cross-entropy", gradients="fp32", output=folder / "float")
    trainer = Trainer(open_plan(folder / "float"))
    trainer.run_epochs(fit("d", x, y, manifest), epochs=8, **SETTINGS)  # type: ignore[arg-type]
    export_model(folder / "float", trainer.model, folder / "float.onnx")
    logging.disable(logging.WARNING)  # it recommends a preprocessing that this model needn't have
    try:
        quantization.quantize_static(
            str(folder / "float.onnx"), str(folder / "q.onnx"), Reader(), per_channel=per_channel,
            quant_format=quantization.QuantFormat[form], weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType[kind],
        )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
    return folder / "q.onnx"


@pytest.mark.parametrize(("per_channel", "kind"), [(False, "QInt8"), (True, "QUInt8")])
def test_a_quantized_net_leaves_as_it_came_and_trains(tmp_path: Path, per_channel: bool, kind: str) -> None:
    model = quantized(tmp_path, "QDQ", per_channel, kind)
    source = onnx.load(str(model))
    manifest = compile_model(model, loss="cross-entropy", output=tmp_path / "p")
    layers = [
        f"{layer}.{part}.float" for part in ("weight", "bias") for layer in ("conv1", "conv2", "dense1", "dense2")
    ]
    assert {t.name for t in manifest.of_role("trainable")} == set(layers)
    x, y = halves(3)
    data, trainer = fit("d", x, y, manifest), Trainer(open_plan(tmp_path / "p"))
    export_model(tmp_path / "p", trainer.model, tmp_path / "same.onnx")
    assert onnx.load(str(tmp_path / "same.onnx")) == source
    np.testing.assert_array_equal(predict(tmp_path / "p" / plan.INFER, x, "image"), predict(model, x, "image"))

    before = trainer.evaluate(data).accuracy
    trainer.run_epochs(data, epochs=20, **SETTINGS)  # type: ignore[arg-type]
    export_model(tmp_path / "p", trainer.model, tmp_path / "out.onnx")
    out = onnx.load(str(tmp_path / "out.onnx")).graph
    assert list(out.node) == list(source.graph.node)
    kinds = [(t.name, t.data_type, t.dims) for t in source.graph.initializer]
    assert [(t.name, t.data_type, t.dims) for t in out.initializer] == kinds
    moved = {a.name for a, b in zip(out.initializer, source.graph.initializer, strict=True) if a != b}
    assert {n.removesuffix(".float") + "_quantized" for n in layers} == moved
    accuracy = trainer.evaluate(data).accuracy
    assert before is not None
    assert accuracy is not None
    print(before, accuracy)
    assert before < 0.65
    assert accuracy > 0.85
    exported = predict(tmp_path / "out.onnx", x, "image")
    assert abs((exported.argmax(1) == y).mean() - accuracy) <= 2 / 160  # a tie of one step may fall the other way


SCALES = {"sx": 0.02, "s1": np.array([0.01, 0.02, 0.005]), "sh": 0.01, "s2": 0.03}


def dense() -> onnx.ModelProto:
    """Two dense layers: weights by channel and as a whole, a bias of 32 bits, activations of which some are cut."""
    tensors: dict[str, np.ndarray] = {k: np.asarray(v, np.float32) for k, v in SCALES.items()}
    tensors |= {
        "zx": np.array(120, np.uint8), "zh": np.array(-3, np.int8), "z1": np.array([0, 0, 0], np.int8),
        "w_quantized": np.round(ones(3, 4) * 120).astype(np.int8), "z2": np.array(5, np.int8),
        "v_q": np.round(ones(3, 2) * 90).astype(np.int8),
        "b_quantized": np.array([300, -200, 100], np.int32), "sb": np.asarray(SCALES["s1"], np.float32) * np.float32(0.02),
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", "x sx zx", "xq"), node("DequantizeLinear", "xq sx zx", "xd"),
        node("DequantizeLinear", "w_quantized s1 z1", "wd", axis=0), node("DequantizeLinear", "b_quantized sb", "bd", axis=0),
        node("Gemm", "xd wd bd", "h", transB=1), node("QuantizeLinear", "h sh zh", "hq"),
        node("DequantizeLinear", "hq sh zh", "hd"), node("DequantizeLinear", "v_q s2 z2", "vd"),
        node("MatMul", "hd vd", "y"),
    ]  # fmt: skip
    return make(nodes, tensors)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("profile", ["cpu-native", "cpu-std"])
def test_gradients_are_those_of_torchs_fake_quantization(tmp_path: Path, profile: plan.Profile) -> None:
    import torch

    manifest = compile_model(dense(), loss="mse", gradients="fp32", profile=profile, output=tmp_path / "p")
    assert [t.name for t in manifest.tensors] == ["w.float", "v.float", "b.float"]
    vector = np.fromfile(tmp_path / "p" / plan.PARAMS, "<f4")
    random = np.random.Generator(np.random.PCG64(3))
    weights = {}
    for t in manifest.tensors:  # off the grid, and some beyond its range
        value = vector[t.offset : t.offset + t.size].reshape(t.shape)
        weights[t.name] = value + random.uniform(-0.15, 0.15, t.shape).astype(np.float32)
    x, label = random.uniform(-3, 3, (64, 4)).astype(np.float32), random.standard_normal((64, 2), np.float32)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # fused, it adds in integers
    options.register_custom_ops_library(kernels.custom_ops_library())
    session = onnxruntime.InferenceSession(str(tmp_path / "p" / plan.TRAIN), options, ["CPUExecutionProvider"])
    found = session.run([plan.LOSS, *(plan.GRADIENT + n for n in weights)], {"x": x, plan.LABEL: label, **weights})

    w, v, b = (torch.tensor(weights[n], requires_grad=True) for n in ("w.float", "v.float", "b.float"))
    scales = {k: torch.tensor(np.asarray(s, np.float32)) for k, s in SCALES.items()}
    xd = torch.fake_quantize_per_tensor_affine(torch.tensor(x), float(scales["sx"]), 120, 0, 255)
    wd = torch.fake_quantize_per_channel_affine(w, scales["s1"], torch.zeros(3, dtype=torch.int32), 0, -128, 127)
    h = xd @ wd.T + b
    hd = torch.fake_quantize_per_tensor_affine(h, float(scales["sh"]), -3, -128, 127)
    vd = torch.fake_quantize_per_tensor_affine(v, float(scales["s2"]), 5, -128, 127)
    loss = torch.nn.functional.mse_loss(hd @ vd, torch.tensor(label))
    loss.backward()
    cut = ((h < (-128 + 3 - 0.5) * 0.01) | (h > (127 + 3 + 0.5) * 0.01)).float().mean()
    assert 0.2 < cut < 0.9
    assert float((wd.detach() - w.detach()).abs().max()) > 0.02  # a weight that is cut
    assert found[0] == pytest.approx(float(loss.detach()), rel=1e-5)
    for value, exact in zip(found[1:], (w.grad, v.grad, b.grad), strict=True):
        assert exact is not None
        assert np.linalg.norm(value - exact.numpy()) <= 1e-5 * np.linalg.norm(exact.numpy())
        assert np.array_equal(value == 0, exact.numpy() == 0)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize(
    "zero", [np.int8(-7), np.uint8(200), np.int16(5), np.uint16(60000), np.array([3, 0, -9], np.int8)]
)
def test_the_gradient_is_one_inside_the_range_and_zero_beyond_it(native: bool, zero: np.ndarray, seed: int) -> None:
    print(f"seed {seed}")
    random = np.random.Generator(np.random.PCG64(seed))
    zero = np.asarray(zero)
    limits = np.iinfo(zero.dtype)
    scale = random.uniform(0.01, 2, zero.shape).astype(np.float32)
    shape = (-1, 1) if zero.ndim else ()
    s, z = scale.reshape(shape).astype(float), zero.reshape(shape).astype(float)
    span = (limits.max - limits.min) * s
    x = ((limits.min - z) * s + span * random.uniform(-0.5, 1.5, (2, 3, 40))).astype(np.float32)
    dy = random.standard_normal(x.shape, np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], axis=1),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], axis=1),
    ]
    known = {"scale": scale, "zero": zero}
    shapes = {"x": x.shape, "q": x.shape, "y": x.shape, "scale": scale.shape, "zero": zero.shape}
    g = Builder(shapes, [*shapes, "dy"], known=known, native=native)
    found = differentiate(nodes, {"y": "dy"}, ["x"], {"x", "q", "y"}, g, OPSET)
    constants = {t.name: numpy_helper.to_array(t) for t in g.constants.values()}
    feeds = {"x": x, "dy": dy}
    (dx,) = _run(_model([*nodes, *g.nodes], feeds, [found["x"]], {**known, **constants}), feeds, [found["x"]])
    rounded = np.round(x / s) + z
    inside = (limits.min <= rounded) & (rounded <= limits.max)
    assert 0.3 < inside.mean() < 0.7
    np.testing.assert_array_equal(dx, np.where(inside, dy, 0))


def test_biases_are_known_as_such_and_adapters_beside_rounded_weights_refused(tmp_path: Path) -> None:
    manifest = compile_model(dense(), loss="mse", choice=Choice(biases_only=True), output=tmp_path / "p")
    assert [t.name for t in manifest.of_role("trainable")] == ["b.float"]
    manifest = compile_model(dense(), loss="mse", choice=Choice(last=1), output=tmp_path / "p")
    assert [t.name for t in manifest.of_role("trainable")] == ["v.float"]
    with pytest.raises(ModelError, match=r"'w.float': QuantizeLinear reads it"):
        compile_model(dense(), loss="mse", choice=Choice(lora=Lora(["w.float"], rank=1)), output=tmp_path / "p")


@pytest.mark.parametrize(
    "how", ["no zero point", "scales without zero points", "a scale of one number", "read twice", "uint8", "int16"]
)
def test_each_way_to_write_an_integer_weight_is_read_and_written_again(tmp_path: Path, how: str) -> None:
    kind = {"uint8": np.uint8, "int16": np.int16}.get(how, np.int8)
    q = np.arange(16, dtype=kind).reshape(4, 4) * (4 if how != "int16" else 1000)
    scale = {"a scale of one number": [0.25], "scales without zero points": [0.25] * 4}.get(how, 0.25)
    tensors, without = {"w": q, "s": np.array(scale, np.float32)}, "no zero point" in how or "without" in how
    zero = np.full(tensors["s"].shape, 3, kind)
    words = "w s" if without else "w s z"
    tensors |= {} if without else {"z": zero}
    nodes = [node("DequantizeLinear", words, "d", axis=0), node("MatMul", "x d", "y")]
    if how == "read twice":
        nodes[1:] = [
            node("MatMul", "x d", "h"),
            node("DequantizeLinear", words, "e", axis=0),
            node("MatMul", "h e", "y"),
        ]
    model = make(nodes, tensors, opset=21)
    manifest = compile_model(model, loss="mse", output=tmp_path / "p")
    assert [t.name for t in manifest.tensors] == ["w.float"]
    vector = np.fromfile(tmp_path / "p" / plan.PARAMS, "<f4")
    expected = (q.astype(float) - (0 if without else 3)) * 0.25
    np.testing.assert_array_equal(vector[:16].reshape(4, 4), expected)
    vector[:16] += 0.25  # one step up
    export_model(tmp_path / "p", vector, tmp_path / "out.onnx")
    out = onnx.load(str(tmp_path / "out.onnx")).graph
    assert list(out.node) == list(model.graph.node)
    values = {t.name: numpy_helper.to_array(t) for t in out.initializer}
    assert values["w"].dtype == kind
    np.testing.assert_array_equal(values["w"], q + kind(1))
    trainer = Trainer(open_plan(tmp_path / "p"))
    trainer.step(ones(3, 4), np.zeros((3, 4), np.float32))
    assert trainer.gradients()["w.float"].all()


def test_a_type_that_only_an_attribute_names_has_its_own_range(tmp_path: Path) -> None:
    """int8 by output_dtype, without a zero point: values under 0 are in range."""
    tensors = {"w": -ones(4, 4), "s": np.float32(0.1)}
    nodes = [
        node("MatMul", "x w", "h"), node("QuantizeLinear", "h s", "q", output_dtype=TensorProto.INT8),
        node("DequantizeLinear", "q s", "y"),
    ]  # fmt: skip
    compile_model(make(nodes, {k: np.asarray(v) for k, v in tensors.items()}, opset=21), loss="mse", output=tmp_path)
    trainer = Trainer(open_plan(tmp_path))
    trainer.step(np.abs(ones(3, 4)), np.zeros((3, 4), np.float32))
    assert trainer.gradients()["w"].all()


@pytest.mark.parametrize("scale", [0.0, -0.5, np.nan, np.inf])
def test_scales_that_are_not_above_zero_are_refused_by_name(tmp_path: Path, scale: float) -> None:
    tensors = {"q": np.ones((4, 4), np.int8), "w": ones(4, 4), "s": np.float32(scale), "z": np.int8(0)}
    weight = [node("DequantizeLinear", "q s z", "d"), node("MatMul", "x d", "y")]
    with pytest.raises(ModelError, match=f"'q' is quantized by a scale of {scale:g}: above 0 and finite is needed"):
        compile_model(make(weight, {k: np.asarray(v) for k, v in tensors.items()}), loss="mse", output=tmp_path / "p")
    if scale <= 0:
        pair = [
            node("MatMul", "x w", "h"), node("QuantizeLinear", "h s z", "p"), node("DequantizeLinear", "p s z", "y"),
        ]  # fmt: skip
        with pytest.raises(UnsupportedModel, match=f"QuantizeLinear .*with a scale of {scale:g}: above 0 is needed"):
            compile_model(make(pair, {k: np.asarray(v) for k, v in tensors.items()}), loss="mse", output=tmp_path / "p")


def test_batch_normalisation_that_a_quantizer_took_in_training_mode_is_read(tmp_path: Path) -> None:
    """It quantizes the running statistics that come out of the node, for nobody."""
    tensors = {
        "w": np.round(ones(4, 4) * 100).astype(np.int8), "s": np.float32(0.02), "z": np.int8(0), "scale": np.ones(4, np.float32),
        "bias": np.zeros(4, np.float32), "mean": np.zeros(4, np.float32), "var": np.ones(4, np.float32),
    }  # fmt: skip
    norm = node("BatchNormalization", "h scale bias mean var", "y", training_mode=1)
    norm.output.extend(["m", "v"])
    nodes = [
        node("DequantizeLinear", "w s z", "d"), node("MatMul", "x d", "h"), norm,
        node("QuantizeLinear", "m s z", "mq"), node("DequantizeLinear", "mq s z", "md"), node("QuantizeLinear", "v s z", "vq"),
    ]  # fmt: skip
    model = make(nodes, {k: np.asarray(v) for k, v in tensors.items()})
    manifest = compile_model(model, loss="mse", output=tmp_path / "p")
    roles = {t.name: t.role for t in manifest.tensors}
    assert roles == {
        "w.float": "trainable", "scale": "trainable", "bias": "trainable", "mean": "personal", "var": "personal",
    }  # fmt: skip


def test_what_is_no_pair_lets_no_gradient_pass_and_is_named(tmp_path: Path) -> None:
    tensors = {"w": ones(4, 4), "v": ones(4, 4), "s": np.float32(0.02), "t": np.float32(0.03), "z": np.int8(0)}
    nodes = [
        node("MatMul", "x w", "h"), node("QuantizeLinear", "h s z", "q"), node("DequantizeLinear", "q t z", "d"),
        node("MatMul", "d v", "y"),
    ]  # fmt: skip
    model = make(nodes, {k: np.asarray(v) for k, v in tensors.items()})
    notes: list[str] = []
    manifest = compile_model(model, loss="mse", output=tmp_path / "p", notice=notes.append)
    assert [t.name for t in manifest.of_role("trainable")] == ["v"]
    assert notes == ["'w' stays as it is: no gradient passes QuantizeLinear 'the-q', which gives no float32"]


@pytest.mark.parametrize(
    ("scale", "how", "words"),
    [
        (np.float32(0.1), "moved", "('d' ...) count as float32 weights, and leave as such"),
        (np.float32(0.1), "int4", "('d' ...) count as float32 weights, and leave as such"),
        (np.float32(0.1), "constant", "('d' ...) count as float32 weights, and leave as such"),
        (np.full(4, 0.1, np.float32), "moved", "('d' ...) stay as they are"),
    ],
)
def test_quantized_weights_that_are_not_trained_as_integers_are_named(
    tmp_path: Path, scale: np.ndarray, how: str, words: str
) -> None:
    """Moved before they are dequantized, of 4 bits, or no initializers."""
    kind = TensorProto.INT4 if how == "int4" else TensorProto.INT8
    q = helper.make_tensor("q", kind, [4, 4], [1, -2, 3, 4] * 4)
    before = {"moved": [node("Transpose", "q", "t")], "constant": [node("Constant", "", "t", value=q)]}.get(how, [])
    nodes = [
        *before, node("DequantizeLinear", "t s" if before else "q s", "d"),
        node("Transpose", "d", "e"), node("MatMul", "x e", "h"), node("MatMul", "h w", "y"),
    ]  # fmt: skip
    model = make(nodes, {"w": ones(4, 4), "s": np.asarray(scale)}, opset=21)
    if how != "constant":
        model.graph.initializer.append(q)
    told: list[str] = []
    manifest = compile_model(model, loss="mse", output=tmp_path / "p", notice=told.append)
    assert [words in text for text in told] == [True]
    assert {t.name for t in manifest.of_role("trainable")} == ({"w", "e"} if "count" in words else {"w"})


def test_models_that_compute_in_integers_get_advice(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"QGemm .*computes in integers: quantize .* QuantFormat.QDQ"):
        compile_model(quantized(tmp_path, "QOperator", False, "QUInt8"), loss="cross-entropy", output=tmp_path / "p")
    tensors: dict[str, Any] = {"w": np.ones((4, 4), np.int8), "v": ones(4, 3), "s": np.float32(0.01)}
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]), node("MatMulInteger", "q w qz", "i"),
        node("Cast", "i", "f", to=TensorProto.FLOAT), node("Mul", "f s", "h"),
    ]  # fmt: skip
    last = [*nodes[:-1], node("Mul", "f s", "y")]
    with pytest.raises(ModelError, match=r"no float32 initializer reaches .* it computes in integers: quantize"):
        compile_model(make(last, {k: np.asarray(v) for k, v in tensors.items()}), loss="mse", output=tmp_path / "p")
    model = make([*nodes, node("MatMul", "h v", "y")], {k: np.asarray(v) for k, v in tensors.items()})
    notes: list[str] = []
    manifest = compile_model(model, loss="mse", output=tmp_path / "p", notice=notes.append)
    assert [t.name for t in manifest.of_role("trainable")] == ["v"]
    assert len(notes) == 1
    assert "2 nodes ('q' ...) compute in integers, and nothing before them trains: quantize" in notes[0]
    assert survey(model).notes == tuple(notes)
