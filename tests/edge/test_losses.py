"""Losses and their gradients against torch, what each refuses, and what it asks of labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fleetgrad.edge.autodiff import ModelError, compile_model
from fleetgrad.edge.data.dataset import DataError, fit
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Trainer
from fleetgrad.wire import plan
from fleetgrad.wire.loss import LossError, LossName, LossOptions, parse
from tests.edge.test_autodiff_compile import gradients, make, node, ones, session

random = np.random.Generator(np.random.PCG64(11))
CLASSES = 5
FLAT = random.standard_normal((6, CLASSES)).astype(np.float32) * 3
FIRST = random.standard_normal((6, CLASSES, 4)).astype(np.float32) * 3  # [N, classes, positions]
LABELS, SEQUENCES = random.integers(0, CLASSES, 6), random.integers(0, CLASSES, (6, 4))
SOME = np.where(random.random((6, 4)) < 0.4, -100, SEQUENCES)
WEIGHTS = (0.5, 0.0, 2.0, 1.0, 3.0)
TEACHER = np.exp(FIRST) / np.exp(FIRST).sum(1, keepdims=True)
TEACHER[0, 0] = 0.0
TEACHER /= TEACHER.sum(1, keepdims=True)
CHANCES = random.random((6, CLASSES)).astype(np.float32)
Formula = Callable[[Any, Any, Any], Any]  # torch.nn.functional, logits, labels


def identity(size: tuple[int, ...]) -> onnx.ModelProto:
    """The model x + b, so that the gradient of b is the batch's sum of the logits' gradients."""
    return make([node("Add", "x b", "y")], {"b": np.zeros((1, *size), np.float32)}, ("N", *size))


def entropy(**how: Any) -> Formula:
    import torch

    weights = torch.tensor(how.pop("weight"), dtype=torch.float64) if "weight" in how else None
    return lambda f, z, y: f.cross_entropy(z, y, weight=weights, **how)


def distilled(t: float) -> Formula:
    def formula(f: Any, z: Any, p: Any) -> Any:
        return f.kl_div(f.log_softmax(z / t, 1), p, reduction="none").sum(1).mean() * t**2

    return formula


CASES: list[tuple[LossName, dict[str, Any], np.ndarray, np.ndarray, Callable[[], Formula]]] = [
    ("cross-entropy", {}, FLAT, LABELS, entropy),
    ("cross-entropy", {}, FIRST, SEQUENCES, entropy),
    ("cross-entropy", {"label_smoothing": 0.1}, FLAT, LABELS, lambda: entropy(label_smoothing=0.1)),
    ("cross-entropy", {"class_weights": WEIGHTS}, FLAT, LABELS, lambda: entropy(weight=WEIGHTS)),
    ("cross-entropy", {"ignore_index": -100}, FIRST, SOME, lambda: entropy(ignore_index=-100)),
    ("cross-entropy", {"ignore_index": 2}, FIRST, SEQUENCES, lambda: entropy(ignore_index=2)),
    (
        "cross-entropy",
        {"ignore_index": -1, "label_smoothing": 0.3, "class_weights": WEIGHTS},
        FIRST,
        np.where(SOME < 0, -1, SOME),
        lambda: entropy(ignore_index=-1, label_smoothing=0.3, weight=WEIGHTS),
    ),
    ("bce", {}, 9 * FLAT, CHANCES, lambda: lambda f, z, y: f.binary_cross_entropy_with_logits(z, y)),
    (
        "bce",
        {"positive_weights": WEIGHTS},
        3 * FIRST,
        TEACHER,
        lambda: lambda f, z, y: f.binary_cross_entropy_with_logits(z, y, pos_weight=z.new_tensor(WEIGHTS)[:, None]),
    ),
    ("kl", {}, FIRST[::-1].copy(), TEACHER, lambda: distilled(1)),
    ("kl", {"temperature": 3.0}, FIRST[::-1].copy(), TEACHER, lambda: distilled(3)),
    ("mse", {}, FIRST, FIRST[::-1].copy(), lambda: lambda f, z, y: f.mse_loss(z, y)),
    ("l1", {}, FLAT, np.where(CHANCES < 0.3, FLAT, CHANCES), lambda: lambda f, z, y: f.l1_loss(z, y)),
    ("huber", {}, FLAT, CHANCES, lambda: lambda f, z, y: f.huber_loss(z, y)),
    ("huber", {"delta": 2.5}, FLAT, CHANCES, lambda: lambda f, z, y: f.huber_loss(z, y, delta=2.5)),
    ("output", {}, FIRST, LABELS, lambda: lambda f, z, y: z.mean()),
]


@pytest.mark.needs("torch")
@pytest.mark.parametrize(("loss", "options", "z", "label", "formula"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_the_loss_and_its_gradient_equal_torch(
    tmp_path: Path, loss: LossName, options: dict[str, Any], z: np.ndarray, label: np.ndarray, formula: Any
) -> None:
    import torch

    exact = torch.tensor(z.astype(np.float64), requires_grad=True)
    target = torch.tensor(label.astype(np.float64) if label.dtype.kind == "f" else label)
    value = formula()(torch.nn.functional, exact, target)
    value.backward()
    given = label.astype(np.float32) if loss != "cross-entropy" else label
    for axis in (1, -1) if loss in {"cross-entropy", "kl"} or "positive_weights" in options else (1,):
        told = LossOptions(**options, class_axis=1 if axis == 1 else -1)
        turned = np.moveaxis(z, 1, axis).copy()
        own = np.moveaxis(given, 1, axis).copy() if given.ndim == z.ndim else given
        found = gradients(identity(turned.shape[1:]), turned, own, tmp_path / f"{axis}", loss=loss, loss_options=told)
        assert found["loss"] == pytest.approx(float(value.detach()), rel=2e-6)
        wanted = np.moveaxis(exact.grad.numpy(), 1, axis).sum(0, keepdims=True)
        np.testing.assert_allclose(found["b"], wanted, rtol=2e-5, atol=2e-7)  # float32


def test_a_batch_of_ignored_labels_has_no_loss_and_no_gradient(tmp_path: Path) -> None:
    told = LossOptions(ignore_index=-100, label_smoothing=0.1)
    found = gradients(identity((5,)), FLAT, np.full(6, -100), tmp_path / "p", loss="cross-entropy", loss_options=told)
    assert found["loss"] == 0
    assert not found["b"].any()


@pytest.mark.parametrize(("loss", "final"), [("bce", "Sigmoid"), ("kl", "Softmax"), ("cross-entropy", "LogSoftmax")])
def test_what_the_loss_computes_itself_is_taken_off_the_models_end(tmp_path: Path, loss: LossName, final: str) -> None:
    bare = make([node("MatMul", "x w", "y")], {"w": ones(4, 3)})
    ended = make([node("MatMul", "x w", "a"), node(final, "a", "y")], {"w": ones(4, 3)})
    x = random.standard_normal((6, 4)).astype(np.float32)
    label = LABELS % 3 if loss == "cross-entropy" else np.full((6, 3), 1 / 3, np.float32)
    one, other = (gradients(m, x, label, tmp_path / str(i), loss=loss) for i, m in enumerate((bare, ended)))
    assert one["loss"] == other["loss"]
    np.testing.assert_array_equal(one["w"], other["w"])


@pytest.mark.parametrize("axis", [1, 2])
def test_a_final_softmax_of_before_opset_13_is_taken_off_where_it_goes_over_the_classes_alone(
    tmp_path: Path, axis: int
) -> None:
    """It goes over all dimensions from its axis on: over those of [N, classes, 1, 1] from 1 on, which is the softmax of today."""
    conv, final = node("Conv", "x w", "a"), node("Softmax", "a", "y", axis=axis)
    weights, size = {"w": ones(3, 4, 1, 1)}, ("N", 4, 1, 1)
    bare = make([node("Conv", "x w", "y")], weights, size)
    x, label = FLAT[:, :4, None, None].copy(), (LABELS % 3)[:, None, None]
    one, other = (
        gradients(model, x, label, tmp_path / str(i))
        for i, model in enumerate((bare, make([conv, final], weights, size, opset=9)))
    )
    assert (one["loss"] == other["loss"]) == (axis == 1)
    assert np.array_equal(one["w"], other["w"]) == (axis == 1)


def test_a_model_whose_output_is_its_scalar_loss_trains(tmp_path: Path) -> None:
    """An autoencoder that measures itself: mean((x w v - x)^2)."""
    nodes = [
        node("MatMul", "x w", "code"),
        node("MatMul", "code v", "image"),
        node("Sub", "image x", "off"),
        node("Pow", "off two", "square"),
        node("ReduceMean", "square", "y", keepdims=0),
    ]
    model = make(nodes, {"w": ones(4, 2), "v": ones(2, 4), "two": np.array(2, np.float32)})
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    manifest = compile_model(model, loss="output", output=tmp_path / "plan")
    x = (random.standard_normal((64, 2)) @ random.standard_normal((2, 4))).astype(np.float32)
    data = fit("autoencoder", x, LABELS.repeat(11)[:64], manifest)
    trainer = Trainer(open_plan(tmp_path / "plan"))
    before = trainer.evaluate(data).loss
    trainer.run_epochs(data, epochs=20, batch_size=8, learning_rate=0.02, momentum=0.9, seed=1)
    assert trainer.evaluate(data).loss < before / 2
    assert session(tmp_path / "plan" / plan.EVAL).get_outputs()[1].shape == []


BAD: list[tuple[LossName, dict[str, Any], str]] = [
    ("mse", {"label_smoothing": 0.1}, "mse has no option label-smoothing"),
    ("huber", {"temperature": 2.0}, "belongs to kl"),
    ("cross-entropy", {"label_smoothing": 1.0}, "label-smoothing 1"),
    ("cross-entropy", {"class_weights": (1.0, -1.0, 1.0)}, "hold -1"),
    ("cross-entropy", {"class_weights": (1.0, float("nan"), 1.0)}, "hold nan"),
    ("cross-entropy", {"class_weights": (0.0, 0.0, 0.0)}, "all 0"),
    ("cross-entropy", {"class_weights": (1.0, 2.0)}, "2 class-weights for 3 classes"),
    ("cross-entropy", {"ignore_index": 1 << 40}, "ignore-index"),
    ("bce", {"positive_weights": (1.0, 2.0)}, "2 positive-weights for 3"),
    ("huber", {"delta": 0.0}, "delta 0"),
    ("kl", {"temperature": float("inf")}, "temperature inf"),
]


@pytest.mark.parametrize(("loss", "options", "reason"), BAD)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, loss: LossName, options: dict[str, Any], reason: str
) -> None:
    model = make([node("MatMul", "x w", "y")], {"w": ones(4, 3)})
    with pytest.raises(ValueError, match=reason):
        compile_model(model, loss=loss, loss_options=LossOptions(**options), output=tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_options_are_read_from_the_command_line() -> None:
    found = parse(["label-smoothing=0.1", "class-weights=1,2.5,0", "ignore-index=-100", "class-axis=-1"])
    assert found == LossOptions(label_smoothing=0.1, class_weights=(1, 2.5, 0), ignore_index=-100, class_axis=-1)
    for bad, reason in (
        (["smoothing=1"], "out of label-smoothing"),
        (["delta"], "NAME=VALUE"),
        (["delta=1", "delta=2"], "each name once"),
        (["delta=wide"], "delta: "),
        (["class-axis=2"], "class-axis: "),
    ):
        with pytest.raises(LossError, match=reason):
            parse(bad)


def test_a_loss_over_classes_needs_two(tmp_path: Path) -> None:
    model = make([node("MatMul", "x w", "y")], {"w": ones(4, 1)})
    for loss in ("cross-entropy", "kl"):
        with pytest.raises(ModelError, match="at least two classes"):
            compile_model(model, loss=loss, output=tmp_path / "p")


def test_labels_are_held_to_what_the_loss_takes(tmp_path: Path) -> None:
    model = make([node("MatMul", "x w", "y")], {"w": ones(4, 3)})
    x = np.ones((2, 4), np.float32)
    plans: dict[LossName, Any] = {
        loss: compile_model(model, loss=loss, output=tmp_path / loss) for loss in ("bce", "kl", "output")
    }
    with pytest.raises(DataError, match="probabilities"):
        fit("d", x, np.array([[0, 1, 2], [0, 0, 1]]), plans["bce"])
    with pytest.raises(DataError, match="a distribution over 3 classes"):
        fit("d", x, np.array([[0.5, 0.2, 0.2], [0, 0, 1]]), plans["kl"])
    with pytest.raises(DataError, match="a distribution over 3 classes"):
        fit("d", x, np.array([[1.5, -0.5, 0.0], [0, 0, 1]]), plans["kl"])
    assert len(fit("d", x, np.array(["a", "b"]), plans["output"])) == 2
    told = LossOptions(ignore_index=-100)
    some = compile_model(model, loss="cross-entropy", loss_options=told, output=tmp_path / "some")
    assert len(fit("d", x, np.array([-100, 2]), some)) == 2
    with pytest.raises(DataError, match="no class"):
        fit("d", x, np.array([-99, 2]), some)
    with pytest.raises(DataError, match="every target is -100, which the plan ignores"):
        fit("d", x, np.array([-100, -100]), some)


def test_accuracy_counts_labels_of_sequences_but_no_ignored_ones(tmp_path: Path) -> None:
    told = LossOptions(ignore_index=-100, class_axis=-1)
    manifest = compile_model(identity((4, 5)), loss="cross-entropy", loss_options=told, output=tmp_path / "plan")
    z = np.moveaxis(FIRST, 1, -1).copy()
    data = fit("d", z, np.where(SOME < 0, -100, z.argmax(-1)), manifest)
    assert Trainer(open_plan(tmp_path / "plan")).evaluate(data, batch_size=4).accuracy == 1.0
