"""A small character transformer in NumPy with its backward pass by hand: it makes real deltas where our compiler has no
attention yet.

    tokens -> E[token] + P[place] -> layers x ( + attention(norm(.)), + mlp(norm(.)) ) -> norm -> logits -> cross-entropy

Pre-norm blocks as in GPT-2, causal heads, GELU (tanh form), plain matrices without dropout or tied embeddings. The weights are
views of one flat vector in the plan's layout, and so are the gradients.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetgrad.wire.plan import Tensor, lay_out

EPSILON = 1e-5  # of a norm
GELU = math.sqrt(2 / math.pi)

Array = NDArray[Any]
Back = Callable[[Array], Array]  # gradient by a part's output -> gradient by its input; adds to its weights' gradients


@dataclass(frozen=True, slots=True)
class Size:
    """With these defaults and 97 characters, 0.94 M parameters."""

    characters: int
    width: int = 192
    heads: int = 6
    layers: int = 2
    context: int = 64


class Transformer:
    """Weights and gradients as one flat vector each; `dtype` is float64 in the test of the gradients."""

    def __init__(self, size: Size, seed: int, dtype: type[np.floating[Any]] = np.float32) -> None:
        self.size = size
        d, wide = size.width, 4 * size.width
        shapes: list[tuple[str, tuple[int, ...]]] = [("token", (size.characters, d)), ("place", (size.context, d))]
        for i in range(size.layers):
            block: dict[str, tuple[int, ...]] = {
                "norm1": (2, d), "qkv": (d, 3 * d), "qkv.bias": (3 * d,), "out": (d, d), "out.bias": (d,),
                "norm2": (2, d), "up": (d, wide), "up.bias": (wide,), "down": (wide, d), "down.bias": (d,),
            }  # fmt: skip
            shapes += [(f"{i}.{name}", shape) for name, shape in block.items()]
        shapes += [("norm", (2, d)), ("logits", (d, size.characters))]
        self.tensors: tuple[Tensor, ...] = lay_out([(name, shape, "trainable") for name, shape in shapes])
        self.flat, self.gradient = np.zeros((2, self.tensors[-1].end), dtype)
        rng = np.random.default_rng(seed)
        for t in self.tensors:
            w = self.view(self.flat, t)
            if "norm" in t.name:
                w[0] = 1
            elif not t.name.endswith("bias"):
                spread = 0.02 / math.sqrt(2 * size.layers) if t.name.endswith(("out", "down")) else 0.02
                w[:] = rng.standard_normal(t.shape) * spread * math.sqrt(768 / d)  # GPT-2's 0.02 is for a width of 768
        self._w = {t.name: self.view(self.flat, t) for t in self.tensors}
        self._g = {t.name: self.view(self.gradient, t) for t in self.tensors}

    @staticmethod
    def view(vector: Array, tensor: Tensor) -> Array:
        """The part of a flat vector that is this tensor."""
        return vector[tensor.offset : tensor.offset + tensor.size].reshape(tensor.shape)

    def step(self, x: Array, y: Array) -> float:
        """Mean loss in nats of int64[batch, context] characters x and their successors y; `gradient` is then in place."""
        self.gradient[:] = 0
        w, g = self._w, self._g
        tape: list[Back] = []
        h = w["token"][x] + w["place"]
        for i in range(self.size.layers):
            for half in (self._attention, self._mlp):
                change, back = half(f"{i}.", h)
                h = h + change
                tape.append(back)
        normed, back_norm = self._norm("norm", h)
        z = normed @ w["logits"]
        z -= z.max(-1, keepdims=True)
        p = np.exp(z)
        total = p.sum(-1, keepdims=True)
        at_label = np.take_along_axis(z, y[..., None], -1)
        loss = float((np.log(total) - at_label).mean())

        p /= total
        np.put_along_axis(p, y[..., None], np.take_along_axis(p, y[..., None], -1) - 1, -1)
        p /= y.size
        g["logits"] += rows(normed).T @ rows(p)
        d = back_norm(p @ w["logits"].T)
        for back in reversed(tape):
            d = d + back(d)
        g["place"] += d.sum(0)
        np.add.at(g["token"], x.ravel(), rows(d))
        return loss

    def _dense(self, name: str, a: Array) -> tuple[Array, Back]:
        def back(d: Array) -> Array:
            self._g[name] += rows(a).T @ rows(d)
            self._g[name + ".bias"] += rows(d).sum(0)
            return d @ self._w[name].T

        return a @ self._w[name] + self._w[name + ".bias"], back

    def _norm(self, name: str, a: Array) -> tuple[Array, Back]:
        centred = a - a.mean(-1, keepdims=True)
        scale = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
        unit = centred * scale

        def back(d: Array) -> Array:
            self._g[name][0] += (rows(d) * rows(unit)).sum(0)
            self._g[name][1] += rows(d).sum(0)
            d = d * self._w[name][0]
            found: Array = scale * (d - d.mean(-1, keepdims=True) - unit * (d * unit).mean(-1, keepdims=True))
            return found

        return unit * self._w[name][0] + self._w[name][1], back

    def _mlp(self, at: str, h: Array) -> tuple[Array, Back]:
        normed, back_norm = self._norm(at + "norm2", h)
        u, back_up = self._dense(at + "up", normed)
        t = np.tanh(GELU * (u + 0.044715 * u**3))
        out, back_down = self._dense(at + "down", 0.5 * u * (1 + t))

        def back(d: Array) -> Array:
            slope = 0.5 * (1 + t) + 0.5 * u * (1 - t * t) * GELU * (1 + 3 * 0.044715 * u * u)
            return back_norm(back_up(back_down(d) * slope))

        return out, back

    def _attention(self, at: str, h: Array) -> tuple[Array, Back]:
        batch, length, width = h.shape
        heads = self.size.heads
        normed, back_norm = self._norm(at + "norm1", h)
        joint, back_qkv = self._dense(at + "qkv", normed)
        q, k, v = joint.reshape(batch, length, 3, heads, width // heads).transpose(2, 0, 3, 1, 4)
        scale = 1 / math.sqrt(width // heads)
        score = q @ k.swapaxes(-1, -2) * scale
        score[..., np.triu(np.ones((length, length), bool), 1)] = -np.inf
        a = np.exp(score - score.max(-1, keepdims=True))
        a /= a.sum(-1, keepdims=True)
        out, back_out = self._dense(at + "out", (a @ v).swapaxes(1, 2).reshape(batch, length, width))

        def back(d: Array) -> Array:
            d = back_out(d).reshape(batch, length, heads, width // heads).swapaxes(1, 2)
            da = d @ v.swapaxes(-1, -2)
            ds = a * (da - (da * a).sum(-1, keepdims=True)) * scale
            parts = np.stack([ds @ k, ds.swapaxes(-1, -2) @ q, a.swapaxes(-1, -2) @ d])
            return back_norm(back_qkv(parts.transpose(1, 3, 0, 2, 4).reshape(batch, length, 3 * width)))

        return out, back


def rows(a: Array) -> Array:
    """All leading dimensions as one."""
    return a.reshape(-1, a.shape[-1])
