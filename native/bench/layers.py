"""The layers' custom ops against the best standard-op form of the same thing in onnxruntime, one thread, in one run.

Every form is a whole model, weights are inputs (as in training). Several forms are tried; the fastest is the peer, by name.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from fleetgrad.native import binding
from fleetgrad.native.bench.graphs import Feeds, Graph
from fleetgrad.native.bench.kernels import best_seconds, in_turns, row

DEPTHWISE = [  # channels, height = width, stride, batch; 3x3 taps with padding 1, as MobileNet has them
    (32, 112, 1, 1), (96, 56, 2, 1), (384, 14, 1, 1), (32, 112, 1, 8), (96, 56, 2, 8), (384, 14, 1, 8),
    (96, 56, 2, 16), (384, 14, 1, 16), (576, 7, 1, 16),
]  # fmt: skip


def compare(
    figure: str, feeds: Feeds, own: Any, forms: Mapping[str, Any], bound: float | None, near: float = 1e-3
) -> dict[str, Any]:
    """One row: how many times as fast as the fastest standard form the node is; refuses forms that compute something else.

    `own` and the forms are functions that write the model into a Graph and return the output's name, or several names.
    """

    results: dict[str, list[np.ndarray]] = {}

    def prepared(form: str, write: Any) -> Callable[[], object]:
        """One run on inputs and into outputs that stay where they are, as a tensor inside a training step does."""
        graph = Graph()
        names = write(graph)
        session = graph.session(feeds, [names] if isinstance(names, str) else list(names))
        results[form] = session.run(None, feeds)
        bound = session.io_binding()
        for name, array in feeds.items():
            bound.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for output, array in zip(session.get_outputs(), results[form], strict=True):
            bound.bind_ortvalue_output(output.name, ort.OrtValue.ortvalue_from_numpy(np.empty_like(array)))
        return lambda: session.run_with_iobinding(bound)

    node = prepared("", own)
    runs = {form: prepared(form, write) for form, write in forms.items()}
    for form in forms:
        for a, b in zip(results[""], results[form], strict=True):
            assert np.allclose(a, b.reshape(a.shape), rtol=near, atol=near * np.abs(a).max()), (figure, form)
    name = min(runs, key=lambda form: best_seconds(runs[form], 3))
    found = in_turns({"": node, name: runs[name]}, turns=6)
    ours, theirs = found[""], found[name]
    peer = f"onnxruntime: {name}, {theirs * 1e3:.2f} ms"
    return row(f"{figure} ({binding.capability()})", theirs / ours, "x as fast", peer, bound)


def depthwise(channels: int, size: int, stride: int, batch: int) -> list[dict[str, Any]]:
    """Forward, input gradient and weight gradient of a 3x3 depthwise convolution with padding 1."""
    rng = np.random.default_rng(0)
    out = (size - 1) // stride + 1
    covered = (out - 1) * stride + 3  # of the padded input, by the windows
    x = rng.standard_normal((batch, channels, size, size), np.float32)
    w = rng.standard_normal((channels, 1, 3, 3), np.float32)
    dy = rng.standard_normal((batch, channels, out, out), np.float32)
    common: dict[str, Any] = {"strides": [stride] * 2, "pads": [1] * 4}
    grouped: dict[str, Any] = {"group": channels, **common}
    window: dict[str, Any] = {"kernel_shape": [3, 3], **common}

    def fitted(g: Graph) -> str:
        end = covered - 1 - size
        return g("Pad", "x", g.constant([0, 0, 1, 1, 0, 0, end, end]))

    def swapped(g: Graph) -> str:
        image = g("Transpose", fitted(g), perm=[1, 0, 2, 3])
        image = g("Reshape", image, g.constant([1, -1, covered, covered]))
        kernel = g("Transpose", "dy", perm=[1, 0, 2, 3])
        dw = g("Conv", image, kernel, group=channels, dilations=[stride] * 2)
        return g("Transpose", dw, perm=[1, 0, 2, 3])

    def tap(g: Graph, image: str, ky: int, kx: int) -> str:
        ends = [ky + (out - 1) * stride + 1, kx + (out - 1) * stride + 1]
        return g("Slice", image, *(g.constant(v) for v in ([ky, kx], ends, [2, 3], [stride] * 2)))

    def taps(g: Graph) -> str:
        image = fitted(g)
        sums = [
            g("ReduceSum", g("Mul", tap(g, image, ky, kx), "dy"), g.constant([0, 2, 3]), keepdims=1)
            for ky in range(3)
            for kx in range(3)
        ]
        return g("Reshape", g("Concat", *sums, axis=2), g.constant([channels, 1, 3, 3]))

    def shifts(g: Graph) -> str:
        """Rows of dY as wide as the padded input: a tap is one contiguous run."""
        flat = g("Reshape", g("Pad", "x", g.constant([0, 0, 1, 1, 0, 0, 2, 1])), g.constant([batch, channels, -1]))
        wide = g("Reshape", g("Pad", "dy", g.constant([0] * 7 + [2])), g.constant([batch, channels, -1]))
        run = size * (size + 2)
        sums = []
        for start in (ky * (size + 2) + kx for ky in range(3) for kx in range(3)):
            shifted = g("Slice", flat, *(g.constant([v]) for v in (start, start + run, 2)))
            sums.append(g("ReduceSum", g("Mul", shifted, wide), g.constant([0, 2]), keepdims=1))
        return g("Reshape", g("Concat", *sums, axis=2), g.constant([channels, 1, 3, 3]))

    def columns(g: Graph) -> str:
        one_hot = np.tile(np.eye(9, dtype=np.float32).reshape(9, 1, 3, 3), (channels, 1, 1, 1))
        image = g("Conv", "x", g.constant(one_hot, np.float32), **grouped)
        rows = g("Reshape", image, g.constant([batch, channels, 9, -1]))
        product = g("MatMul", rows, g("Reshape", "dy", g.constant([batch, channels, -1, 1])))
        return g("ReduceSum", product, g.constant([0]), keepdims=0)

    def flipped(g: Graph) -> str:
        kernel = g("Slice", "w", *(g.constant(v) for v in ([-1, -1], [-9, -9], [2, 3], [-1, -1])))
        return g("Conv", "dy", kernel, **grouped)

    def transposed(g: Graph) -> str:
        padding = size - ((out - 1) * stride + 1)
        return g("ConvTranspose", "dy", "w", output_padding=[padding] * 2, **grouped)

    single = stride == 1
    label = f"{channels}x{size}x{size} s{stride} batch {batch}"
    forward = {"Conv": lambda g: g("Conv", "x", "w", **grouped)}
    dw = {"swapped Conv": swapped, "taps": taps, "one-hot Conv + MatMul": columns} | (
        {"shifts": shifts} if single else {}
    )
    dx = {"ConvTranspose": transposed} | ({"flipped Conv": flipped} if single else {})
    return [
        compare(f"depthwise forward {label}", {"x": x, "w": w}, lambda g: g.own("DepthwiseConv", "x", "w", **common), forward, None),
        compare(
            f"depthwise dX {label}", {"dy": dy, "w": w},
            lambda g: g.own("DepthwiseConvInputGrad", "dy", "w", input_shape=[size] * 2, **common), dx, 3.0,
        ),
        compare(
            f"depthwise dW {label}", {"x": x, "dy": dy},
            lambda g: g.own("DepthwiseConvWeightGrad", "x", "dy", **window), dw, 3.0,
        ),
    ]  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """All nodes, each at the shapes that models on boards have."""
    return [entry for case in DEPTHWISE for entry in depthwise(*case)]
