"""Which codec a round uses, as its policy, federation.toml and the command line write it: a name and what that codec takes.

    name                  takes             default      for
    auto                  bits or bytes     2 bits       most fleets: small tensors in fp16, the rest at one rate
    ec-dither             bits              2            the same without the exceptions; unbiased
    ec-dz                 bits              0.25         devices that take part in every round: needs error feedback
    topk                  fraction          0.01         the largest values alone: embeddings, comparison; error feedback
    rot-1 .. rot-8                                       a size that never changes; unbiased but for sparse ones
    blk8, blk4            rounding          stochastic   fast, simple: 8.5 and 4.5 bits
    fp16, raw32, lossless                                16 bits; 32 bits; every bit of the 32, packed
    ring                  bits, step        16, 2^-12    integers that add up mod 2^bits

Bits are per coordinate of the vector, all overhead of the coded vector counted.
"""

from typing import Any, Literal, get_args

import msgspec

CodecName = Literal[
    "raw32", "fp16", "blk8", "blk4", "rot-1", "rot-2", "rot-3", "rot-4", "rot-5", "rot-6", "rot-7", "rot-8", "ec-dither", "ec-dz",
    "topk", "lossless", "ring", "auto",
]  # fmt: skip
Rounding = Literal["nearest", "stochastic"]

NAMES: tuple[CodecName, ...] = get_args(CodecName)
FEEDBACK = ("ec-dz", "topk")  # biased: what they leave out is carried into the next update
LEAST_BITS, MOST_BITS = 0.05, 16.0
LEAST_BYTES, MOST_BYTES = 256, 2**30
LEAST_STEP, MOST_STEP = 2.0**-40, 2.0**10
RING_BITS = (16, 20, 32)

DEFAULTS: dict[str, dict[str, Any]] = {
    "blk8": {"rounding": "stochastic"},
    "blk4": {"rounding": "stochastic"},
    "ec-dither": {"bits": 2.0},
    "ec-dz": {"bits": 0.25},
    "topk": {"fraction": 0.01},
    "ring": {"bits": 16.0, "step": 2.0**-12},
    "auto": {"bits": 2.0},
}


class CodecSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A codec and its parameters; what a codec takes and isn't given is filled in, so that equal specs have equal JSON.

    Raises ValueError, with the field first, for one that the codec doesn't take or that is out of range.
    """

    name: CodecName
    bits: float | None = None
    bytes: int | None = None
    fraction: float | None = None
    step: float | None = None
    rounding: Rounding | None = None

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"field `name`: no codec is called {self.name!r}, expected one of {', '.join(NAMES)}")
        defaults = DEFAULTS.get(self.name, {})
        takes = {*defaults, "bytes"} if self.name == "auto" else set(defaults)
        for field in ("bits", "bytes", "fraction", "step", "rounding"):
            if getattr(self, field) is not None and field not in takes:
                has = f"only {' and '.join(sorted(takes))}" if takes else "no parameters"
                raise ValueError(f"field `{field}`: codec {self.name} takes {has}")
        if self.bits is not None and self.bytes is not None:
            raise ValueError("field `bytes`: codec auto takes bits or bytes, not both")
        for field, value in defaults.items():
            if getattr(self, field) is None and not (field == "bits" and self.bytes is not None):
                msgspec.structs.force_setattr(self, field, value)
        for field in ("bits", "fraction", "step"):
            if getattr(self, field) is not None:
                msgspec.structs.force_setattr(self, field, float(getattr(self, field)))
        self._check()

    def _check(self) -> None:
        if self.bits is not None:
            if self.name == "ring" and self.bits not in RING_BITS:
                raise ValueError(f"field `bits`: {self.bits:g}, codec ring takes {', '.join(map(str, RING_BITS))}")
            if self.name != "ring" and not LEAST_BITS <= self.bits <= MOST_BITS:
                raise ValueError(
                    f"field `bits`: {self.bits:g}, codec {self.name} takes {LEAST_BITS:g} to {MOST_BITS:g}"
                )
        if self.bytes is not None and not LEAST_BYTES <= self.bytes <= MOST_BYTES:
            raise ValueError(f"field `bytes`: {self.bytes}, codec auto takes {LEAST_BYTES} to {MOST_BYTES}")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"field `fraction`: {self.fraction:g}, codec topk takes more than 0 and at most 1")
        if self.step is not None and not LEAST_STEP <= self.step <= MOST_STEP:
            raise ValueError(f"field `step`: {self.step:g}, codec ring takes 2^-40 to 2^10")

    @property
    def feedback(self) -> bool:
        """Whether a device keeps what this codec leaves out, and adds it to its next update."""
        return self.name in FEEDBACK

    def __str__(self) -> str:
        """As people read it: 'auto, 2 bits'."""
        told = [
            "" if self.bits is None else f"{self.bits:g} bits",
            "" if self.bytes is None else f"{self.bytes:,} bytes",
            "" if self.fraction is None else f"fraction {self.fraction:g}",
            "" if self.step is None else f"step {self.step:g}",
            "" if self.rounding in (None, "stochastic") else str(self.rounding),
        ]
        return ", ".join([self.name, *filter(None, told)])
