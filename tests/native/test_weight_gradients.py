"""The int8 weight gradients, which of few rows are float32, against NumPy on the same codes, bit by bit, under every capability; and what they refuse."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleetgrad.native import binding, gradients
from tests.native.every import every_capability

Array = NDArray[Any]
EXACT = 65536  # positions whose products are summed as integers
FEW = 8  # positions up to which nothing is rounded to int8


def normal(seed: int, *shape: int, scale: float = 1.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def quantize(x: Array) -> tuple[Array, Array]:
    """Codes (int64) and scales of axis 1's entries, as the scheme defines them."""
    most = np.abs(x).max(tuple(i for i in range(x.ndim) if i != 1), initial=0)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    wide = (1, -1, *(1 for _ in x.shape[2:]))
    return np.rint(x * inverse.reshape(wide)).astype(np.int64), most / np.float32(127)


def product(
    a: Array,
    b: Array,
    scales: Array,
    base: Array | None = None,
    blocks: list[int] | None = None,
    off: Array | float = 0.0,
) -> Array:
    """a[k, m]^T b[k, n] - off, in blocks of positions (of EXACT, or ending at `blocks`), each exact, added as floats in order."""
    out, start = base, 0
    for end in blocks or [*range(EXACT, a.shape[0], EXACT), a.shape[0]]:
        part = (a[start:end].T @ b[start:end]).astype(np.float32) * scales
        part = part if start else part - np.float32(off)
        out, start = part if out is None else out + part, end
    assert out is not None
    return out


def of_matrices(x: Array, dy: Array, base: Array | None = None, narrow: bool = False) -> Array:
    """base + x^T dy: of few positions in float32, one after the other, else of codes; `narrow`: of an x that is kept as codes."""
    (a, x_scale), (b, dy_scale) = quantize(x), quantize(dy)
    if len(x) > FEW:
        return product(a, b, x_scale[:, None] * dy_scale[None, :], base)
    rows = a.astype(np.float32) * x_scale if narrow else x
    out: Array = rows[0, :, None] * dy[0]
    for p in range(1, len(x)):
        out = out + rows[p, :, None] * dy[p]
    return out if base is None else base + out


def ends_of_blocks(batch: int, y: tuple[int, ...]) -> list[int]:
    """Where exact sums of a convolution end: after as many whole images as EXACT holds, or rows, or pieces of 512 positions of a row."""
    area, width = int(np.prod(y)), y[-1]
    if area <= EXACT:
        step = EXACT // area * area
    elif width <= EXACT:
        step = EXACT // width * width
    else:
        pieces = [row + end for row in range(0, batch * area, width) for end in [*range(512, width, 512), width]]
        return [*pieces[127:-1:128], pieces[-1]]
    return [*range(step, batch * area, step), batch * area]


