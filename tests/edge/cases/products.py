"""Einsum."""

from tests.edge.cases.inputs import Case, numbers

r = numbers()

CASES: list[Case] = [
    ("Einsum", (r(3, 4), r(4, 5)), {"equation": "ij,jk->ik"}),
    ("Einsum", (r(3, 4), r(4, 5)), {"equation": "ij,jk"}),
    ("Einsum", (r(3, 2, 4, 5), r(3, 2, 6, 5)), {"equation": "bhid, bhjd -> bhij", "batched": (0, 1)}),
    ("Einsum", (r(3, 2, 4), r(5, 4)), {"equation": "...d,ed->...e"}),
    ("Einsum", (r(3, 2, 4, 5), r(3, 2, 5, 6)), {"equation": "...ij,...jk", "batched": (0, 1)}),
    ("Einsum", (r(3, 4), r(3, 5)), {"equation": "bi,bj->b", "batched": (0, 1)}),
    ("Einsum", (r(3, 4), r(3, 4)), {"equation": "bi,bi->", "batched": (0, 1)}),
    ("Einsum", (r(3, 4), r(5)), {"equation": "bi,j->bj"}),
    ("Einsum", (r(3, 4, 2),), {"equation": "bij->bji"}),
    ("Einsum", (r(3, 4, 2),), {"equation": "bij->j"}),
    ("Einsum", (r(3, 4),), {"equation": "bi->bi"}),
    ("Einsum", (r(3, 4), r(4, 2), r(2, 3)), {"equation": "bi,ij,jk->bk"}),
    ("Einsum", (r(3, 4), r(5, 4, 6), r(3, 6)), {"equation": "bi,oij,bj->bo", "batched": (0, 2)}),
]
