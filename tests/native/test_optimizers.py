"""The fused optimizer step against NumPy bit by bit, against torch, and what it refuses and leaves alone."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from fleetgrad.native import binding, optimizers
from fleetgrad.native.binding import Floats
from fleetgrad.native.optimizers import MOMENTS, Optimizer, Rule
from tests.native.every import every_capability

SIZES = [0, 1, 15, 17, 1023, 1024, 1025, 4099]
RULES: tuple[Rule, ...] = ("sgd", "momentum", "nesterov", "adam", "adamw")
f = np.float32


def vectors(seed: int, count: int, size: int) -> list[Floats]:
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size, f) for _ in range(count)]


def moments(rule: Rule, size: int) -> list[Floats]:
    return [np.zeros(size, f) for _ in range(MOMENTS[rule])]


def oracle(o: Optimizer, w: Floats, d: Floats, state: list[Floats], time: int) -> tuple[Floats, list[Floats]]:
    """The rule in float32, one operation at a time; d is the gradient with its terms."""
    rate, beta, decay = f(o.learning_rate), f(o.momentum), f(o.weight_decay)
    if o.rule != "adamw":
        d = d + decay * w
    if o.rule == "sgd":
        return w - rate * d, []
    if o.rule in {"momentum", "nesterov"}:
        v = beta * state[0] + d
        return w - rate * (d + beta * v if o.rule == "nesterov" else v), [v]
    b1, b2 = o.betas
    m = f(b1) * state[0] + f(1 - b1) * d
    s = f(b2) * state[1] + f(1 - b2) * (d * d)
    keep = f(1 - o.learning_rate * o.weight_decay) if o.rule == "adamw" else f(1)
    rate, root = (
        f(o.learning_rate / (1 - optimizers.power(b1, time))),
        f(1 / math.sqrt(1 - optimizers.power(b2, time))),
    )
    return keep * w - rate * m / (np.sqrt(s) * root + f(o.epsilon)), [m, s]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_a_step_is_its_rule_in_float32_bit_by_bit(isa: str, seed: int, rule: Rule, size: int) -> None:
    w, *gradients = vectors(seed, 4, size)
    o = Optimizer(rule, 0.01, weight_decay=0.03)
    state = moments(rule, size)
    for time, g in enumerate(gradients, 1):
        expected, expected_state = oracle(o, w, g, state, time)
        assert optimizers.step(o, w, g, *state, time=time) is None
        assert w.tobytes() == expected.tobytes()
        assert [m.tobytes() for m in state] == [m.tobytes() for m in expected_state]


TERMS: dict[str, Callable[[Floats, Floats, dict[str, Floats]], Floats]] = {  # added to the gradient, from left to right
    # Li et al., MLSys 2020: the gradient of f(w) + mu / 2 |w - w_t|^2.
    "FedProx": lambda g, w, v: g + f(0.1) * (w - v["anchor"]),
    # Karimireddy et al., ICML 2020, algorithm 1: y <- y - rate (g(y) + c - c_i).
    "SCAFFOLD": lambda g, _, v: g + (v["control"] - v["own_control"]),
    # Acar et al., ICLR 2021, algorithm 1: the gradient of f(w) - <h_i, w> + alpha / 2 |w - w_t|^2.
    "FedDyn": lambda g, w, v: g + f(0.1) * (w - v["anchor"]) - v["dynamic"],
}
NEEDED = {"FedProx": ("anchor",), "SCAFFOLD": ("control", "own_control"), "FedDyn": ("anchor", "dynamic")}


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", TERMS)
def test_federated_terms_are_their_papers_gradients(
    isa: str, seed: int, method: str, rule: Rule, max_norm: float | None
) -> None:
    w, g, *extra = vectors(seed, 4, 2100)
    given: dict[str, Any] = dict(zip(NEEDED[method], extra, strict=False))
    o = Optimizer(rule, 0.01, proximal=0.1 if "anchor" in given else 0.0, weight_decay=0.01, max_norm=max_norm)
    state = moments(rule, w.size)
    clip = 1.0 if max_norm is None else max_norm / (optimizers.norm(g) + 1e-6)
    d = TERMS[method](f(clip) * g, w, given)
    expected, _ = oracle(o, w, d, state, 1)
    optimizers.step(o, w, g, *state, **given)
    assert w.tobytes() == expected.tobytes()


def test_all_terms_together_are_added_in_the_documented_order(isa: str, seed: int) -> None:
    w, g, anchor, control, own, dynamic = vectors(seed, 6, 1500)
    o = Optimizer("sgd", 0.1, proximal=0.25, max_norm=2.0, weight_decay=0.5)
    clip = f(2.0 / (optimizers.norm(g) + 1e-6))
    d = clip * g + f(0.25) * (w - anchor) + (control - own) - dynamic
    expected = w - f(0.1) * (d + f(0.5) * w)
    length = optimizers.step(o, w, g, anchor=anchor, control=control, own_control=own, dynamic=dynamic)
    assert length == optimizers.norm(g)
    assert w.tobytes() == expected.tobytes()


def test_federated_terms_are_not_clipped(isa: str) -> None:
    w, g = np.full(4, 3, f), np.full(4, 1000, f)
    optimizers.step(Optimizer("sgd", 1.0, max_norm=1e-3, proximal=1.0), w, g, anchor=np.zeros(4, f))
    np.testing.assert_allclose(w, np.zeros(4), atol=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_the_norm_is_the_exact_one_to_double_accuracy(isa: str, seed: int, size: int) -> None:
    (g,) = vectors(seed, 1, size)
    exact = math.sqrt(sum((Fraction(float(x)) ** 2 for x in g), Fraction()))
    assert abs(optimizers.norm(g) - exact) <= 1e-14 * exact


def test_the_norm_does_not_depend_on_instruction_set_or_on_how_ranges_are_cut(seed: int) -> None:
    (g,) = vectors(seed, 1, 5000)
    cuts = [(0, 5), (5, 5), (5, 1024), (1024, 1999), (1999, 5000)]
    found = {norm for _ in every_capability() for norm in (optimizers.norm(g), optimizers.norm(g, cuts))}
    assert len(found) == 1


def test_a_gradient_under_the_norm_limit_is_not_clipped(isa: str, seed: int) -> None:
    w, g = vectors(seed, 2, 100)
    plain = w.copy()
    optimizers.step(Optimizer("sgd", 0.1), plain, g)
    optimizers.step(Optimizer("sgd", 0.1, max_norm=1e6), w, g)
    assert w.tobytes() == plain.tobytes()


@pytest.mark.parametrize("rule", RULES)
def test_only_the_ranges_are_touched_and_only_they_count_for_the_norm(isa: str, seed: int, rule: Rule) -> None:
    w, g, anchor = vectors(seed, 3, 3000)
    ranges = [(0, 0), (3, 17), (17, 18), (40, 1500), (2900, 3000), (3000, 3000)]
    inside = np.zeros(3000, bool)
    for start, end in ranges:
        inside[start:end] = True
    g[~inside] = np.nan  # what isn't trained has no gradient
    o = Optimizer(rule, 0.1, proximal=0.5, max_norm=3.0)
    state = moments(rule, 3000)
    expected, small = w.copy(), [m[inside] for m in state]
    part = w[inside]
    clip = f(3.0 / (optimizers.norm(g, ranges) + 1e-6))
    part, small = oracle(o, part, clip * g[inside] + f(0.5) * (part - anchor[inside]), small, 1)
    expected[inside] = part
    length = optimizers.step(o, w, g, *state, ranges=ranges, anchor=anchor)
    assert length is not None and math.isclose(length, np.linalg.norm(g[inside].astype(float)))
    assert w.tobytes() == expected.tobytes()
    assert all(m[inside].tobytes() == s.tobytes() and not m[~inside].any() for m, s in zip(state, small, strict=True))


def test_no_range_at_all_is_a_step_that_does_nothing(isa: str, seed: int) -> None:
    w, g = vectors(seed, 2, 50)
    before = w.tobytes()
    assert optimizers.step(Optimizer("sgd", 1.0, max_norm=1.0), w, g, ranges=[]) == 0
    assert w.tobytes() == before


@pytest.mark.parametrize("max_norm", [None, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_is_refused_with_its_index_and_nothing_is_written(
    isa: str, seed: int, bad: float, max_norm: float | None
) -> None:
    w, g = vectors(seed, 2, 4000)
    g[3777] = bad
    velocity = np.zeros(4000, f)
    before = w.tobytes()
    o = Optimizer("momentum", 0.1, max_norm=max_norm)
    with pytest.raises(optimizers.GradientError, match="gradient 3777 of 4000") as caught:
        optimizers.step(o, w, g, velocity, ranges=[(0, 10), (30, 4000)])
    assert caught.value.index == 3777
    assert w.tobytes() == before and not velocity.any()


def test_huge_finite_gradients_have_a_finite_norm(isa: str) -> None:
    g = np.full(1000, 3e38, f)
    assert math.isclose(optimizers.norm(g), float(g[0]) * math.sqrt(1000), rel_tol=1e-12)


a = np.zeros(40, f)
REFUSED: list[tuple[str, Callable[[], object]]] = [
    ("share memory", lambda: optimizers.step(Optimizer("sgd", 1), a[:10], a[5:15])),
    ("share memory", lambda: optimizers.step(Optimizer("momentum", 1), a[:10], a[10:20], a[9:19])),
    ("share memory", lambda: optimizers.step(Optimizer("adam", 1), a[:10], a[30:], a[10:20], a[19:29])),
    ("share memory", lambda: optimizers.step(Optimizer("momentum", 1), a[:10], a[10:20], a[20:30], anchor=a[25:35])),
    ("share memory", lambda: optimizers.step(Optimizer("sgd", 1), a[:10], a[10:20], dynamic=a[:10])),
    ("has 2 moments, got 1", lambda: optimizers.step(Optimizer("adam", 1), a[:10], a[10:20], a[20:30])),
    ("9 elements, expected 10", lambda: optimizers.step(Optimizer("sgd", 1), a[:10], a[10:19])),
    ("contiguous float32", lambda: optimizers.step(Optimizer("sgd", 1), a[:10], np.zeros(10))),  # type: ignore[arg-type]
    ("come together", lambda: optimizers.step(Optimizer("sgd", 1), a[:10], a[10:20], control=a[20:30])),
    ("needs an anchor", lambda: optimizers.step(Optimizer("sgd", 1, proximal=0.1), a[:10], a[10:20])),
    ("first step is 1", lambda: optimizers.step(Optimizer("sgd", 1), a[:10], a[10:20], time=0)),
    (r"range \[5, 11\) of 10", lambda: optimizers.step(Optimizer("sgd", 1), a[:10], a[10:20], ranges=[(5, 11)])),
    (r"range \[2, 4\)", lambda: optimizers.step(Optimizer("sgd", 1), a[:10], a[10:20], ranges=[(0, 3), (2, 4)])),
    (r"range \[4, 2\)", lambda: optimizers.norm(a[:10], [(4, 2)])),
    (r"range \[-1, 2\)", lambda: optimizers.norm(a[:10], [(-1, 2)])),
    ("rule 'sgdd'", lambda: Optimizer("sgdd", 1)),  # type: ignore[arg-type]
    ("learning_rate nan", lambda: Optimizer("sgd", math.nan)),
    ("weight_decay -1", lambda: Optimizer("sgd", 1, weight_decay=-1)),
    ("momentum 1", lambda: Optimizer("momentum", 1, momentum=1)),
    ("beta 2 1", lambda: Optimizer("adam", 1, betas=(0.9, 1.0))),
    ("max_norm 0", lambda: Optimizer("sgd", 1, max_norm=0)),
]


@pytest.mark.parametrize(("match", "act"), REFUSED, ids=[m for m, _ in REFUSED])
def test_what_a_caller_gets_wrong_is_refused_in_words(match: str, act: Callable[[], object]) -> None:
    with pytest.raises(binding.KernelError, match=match):
        act()


@pytest.mark.parametrize("base", [0.0, 0.5, 0.9, 0.999, 0.9999])
def test_power_is_exact_to_a_few_units_in_the_last_place(base: float) -> None:
    for exponent in (1, 2, 3, 7, 100, 12345):
        exact = Fraction(base) ** exponent
        assert abs(Fraction(optimizers.power(base, exponent)) - exact) <= exact * Fraction(
            4 * exponent, 2**53
        ) + Fraction(1, 2**1000)


TORCH: dict[str, tuple[Rule, str, dict[str, Any]]] = {
    "sgd": ("sgd", "SGD", {}),
    "sgd decayed": ("sgd", "SGD", {"weight_decay": 0.02}),
    "momentum": ("momentum", "SGD", {"momentum": 0.9, "weight_decay": 0.02}),
    "nesterov": ("nesterov", "SGD", {"momentum": 0.9, "weight_decay": 0.02}),
    "adam": ("adam", "Adam", {"weight_decay": 0.02}),
    "adam betas": ("adam", "Adam", {"betas": (0.8, 0.95), "eps": 1e-3}),
    "adamw": ("adamw", "AdamW", {"weight_decay": 0.02}),
}


@pytest.mark.needs("torch")
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("case", TORCH)
def test_twenty_steps_end_where_torchs_do(isa: str, seed: int, case: str, clipped: bool) -> None:
    import torch

    rule, name, options = TORCH[case]
    w, *gradients = vectors(seed, 21, 333)
    theirs = torch.tensor(w, requires_grad=True)
    extra = {"nesterov": True} if rule == "nesterov" else {}
    peer = getattr(torch.optim, name)([theirs], lr=0.01, **options, **extra)
    ours = {"epsilon" if key == "eps" else key: value for key, value in options.items()}
    o = Optimizer(rule, 0.01, max_norm=4.0 if clipped else None, **ours)
    state = moments(rule, w.size)
    for time, g in enumerate(gradients, 1):
        theirs.grad = torch.tensor(g)
        if clipped:
            length = float(torch.nn.utils.clip_grad_norm_([theirs], 4.0))
        peer.step()
        found = optimizers.step(o, w, g, *state, time=time)
        assert found is None or math.isclose(found, length, rel_tol=1e-6)
    np.testing.assert_allclose(w, theirs.detach().numpy(), rtol=2e-5, atol=2e-6)  # about 20 roundings of values near 1
