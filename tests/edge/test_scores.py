"""Scores of an evaluation against their definitions, however the set is cut into batches."""

import math
from typing import Any

import numpy as np
import pytest

from fleetgrad.edge.training.scores import Evaluation, Scores, area, told
from fleetgrad.wire import plan
from fleetgrad.wire.loss import LossName, LossOptions
from fleetgrad.wire.plan import Feed, Manifest

random = np.random.Generator(np.random.PCG64(5))


def evaluated(
    loss: LossName, prediction: np.ndarray, y: np.ndarray, cut: int = 3, mean: float = 0.5, **options: Any
) -> Evaluation | None:
    manifest = Manifest(
        schema=plan.SCHEMA, model="m", loss=loss, loss_options=LossOptions(**options), gradients="fp32", op_abi=0,
        inputs=(), label=Feed(name=plan.LABEL, shape=y.shape[1:], dtype="float32"), output=prediction.shape[1:],
        tensors=(), travels=0, length=0,
    )  # fmt: skip
    scores = Scores(manifest)
    for start in range(0, len(y), cut):
        scores.add(mean, prediction[start : start + cut].astype(np.float32), y[start : start + cut])
    return scores.result()


@pytest.mark.parametrize("cut", [1, 3, 8])
def test_classifications_count_each_label_that_is_not_ignored(cut: int) -> None:
    logits = random.standard_normal((8, 7, 4))
    y = random.integers(0, 7, (8, 4))
    y[0], y[3, 1] = -1, -1
    found = evaluated("cross-entropy", logits, y, cut, ignore_index=-1)
    assert found is not None
    kept = y >= 0
    best = np.argsort(-logits, axis=1)
    assert found.accuracy == pytest.approx((best[:, 0] == y)[kept].mean())
    assert found.scores["top-5"] == pytest.approx((best[:, :5] == y[:, None]).any(1)[kept].mean())
    assert found.scores["perplexity"] == pytest.approx(math.exp(0.5))
    assert found.samples == 8
    last = evaluated("cross-entropy", np.moveaxis(logits, 1, -1), y, cut, ignore_index=-1, class_axis=-1)
    assert last == found


def test_a_smoothed_loss_has_no_perplexity() -> None:
    found = evaluated("cross-entropy", random.standard_normal((8, 3)), np.zeros(8, np.int64), label_smoothing=0.1)
    assert found is not None
    assert not found.scores


def test_nothing_that_counts_is_no_evaluation() -> None:
    assert evaluated("cross-entropy", np.ones((2, 3)), np.full(2, 9), ignore_index=9) is None


def by_pairs(scores: np.ndarray, positive: np.ndarray) -> float:
    """The definition: each positive against each negative, ties half."""
    pairs = np.sign(scores[positive][:, None] - scores[~positive][None])
    return float(((pairs + 1) / 2).mean())


def test_the_area_is_the_chance_that_a_positive_scores_higher() -> None:
    scores, positive = random.integers(0, 5, 40).astype(np.float32), random.random(40) < 0.3
    assert area(scores, positive) == pytest.approx(by_pairs(scores, positive))
    assert area(scores, np.ones(40, bool)) is None
    logits, y = random.standard_normal((40, 2)), random.integers(0, 2, 40)
    found = evaluated("cross-entropy", logits, y)
    assert found is not None
    assert found.scores["auc"] == pytest.approx(by_pairs((logits[:, 1] - logits[:, 0]).astype(np.float32), y == 1))


def test_outputs_without_both_kinds_of_labels_are_left_out_of_the_mean_area() -> None:
    logits, y = random.standard_normal((30, 3)), (random.random((30, 3)) < 0.5).astype(np.float32)
    y[:, 1] = 0
    found = evaluated("bce", logits, y)
    assert found is not None
    assert found.accuracy is None
    each = [by_pairs(logits[:, i].astype(np.float32), y[:, i] > 0) for i in (0, 2)]
    assert found.scores["auc"] == pytest.approx(sum(each) / 2)


@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
def test_regressions_tell_both_errors(loss: LossName) -> None:
    prediction, y = random.standard_normal((7, 2, 3)), random.standard_normal((7, 2, 3)).astype(np.float32)
    found = evaluated(loss, prediction, y)
    assert found is not None
    off = prediction - y
    assert found.scores == pytest.approx({"mae": np.abs(off).mean(), "rmse": math.sqrt((off**2).mean())}, rel=1e-6)


def test_distillation_tells_how_often_the_teacher_is_met() -> None:
    logits, teacher = random.standard_normal((9, 4)), random.random((9, 4)).astype(np.float32)
    found = evaluated("kl", logits, teacher)
    assert found is not None
    assert found.scores == {"agreement": pytest.approx((logits.argmax(1) == teacher.argmax(1)).mean())}
    assert told(found.scores).startswith("agreement 0.")
