"""The options by which both commands say what of an .npz file is trained on."""

from typing import Annotated

import typer

ArrayX = Annotated[str, typer.Option("--x", help="Name of the array of samples.")]
ArrayY = Annotated[str, typer.Option("--y", help="Name of the array of targets.")]
Scale = Annotated[float, typer.Option("--scale", help="Factor for the samples, as 0.00392 for bytes.")]
Shape = Annotated[str | None, typer.Option("--shape", help="Shape of one sample, as 1,28,28.")]
