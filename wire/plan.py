"""The plan: what a device trains, as a directory of five files and a manifest that both sides check.

    manifest.json   this module's `Manifest`
    train.onnx      feeds: the model's inputs, LABEL, one feed per trainable, statistic and personal tensor, NOISE + name: numbers
                    drawn anew for each step, uniform in [0, 1)
                    fetches: LOSS (scalar, mean over the batch), GRADIENT + name for each trainable tensor, STATISTIC + name
                    for each statistic and personal one: what it is after the step
    eval.onnx       the same feeds without noise; fetches: LOSS (scalar, mean over the batch) and PREDICTION (the model's first output)
    infer.onnx      the user's model; its initializers are external data that lies in params.bin, or computed from those
    params.bin      the model as one flat little-endian float32 vector

The flat vector holds tensors in the order trainable, statistic, personal, frozen; each starts at a multiple of ALIGN
floats, padding is zero. What travels is its prefix: the trainable and the statistic tensors.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from fleetgrad.wire import loss as losses
from fleetgrad.wire import trial as trials
from fleetgrad.wire.loss import LossName, LossOptions
from fleetgrad.wire.strict import MALFORMED, Strict
from fleetgrad.wire.trial import Memory, Trial

SCHEMA = 1
ALIGN = 16  # floats: 64 bytes, a cache line and the widest vector register
MAX_FLOATS = 1 << 28  # 1 GiB of float32: no plan may name more
MAX_EXPONENT = 24  # of statistics
MAX_RANK = 32  # dimensions of a tensor
RESERVED = "fleetgrad."  # begins the names below: no value of a user's model may
LABEL = "fleetgrad.label"
LOSS = "fleetgrad.loss"
PREDICTION = "fleetgrad.prediction"
GRADIENT = "fleetgrad.gradient."
STATISTIC = "fleetgrad.statistic."
NOISE = "fleetgrad.noise."
MAX_MANIFEST_BYTES = 16 << 20
BATCH = "N"  # the one symbolic dimension, always a feed's first
MANIFEST, TRAIN, EVAL, INFER, PARAMS = "manifest.json", "train.onnx", "eval.onnx", "infer.onnx", "params.bin"

Role = Literal["trainable", "statistic", "personal", "frozen"]
Gradients = Literal["int8", "fp32"]
Activations = Literal["int8", "fp32"]  # what is kept of those that int8 weight gradients alone read
Recompute = Literal["none", "cheap"]  # what the backward pass computes again instead of keeping it
Profile = Literal[
    "cpu-native", "cpu-std", "cuda"
]  # graphs with the C core's ops, of standard ops, of those that a GPU has
BatchNorm = Literal[
    "batch", "shared", "frozen"
]  # what trained layers normalise with: the batch's statistics, or the model's
Dtype = Literal["float32", "float64", "int8", "uint8", "int32", "int64", "bool"]
ROLES: tuple[Role, ...] = ("trainable", "statistic", "personal", "frozen")


class PlanError(ValueError):
    """A plan that contradicts itself; the message names the part and the value."""


class Tensor(Strict, frozen=True, kw_only=True):
    """One named tensor of the flat vector; `offset` counts floats."""

    name: str
    shape: tuple[int, ...]
    offset: int
    role: Role

    @property
    def size(self) -> int:
        """Number of floats, without padding."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """Offset of the first float after the tensor and its padding."""
        return self.offset + padded(self.size)


class Adapter(Strict, frozen=True, kw_only=True):
    """Two factors of low rank beside a frozen tensor: the model computes with base + scale * product.

    The product is a b where `order` is "ab" and the base is [in, out], a [in, rank], b [rank, out]; it is b a where the base
    is [out, in, ...], b [out, rank, ...], a [rank, in, ...], as matrices of their first dimension and the others.
    """

    base: str
    a: str
    b: str
    scale: float
    order: Literal["ab", "ba"]


class Statistics(Strict, frozen=True, kw_only=True):
    """How the tensors of the role statistic are merged: in a unit of 2^exponent times the parameters', `variances` to no less than 0."""

    exponent: int = 12
    variances: tuple[str, ...] = ()


