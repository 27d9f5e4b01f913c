"""Options on the way to the broker, which the verbs of both commands share."""

from typing import Annotated

import typer

from fleetgrad.wire.settings import MOST_SECONDS

Insecure = Annotated[bool, typer.Option("--insecure", help="Allow plain MQTT to another machine.")]
Patience = Annotated[
    float,
    typer.Option(
        "--timeout", min=0, max=MOST_SECONDS, help="Give up (exit code 3) when the broker is down so long; 0: never."
    ),
]
