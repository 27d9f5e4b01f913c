"""What of a model trains, as users say it: names, the last layers, biases alone. Compilers read it (edge/autodiff/choosing.py)."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Choice:
    """`train` and `freeze` are globs of weights' names, `last` counts layers before the loss; the defaults choose all.

    Each part narrows what the others leave.
    """

    train: Sequence[str] = ()
    freeze: Sequence[str] = ()
    last: int | None = None
    biases_only: bool = False

    def unasked(self, name: str) -> bool:
        """Whether the globs leave a weight out."""
        return bool(self.train and not matches(name, self.train)) or matches(name, self.freeze)


ALL = Choice()


def matches(name: str, globs: Sequence[str]) -> bool:
    """Whether one of the globs, which know upper from lower case everywhere, matches a name."""
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)
