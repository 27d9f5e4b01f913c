"""Pooling, activations and batch norm against the best standard-op form of each in onnxruntime, one thread, in one run."""

from typing import Any

import numpy as np

from fleetgrad.native.bench.graphs import Graph
from fleetgrad.native.bench.layers import compare

F32 = np.float32
SHAPE = (16, 32, 28, 28)


_RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    """Other values at each call; ties are rare."""
    return _RNG.standard_normal(shape, F32)


def activations() -> list[dict[str, Any]]:
    """One pass against two compares, a cast and a product."""
    feeds = {"y": np.maximum(normal(*SHAPE), 0), "dy": normal(*SHAPE)}
    six = {"x": normal(*SHAPE) * F32(4), "dy": feeds["dy"]}

    def mask(g: Graph) -> str:
        return g("Mul", g("Cast", g("Greater", "y", g.constant(0, F32)), to=1), "dy")

    def both(g: Graph) -> str:
        inside = g("And", g("Greater", "x", g.constant(0, F32)), g("Less", "x", g.constant(6, F32)))
        return g("Mul", g("Cast", inside, to=1), "dy")

    def product(g: Graph) -> str:
        low = g("Cast", g("Greater", "x", g.constant(0, F32)), to=1)
        high = g("Cast", g("Less", "x", g.constant(6, F32)), to=1)
        return g("Mul", g("Mul", low, high), "dy")

    relu = {"Greater, Cast, Mul": mask, "Sign, Mul": lambda g: g("Mul", g("Sign", "y"), "dy")}
    return [
        compare("ReLU gradient 16x32x28x28", feeds, lambda g: g.own("ReluGrad", "y", "dy"), relu, None),
        compare(
            "ReLU6 gradient 16x32x28x28", six,
            lambda g: g.own("ClipGrad", "x", "dy", min=0.0, max=6.0, inclusive=0),
            {"And, Cast, Mul": both, "two Casts, Mul": product}, None,
        ),
    ]  # fmt: skip


def spread(g: Graph, name: str) -> str:
    """Every value over its window of 2x2."""
    scales = g.constant([1, 1, 2, 2], F32)
    return g(
        "Resize", name, "", scales, mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"
    )


def tiling() -> list[dict[str, Any]]:
    """Windows of 2x2, stride 2: gradient alone, and both directions together."""
    feeds = {"x": normal(*SHAPE), "dy": normal(*SHAPE[:2], 14, 14)}
    window: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}

    def resized(g: Graph) -> list[str]:
        y = g("MaxPool", "x", **window)
        return [y, g("Mul", g("Cast", g("Equal", "x", spread(g, y)), to=1), spread(g, "dy"))]

    def unpooled(g: Graph) -> list[str]:
        y = g("MaxPool", "x", outputs=2, **window)
        return [y, g("MaxUnpool", "dy", y[:-1] + "1", **window)]

    def own(g: Graph) -> list[str]:
        y = g.own("MaxPool", "x", outputs=2, **window)
        return [y, g.own("MaxPoolArgmaxGrad", y[:-1] + "1", "dy", input_shape=[28, 28], **window)]

    def from_x(g: Graph) -> list[str]:
        return [g("MaxPool", "x", **window), g.own("MaxPoolGrad", "x", "dy", **window)]

    def shared(g: Graph) -> str:
        return spread(g, g("Mul", "dy", g.constant(0.25, F32)))

    forms = {"MaxPool, Resize, Equal, Mul": resized, "MaxPool with Indices, MaxUnpool": unpooled}
    average = {"Mul, Resize": shared}
    label = "2x2 s2, 16x32x28x28"
    return [
        compare(f"MaxPool forward and gradient, argmax kept, {label}", feeds, own, forms, None),
        compare(f"MaxPool of the wheel and gradient from X, {label}", feeds, from_x, forms, None),
        compare(
            f"AveragePool gradient {label}", {"dy": feeds["dy"]},
            lambda g: g.own("AveragePoolGrad", "dy", input_shape=[28, 28], **window), average, None,
        ),
    ]  # fmt: skip


