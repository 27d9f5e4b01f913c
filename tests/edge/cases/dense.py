"""Matrix products."""

from tests.edge.cases.inputs import Case, numbers

r = numbers()

CASES: list[Case] = [
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
]
