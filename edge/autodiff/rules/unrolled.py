"""Recurrent cells of standard ops, a step at a time, forward and back, for one direction.

A cell turns the projected inputs p [B, G H] of a step and its states (h, and c of an LSTM; [B, H]) into new states, and
the gradients of those into the gradients of p, of the recurrent product and of the old states. Behind a sequence's length
(mask m = 0) a step hands the states on and gives y = 0.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from fleetgrad.edge.autodiff.graph import Builder

State = list[str]


@dataclass(frozen=True, slots=True)
class Back:
    """What one direction's recurrence leaves for the products around it.

    Gradients of P and of the recurrent product [T B, G H], the states before each step and, where the new state's product
    sees them reset, r h [T B, H]; gradients of the initial states.
    """

    projected: str
    recurrent: str
    previous: str
    reset: str
    h: str
    c: str


@dataclass(slots=True)
class Cell(ABC):
    """The recurrent weights R [G H, H] and what a kind of cell needs beside them."""

    g: Builder
    r: str
    bias: str  # of GRU's new state, inside the reset
    units: int
    before: bool
    activation: str
    parts: list[str] = field(default_factory=list)

    def split(self, x: str, *gates: int) -> list[str]:
        """Columns by numbers of gates."""
        return self.g.ops("Split", x, self.g.integers(*(n * self.units for n in gates)), outputs=len(gates), axis=1)

    def slope(self, s: str) -> str:
        """s (1 - s), the sigmoid's."""
        return self.g.op("Mul", s, self.g.op("Sub", self.g.constant(1.0), s))

    def bend(self, u: str) -> str:
        """1 - u^2, the tangent's."""
        return self.g.op("Sub", self.g.constant(1.0), self.g.op("Mul", u, u))

    def product(self, *factors: str) -> str:
        """Their product, from the left."""
        found = factors[0]
        for factor in factors[1:]:
            found = self.g.op("Mul", found, factor)
        return found

    @abstractmethod
    def step(self, p: str, old: State) -> tuple[State, list[str]]:
        """New states, and what `back` wants to see again."""

    @abstractmethod
    def back(self, new: State, kept: list[str], old: State, fresh: State) -> tuple[str, str, str, State]:
        """From the gradients of the new states: those of p and of the recurrent product, r h if wanted, and the old states'."""


class LSTM(Cell):
    """i, o, f = sigmoid, g = tanh of p + h R^T; c' = f c + i g; h' = o tanh(c')."""

    def step(self, p: str, old: State) -> tuple[State, list[str]]:
        g, (h, c) = self.g, old
        gates, new = self.split(g.op("Gemm", h, self.r, p, transB=1), 3, 1)
        i, o, f = self.split(g.op("Sigmoid", gates), 1, 1, 1)
        new = g.op("Tanh", new)
        c = g.op("Add", g.op("Mul", f, c), g.op("Mul", i, new))
        tangent = g.op("Tanh", c)
        return [g.op("Mul", o, tangent), c], [i, o, f, new, tangent]

    def back(self, new: State, kept: list[str], old: State, fresh: State) -> tuple[str, str, str, State]:
        g, (dh, dc), (i, o, f, n, tangent) = self.g, new, kept
        dc = g.op("Add", dc, self.product(dh, o, self.bend(tangent)))
        parts = [
            self.product(dc, n, self.slope(i)),
            self.product(dh, tangent, self.slope(o)),
            self.product(dc, old[1], self.slope(f)),
            self.product(dc, i, self.bend(n)),
        ]
        dp = g.op("Concat", *parts, axis=1)
        return dp, dp, "", [g.op("MatMul", dp, self.r), g.op("Mul", dc, f)]


class GRU(Cell):
    """z, r = sigmoid; n = tanh(p_n + r (h R_n^T + bias)), or tanh(p_n + (r h) R_n^T); h' = (1 - z) n + z h."""

    def halves(self) -> list[str]:
        """R of the gates and of the new state, split once."""
        if not self.parts:
            sizes = self.g.integers(2 * self.units, self.units)
            self.parts = self.g.ops("Split", self.r, sizes, outputs=2, axis=0)
        return self.parts

    def step(self, p: str, old: State) -> tuple[State, list[str]]:
        g, h = self.g, old[0]
        outer, outer_new = self.split(p, 2, 1)
        of_gates, of_new = self.halves()
        z, r = self.split(g.op("Sigmoid", g.op("Gemm", h, of_gates, outer, transB=1)), 1, 1)
        if self.before:
            inner = g.op("Gemm", h, of_new, *([self.bias] if self.bias else []), transB=1)
            new = g.op("Tanh", g.op("Add", outer_new, g.op("Mul", r, inner)))
        else:
            inner = g.op("Mul", r, h)
            new = g.op("Tanh", g.op("Gemm", inner, of_new, outer_new, transB=1))
        fresh = g.op("Add", new, g.op("Mul", z, g.op("Sub", h, new)))
        return [fresh], [z, r, new, inner]

    def back(self, new: State, kept: list[str], old: State, fresh: State) -> tuple[str, str, str, State]:
        g, dh, (z, r, n, inner) = self.g, new[0], kept
        dn = self.product(dh, g.op("Sub", g.constant(1.0), z), self.bend(n))
        dz = self.product(dh, g.op("Sub", old[0], n), self.slope(z))
        of_gates, of_new = self.halves()
        if self.before:
            dr = self.product(dn, inner, self.slope(r))
            dp = g.op("Concat", dz, dr, dn, axis=1)
            side = g.op("Concat", dz, dr, g.op("Mul", dn, r), axis=1)
            return dp, side, "", [g.op("Add", g.op("MatMul", side, self.r), g.op("Mul", dh, z))]
        reset = g.op("MatMul", dn, of_new)
        gates = g.op("Concat", dz, self.product(reset, old[0], self.slope(r)), axis=1)
        dp = g.op("Concat", gates, dn, axis=1)
        dh = g.op("Sum", g.op("MatMul", gates, of_gates), g.op("Mul", reset, r), g.op("Mul", dh, z))
        return dp, dp, inner, [dh]


