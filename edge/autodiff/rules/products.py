"""VJP of Einsum: the gradient of an operand is the product of dy and the other operands, summed to its letters.

    y = einsum("ab,bc->ac", A, B):   dA = einsum("ac,bc->ab", dy, B)

A letter of the operand that neither dy nor another operand has was summed alone: its dimension is broadcast again.
"""

from string import ascii_letters

from fleetgrad.edge.autodiff.errors import Unsupported
from fleetgrad.edge.autodiff.graph import Builder, Node, Shape
from fleetgrad.edge.autodiff.registry import Gradients, vjp


@vjp("Einsum", since=12)
def einsum(g: Builder, node: Node, dy: str) -> Gradients:
    """Any number of operands, whose letters differ within each; an ellipsis must have the same sizes in all."""
    terms, result = _letters(node.attribute("equation", ""), [g.shapes[x] for x in node.x])
    found: list[str | None] = []
    for i, (x, term) in enumerate(zip(node.x, terms, strict=True)):
        others = [j for j in range(len(terms)) if j != i]
        have = set(result).union(*(terms[j] for j in others))
        if not node.need(i):
            found.append(None)
            continue
        present = "".join(letter for letter in term if letter in have)
        equation = ",".join([result, *(terms[j] for j in others)]) + "->" + present
        dx = (
            g.op("Einsum", dy, *(node.x[j] for j in others), equation=equation)
            if equation != f"{result}->{result}"
            else dy
        )
        if present != term:
            dx = g.op("Unsqueeze", dx, g.integers(*(k for k, letter in enumerate(term) if letter not in have)))
            dx = g.op("Expand", dx, g.op("Shape", x))
        found.append(dx)
    return found


def _letters(equation: str, shapes: list[Shape]) -> tuple[list[str], str]:
    """The letters of each operand and of the result, the ellipsis as letters too; raises Unsupported."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        plain = left.replace(",", "").replace(".", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(plain) if plain.count(c) == 1))
    free = [c for c in ascii_letters if c not in equation]
    widths = {len(shape) - len(term) + 3 for term, shape in zip(terms, shapes, strict=True) if "..." in term}
    if len(widths) > 1:
        raise Unsupported(f"with an ellipsis of several ranks in {equation!r}")
    ellipsis = "".join(free[: max(widths, default=0)])
    terms = [term.replace("...", ellipsis) for term in terms]
    right = right.replace("...", ellipsis)
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        if len(set(term)) != len(term):
            raise Unsupported(f"with a letter twice in one operand of {equation!r}")
        for letter, size in zip(term, shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise Unsupported(f"with sizes that broadcast in {equation!r}")
    return terms, right
