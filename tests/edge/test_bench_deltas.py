"""The transformer of the benches: its backward pass is written by hand, so it is held to finite differences."""

import numpy as np
import pytest

from fleetgrad.edge.bench.transformer import Size, Transformer

TINY = Size(characters=11, width=8, heads=2, layers=2, context=5)
TENSORS = [t.name for t in Transformer(TINY, 0).tensors]


@pytest.mark.parametrize("name", TENSORS)
def test_the_transformers_gradient_is_its_finite_difference(name: str) -> None:
    model, rng = Transformer(TINY, 1, np.float64), np.random.default_rng(2)
    model.flat += rng.standard_normal(model.flat.size) * 0.2  # away from the symmetric start
    x, y = rng.integers(0, TINY.characters, (2, 3, TINY.context))
    model.step(x, y)
    gradient, start = model.gradient.copy(), model.flat.copy()
    direction = np.zeros_like(start)
    tensor = next(t for t in model.tensors if t.name == name)
    model.view(direction, tensor)[:] = rng.standard_normal(tensor.shape)
    losses = []
    for sign in (1, -1):
        model.flat[:] = start + sign * 1e-5 * direction
        losses.append(model.step(x, y))
    # A central difference at 1e-5 in float64: about 1e-10 of rounding and as much of curvature.
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(gradient @ direction, rel=1e-5, abs=1e-7)


def first_logits(model: Transformer, text: np.ndarray) -> list[float]:
    """Logits at the first place, each less the first one: the loss moves by them when only the first label does."""
    losses = []
    for label in range(TINY.characters):
        y = np.zeros_like(text)
        y[0, 0] = label
        losses.append(model.step(text, y))
    return [(losses[0] - loss) * text.size for loss in losses]


def test_the_transformer_sees_no_character_that_comes_later() -> None:
    model, rng = Transformer(TINY, 3, np.float64), np.random.default_rng(4)
    model.flat += rng.standard_normal(model.flat.size) * 0.2
    text = rng.integers(0, TINY.characters, (1, TINY.context))
    first, later = text.copy(), text.copy()
    first[0, 0] = (text[0, 0] + 1) % TINY.characters
    later[0, 1:] = (text[0, 1:] + 1) % TINY.characters
    found = first_logits(model, text)
    assert found == pytest.approx(first_logits(model, later), abs=1e-9)
    assert found != pytest.approx(first_logits(model, first), abs=1e-3)