class Feed(Strict, frozen=True, kw_only=True):
    """One graph input beside the weights; `shape` leaves out the batch dimension, which comes first."""

    name: str
    shape: tuple[int, ...]
    dtype: Dtype


class Optimizer(Strict, frozen=True, kw_only=True):
    """Defaults that a federation's policy may override."""

    learning_rate: Annotated[float, Meta(gt=0, le=1000)] = 0.05
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    batch_size: Annotated[int, Meta(ge=1, le=65536)] = 16


class Manifest(Strict, frozen=True, kw_only=True):
    """Everything about a plan that isn't a graph or a number in the flat vector.

    `inputs` are the model's own inputs, `label` the target's feed, `output` the prediction's shape without the batch.
    `noise` are the feeds of random numbers, as Dropout takes them. `travels` and `length` count floats: the prefix that is exchanged, and the whole vector.
    `memory` and `trial` are what the compiler saw of a step (wire/trial.py); a plan that couldn't be run on made-up data has none.
    `files` maps each file of the plan (but the manifest) to its SHA-256 in hex.
    """

    schema: int
    model: str
    loss: LossName
    loss_options: LossOptions = LossOptions()
    profile: Profile = "cpu-native"
    gradients: Gradients
    activations: Activations = "fp32"
    op_abi: Annotated[int, Meta(ge=0)]
    inputs: tuple[Feed, ...]
    label: Feed
    noise: tuple[Feed, ...] = ()
    output: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    adapters: tuple[Adapter, ...] = ()
    statistics: Statistics = Statistics()
    travels: int
    length: int
    optimizer: Optimizer = Optimizer()
    memory: Memory | None = None
    trial: Trial | None = None
    files: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def classes(self) -> int:
        """How many numbers the output has for one prediction: the classes, where the loss has such."""
        return (self.output[-1] if self.loss_options.class_axis == -1 else self.output[0]) if self.output else 0

    @property
    def measured(self) -> tuple[Tensor, ...]:
        """The tensors that training measures, statistic and personal ones, in the vector's order."""
        return self.of_role("statistic") + self.of_role("personal")

    def of_role(self, role: Role) -> tuple[Tensor, ...]:
        """The tensors of one role, in the vector's order."""
        return tuple(t for t in self.tensors if t.role == role)


