"""How good a model's predictions are, beside the loss: counted batch by batch, so that no evaluation set is held twice.

    cross-entropy     accuracy; top-5 (with more than five classes), perplexity (exp of the plain loss), auc (of two classes)
    bce               auc, the mean over the outputs that have both kinds of labels
    kl                agreement: how often the likeliest class is the teacher's
    mse, l1, huber    mae and rmse, over all numbers

Each label counts once, whether a sample has one or a sequence of them; ignored ones don't. Accuracy and auc need no
probabilities: softmax and sigmoid keep the order of logits.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fleetgrad.wire.plan import Manifest

TOP = 5
MAX_AUC_OUTPUTS = 64  # auc keeps every score till the end: a map of pixels would fill the memory
PERPLEXITY_LIMIT = 80.0  # of the loss whose exp is told

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean loss over `samples`; accuracy where the loss is a classification's; other scores by name."""

    loss: float
    accuracy: float | None
    samples: int
    scores: dict[str, float] = field(default_factory=dict)


class Scores:
    """Collects the batches of one evaluation."""

    def __init__(self, manifest: Manifest) -> None:
        self._loss_name, self._options, self._classes = manifest.loss, manifest.loss_options, manifest.classes
        self._loss = self._right = self._top = self._absolute = self._square = 0.0
        self._samples = self._counted = self._numbers = 0
        self._ranked: list[tuple[Array, Array]] = []  # scores and labels, [n, outputs]

    def add(self, loss: float, prediction: NDArray[np.floating], y: Array) -> None:
        """One batch: its mean loss, the model's output and the labels."""
        count = len(y)
        match self._loss_name:
            case "cross-entropy":
                count = self._classified(prediction, y)
            case "kl":
                axis = self._options.class_axis
                same = prediction.argmax(axis) == y.argmax(axis)
                self._right, self._numbers = self._right + float(same.sum()), self._numbers + same.size
            case "bce":
                if prediction[0].size <= MAX_AUC_OUTPUTS:
                    self._ranked.append((prediction.reshape(count, -1), y.reshape(count, -1)))
            case "mse" | "l1" | "huber":
                off = np.subtract(prediction, y, dtype=np.float64)
                self._absolute += float(np.abs(off).sum())
                self._square += float((off**2).sum())
                self._numbers += off.size
        self._loss += loss * count
        self._samples, self._counted = self._samples + len(y), self._counted + count

    def _classified(self, prediction: NDArray[np.floating], y: Array) -> int:
        rows = np.moveaxis(prediction, self._options.class_axis, -1).reshape(-1, self._classes)
        labels = y.reshape(-1).astype(np.int64)
        if self._options.ignore_index is not None:
            kept = labels != self._options.ignore_index
            rows, labels = rows[kept], labels[kept]
        self._right += float((rows.argmax(1) == labels).sum())
        if self._classes > TOP:
            own = np.take_along_axis(rows, labels[:, None], 1)
            self._top += float(((rows > own).sum(1) < TOP).sum())
        if self._classes == 2:
            self._ranked.append(((rows[:, 1] - rows[:, 0])[:, None], labels[:, None]))
        return len(labels)

    def result(self) -> Evaluation | None:
        """What was found; None where nothing counted, as with all labels ignored."""
        if not self._counted:
            return None
        loss, found = self._loss / self._counted, dict[str, float]()
        accuracy = self._right / self._counted if self._loss_name == "cross-entropy" else None
        if accuracy is not None:
            plain = not self._options.label_smoothing and not self._options.class_weights
            if plain and loss < PERPLEXITY_LIMIT:
                found["perplexity"] = math.exp(loss)
            if self._classes > TOP:
                found[f"top-{TOP}"] = self._top / self._counted
        if self._loss_name == "kl":
            found["agreement"] = self._right / self._numbers
        if self._numbers and self._loss_name in {"mse", "l1", "huber"}:
            found |= {"mae": self._absolute / self._numbers, "rmse": math.sqrt(self._square / self._numbers)}
        if self._ranked:
            scores, labels = (np.concatenate(parts) for parts in zip(*self._ranked, strict=True))
            each = [area(s, t > 0.5) for s, t in zip(scores.T, labels.T, strict=True)]
            if known := [a for a in each if a is not None]:
                found["auc"] = sum(known) / len(known)
        return Evaluation(loss, accuracy, self._samples, found)


def area(scores: Array, positive: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half; None without both kinds.

    By the rank sum of the positives, with equal scores at their mean rank (Mann and Whitney 1947).
    """
    count = int(positive.sum())
    if count in {0, len(positive)}:
        return None
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[group]
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def told(scores: dict[str, float]) -> str:
    """Scores in words: 'top-5 0.9800, perplexity 1.2345'."""
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
