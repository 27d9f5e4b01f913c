"""What the trainer's process begins with, tried by itself: its imports, onnxruntime, the C core's ops. One JSON object on standard output.

A wheel that was built for another processor kills it; so it is a process of its own.
"""

import json
import sys

import onnxruntime

from fleetgrad.edge import trainer  # noqa: F401  (all that the trainer imports, for its memory)
from fleetgrad.edge.training import memory, sessions
from fleetgrad.native import binding
from fleetgrad.native.kernels import OP_ABI


def main() -> None:
    """Prints what was found."""
    sessions.options(OP_ABI, 1)
    found = {
        "onnxruntime": onnxruntime.__version__,
        "capability": binding.capability(),
        "capabilities": binding.capabilities(),
        "resident": memory.resident(),
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
