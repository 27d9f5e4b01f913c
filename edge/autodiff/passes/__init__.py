"""What makes an assembled graph smaller, or its memory: each pass is a function from graph to graph that leaves results as they are.

    folding    constants, shapes among them, computed once      sharing    equal nodes, made once
    removing   nodes that change nothing                        turning    transposed weight gradients
    repeating  cheap activations computed twice, not kept       narrowing  activations kept as int8
    graph      what passes work on; without what is unused

The pass that repeats rounds what it computes again anew.
"""

from fleetgrad.edge.autodiff.passes.folding import fold
from fleetgrad.edge.autodiff.passes.graph import Graph, Pass, alive
from fleetgrad.edge.autodiff.passes.narrowing import narrow
from fleetgrad.edge.autodiff.passes.removing import remove
from fleetgrad.edge.autodiff.passes.repeating import repeat
from fleetgrad.edge.autodiff.passes.sharing import share
from fleetgrad.edge.autodiff.passes.turning import turn

__all__ = ["PASSES", "Graph", "alive", "fold", "narrow", "remove", "repeat", "share", "simplify", "turn"]

PASSES: tuple[Pass, ...] = (alive, fold, remove, share, repeat, narrow, turn, alive)


def simplify(graph: Graph) -> Graph:
    """All passes, in an order in which each finds what those before it leave."""
    for change in PASSES:
        graph = change(graph)
    return graph