@pytest.mark.parametrize("form", ["float", "int8", "accumulate"])
@pytest.mark.parametrize(
    ("k", "m", "n"),
    [
        (1, 1, 1),
        (3, 8, 16),
        (8, 70, 530),
        (9, 70, 37),
        (16, 9, 10),
        (257, 33, 31),
        (513, 130, 49),
        (1030, 75, 50),
        (65536, 3, 17),
        (65537, 5, 3),
        (140001, 66, 2),
    ],
)
def test_the_gradient_of_a_matrix_is_the_int8_product_or_of_few_rows_the_float_one(
    isa: str, seed: int, k: int, m: int, n: int, form: str
) -> None:
    print(f"seed {seed}")
    x, dy, base = normal(seed, k, m), normal(seed + 1, k, n, scale=1e-3), normal(seed + 2, m, n)
    x[:, m // 2] = 0
    out, total = np.empty((m, n), np.float32), np.empty(m, np.float32)
    if form == "float":
        gradients.matmul_weight_grad(x, dy, out, total=total)
        assert (total == np.cumsum(x, 0, np.float64)[-1].astype(np.float32)).all()
        assert (out == of_matrices(x, dy)).all()
    elif form == "int8":
        codes, scale = gradients.quantize_columns(x)
        gradients.matmul_weight_grad(codes, dy, out, scale=scale)
        assert (out == of_matrices(x, dy, narrow=True)).all()
    else:
        gradients.matmul_weight_grad(x, dy, out, base=base)
        expected = of_matrices(x, dy, base)
        assert (out == expected).all()
        gradients.matmul_weight_grad(x, dy, base, base=base)
        assert (base == expected).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(0, 140), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_any_small_shape_gives_the_same_bytes_under_every_capability(k: int, m: int, n: int, seed: int) -> None:
    x, dy = normal(seed, k, m), normal(seed + 1, k, n)
    expected = of_matrices(x, dy)
    for name in every_capability():
        out = np.empty((m, n), np.float32)
        gradients.matmul_weight_grad(x, dy, out)
        assert (out == expected).all(), name


def test_codes_at_both_ends_of_int8_are_multiplied_exactly(isa: str) -> None:
    """-128 isn't written by QuantizeColumns, but a graph may hold it."""
    k = 65536
    for code, sign in itertools.product((-128, -127, 127), (-1, 1)):
        codes, dy = np.full((k, 5), code, np.int8), np.full((k, 3), sign * 127, np.float32)
        out = np.empty((5, 3), np.float32)
        gradients.matmul_weight_grad(codes, dy, out, scale=np.ones(5, np.float32))
        assert (out == np.float32(code * sign * 127 * k)).all()


@pytest.mark.parametrize("shape", [(7, 3), (1, 65), (64, 200), (5, 3, 11), (2, 70, 4, 9), (0, 3), (3, 0)])
def test_quantized_columns_are_rounded_to_nearest_even_of_absmax_127(
    isa: str, seed: int, shape: tuple[int, ...]
) -> None:
    print(f"seed {seed}")
    x = normal(seed, *shape)
    if x.size:
        x[:, 0] = 0
    codes, scale = gradients.quantize_columns(x)
    expected, scales = quantize(x)
    assert (codes == expected).all()
    assert (scale == scales).all()


def positions(x: Array, kernel: Any, stride: Any, dilation: Any, begins: Any, ends: Any) -> Array:
    """im2col of codes: [positions, c * taps]."""
    x = np.pad(x, [(0, 0), (0, 0), *zip(begins, ends, strict=True)])
    axes = zip(x.shape[2:], kernel, stride, dilation, strict=True)
    y = [(n - (k - 1) * d - 1) // s + 1 for n, k, s, d in axes]
    columns = []
    for offset in itertools.product(*(range(0, k * d, d) for k, d in zip(kernel, dilation, strict=True))):
        each = (slice(o, o + (n - 1) * s + 1, s) for o, n, s in zip(offset, y, stride, strict=True))
        columns.append(x[(slice(None), slice(None), *each)])
    stacked = np.stack(columns, 2)  # [n, c, taps, *y]
    return np.moveaxis(stacked.reshape(*stacked.shape[:3], -1), 3, 1).reshape(-1, stacked.shape[1] * stacked.shape[2])


def planes_mean(codes: Array, scale: Array, kernel: Any, stride: Any, dilation: Any, begins: Any, y: Any) -> Array:
    """Mean of each channel over what the packed planes hold: float32[c]. Planes are the pixels with one remainder of the stride each."""
    axes = []
    for k, s, d, outputs in zip(kernel, stride, dilation, y, strict=True):
        slots, length = min(k, s // math.gcd(s, d)), outputs + (k - 1) * d // s
        axes.append([i * s + slot * d % s for slot in range(slots) for i in range(length)])
    wide = [(b, max(0, max(axis) + 1 - b - n)) for axis, b, n in zip(axes, begins, codes.shape[2:], strict=True)]
    held = np.pad(codes, [(0, 0), (0, 0), *wide])
    for axis, places in enumerate(axes):
        held = np.take(held, places, axis + 2)
    others = tuple(i for i in range(held.ndim) if i != 1)
    total, count = held.sum(others), held.size // held.shape[1]
    mean: Array = scale.astype(np.float64) * total / count
    return mean.astype(np.float32)


def sum_in_lanes(dy: Array) -> Array:
    """Sum of each channel of dy [n, c, ...], float64[c]: sixteen float32 lanes, added up as doubles after 4096 floats or more."""
    total, lanes, taken = np.zeros(dy.shape[1]), np.zeros((dy.shape[1], 16), np.float32), 0
    for image in dy.reshape(*dy.shape[:2], -1):
        for start in range(0, image.shape[1], 4096):
            run = image[:, start : start + 4096]
            for i in range(0, run.shape[1], 16):
                part = run[:, i : i + 16]
                lanes[:, : part.shape[1]] += part
            taken += run.shape[1]
            if taken >= 4096:
                for lane in lanes.T:
                    total += lane
                lanes[:], taken = 0, 0
    for lane in lanes.T:
        total += lane
    return total


def convolution(
    x: Array, dy: Array, kernel: Any, stride: Any, dilation: Any, pads: Any, group: int, base: Array | None = None
) -> Array:
    """dW by NumPy: the product of im2col's columns and dY's, group by group, less X's mean times what rounding added to dY."""
    rank = len(kernel)
    (a, x_scale), (b, dy_scale) = quantize(x), quantize(dy)
    outputs, blocks = dy.shape[1], ends_of_blocks(dy.shape[0], dy.shape[2:])
    mean = planes_mean(a, x_scale, kernel, stride, dilation, pads[:rank], dy.shape[2:])
    others = tuple(i for i in range(dy.ndim) if i != 1)
    added = (dy_scale.astype(np.float64) * b.sum(others) - sum_in_lanes(dy)).astype(np.float32)
    pieces = []
    for codes, scale, middle, y, y_scale, extra, old in zip(
        np.split(a, group, 1), np.split(x_scale, group), np.split(mean, group), np.split(b, group, 1),
        np.split(dy_scale, group), np.split(added, group),
        np.split(base, group) if base is not None else [None] * group, strict=True,
    ):  # fmt: skip
        columns = positions(codes, kernel, stride, dilation, pads[:rank], pads[rank:])
        rows = np.moveaxis(y.reshape(*y.shape[:2], -1), 1, 2).reshape(-1, y.shape[1])
        scales = y_scale[:, None] * np.repeat(scale, np.prod(kernel, dtype=int))[None, :]
        off = extra[:, None] * np.repeat(middle, np.prod(kernel, dtype=int))[None, :]
        pieces.append(product(rows, columns, scales, None if old is None else old.reshape(len(old), -1), blocks, off))
    return np.concatenate(pieces).reshape(outputs, -1, *kernel)


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes and attributes of a convolution whose windows fit."""
    rank = draw(st.integers(1, 2))

    def each(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(rank)]

    group = draw(st.sampled_from([1, 1, 1, 2, 3]))
    kernel, stride, dilation, begins, ends = each(1, 4), each(1, 4), each(1, 3), each(0, 3), each(0, 3)
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [max(1, s - b - e) + draw(st.integers(0, 20)) for s, b, e in zip(span, begins, ends, strict=True)]
    return {
        "batch": draw(st.integers(1, 5)),
        "inputs": group * draw(st.integers(1, 5)),
        "outputs": group * draw(st.sampled_from([1, 2, 5, 9, 16, 33])),
        "size": size, "kernel": kernel, "stride": stride, "dilation": dilation, "pads": [*begins, *ends], "group": group,
    }  # fmt: skip


def spatial(c: dict[str, Any]) -> list[int]:
    rank = len(c["kernel"])
    each = zip(c["size"], c["kernel"], c["stride"], c["dilation"], c["pads"][:rank], c["pads"][rank:], strict=True)
    return [(n + b + e - (k - 1) * d - 1) // s + 1 for n, k, s, d, b, e in each]


def operands(c: dict[str, Any], seed: int) -> tuple[Array, Array, Array]:
    """x, dy and a dW to add to."""
    x = normal(seed, c["batch"], c["inputs"], *c["size"])
    dy = normal(seed + 1, c["batch"], c["outputs"], *spatial(c), scale=1e-3)
    return x, dy, normal(seed + 2, c["outputs"], c["inputs"] // c["group"], *c["kernel"])


@settings(max_examples=150, deadline=None)
@given(convolutions(), st.integers(0, 2**32 - 1))
def test_any_convolutions_gradient_is_the_int8_product_under_every_capability(c: dict[str, Any], seed: int) -> None:
    x, dy, base = operands(c, seed)
    expected = convolution(x, dy, c["kernel"], c["stride"], c["dilation"], c["pads"], c["group"])
    more = convolution(x, dy, c["kernel"], c["stride"], c["dilation"], c["pads"], c["group"], base)
    codes, scale = gradients.quantize_columns(x)
    attributes = {"strides": c["stride"], "pads": c["pads"], "dilations": c["dilation"], "group": c["group"]}
    for name in every_capability():
        out = np.empty_like(base)
        gradients.conv_weight_grad(x, dy, out, **attributes)
        assert (out == expected).all(), name
        gradients.conv_weight_grad(codes, dy, out, scale=scale, **attributes)
        assert (out == expected).all(), name
        gradients.conv_weight_grad(x, dy, out, base=base, **attributes)
        assert (out == more).all(), name


LARGE: dict[str, dict[str, Any]] = {
    "blocks of images": {"batch": 200, "inputs": 2, "outputs": 17, "size": [22, 20], "kernel": [3, 3]},
    "depthwise, blocks of images": {"batch": 200, "inputs": 3, "outputs": 3, "size": [22, 20], "kernel": [3, 3], "group": 3},
    "blocks of rows": {"batch": 1, "inputs": 1, "outputs": 10, "size": [70, 1003], "kernel": [1, 3]},
    "depthwise, blocks of rows": {"batch": 1, "inputs": 2, "outputs": 2, "size": [70, 1003], "kernel": [1, 3], "group": 2},
    "blocks of pieces": {"batch": 2, "inputs": 1, "outputs": 9, "size": [70001], "kernel": [4]},
    "long rows": {"batch": 2, "inputs": 2, "outputs": 9, "size": [2500], "kernel": [9], "stride": [2]},
    "a quarter of a kernel": {"batch": 2, "inputs": 3, "outputs": 40, "size": [9, 9], "kernel": [1, 1], "stride": [2, 2]},
}  # fmt: skip


@pytest.mark.parametrize("case", LARGE)
def test_sums_of_many_positions_are_split_alike_on_every_capability(isa: str, seed: int, case: str) -> None:
    print(f"seed {seed}")
    rank = len(LARGE[case]["size"])
    c = {"stride": [1] * rank, "dilation": [1] * rank, "pads": [0] * 2 * rank, "group": 1, **LARGE[case]}
    x, dy, out = operands(c, seed)
    gradients.conv_weight_grad(x, dy, out, strides=c["stride"], group=c["group"])
    assert (out == convolution(x, dy, c["kernel"], c["stride"], c["dilation"], c["pads"], c["group"])).all()


def test_the_gradient_points_where_the_float_one_does(seed: int) -> None:
    print(f"seed {seed}")
    x, dy = normal(seed, 512, 64), normal(seed + 1, 512, 32)
    out, exact = np.empty((64, 32), np.float32), x.T @ dy
    gradients.matmul_weight_grad(x, dy, out)
    # Two operands with steps of absmax/127 and absmax about 3 deviations: relative error about sqrt(2) * 3/127/sqrt(12).
    assert (out * exact).sum() / np.linalg.norm(out) / np.linalg.norm(exact) > 0.9998


def test_what_rounding_adds_to_a_channel_does_not_reach_the_gradient_by_the_mean_of_x(seed: int) -> None:
    """As before batch normalisation: dY sums to nothing, X to much. The plain product's error is 1.7 to 3.5 times as large over 200 seeds."""
    print(f"seed {seed}")
    x, dy = normal(seed, 8, 16, 20, 20) + 6, normal(seed + 1, 8, 24, 20, 20)
    dy -= dy.mean((0, 2, 3), keepdims=True)
    out = np.empty((24, 16, 1, 1), np.float32)
    gradients.conv_weight_grad(x, dy, out)
    (a, x_scale), (b, dy_scale) = quantize(x), quantize(dy)
    plain = np.einsum("nmhw,nchw->mc", b, a) * dy_scale[:, None] * x_scale[None, :]
    exact = np.einsum("nmhw,nchw->mc", dy.astype(np.float64), x.astype(np.float64))
    assert np.linalg.norm(plain - exact) > 1.25 * np.linalg.norm(out[..., 0, 0] - exact)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [2, 10])
@pytest.mark.parametrize(("side", "column"), [("x", 2), ("dy", 3), ("dy", 69)])
def test_a_matrix_with_nan_or_infinity_is_refused_with_its_column(
    isa: str, bad: float, rows: int, side: str, column: int
) -> None:
    arrays = {"x": np.ones((rows, 4), np.float32), "dy": np.ones((rows, 70), np.float32)}
    arrays[side][-1, column] = bad
    with pytest.raises(binding.KernelError, match=f"column {column} of {side}"):
        gradients.matmul_weight_grad(arrays["x"], arrays["dy"], np.empty((4, 70), np.float32))


@pytest.mark.parametrize(("side", "channel"), [("x", 2), ("dy", 4)])
def test_an_image_with_nan_is_refused_with_its_channel(isa: str, side: str, channel: int) -> None:
    arrays = {"x": np.ones((2, 3, 5, 5), np.float32), "dy": np.ones((2, 5, 3, 3), np.float32)}
    arrays[side][1, channel, 2, 2] = np.nan
    with pytest.raises(binding.KernelError, match=f"channel {channel} of {side}"):
        gradients.conv_weight_grad(arrays["x"], arrays["dy"], np.empty((5, 3, 3, 3), np.float32))


def test_columns_to_quantize_with_nan_are_refused(isa: str) -> None:
    x = np.zeros((3, 100), np.float32)
    x[1, 80] = np.nan
    with pytest.raises(binding.KernelError, match="column 80: value is NaN"):
        gradients.quantize_columns(x)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0])
