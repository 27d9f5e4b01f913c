"""Every VJP rule, in every variant, through the numeric checker: one line each."""

from typing import Any

import numpy as np
import pytest

from fleetgrad.edge.autodiff.checker import check_rule
from fleetgrad.edge.autodiff.registry import RULES

RANDOM = np.random.Generator(np.random.PCG64(20))


def r(*shape: int) -> np.ndarray:
    """Random numbers at least 0.05 from zero and, as good as surely, from each other: no kinks, no ties."""
    x = RANDOM.standard_normal(shape)
    return np.asarray(x + np.copysign(0.05, x))


def i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


C2 = (r(2, 3, 7, 6), r(4, 3, 3, 3), r(4))  # few channels
C9 = (r(2, 9, 6, 5), r(4, 9, 3, 2), r(4))  # many channels
P2 = r(2, 3, 7, 6)

CASES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("Add", (r(3, 4), r(3, 4)), {"batched": (0, 1)}),
    ("Add", (r(3, 4, 5), r(4, 1)), {}),
    ("Add", (r(3, 4), r()), {}),
    ("Add", (r(4), r(3, 4)), {"batched": (1,)}),
    ("Sub", (r(3, 4), r(1, 4)), {}),
    ("Sub", (r(1, 4), r(3, 4)), {"batched": (1,)}),
    ("Mul", (r(3, 2, 4), r(2, 1)), {}),
    ("Mul", (r(3, 1, 4), r(3, 5, 1)), {"batched": (0, 1)}),
    ("Div", (r(3, 4), r(4)), {}),
    ("Div", (r(1), r(3, 4)), {"batched": (1,)}),
    ("Relu", (r(3, 5),), {}),
    ("Sigmoid", (r(3, 5),), {}),
    ("Tanh", (r(3, 5),), {}),
    ("Softmax", (r(3, 5),), {}),
    ("Softmax", (r(3, 5, 2),), {"axis": 1}),
    ("Softmax", (r(3, 5, 2),), {"axis": -2}),
    ("Identity", (r(3, 5),), {}),
    ("Reshape", (r(3, 4, 2), i(0, -1)), {}),
    ("Reshape", (r(3, 4, 2), i(-1, 2)), {}),
    ("Flatten", (r(3, 4, 2),), {}),
    ("Flatten", (r(3, 4, 2),), {"axis": 2}),
    ("Flatten", (r(3, 4, 2),), {"axis": -1}),
    ("Squeeze", (r(3, 1, 2), i(1)), {}),
    ("Unsqueeze", (r(3, 2), i(1, 3)), {}),
    ("Transpose", (r(3, 4, 2),), {}),
    ("Transpose", (r(3, 4, 2, 5),), {"perm": [0, 3, 1, 2]}),
    ("Transpose", (r(3, 4, 2),), {"perm": [2, 0, 1]}),
    ("Gemm", (r(3, 4), r(4, 5)), {}),
    ("Gemm", (r(3, 4), r(5, 4), r(5)), {"transB": 1}),
    ("Gemm", (r(3, 4), r(4, 5), r(1, 5)), {"alpha": 0.5, "beta": 2.0}),
    ("Gemm", (r(3, 4), r(4, 5), r(3, 5)), {"batched": (0, 2), "beta": -1.5}),
    ("Gemm", (r(3, 4), r(4, 5), r()), {}),
    ("Gemm", (r(4, 3), r(4, 5), r(5)), {"transA": 1, "batched": ()}),
    ("Gemm", (r(4, 3), r(5, 4), r(3, 1)), {"transA": 1, "transB": 1, "alpha": 3.0, "batched": ()}),
    ("MatMul", (r(3, 4), r(4, 5)), {}),
    ("MatMul", (r(3, 2, 4), r(4, 5)), {}),
    ("MatMul", (r(3, 2, 4), r(3, 4, 5)), {"batched": (0, 1)}),
    ("MatMul", (r(3, 2, 6, 4), r(2, 4, 5)), {}),
    ("MatMul", (r(3, 1, 6, 4), r(2, 4, 5)), {}),
    ("MatMul", (r(6, 4), r(3, 4, 5)), {"batched": (1,)}),
    ("MatMul", (r(3, 4), r(4)), {}),
    ("MatMul", (r(4), r(3, 4, 5)), {"batched": (1,)}),
    ("MatMul", (r(3, 2, 4), r(4)), {}),
    ("MatMul", (r(4), r(4, 5)), {"batched": ()}),
    ("MatMul", (r(4), r(4)), {"batched": ()}),
    ("Conv", C2, {}),
    ("Conv", C2, {"pads": [1, 1, 1, 1]}),
    ("Conv", C2, {"pads": [2, 0, 1, 1], "strides": [2, 2]}),
    ("Conv", C2, {"strides": [3, 2]}),
    ("Conv", C2, {"dilations": [2, 2], "pads": [1, 2, 0, 1]}),
    ("Conv", C2, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", C2, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("Conv", C2, {"auto_pad": "SAME_UPPER"}),
    ("Conv", C2, {"auto_pad": "VALID"}),
    ("Conv", C9[:2], {}),
    ("Conv", C9, {"pads": [1, 0, 1, 1]}),
    ("Conv", C9, {"pads": [0, 1, 1, 0], "strides": [2, 2]}),
    ("Conv", C9, {"dilations": [2, 1], "strides": [1, 2]}),
    ("Conv", (r(2, 9, 5, 4), r(6, 9, 1, 1), r(6)), {}),
    ("Conv", (r(2, 3, 5, 4), r(6, 3, 1, 1)), {"strides": [2, 2]}),
    ("Conv", (r(2, 3, 5, 4), r(6, 3, 1, 1)), {"pads": [1, 1, 1, 1]}),
    ("Conv", (r(2, 3, 9), r(4, 3, 3), r(4)), {"pads": [1, 1]}),
    ("Conv", (r(2, 9, 9), r(4, 9, 3), r(4)), {"strides": [2], "dilations": [2], "pads": [0, 1]}),
    ("Conv", (r(2, 4, 6, 5), r(6, 2, 3, 3), r(6)), {"group": 2, "pads": [1, 1, 1, 1]}),
    (
        "Conv",
        (r(2, 4, 7, 6), r(6, 2, 3, 3)),
        {"group": 2, "strides": [2, 2], "dilations": [2, 1], "pads": [1, 0, 2, 1]},
    ),
    ("Conv", (r(2, 4, 6, 5), r(4, 1, 3, 3), r(4)), {"group": 4, "pads": [1, 1, 1, 1]}),
    ("Conv", (r(2, 4, 7, 6), r(8, 1, 3, 3)), {"group": 4, "strides": [2, 2]}),
    ("Conv", (r(2, 4, 9), r(4, 1, 3)), {"group": 4, "auto_pad": "SAME_LOWER"}),
    ("MaxPool", (P2,), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("MaxPool", (r(2, 3, 6, 4),), {"kernel_shape": [3, 2], "strides": [3, 2]}),
    ("MaxPool", (P2,), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("MaxPool", (P2,), {"kernel_shape": [2, 3], "pads": [0, 1, 1, 0]}),
    ("MaxPool", (P2,), {"kernel_shape": [2, 2], "dilations": [2, 2]}),
    ("MaxPool", (P2,), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", (P2,), {"kernel_shape": [2, 2], "strides": [3, 3]}),
    ("MaxPool", (P2,), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("MaxPool", (r(2, 3, 9),), {"kernel_shape": [2], "strides": [2]}),
    ("MaxPool", (r(2, 3, 9),), {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    ("AveragePool", (P2,), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("AveragePool", (P2,), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("AveragePool", (P2,), {"kernel_shape": [3, 3], "pads": [1, 0, 1, 1], "count_include_pad": 1}),
    ("AveragePool", (P2,), {"kernel_shape": [3, 2], "strides": [1, 2]}),
    ("AveragePool", (P2,), {"kernel_shape": [2, 2], "dilations": [2, 1]}),
    ("AveragePool", (P2,), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("AveragePool", (P2,), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ("AveragePool", (r(2, 3, 9),), {"kernel_shape": [3], "strides": [3]}),
    ("AveragePool", (r(2, 3, 9),), {"kernel_shape": [3], "strides": [2]}),
    ("GlobalAveragePool", (P2,), {}),
    ("GlobalAveragePool", (r(2, 3, 5),), {}),
]


@pytest.mark.parametrize(
    ("op", "inputs", "how"),
    CASES,
    ids=[f"{op}-{'-'.join('x'.join(map(str, x.shape)) for x in xs)}-{how}" for op, xs, how in CASES],
)
def test_the_rule_equals_finite_differences(op: str, inputs: tuple[Any, ...], how: dict[str, Any]) -> None:
    check_rule(op, *inputs, **how)


def test_every_rule_has_a_case() -> None:
    assert {op for op, _, _ in CASES} == set(RULES)


def test_the_checker_notices_a_wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "Tanh", RULES["Sigmoid"])
    with pytest.raises(AssertionError, match="by differences"):
        check_rule("Tanh", r(3, 4))


def test_random_convolutions_equal_finite_differences(seed: int) -> None:
    print(f"seed {seed}")
    random = np.random.Generator(np.random.PCG64(seed))
    for _ in range(12):
        rank, group = int(random.integers(1, 3)), int(random.choice([1, 1, 2]))
        channels, outputs = group * int(random.integers(1, 6)), group * int(random.integers(1, 4))
        kernel, size = random.integers(1, 4, rank), random.integers(7, 10, rank)
        how = {
            "strides": random.integers(1, 4, rank).tolist(),
            "dilations": random.integers(1, 3, rank).tolist(),
            "pads": random.integers(0, 3, 2 * rank).tolist(),
            "group": group,
        }
        x, w = r(2, channels, *size), r(outputs, channels // group, *kernel)
        check_rule("Conv", x, w, r(outputs), probes=10, seed=seed, **how)
