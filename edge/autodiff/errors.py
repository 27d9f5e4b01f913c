"""What can be wrong with a model: one exception type for callers, one that lists every unsupported node."""

from collections.abc import Sequence


class ModelError(ValueError):
    """A model that can't be compiled; the message names the part, the value and what to do."""


class Unsupported(Exception):
    """Raised by a VJP rule for a variant of its op that it doesn't differentiate; the argument is the reason."""


class UnsupportedModel(ModelError):
    """Every node between a trainable weight and the loss that has no gradient, as (op, node name, reason)."""

    def __init__(self, nodes: Sequence[tuple[str, str, str]]) -> None:
        self.nodes = tuple(nodes)
        lines = "".join(f"\n  {op} {name!r}: {reason}" for op, name, reason in nodes)
        count = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
        super().__init__(
            f"can't differentiate {count} of the model:{lines}\n"
            "freeze the weights before them (--freeze), or replace the ops; 'fleetgrad-edge check' lists what can train"
        )


def first_line(error: BaseException) -> str:
    """The first line of a library's error, for a message of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
