"""The command line's way to name a codec: --codec NAME and what that codec takes, with help that says which is for what."""

import re
from typing import Annotated

import typer

from fleetgrad.wire.coding.spec import NAMES, CodecSpec, Rounding
from fleetgrad.wire.sizes import parse_size

CODECS_HELP = (
    "How updates travel. **auto**: small tensors in fp16, the rest at the rate of --bits or --bytes; for most fleets on slow "
    "links. **ec-dither** --bits: all at one rate, unbiased. **ec-dz** --bits: least bytes, 0.1 to 2 bits, where devices take part "
    "in every round (keeps a residual on the device). **topk** --fraction: only the largest values (keeps a residual too). **rot-1** to "
    "**rot-8**: a size that never changes, whatever the values. **blk8**, **blk4**: fast and simple, 8.5 and 4.5 bits. "
    "**fp16**, **raw32**, **lossless**: nearly and wholly exact. **ring** --bits 16, 20, 32 --step: integers that can be added uncoded."
)

Codec = Annotated[str, typer.Option("--codec", metavar="NAME", help=CODECS_HELP, rich_help_panel="Codec")]
Bits = Annotated[
    float | None, typer.Option("--bits", help="Per coordinate, all counted: 0.05 to 16.", rich_help_panel="Codec")
]
Bytes = Annotated[str | None, typer.Option("--bytes", help="With auto, per update: as 400KB.", rich_help_panel="Codec")]
Fraction = Annotated[
    float | None, typer.Option("--fraction", help="With topk: share of the values sent.", rich_help_panel="Codec")
]
Step = Annotated[float | None, typer.Option("--step", help="With ring: the integers' unit.", rich_help_panel="Codec")]
Rounding_ = Annotated[
    Rounding | None, typer.Option("--rounding", help="With blk8 and blk4: stochastic is unbiased.", rich_help_panel="Codec")
]  # fmt: skip


def spec_of(
    name: str, bits: float | None, size: str | None, fraction: float | None, step: float | None, rounding: Rounding | None
) -> CodecSpec:  # fmt: skip
    """The codec that the options mean; raises typer.BadParameter that names the option."""
    chosen = next((n for n in NAMES if n == name), None)
    if chosen is None:
        raise typer.BadParameter(f"--codec {name!r}: expected one of {', '.join(NAMES)}")
    try:
        most = None if size is None else parse_size(size)
    except ValueError as e:
        raise typer.BadParameter(f"--bytes {e}") from e
    try:
        return CodecSpec(
            name=chosen, bits=bits, bytes=most, fraction=fraction, step=step,
            rounding=rounding,
        )  # fmt: skip
    except ValueError as e:
        raise typer.BadParameter(re.sub(r"^field `(\w+)`", r"--\1", str(e))) from e
