"""What training makes small: the losses by name, and the options that some of them have.

    cross-entropy   class numbers against logits        label-smoothing, class-weights, ignore-index, class-axis
    bce             0 .. 1 against logits, each by itself                         positive-weights, class-axis
    kl              a distribution over the classes, as a teacher gives it        temperature, class-axis
    mse, l1, huber  numbers                             huber: delta
    output          the model's own output: it computes its loss itself, and labels aren't looked at

docs/losses.md says what labels look like; edge/autodiff/losses.py has the formulas.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

LossName = Literal["cross-entropy", "bce", "kl", "mse", "l1", "huber", "output"]
LARGEST = 1e6  # of a weight or a delta, so that no float32 overflows
MAX_CLASSES = 1 << 20  # with weights in the manifest
LEAST_COUNT = 1e-30  # divides where all labels are ignored: the loss is 0 then, where torch has NaN
LABEL_RANGE = 1 << 31  # ignore-index lies within +- this


class LossError(ValueError):
    """Options that don't fit their loss; the message names the option and the value."""


class LossOptions(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab", omit_defaults=True
):
    """The mean of cross-entropy is over what counts: labels but `ignore_index`, each with its class's weight.

    `positive_weights` multiply what bce says of labels of 1, output by output. `class_axis` is where the model's output has the classes: 1 for [N, classes, ...], -1 for [N, ..., classes].
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    positive_weights: tuple[float, ...] = ()
    ignore_index: int | None = None
    class_axis: Literal[1, -1] = 1
    temperature: float = 1.0
    delta: float = 1.0


PLAIN = LossOptions()
BELONGS: dict[str, tuple[LossName, ...]] = {
    "label_smoothing": ("cross-entropy",),
    "class_weights": ("cross-entropy",),
    "positive_weights": ("bce",),
    "ignore_index": ("cross-entropy",),
    "class_axis": ("cross-entropy", "kl", "bce"),
    "temperature": ("kl",),
    "delta": ("huber",),
}


def check(loss: LossName, options: LossOptions, classes: int | None = None) -> None:
    """Raises LossError when an option belongs to another loss, is out of bounds or doesn't fit the number of classes."""
    for field, losses in BELONGS.items():
        value = getattr(options, field)
        if value != getattr(PLAIN, field) and loss not in losses:
            raise LossError(f"the loss {loss} has no option {shown(field)} (it belongs to {', '.join(losses)})")
    if not 0 <= options.label_smoothing < 1:
        raise LossError(f"label-smoothing {options.label_smoothing:g}: from 0 to below 1 is possible")
    for field in ("temperature", "delta"):
        value = getattr(options, field)
        if not 1 / LARGEST <= value <= LARGEST:
            raise LossError(f"{field} {value:g}: from {1 / LARGEST:g} to {LARGEST:g} is possible")
    if options.ignore_index is not None and not -LABEL_RANGE <= options.ignore_index < LABEL_RANGE:
        raise LossError(f"ignore-index {options.ignore_index}: from {-LABEL_RANGE} to {LABEL_RANGE - 1} is possible")
    for field in ("class_weights", "positive_weights"):
        _check_weights(shown(field), getattr(options, field), classes)


def _check_weights(name: str, weights: tuple[float, ...], classes: int | None) -> None:
    if len(weights) > MAX_CLASSES:
        raise LossError(f"{len(weights)} {name}, at most {MAX_CLASSES} are possible")
    if bad := [w for w in weights if not (math.isfinite(w) and 0 <= w <= LARGEST)]:
        raise LossError(f"{name} hold {bad[0]:g}: from 0 to {LARGEST:g} is possible")
    if weights and not any(weights):
        raise LossError(f"{name} are all 0: nothing would be learnt")
    if weights and classes is not None and len(weights) != classes:
        raise LossError(f"{len(weights)} {name} for {classes} classes: one for each is needed")


def shown(field: str) -> str:
    """An option's name as people write it."""
    return field.replace("_", "-")


def parse(given: Sequence[str]) -> LossOptions:
    """['label-smoothing=0.1', 'class-weights=1,2,4'] as options; raises LossError."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name in found or name.replace("-", "_") not in BELONGS:
            known = ", ".join(map(shown, BELONGS))
            raise LossError(f"loss option {text!r}: expected NAME=VALUE, each name once, out of {known}")
        found[name] = value.split(",") if name.endswith("weights") else value
    try:
        return msgspec.convert(found, LossOptions, strict=False)
    except msgspec.ValidationError as e:
        what, _, at = str(e).partition(" - at `$.")
        raise LossError(f"loss option {at.rstrip('`')}: {what[:1].lower()}{what[1:]}") from e