def overlapping() -> list[dict[str, Any]]:
    """Windows of 3x3, stride 2, as ResNet's stem has them."""
    batch, channels, size, out = 4, 64, 56, 28
    feeds = {"x": normal(batch, channels, size, size), "dy": normal(batch, channels, out, out)}
    window: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}

    def columns(g: Graph, parts: list[str]) -> str:
        rows = [g("Reshape", part, g.constant([batch, channels, 1, -1])) for part in parts]
        stacked = g("Reshape", g("Concat", *rows, axis=2), g.constant([batch, channels * 9, -1]))
        return g("Col2Im", stacked, g.constant([size, size]), g.constant([3, 3]), strides=[2, 2], pads=[1] * 4)

    def taps(g: Graph) -> list[str]:
        y = g("MaxPool", "x", **window)
        image = g("Pad", "x", g.constant([0, 0, 1, 1, 0, 0, 0, 0]), g.constant(-3e38, F32))
        parts = []
        for ky in range(3):
            for kx in range(3):
                ends = [ky + 2 * out - 1, kx + 2 * out - 1]
                seen = g("Slice", image, *(g.constant(v) for v in ([ky, kx], ends, [2, 3], [2, 2])))
                parts.append(g("Mul", g("Cast", g("Equal", seen, y), to=1), "dy"))
        return [y, columns(g, parts)]

    def own(g: Graph) -> list[str]:
        y = g.own("MaxPool", "x", outputs=2, **window)
        return [y, g.own("MaxPoolArgmaxGrad", y[:-1] + "1", "dy", input_shape=[size, size], **window)]

    def from_x(g: Graph) -> list[str]:
        return [g("MaxPool", "x", **window), g.own("MaxPoolGrad", "x", "dy", **window)]

    def shares(g: Graph) -> str:
        share = g("Mul", "dy", g.constant(1 / 9, F32))
        return columns(g, [share] * 9)

    forms = {"MaxPool, taps, Col2Im": taps}
    label = "3x3 s2, 4x64x56x56"
    return [
        compare(f"MaxPool forward and gradient, argmax kept, {label}", feeds, own, forms, None),
        compare(f"MaxPool of the wheel and gradient from X, {label}", feeds, from_x, forms, None),
        compare(
            f"AveragePool gradient {label}", {"dy": feeds["dy"]},
            lambda g: g.own("AveragePoolGrad", "dy", input_shape=[size, size], count_include_pad=1, **window),
            {"Mul, Col2Im": shares}, None,
        ),
    ]  # fmt: skip


def batch_norm(*shape: int) -> list[dict[str, Any]]:
    """Training-mode forward and gradient."""
    channels, count = shape[1], int(np.prod(shape)) // shape[1]
    axes = [0, *range(2, len(shape))]
    wide = [1, -1, *[1] * (len(shape) - 2)]
    names = ("scale", "bias", "mean", "var")
    x = {"x": normal(*shape)}
    forward = {**x, **{n: np.abs(normal(channels + i)[:channels]) for i, n in enumerate(names)}}
    mean, invstd = x["x"].mean(tuple(axes)), 1 / np.sqrt(x["x"].var(tuple(axes)) + F32(1e-5))
    feeds = {**x, "dy": normal(*shape), "scale": forward["scale"], "mean": mean, "invstd": invstd}

    def total(g: Graph, name: str) -> str:
        return g("ReduceSum", name, g.constant(axes), keepdims=0)

    def across(g: Graph, name: str) -> str:
        return g("Reshape", name, g.constant(wide))

    def centred(g: Graph) -> list[str]:
        """The formula as it stands, on x - mean."""
        c = g("Sub", "x", across(g, "mean"))
        dbias, product = total(g, "dy"), total(g, g("Mul", "dy", c))
        slope = g("Div", g("Mul", g("Mul", "invstd", "invstd"), product), g.constant(count, F32))
        shift = g("Div", dbias, g.constant(count, F32))
        inner = g("Sub", g("Sub", "dy", across(g, shift)), g("Mul", c, across(g, slope)))
        dx = g("Mul", inner, across(g, g("Mul", "scale", "invstd")))
        return [dx, g("Mul", product, "invstd"), dbias]

    def affine(g: Graph) -> list[str]:
        """dx = A dy + B x + C: fewer passes, but it cancels where the mean is large."""
        dbias = total(g, "dy")
        product = g("Sub", total(g, g("Mul", "dy", "x")), g("Mul", "mean", dbias))
        a = g("Mul", "scale", "invstd")
        b = g("Neg", g("Mul", a, g("Div", g("Mul", g("Mul", "invstd", "invstd"), product), g.constant(count, F32))))
        c = g("Neg", g("Add", g("Mul", a, g("Div", dbias, g.constant(count, F32))), g("Mul", b, "mean")))
        dx = g("Add", g("Add", g("Mul", "dy", across(g, a)), g("Mul", "x", across(g, b))), across(g, c))
        return [dx, g("Mul", product, "invstd"), dbias]

    def own(g: Graph) -> list[str]:
        dx = g.own("BatchNormGrad", "x", "dy", "scale", "mean", "invstd", outputs=3)
        return [dx[:-1] + str(i) for i in range(3)]

    label = "x".join(map(str, shape))
    return [
        compare(
            f"BatchNorm forward {label}", forward,
            lambda g: g.own("BatchNorm", "x", *names, outputs=6),
            {"BatchNormalization": lambda g: g("BatchNormalization", "x", *names, outputs=3, training_mode=1, momentum=0.0)}, None,
        ),
        compare(f"BatchNorm gradient {label}", feeds, own, {"on x - mean": centred, "A dy + B x + C": affine}, None),
    ]  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """All of them; no bound is set, the figures are reported."""
    return [
        *activations(), *tiling(), *overlapping(),
        *batch_norm(*SHAPE), *batch_norm(16, 96, 14, 14), *batch_norm(64, 256),
    ]  # fmt: skip