def test_codes_with_a_scale_that_is_no_magnitude_are_refused(isa: str, scale: float) -> None:
    scales = np.array([1, scale], np.float32)
    with pytest.raises(binding.KernelError, match="column 1 of x"):
        gradients.matmul_weight_grad(
            np.ones((3, 2), np.int8), np.ones((3, 2), np.float32), np.empty((2, 2), np.float32), scale=scales
        )


def zeros(*shape: int, dtype: type = np.float32) -> Array:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("arrays", "more", "match"),
    [
        ((zeros(3, 2), zeros(4, 2), zeros(2, 2)), {}, "don't fit"),
        ((zeros(3, 2), zeros(3, 4), zeros(4, 2)), {}, "don't fit"),
        ((zeros(0, 2), zeros(0, 2), zeros(2, 2)), {}, "no rows"),
        ((zeros(3, 2, dtype=np.int8), zeros(3, 4), zeros(2, 4)), {}, "a scale belongs to an int8 x"),
        ((zeros(3, 2), zeros(3, 4), zeros(2, 4)), {"scale": zeros(2)}, "a scale belongs to an int8 x"),
        ((zeros(3, 2, dtype=np.int8), zeros(3, 4), zeros(2, 4)), {"scale": zeros(3)}, "3 elements, expected 2"),
        ((zeros(3, 2), zeros(3, 4), zeros(2, 4)), {"base": zeros(4, 2)}, "same shape"),
        ((zeros(3, 2, dtype=np.float64), zeros(3, 4), zeros(2, 4)), {}, "contiguous float32"),
    ],
)  # fmt: skip
def test_matrices_that_do_not_fit_are_refused(arrays: tuple[Array, ...], more: dict[str, Array], match: str) -> None:
    with pytest.raises(binding.KernelError, match=match):
        gradients.matmul_weight_grad(*arrays, **more)


