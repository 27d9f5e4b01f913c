"""The bench of learning gives both engines the same work, and says what it lacks."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetgrad.edge.bench import learning
from fleetgrad.edge.bench.models import Task
from fleetgrad.edge.bench.subjects import CONTEXT, SUBJECTS, Subject, images, windows


def small(places: int) -> Any:
    from torch import nn

    last = nn.Linear(12, 3 * places)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), last, *([nn.Unflatten(1, (places, 3))] if places > 1 else []))


def subject(rule: Any, places: int) -> tuple[Subject, Any]:
    """150 samples whose labels a small model can learn; with places, a label for each."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((150, 6), np.float32)
    y = np.stack([np.roll(x, p, 1)[:, :3].argmax(1) for p in range(places)], 1)
    samples = (x, y if places > 1 else y[:, 0])
    task = Task(partial(small, places), (6,), 3)
    axis: Any = -1 if places > 1 else 1
    rate = 0.2 if rule == "momentum" else 0.02
    return Subject("small", "none", images, task, rule, rate, 16, 3, 0.0, class_axis=axis), samples


@pytest.mark.needs("torch")
@pytest.mark.parametrize(("rule", "places"), [("momentum", 1), ("adam", 1), ("momentum", 4)])
def test_plans_and_torch_are_given_the_same_work(rule: str, places: int) -> None:
    """Or fp32 losses would part by more than roundings; int8 gradients are within the documented fidelity of fp32's."""
    found, samples = subject(rule, places)
    told: dict[str, list[float]] = {}
    makers: dict[str, Any] = {learning.PEER: lambda: learning.Torch(found, 3)}
    makers |= {g: lambda g=g: learning.Planned(found, 3, g) for g in learning.GRADIENTS}
    accuracies = {}
    for name, make in makers.items():
        learner, losses = make(), list[float]()
        learning.learn(learner, found, samples, 3, lambda _, __, loss, to=losses: to.append(loss))  # type: ignore[misc]
        told[name], accuracies[name] = losses, learner.accuracy(samples)
    assert told["fp32"] == pytest.approx(told["torch"], rel=1e-4)
    assert told["int8"] == pytest.approx(told["torch"], rel=0.02)
    assert told["torch"][-1] < 0.9 * told["torch"][0]
    assert accuracies["fp32"] == pytest.approx(accuracies["torch"], abs=100 / samples[1].size)


@pytest.mark.needs("torch")
def test_engines_that_begin_from_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found, samples = subject("momentum", 1)
    exported = Task.exported
    monkeypatch.setattr(Task, "exported", lambda self, seed: exported(self, seed + 1))
    with pytest.raises(RuntimeError, match="the first losses differ"):
        learning.studied(found, samples, samples)


def test_text_is_cut_role_by_role_with_the_next_character_as_label() -> None:
    lengths = (2 * CONTEXT + 1, CONTEXT, CONTEXT + 5)  # 2 pieces, none, 1
    text = (np.arange(sum(lengths)) % 251).astype(np.uint8)
    offsets = np.array([0, *np.cumsum(lengths)], np.int32)
    arrays: dict[str, Any] = {"train": text, "train_offsets": offsets, "test": text, "test_offsets": offsets}
    (x, y), _ = windows(arrays)
    assert x.shape == y.shape == (3, CONTEXT)
    assert [row[0] for row in x] == [text[0], text[CONTEXT], text[3 * CONTEXT + 1]]
    assert np.array_equal(y[:, :-1], x[:, 1:])
    assert y[2, -1] == text[4 * CONTEXT + 1]


def test_a_missing_folder_or_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FLEETGRAD_DATA", raising=False)
    (row,) = learning.rows()
    assert row["holds"] is None
    assert "FLEETGRAD_DATA names no folder" in row["peer"]
    (row,) = learning.table(SUBJECTS[0], tmp_path)
    assert row["holds"] is None
    assert str(tmp_path / "fmnist" / "fmnist.npz") in row["peer"]
