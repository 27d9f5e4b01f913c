"""Small models written node by node: a custom op and its standard-op twins, for benches and parity tests."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from fleetgrad.native import kernels

Feeds = Mapping[str, np.ndarray]


class Graph:
    """A model written node by node."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        """Adds a node; its first output's name."""
        from onnx import helper

        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, domain=domain, **attributes))
        return names[0]

    def own(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Adds a custom op."""
        return self(op, *inputs, outputs=outputs, domain=kernels.DOMAIN, **attributes)

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        """Adds an initializer; its name."""
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def session(self, feeds: Feeds, outputs: list[str], threads: int = 1) -> ort.InferenceSession:
        """A session of the whole, for feeds of these names, types and shapes."""
        from onnx import helper

        inputs = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in feeds.items()
        ]
        results = [helper.make_empty_tensor_value_info(n) for n in outputs]
        graph = helper.make_graph(self.nodes, "layer", inputs, results, self.constants)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(kernels.DOMAIN, kernels.OP_ABI)]
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.register_custom_ops_library(kernels.custom_ops_library())
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return ort.InferenceSession(model.SerializeToString(), options)
