"""The options by which both commands say how a model is compiled: its loss, its sizes, and what of it trains."""

from typing import Annotated

import typer

from fleetgrad.wire.choice import Choice, Lora
from fleetgrad.wire.loss import BELONGS, LossName, shown
from fleetgrad.wire.plan import Activations, Recompute

MOST_IN_DIMENSION = 1 << 20

Loss = Annotated[LossName, typer.Option(help="What training makes small.")]
LossOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help=f"As label-smoothing=0.1; names: {', '.join(map(shown, BELONGS))}."),
]
Dim = Annotated[
    list[str] | None, typer.Option(metavar="NAME=SIZE", help="The size of a dynamic dimension, as in time=64.")
]
PART = "What trains"
Kept = Annotated[
    Activations,
    typer.Option("--activations", help="What is kept of activations that int8 weight gradients alone read."),
]
Repeated = Annotated[
    Recompute,
    typer.Option("--recompute", help="Compute cheap activations again rather than keep them: less memory."),
]
Train = Annotated[
    list[str] | None,
    typer.Option("--train", metavar="GLOB", help="Weights to train, by name; default: all.", rich_help_panel=PART),
]
Freeze = Annotated[
    list[str] | None,
    typer.Option("--freeze", metavar="GLOB", help="Weights to leave alone, by name.", rich_help_panel=PART),
]
Last = Annotated[
    int | None,
    typer.Option("--last", min=1, help="Train the last so many layers that have weights.", rich_help_panel=PART),
]
BiasesOnly = Annotated[bool, typer.Option("--biases-only", help="Train nothing but biases.", rich_help_panel=PART)]

ADAPTERS = "Adapters (LoRA)"
LoraGlobs = Annotated[
    list[str] | None,
    typer.Option(
        "--lora", metavar="GLOB", rich_help_panel=ADAPTERS,
        help="Weights, by name, that stay as they are and get two small factors beside them. Without --train, --last and "
        "--biases-only nothing else trains.",
    ),
]  # fmt: skip
LoraRank = Annotated[
    int | None, typer.Option("--lora-rank", min=1, help="Of the factors' product; default: 8.", rich_help_panel=ADAPTERS)
]  # fmt: skip
LoraAlpha = Annotated[
    float | None,
    typer.Option("--lora-alpha", help="The product counts alpha / rank; default: the rank.", rich_help_panel=ADAPTERS),
]
LoraFreezeA = Annotated[
    bool,
    typer.Option("--lora-freeze-a", help="Train B alone: averages are exact then.", rich_help_panel=ADAPTERS),
]


def choice_of(
    train: list[str] | None, freeze: list[str] | None, last: int | None, biases_only: bool,
    lora: list[str] | None, rank: int | None, alpha: float | None, freeze_a: bool,
) -> Choice:  # fmt: skip
    """The choice that the options mean; raises typer.BadParameter for those of adapters without --lora."""
    given = [
        name for name, value in (("rank", rank), ("alpha", alpha), ("freeze-a", freeze_a or None)) if value is not None
    ]
    if given and not lora:
        raise typer.BadParameter(f"--lora-{given[0]}: --lora GLOB says beside which weights adapters stand")
    factors = None
    if lora:
        factors = Lora(tuple(lora), 8 if rank is None else rank, alpha, freeze_a)
    return Choice(tuple(train or ()), tuple(freeze or ()), last, biases_only, factors)


def dims_of(given: list[str] | None) -> dict[str, int]:
    """['time=64'] as {'time': 64}; raises typer.BadParameter."""
    found = {}
    for text in given or []:
        name, _, size = text.rpartition("=")
        if not name or not size.isdecimal() or not 0 < int(size) <= MOST_IN_DIMENSION:
            raise typer.BadParameter(f"--dim {text}: NAME=SIZE is needed, as in --dim time=64")
        found[name] = int(size)
    return found
