"""The entropy-coded codecs ec-dither (unbiased) and ec-dz (dead zone, for error feedback): a float32 vector <-> bytes at a chosen rate.

Both quantize with one step for the whole vector and code the integers by rANS, with tables that follow how large a block's and a column's values
are (native/src/codecs/entropy.h has the format). One step for all is what minimises the squared error at a given number of bits.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fleetgrad.native.binding import (
    Buffer,
    Bytes,
    Floats,
    KernelError,
    check,
    check_output,
    ffi,
    lib,
    pointer,
    read_only,
    text,
    workspace,
)

Kind = Literal["dither", "dead-zone"]

LEAST_BITS, MOST_BITS = 0.01, 16.0  # per coordinate
LEAST_STEP, MOST_STEP = 2.0**-90, 2.0**90
TOLERANCE = 0.007  # of the rate: the last step of the search
ATTEMPTS = 12
NEAR_BITS = 64  # a miss that no search mends: words are 16 bits long, and a table more or less is a jump
SAMPLE = 65536  # coordinates that the search for a step looks at before it looks at all
SLOPE = 0.65  # of a coordinate's bit that an octave of the step saves, to begin with: those under the step have none to give
COARSE = 8  # it begins with one in so many of those
OFFSET_BITS, OFFSET_SHARE = 1.6, 0.05  # what a column's offset costs, and the most of the stream that all may take
LEAST_TARGET = 400  # bits of a stream that isn't mostly header
MOST_BINNED_BITS = 2.0  # from there on, the dither's magnitude tells little of the symbol
ROUNDING = 0.25  # dead zone: |x| / step is cut after this is added (flat optimum on real deltas from 0.2 to 0.35)


@dataclass(frozen=True, slots=True)
class Layout:
    """The matrices that a vector consists of, in order: how many values each has, and how many columns (0: it has none)."""

    sizes: NDArray[np.uintp]
    columns: NDArray[np.uintp]

    @classmethod
    def of(cls, shapes: "list[tuple[int, ...]]") -> "Layout":
        """Tensors side by side, each seen as a matrix of its first dimension by the others."""
        sizes = [math.prod(shape) for shape in shapes]
        columns = [math.prod(shape[1:]) if len(shape) > 1 else 0 for shape in shapes]
        return cls(np.array(sizes, np.uintp), np.array(columns, np.uintp))

    @classmethod
    def flat(cls, count: int) -> "Layout":
        """A vector of which nothing is known."""
        return cls.of([(count,)])


@dataclass(frozen=True, slots=True)
class _Request:
    """A C request and what keeps its memory alive."""

    struct: Any
    kept: tuple[object, ...] = field(repr=False)
    offsets: int


def encode(
    values: Floats, *, kind: Kind, key: int, bits: float, stream: int = 0, layout: Layout | None = None
) -> Bytes:
    """Encodes float32[n] in about `bits` bits a coordinate, the whole stream counted; returns uint8[size].

    `key` (64 bits) and `stream` (32 bits) draw the dither; the decoder needs the same. Raises KernelError on NaN and infinity with the
    index, and on bits out of range.
    """
    check("entropy encode", values, np.float32)
    if not LEAST_BITS <= bits <= MOST_BITS:
        raise KernelError(f"entropy encode: {bits} bits a coordinate, expected {LEAST_BITS} to {MOST_BITS:g}")
    groups, peak, mean = _sample(values)
    request = _request(kind, key, stream, layout or Layout.flat(values.size), values.size)
    scratch = workspace(lib.FG_EC_SCRATCH)
    out = np.empty(6 * values.size + 100_000, np.uint8)
    if peak == 0.0:
        return np.asarray(_encode(request, values, 0.0, out, scratch), np.uint8).copy()
    if request.offsets * OFFSET_BITS > OFFSET_SHARE * bits * values.size:
        request.struct.matrices = 0  # too many columns to tell their offsets at this rate
    elif request.offsets:
        work = np.empty(int(request.kept[1].max()), np.float32)  # type: ignore[attr-defined]
        lib.fg_ec_columns(pointer("float *", values), request.struct, pointer("float *", work))
    request.struct.log_bins = 0 if kind == "dead-zone" or bits >= MOST_BINNED_BITS else 2
    search = _Search(request, values, bits * values.size, peak, mean, scratch)
    if groups.size >= 16 * COARSE:
        search.run(groups[::COARSE].copy(), near=0.05)
    if values.size >= 2 * SAMPLE:
        search.run(groups, near=0.03)
    for attempt in range(ATTEMPTS):
        last = attempt == ATTEMPTS - 1 or search.stuck or search.best[0] < NEAR_BITS
        request.struct.least, request.struct.most = (bound * search.target for bound in (1 - TOLERANCE, 1 + TOLERANCE))
        if last or search.between:
            request.struct.most = 0.0  # as near as it gets: a vector with few different values has few rates
        if last:
            search.step = search.best[1]
        coded = _encode(request, values, search.step, out, scratch)
        if isinstance(coded, float):
            search.learn(coded)
            continue
        over = 8 * coded.size - bits * values.size
        if last or abs(over) < max(NEAR_BITS, 0.01 * bits * values.size):
            return coded.copy()
        search.aim(over)
    raise AssertionError("the last attempt has no bounds")


def decode(
    payload: Buffer, out: Floats, *, kind: Kind, key: int, stream: int = 0, layout: Layout | None = None
) -> None:
    """Decodes into float32[n]; raises KernelError on any bytes that aren't exactly one stream of n values."""
    check_output("entropy decode", out, np.float32)
    request = _request(kind, key, stream, layout or Layout.flat(out.size), out.size)
    data, size = read_only(payload)
    where = ffi.new("size_t *")
    scratch = workspace(lib.FG_EC_SCRATCH)
    error = lib.fg_ec_decode(
        data, size, request.struct, pointer("float *", out), out.size, ffi.from_buffer("void *", scratch), where
    )
    if error:
        raise KernelError(f"entropy decode: chunk {where[0]} of a stream of {size} bytes: {text(error)}")


