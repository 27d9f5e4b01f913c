"""What of a model trains, as users say it: names, the last layers, biases, adapters. Compilers read it (edge/autodiff/choosing.py)."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adapters beside the weights that `globs` name: W + alpha / rank A B, A drawn from `seed`, B zero at first.

    alpha is the rank unless given.
    """

    globs: Sequence[str]
    rank: int = 8
    alpha: float | None = None
    freeze_a: bool = False
    seed: int = 0

    @property
    def scale(self) -> float:
        """What the factors' product counts."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class Choice:
    """`train` and `freeze` are globs of weights' names, `last` counts layers before the loss; the defaults choose all.

    Each part narrows what the others leave. With `lora`, what the others say trains as a whole beside the adapters, and
    nothing does where they say nothing.
    """

    train: Sequence[str] = ()
    freeze: Sequence[str] = ()
    last: int | None = None
    biases_only: bool = False
    lora: Lora | None = None

    @property
    def whole(self) -> bool:
        """Whether anything is to be trained as a whole: all is, unless adapters are asked for and nothing else."""
        return self.lora is None or bool(self.train) or self.last is not None or self.biases_only

    @property
    def learning_rate(self) -> float:
        """The rate where none is given: lower with adapters, whose factors multiply each other's steps."""
        return 0.02 if self.lora else 0.05

    def unasked(self, name: str) -> bool:
        """Whether the globs leave a weight out."""
        return bool(self.train and not matches(name, self.train)) or matches(name, self.freeze)


ALL = Choice()


def matches(name: str, globs: Sequence[str]) -> bool:
    """Whether one of the globs, which know upper from lower case everywhere, matches a name."""
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)
