"""What tests of kernels do over and over: one act under each capability of the machine, and one custom op in a stock session."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from fleetgrad.native import binding
from fleetgrad.native.bench.graphs import Graph

Array = NDArray[Any]


def every_capability() -> Iterator[str]:
    """Names of this machine's capabilities, each in force until the next; afterwards the one that was before."""
    before = binding.capability()
    try:
        for name in binding.capabilities():
            binding.use_capability(name)
            yield name
    finally:
        binding.use_capability(before)


def same_everywhere(act: Callable[[], Sequence[Array]]) -> Sequence[Array]:
    """What `act` gives; its bytes must be the same under every capability."""
    seen = [act() for _ in every_capability()]
    for results in zip(*seen, strict=True):
        assert len({r.tobytes() for r in results}) == 1
    return seen[0]


def run_op(op: str, feeds: dict[str, Array], outputs: int = 1, threads: int = 1, **attributes: Any) -> list[Array]:
    """The outputs of one custom op whose inputs are the feeds in order."""
    g = Graph()
    name = g.own(op, *feeds, outputs=outputs, **attributes)
    names = [f"{name[:-1]}{i}" for i in range(outputs)]
    found: list[Array] = g.session(feeds, names, threads).run(None, feeds)
    return found
