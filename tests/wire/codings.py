"""What tests of codecs share: a layout with every kind of tensor, a spec of every codec, deltas like real ones."""

import numpy as np
from numpy.typing import NDArray

from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.seeds import Keys, codec_keys

KEYS = codec_keys("demo", "dev-1", 7, 2)
LAYOUT = VectorLayout.stacked(
    [("conv.weight", (16, 8, 3, 3)), ("conv.bias", (17,)), ("norm.scale", (1100,)), ("dense.weight", (40, 101)), ("head", (10, 40))]
)  # fmt: skip
SPECS = (
    CodecSpec(name="raw32"), CodecSpec(name="fp16"), CodecSpec(name="blk8"), CodecSpec(name="blk8", rounding="nearest"),
    CodecSpec(name="blk4"), CodecSpec(name="rot-1"), CodecSpec(name="rot-4"), CodecSpec(name="rot-8"),
    CodecSpec(name="ec-dither", bits=2), CodecSpec(name="ec-dither", bits=0.5), CodecSpec(name="ec-dz", bits=0.5), CodecSpec(name="topk", fraction=0.05), CodecSpec(name="lossless"),
    CodecSpec(name="ring"), CodecSpec(name="ring", bits=20, step=2.0**-14), CodecSpec(name="ring", bits=32, step=2.0**-20),
    CodecSpec(name="auto", bits=6), CodecSpec(name="auto", bytes=5000),
)  # fmt: skip
UNBIASED = ("blk8", "blk4", "rot-1", "rot-4", "rot-8", "ec-dither", "ring", "auto")


def heavy(layout: VectorLayout, seed: int, scale: float = 0.01) -> NDArray[np.float32]:
    """A delta as heavy-tailed as those of SGD: rows and columns have scales of their own; padding is zero."""
    rng = np.random.default_rng(seed)
    out = np.zeros(layout.count, np.float32)
    for part in layout.parts:
        rows = part.shape[0] if len(part.shape) > 1 else 1
        values = rng.standard_normal((rows, part.size // rows)) * rng.lognormal(0, 1, (rows, 1))
        out[part.start : part.end] = (scale * values * rng.lognormal(0, 1, values.shape[1])).ravel()
    return out


def keys(device: int = 1, round_: int = 1, attempt: int = 1, federation: str = "demo") -> Keys:
    return codec_keys(federation, f"dev-{device}", round_, attempt)