class _Search:
    """Looks for the step at which the stream has the target's bits: secant in log2(step), along which bits fall steadily."""

    def __init__(
        self, request: _Request, values: Floats, target: float, peak: float, mean: float, scratch: Bytes
    ) -> None:
        self.request, self.values, self.target, self.scratch = request, values, target, scratch
        # Under the least, values have too many steps. Over the most, a longer step saves nothing but error: in ec-dz nothing is left; in
        # ec-dither a stream of a few bytes is mostly header.
        largest = peak / (1 - ROUNDING) if request.struct.kind else peak * (64 if target >= LEAST_TARGET else 4)
        self.least, self.most = max(peak * 2.0**-20, LEAST_STEP), min(max(largest, LEAST_STEP), MOST_STEP)
        self.step = self._bounded(5 * mean * 2.0 ** (-target / values.size))
        self.slope = -SLOPE * values.size  # bits per octave of the step
        self.last: tuple[float, float] | None = None
        self.miss = math.inf  # bits over the target at the last step
        # The least miss, and its step: another table more or less makes the bits jump.
        self.best = (math.inf, self.step)
        self.stuck = False  # the step is at a bound, or found twice
        self.sides: dict[
            bool, tuple[float, float]
        ] = {}  # log2 of the step, and bits over the request, of the last streams over and under it

    @property
    def between(self) -> bool:
        """Whether the step lies between those of two whole streams: what is foreseen needn't bound it."""
        return len(self.sides) == 2

    def run(self, groups: NDArray[np.uint32], near: float) -> None:
        """Moves the step until these pairs of blocks say that the target was as near as that share of it, and once more."""
        self.last = None  # other pairs' bits differ from these by more than a step says
        for _ in range(8):
            self.learn(self._estimate(groups))
            if abs(self.miss) < near * self.target or self.stuck:
                break
        self.last, self.stuck, self.miss, self.best = None, False, math.inf, (math.inf, self.step)

    def aim(self, over: float) -> None:
        """Takes from the target what a stream at it had over the request: what is foreseen of a vector is off by about as much at any step."""
        self.sides[over > 0] = math.log2(self.step), over
        if (
            self.between
        ):  # what is foreseen may be off by more at one of them, and would lead from each to the other for ever
            (low, more), (high, less) = self.sides[True], self.sides[False]
            self.best = min((abs(miss), self._bounded(2.0**at)) for at, miss in self.sides.values())
            self.step = self._bounded(2.0 ** (low + (high - low) * more / (more - less)))
            return
        at_target, self.target = self.target, self.target - over
        self.best = (math.inf, self.step)
        self.learn(at_target)

    def learn(self, measured: float) -> None:
        """Moves the step by what the slope says, at most two octaves, given that it needs `measured` bits."""
        at, before = math.log2(self.step), self.step
        if self.last is not None and at != self.last[0]:
            slope = (measured - self.last[1]) / (at - self.last[0])
            between = (measured > self.target) != (
                self.last[1] > self.target
            )  # the target: however steep, it isn't overshot
            self.slope = min(max(slope, -math.inf if between else -2.0 * self.values.size), -0.02 * self.target)
        self.last, self.miss = (at, measured), measured - self.target
        self.best = min(self.best, (abs(self.miss), before))
        self.step = self._bounded(self.step * 2.0 ** min(max(-self.miss / self.slope, -2.0), 2.0))
        self.stuck = self.step == before

    def _bounded(self, step: float) -> float:
        return float(np.float32(min(max(step, self.least), self.most)))

    def _estimate(self, groups: NDArray[np.uint32]) -> float:
        bits, where = ffi.new("double *"), ffi.new("size_t *")
        self.request.struct.step = self.step
        error = lib.fg_ec_bits(
            pointer("float *", self.values), self.values.size, self.request.struct, pointer("uint32_t *", groups),
            groups.size, ffi.from_buffer("void *", self.scratch), bits, where,
        )  # fmt: skip
        _raise("entropy encode", error, self.values, where[0])
        return float(bits[0])


