"""blk8 against memcpy, and the int8 weight gradient against onnxruntime's float MatMul, one thread each."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort

from fleetgrad.native import binding, codecs, kernels

COUNT = 1_663_376  # floats of the FedAvg CNN, padding included
REPEATS = 15


def best_seconds(act: Callable[[], object], repeats: int = REPEATS) -> float:
    """The fastest of several calls, after one to warm up."""
    act()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        act()
        times.append(time.perf_counter() - start)
    return min(times)


def row(figure: str, value: float, unit: str, peer: str, bound: float | None = None) -> dict[str, Any]:
    """One row of a bench's table; a bound is the least value that keeps the promise."""
    return {
        "figure": figure, "value": value, "unit": unit, "bound": bound,
        "holds": None if bound is None else value >= bound, "peer": peer,
    }  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """Rates of the codec kernels as ratios to memcpy of the same floats, and of the weight gradient to MatMul."""
    values = np.random.default_rng(0).standard_normal(COUNT).astype(np.float32) * np.float32(0.01)
    coded, copy = np.empty(codecs.blk8_size(COUNT), np.uint8), np.empty_like(values)
    ring = np.zeros(COUNT, np.int64)
    gigabytes = values.nbytes / 1e9
    memcpy = gigabytes / best_seconds(lambda: np.copyto(copy, values))
    name = f"memcpy {memcpy:.1f} GB/s"
    acts: dict[str, Callable[[], object]] = {
        "blk8 encode, nearest": lambda: codecs.blk8_encode(values, coded, None),
        "blk8 encode, stochastic": lambda: codecs.blk8_encode(values, coded, 1),
        "blk8 decode": lambda: codecs.blk8_decode(coded, copy),
        "ring add": lambda: kernels.ring_add(ring, values, 3),
        "crc32c": lambda: kernels.crc32c(values.view(np.uint8)),
        "finite scan": lambda: kernels.find_nonfinite(values),
    }
    table = []
    for figure, act in acts.items():
        rate = gigabytes / best_seconds(act)
        table.append(row(f"{figure} ({binding.capability()})", rate, "GB/s of floats", name))
        table.append(row(f"{figure} / memcpy", rate / memcpy, "ratio", name))
    return table + _weight_gradients()


def _weight_gradients() -> list[dict[str, Any]]:
    """X^T dY of typical layers against onnxruntime's fused transposed MatMul."""
    from onnx import TensorProto, helper

    def session(op: str) -> ort.InferenceSession:
        if op == "MatMul":
            nodes = [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("MatMul", ["t", "dy"], ["dw"])]
        else:
            nodes = [helper.make_node(op, ["x", "dy"], ["dw"], domain=kernels.DOMAIN)]
        feeds = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["k", n]) for n in ("x", "dy")]
        graph = helper.make_graph(nodes, op, feeds, [helper.make_tensor_value_info("dw", TensorProto.FLOAT, None)])
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(kernels.DOMAIN, kernels.OP_ABI)]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.register_custom_ops_library(kernels.custom_ops_library())
        return ort.InferenceSession(
            helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString(), options
        )

    int8, fp32 = session("MatMulWeightGrad"), session("MatMul")
    rng = np.random.default_rng(0)
    table = []
    for layer, m, n, k in (("conv2", 800, 64, 3136), ("dense", 784, 256, 32), ("16 channels", 144, 16, 16384)):
        feeds = {"x": rng.standard_normal((k, m), np.float32), "dy": rng.standard_normal((k, n), np.float32)}
        ratio = best_seconds(lambda: fp32.run(None, feeds)) / best_seconds(lambda: int8.run(None, feeds))  # noqa: B023
        figure = f"int8 weight gradient, {layer} {m}x{n}x{k} ({binding.capability()})"
        table.append(row(figure, ratio, "x as fast", "onnxruntime MatMul fp32"))
    return table
