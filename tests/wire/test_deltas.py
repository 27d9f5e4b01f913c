"""Deltas between versions: exact for every bit pattern, smaller than a snapshot where little changed, harmless when they don't fit."""

import numpy as np
import pytest

from fleetgrad.wire import deltas


def params(seed: int, count: int = 5000) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(count)).astype("<f4")


@pytest.mark.parametrize("count", [1, 3, 4096, 4097, 20_000])
def test_a_delta_gives_the_new_params_bit_for_bit(count: int, seed: int) -> None:
    print(f"seed {seed}")
    base = params(seed, count)
    new = (base + 1e-4 * params(seed + 1, count)).astype("<f4")
    new[::500] *= -1  # far changes go into the list
    delta = deltas.make(base.tobytes(), new.tobytes())
    if delta is None:
        assert count < 100
        return
    assert deltas.apply(base.tobytes(), delta) == new.tobytes()
    assert len(delta) < 0.8 * new.nbytes


def test_every_bit_pattern_survives() -> None:
    special = np.array([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, np.inf, -np.inf, np.nan, 1.0, 2.0], "<f4")
    base = np.tile(special, 400)
    new = base.copy()
    new[::7] = special[np.arange(base.size)[::7] * 3 % special.size]
    delta = deltas.make(base.tobytes(), new.tobytes())
    assert delta is not None
    assert deltas.apply(base.tobytes(), delta) == new.tobytes()


def test_there_is_no_delta_where_it_would_not_be_smaller_or_has_no_code() -> None:
    base = params(1)
    assert deltas.make(base.tobytes(), params(2)[:-1].tobytes()) is None
    noise = np.random.default_rng(3).integers(-(2**31), 2**31, base.size).astype("<i4")
    assert deltas.make(base.tobytes(), noise.tobytes()) is None
    assert deltas.make(b"", b"") is None


def test_a_delta_that_does_not_fit_is_refused_in_words() -> None:
    base = params(1)
    delta = deltas.make(base.tobytes(), (base * np.float32(1.0001)).astype("<f4").tobytes())
    assert delta is not None
    beyond = (1).to_bytes(4, "little") + (base.size).to_bytes(4, "little") + bytes(4) + delta[4:]
    for bad in (delta[:-1], delta + b"\0", b"", delta[:3], b"\xff" * len(delta), beyond):
        with pytest.raises(deltas.DeltaError, match="delta of"):
            deltas.apply(base.tobytes(), bad)
    for other in (base[:-5].tobytes(), base.tobytes()[:-1]):
        with pytest.raises(deltas.DeltaError, match="delta of"):
            deltas.apply(other, delta)