def padded(size: int) -> int:
    """`size` floats rounded up to the alignment."""
    return -(-size // ALIGN) * ALIGN


def lay_out(shapes: list[tuple[str, tuple[int, ...], Role]]) -> tuple[Tensor, ...]:
    """Places tensors in the flat vector by role, in the given order within a role."""
    placed: list[Tensor] = []
    offset = 0
    for role in ROLES:
        for name, shape, of in shapes:
            if of == role:
                placed.append(Tensor(name=name, shape=shape, offset=offset, role=role))
                offset = placed[-1].end
    return tuple(placed)


def check(manifest: Manifest) -> Manifest:
    """Returns the manifest if its layout is exactly what `lay_out` gives and its numbers are in bounds; raises PlanError."""
    if manifest.schema != SCHEMA:
        raise PlanError(f"plan has schema {manifest.schema}, this version reads {SCHEMA}: compile the model again")
    try:
        losses.check(manifest.loss, manifest.loss_options, manifest.classes)
        trials.check(manifest.memory, manifest.trial)
    except (losses.LossError, trials.TrialError) as e:
        raise PlanError(f"plan: {e}") from e
    if not manifest.inputs:
        raise PlanError("plan has no input: a step takes samples")
    for feed in (*manifest.inputs, manifest.label):
        if len(feed.shape) > MAX_RANK or any(n < 1 for n in feed.shape) or math.prod(feed.shape) > MAX_FLOATS:
            raise PlanError(
                f"feed {feed.name!r} has shape {feed.shape}: each dimension must be positive, the product at most {MAX_FLOATS}"
            )
    if len({f.name for f in manifest.noise}) != len(manifest.noise):
        raise PlanError("plan names a feed of noise twice")
    for feed in manifest.noise:
        sizes = all(0 < n <= MAX_FLOATS for n in feed.shape) and math.prod(feed.shape) <= MAX_FLOATS
        if not feed.name.startswith(NOISE) or feed.dtype != "float32" or len(feed.shape) > MAX_RANK or not sizes:
            raise PlanError(f"feed of noise {feed.name!r} is {feed.dtype} {feed.shape}: expected {NOISE}NAME, float32")
    if len({t.name for t in manifest.tensors}) != len(manifest.tensors):
        raise PlanError("plan names a tensor twice")
    for tensor in manifest.tensors:
        if len(tensor.shape) > MAX_RANK:
            raise PlanError(f"tensor {tensor.name!r} has {len(tensor.shape)} dimensions, at most {MAX_RANK}")
        if any(not 0 < n <= MAX_FLOATS for n in tensor.shape) or tensor.size > MAX_FLOATS:
            raise PlanError(
                f"tensor {tensor.name!r} has shape {tensor.shape}: each dimension must be positive, "
                f"the product at most {MAX_FLOATS}"
            )
    if lay_out([(t.name, t.shape, t.role) for t in manifest.tensors]) != manifest.tensors:
        raise PlanError("tensors of the plan overlap, leave gaps or aren't ordered by role")
    travelling = [t for t in manifest.tensors if t.role in ("trainable", "statistic")]
    travels = travelling[-1].end if travelling else 0
    length = manifest.tensors[-1].end if manifest.tensors else 0
    if (manifest.travels, manifest.length) != (travels, length):
        raise PlanError(
            f"plan says {manifest.travels} of {manifest.length} floats travel, its tensors say {travels} of {length}"
        )
    if length > MAX_FLOATS:
        raise PlanError(f"plan has {length} floats, at most {MAX_FLOATS}")
    if not manifest.of_role("trainable"):
        raise PlanError("plan has no trainable tensor")
    if not 0 <= manifest.statistics.exponent <= MAX_EXPONENT:
        raise PlanError(
            f"plan's statistics have exponent {manifest.statistics.exponent}, 0 to {MAX_EXPONENT} is possible"
        )
    if stray := set(manifest.statistics.variances) - {t.name for t in manifest.of_role("statistic")}:
        raise PlanError(f"plan names the variance {sorted(stray)[0]!r}, which is none of its statistics")
    tensors = {t.name: t for t in manifest.tensors}
    for adapter in manifest.adapters:
        _check_adapter(adapter, tensors)
    return manifest


def _check_adapter(adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
    try:
        base, a, b = (tensors[name] for name in (adapter.base, adapter.a, adapter.b))
    except KeyError as e:
        raise PlanError(f"adapter of {adapter.base!r} names the tensor {e}, which the plan has not") from None
    left, right = (a, b) if adapter.order == "ab" else (b, a)
    rank = right.shape[0] if right.shape else 0
    sizes = (left.size, right.size, base.size) if base.shape else (0, 0, 0)
    fits = rank and sizes == (base.shape[0] * rank, rank * (base.size // base.shape[0]), base.size)
    if not fits or base.role != "frozen" or b.role != "trainable":
        shown = ", ".join(f"{t.name!r} {list(t.shape)} {t.role}" for t in (base, a, b))
        raise PlanError(f"adapter's tensors don't fit: {shown}, the product is {' '.join(adapter.order)}")
    if not 0 < adapter.scale < math.inf:
        raise PlanError(f"adapter of {adapter.base!r} has scale {adapter.scale:g}: above 0 and finite is possible")


def encode(manifest: Manifest) -> bytes:
    """The manifest as JSON, keys in order, so that equal manifests have equal bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=1) + b"\n"


def decode(raw: bytes) -> Manifest:
    """Parses and checks a manifest; raises PlanError with the key path of what is wrong."""
    try:
        return check(msgspec.json.decode(raw, type=Manifest))
    except MALFORMED as e:
        raise PlanError(f"plan manifest: {e}") from e