@pytest.mark.parametrize(
    ("x", "dy", "out", "more", "match"),
    [
        ((1, 2, 5, 5), (1, 3, 4, 3), (3, 2, 3, 3), {}, "don't fit"),
        ((1, 2, 5, 5), (1, 3, 3, 3), (3, 1, 3, 3), {}, "don't fit"),
        ((1, 3, 5, 5), (1, 4, 3, 3), (4, 1, 3, 3), {"group": 3}, "don't fit"),
        ((0, 2, 5, 5), (0, 3, 3, 3), (3, 2, 3, 3), {}, "don't fit"),
        ((1, 2, 5, 5, 5), (1, 3, 3, 3, 3), (3, 2, 3, 3, 3), {}, "one or two spatial axes"),
        ((1, 2, 5, 5), (1, 3, 3, 3), (3, 2, 3, 3), {"strides": [0, 1]}, "strides"),
        ((1, 2, 5, 5), (1, 3, 3, 3), (3, 2, 3, 3), {"strides": [1]}, "strides"),
        ((1, 2, 5, 5), (1, 3, 3, 3), (3, 2, 3, 3), {"pads": [-1, 0, 1, 0]}, "negative"),
    ],
)
def test_convolutions_that_do_not_fit_are_refused(x: Any, dy: Any, out: Any, more: dict[str, Any], match: str) -> None:
    with pytest.raises(binding.KernelError, match=match):
        gradients.conv_weight_grad(zeros(*x), zeros(*dy), zeros(*out), **more)


def test_a_total_belongs_to_floats_and_is_memory_of_its_own() -> None:
    x, dy, out = zeros(3, 2), zeros(3, 4), zeros(2, 4)
    for total, match in ((out[0, :2], "overlaps"), (zeros(3), "3 elements, expected 2")):
        with pytest.raises(binding.KernelError, match=match):
            gradients.matmul_weight_grad(x, dy, out, total=total)
    with pytest.raises(binding.KernelError, match="a total belongs to a float32 x"):
        gradients.matmul_weight_grad(zeros(3, 2, dtype=np.int8), dy, out, scale=zeros(2), total=zeros(2))


def test_an_output_that_overlaps_an_input_is_refused() -> None:
    memory = zeros(16)
    with pytest.raises(binding.KernelError, match="overlaps"):
        gradients.matmul_weight_grad(memory[:4].reshape(2, 2), zeros(2, 2), memory[2:6].reshape(2, 2))
    with pytest.raises(binding.KernelError, match="overlaps"):
        gradients.matmul_weight_grad(zeros(2, 2), zeros(2, 2), memory[2:6].reshape(2, 2), base=memory[:4].reshape(2, 2))