def _sample(values: Floats) -> tuple[NDArray[np.uint32], float, float]:
    """Pairs of blocks that stand for all, and the largest and the mean magnitude."""
    groups = np.empty(values.size // 128 + 1, np.uint32)
    count, peak, total, where = ffi.new("size_t *"), ffi.new("float *"), ffi.new("double *"), ffi.new("size_t *")
    every = max(1, values.size // SAMPLE)
    error = lib.fg_ec_sample(
        pointer("float *", values), values.size, every, pointer("uint32_t *", groups), count, peak, total, where
    )
    _raise("entropy encode", error, values, where[0])
    return groups[: count[0]], float(peak[0]), total[0] / max(1, values.size)


def _request(kind: Kind, key: int, stream: int, layout: Layout, count: int) -> _Request:
    if not (0 <= key < 2**64 and 0 <= stream < 2**32):
        raise KernelError(f"entropy coding: key {key} doesn't fit 64 bits, or stream {stream} 32 bits")
    if kind not in get_args(Kind):
        raise KernelError(f"entropy coding: kind is {kind!r}, expected one of {', '.join(get_args(Kind))}")
    sizes, columns = (np.ascontiguousarray(a, np.uintp) for a in (layout.sizes, layout.columns))
    if sizes.size != columns.size:
        raise KernelError(f"entropy coding: the layout has {sizes.size} sizes and {columns.size} numbers of columns")
    if (total := sum(sizes.tolist())) != count:  # Python's integers don't wrap
        raise KernelError(f"entropy coding: the layout has {total} values, the vector {count}")
    struct = ffi.new("fg_ec *")
    struct.kind, struct.key, struct.stream = int(kind == "dead-zone"), key, stream
    struct.step, struct.rounding = 0.0, ROUNDING
    struct.matrices = sizes.size
    struct.sizes, struct.columns = pointer("size_t *", sizes), pointer("size_t *", columns)
    offsets = np.empty(max(1, lib.fg_ec_offsets(struct)), np.uint8)
    struct.offsets = pointer("uint8_t *", offsets)
    return _Request(struct, (sizes, columns, offsets), int(lib.fg_ec_offsets(struct)))


def _encode(request: _Request, values: Floats, step: float, out: Bytes, scratch: Bytes) -> Bytes | float:
    """The stream in `out`, or the bits that it would have taken where those are out of the request's bounds."""
    size, where = ffi.new("size_t *"), ffi.new("size_t *")
    request.struct.step = step
    error = lib.fg_ec_encode(
        pointer("float *", values), values.size, request.struct, pointer("uint8_t *", out), size,
        ffi.from_buffer("void *", scratch), where,
    )  # fmt: skip
    if error == lib.FG_RATE:
        return float(size[0])
    _raise("entropy encode", error, values, where[0])
    return out[: size[0]]


def _raise(act: str, error: int, values: Floats, where: int) -> None:
    if error:
        raise KernelError(f"{act}: value {where} of {values.size}: {text(error)} ({values.ravel()[where]})")
