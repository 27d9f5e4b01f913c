"""VJP rules of matrix products. With Y = A B: dA = dY B^T and dB = A^T dY, summed over what was broadcast."""

from fleetgrad.edge.autodiff.graph import DOMAIN, Builder, Node, Shape
from fleetgrad.edge.autodiff.registry import Gradients, vjp


@vjp("Gemm", since=7)
def gemm(g: Builder, node: Node, dy: str) -> Gradients:
    """Y = alpha A' B' + beta C, where ' is an optional transposition.

    A weight's gradient is multiplied by alpha afterwards, as the int8 product has no factor. As torch writes dense layers (A B^T + C), one
    node gives both the weight's and the bias's.
    """
    a, b = node.x[:2]
    left, right = node.attribute("transA", 0), node.attribute("transB", 0)
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    da = db = dc = None
    if node.need(0):
        if left:
            da = g.op("Gemm", b, dy, transA=right, transB=1, alpha=alpha)
        else:
            da = g.op("Gemm", dy, b, transB=1 - right, alpha=alpha)
    whole = right and not left and alpha == beta == 1 and node.need(1) and node.need(2)
    if whole and g.int8 and b in node.weights and g.shapes[node.x[2]] == g.shapes[b][:1]:
        return [da, *g.ops("MatMulWeightGrad", dy, a, outputs=2, domain=DOMAIN)]
    if node.need(1):
        if left:
            db = g.op("Gemm", dy, a, transA=1, transB=1) if right else g.op("Gemm", a, dy)
        else:
            db = g.weight_gradient(dy, a, b, node) if right else g.weight_gradient(a, dy, b, node)
        if alpha != 1.0:
            db = g.op("Mul", db, g.constant(alpha))
    if node.need(2):
        dc = g.sum_to(dy, g.shapes[node.y[0]], node.x[2])
        if beta != 1.0:
            dc = g.op("Mul", dc, g.constant(beta))
    return [da, db, dc]


def _swapped(g: Builder, x: str, rank: int) -> str:
    return g.op("Transpose", x, perm=[*range(rank - 2), rank - 1, rank - 2])


@vjp("MatMul")
def matmul(g: Builder, node: Node, dy: str) -> Gradients:
    """As numpy.matmul: vectors count as matrices of one row (A) or one column (B), leading dimensions broadcast."""
    a, b = node.x
    shape_a, shape_b, shape_y = g.shapes[a], g.shapes[b], g.shapes[node.y[0]]
    matrix_a: Shape = (1, *shape_a) if len(shape_a) == 1 else shape_a
    matrix_b: Shape = (*shape_b, 1) if len(shape_b) == 1 else shape_b
    tail = (() if len(shape_a) == 1 else (matrix_a[-2],)) + (() if len(shape_b) == 1 else (matrix_b[-1],))
    matrix_y: Shape = (*shape_y[: len(shape_y) - len(tail)], matrix_a[-2], matrix_b[-1])
    vector = len(tail) < 2
    left = g.reshape(a, matrix_a) if len(shape_a) == 1 else a
    right = g.reshape(b, matrix_b) if len(shape_b) == 1 else b
    if vector:
        dy = g.op(
            "Unsqueeze", dy, g.integers(*([-2] if len(shape_a) == 1 else []), *([-1] if len(shape_b) == 1 else []))
        )
    da = db = None
    if node.need(0):
        da = g.op("MatMul", dy, _swapped(g, right, len(matrix_b)))
        da = (
            g.sum_to(da, (*matrix_y[:-2], *matrix_a[-2:]), a)
            if len(shape_a) > 1
            else g.total(da, *range(len(matrix_y) - 1))
        )
    if node.need(1):
        if len(matrix_b) == 2 and matrix_b[-1] > 0 and matrix_a[-1] > 0:
            # A weight matrix: all leading dimensions are rows of one product.
            db = g.weight_gradient(g.flatten(left, matrix_a[-1]), g.flatten(dy, matrix_b[-1]), b, node)
            db = g.reshape(db, shape_b) if len(shape_b) == 1 else db
        else:
            db = g.op("MatMul", _swapped(g, left, len(matrix_a)), dy)
            db = g.sum_to(db, (*matrix_y[:-2], *matrix_b[-2:]), b)
    return [da, db]