class RNN(Cell):
    """h' = tanh or relu of p + h R^T."""

    def step(self, p: str, old: State) -> tuple[State, list[str]]:
        sums = self.g.op("Gemm", old[0], self.r, p, transB=1)
        return [self.g.op("Tanh" if self.activation == "tanh" else "Relu", sums)], []

    def back(self, new: State, kept: list[str], old: State, fresh: State) -> tuple[str, str, str, State]:
        g, h = self.g, fresh[0]
        slope = self.bend(h) if self.activation == "tanh" else g.as_float(g.op("Greater", h, g.constant(0.0)))
        dp = g.op("Mul", new[0], slope)
        return dp, dp, "", [g.op("MatMul", dp, self.r)]


CELLS: dict[str, Callable[..., Cell]] = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}


@dataclass(frozen=True, slots=True)
class Unrolled:
    """A direction's steps in the order of their running: (step, mask, old states, new states, kept)."""

    cell: Cell
    y: str  # [T B, H]
    last: State
    steps: list[tuple[int, str, State, State, list[str]]]


def unroll(
    g: Builder, cell: Cell, projected: str, steps: int, reverse: bool, initial: list[str], lengths: str
) -> Unrolled:
    """Runs all steps of P [T B, G H]; initial states [B, H] or ''."""
    parts = g.ops("Split", projected, outputs=steps, axis=0, num_outputs=steps)
    names = initial[: 2 if isinstance(cell, LSTM) else 1]
    state = [name or _zeros(g, parts[0], cell.units) for name in names]
    ys, made = [""] * steps, []
    for t in reversed(range(steps)) if reverse else range(steps):
        fresh, kept = cell.step(parts[t], state)
        mask, new, ys[t] = "", fresh, fresh[0]
        if lengths:
            mask = g.op("Unsqueeze", g.as_float(g.op("Greater", lengths, g.constant(t, np.int32))), g.integers(1))
            new = [
                g.op("Add", old, g.op("Mul", mask, g.op("Sub", n, old))) for n, old in zip(fresh, state, strict=True)
            ]
            ys[t] = g.op("Mul", mask, fresh[0])
        made.append((t, mask, state, fresh, kept))
        state = new
    return Unrolled(cell, g.op("Concat", *ys, axis=0), state, made)


def unroll_back(g: Builder, run: Unrolled, dys: list[str]) -> Back:
    """Goes back from the gradients of y [T B, H] and of the last states [B, H]; '' where there is none."""
    count, (_, _, first, _, _) = len(run.steps), run.steps[0]
    dy = g.ops("Split", dys[0], outputs=count, axis=0, num_outputs=count) if dys[0] else [""] * count
    carry = [name or _zeros(g, old, run.cell.units) for name, old in zip(dys[1:], first, strict=False)]
    kinds = [[""] * count for _ in range(4)]
    for t, mask, old, fresh, kept in reversed(run.steps):
        new = [g.op("Add", carry[0], dy[t]) if dy[t] else carry[0], *carry[1:]]
        if mask:
            new = [g.op("Mul", mask, n) for n in new]
        *found, back = run.cell.back(new, kept, old, fresh)
        if mask:
            passed = [g.op("Mul", g.op("Sub", g.constant(1.0), mask), c) for c in carry]
            back = [g.op("Add", b, p) for b, p in zip(back, passed, strict=True)]
        carry = back
        for kind, value in zip(kinds, [*found, old[0]], strict=True):
            kind[t] = value
    projected, recurrent, reset, previous = (g.op("Concat", *kind, axis=0) if kind[0] else "" for kind in kinds)
    if kinds[0] == kinds[1]:
        recurrent = projected
    return Back(projected, recurrent, previous, reset, carry[0], carry[1] if len(carry) > 1 else "")


def _zeros(g: Builder, like: str, units: int) -> str:
    """[B, H] zeros, B taken from `like`."""
    rows = g.op("Shape", like, start=0, end=1)
    return g.op("Expand", g.constant(np.zeros((1, units))), g.op("Concat", rows, g.integers(units), axis=0))
