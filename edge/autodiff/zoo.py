"""Models for the demo, tests and benches, made of plain ONNX nodes with weights drawn from a seed.

He initialisation before a ReLU (variance 2 / fan-in), Glorot for the last layer; biases start at zero.
"""

import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8  # what exporters of today write


class _Chain:
    """A graph in which each layer feeds the next."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.Generator(np.random.PCG64(seed))
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.last = "image"

    def layer(self, op: str, *weights: str, **attributes: object) -> None:
        output = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.last, *weights], [output], name=output, **attributes))
        self.last = output

    def draw(self, name: str, shape: tuple[int, ...], variance: float) -> str:
        values = self.random.standard_normal(shape) * math.sqrt(variance)
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(self, name: str, inputs: int, outputs: int, kernel: int) -> None:
        """A convolution that keeps the size, then ReLU."""
        half = kernel // 2
        w = self.draw(f"{name}.weight", (outputs, inputs, kernel, kernel), 2 / (inputs * kernel * kernel))
        b = self.draw(f"{name}.bias", (outputs,), 0.0)
        self.layer("Conv", w, b, kernel_shape=[kernel, kernel], pads=[half] * 4)
        self.layer("Relu")

    def dense(self, name: str, inputs: int, outputs: int, last: bool = False) -> None:
        variance = 2 / (inputs + outputs) if last else 2 / inputs
        w = self.draw(f"{name}.weight", (outputs, inputs), variance)
        b = self.draw(f"{name}.bias", (outputs,), 0.0)
        self.layer("Gemm", w, b, transB=1)
        if not last:
            self.layer("Relu")

    def pool(self) -> None:
        self.layer("MaxPool", kernel_shape=[2, 2], strides=[2, 2])

    def model(self, name: str, size: tuple[int, ...], classes: int) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *size])
        self.nodes[-1].output[0] = "logits"
        y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])
        graph = helper.make_graph(self.nodes, name, [x], [y], self.weights)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="fleetgrad"
        )


def digits_cnn(seed: int = 0) -> onnx.ModelProto:
    """8x8 grey images to 10 classes: two 3x3 convolutions (16, 32), pooling, dense 64; 38,282 parameters."""
    c = _Chain(seed)
    c.conv("conv1", 1, 16, 3)
    c.conv("conv2", 16, 32, 3)
    c.pool()
    c.layer("Flatten")
    c.dense("dense1", 512, 64)
    c.dense("dense2", 64, 10, last=True)
    return c.model("digits-cnn", (1, 8, 8), 10)


def fedavg_cnn(seed: int = 0) -> onnx.ModelProto:
    """The CNN of McMahan et al. 2017 (arXiv 1602.05629) for 28x28 grey images and 10 classes; 1,663,370 parameters."""
    c = _Chain(seed)
    c.conv("conv1", 1, 32, 5)
    c.pool()
    c.conv("conv2", 32, 64, 5)
    c.pool()
    c.layer("Flatten")
    c.dense("dense1", 3136, 512)
    c.dense("dense2", 512, 10, last=True)
    return c.model("fedavg-cnn", (1, 28, 28), 10)


def mlp(seed: int = 0, inputs: int = 64, hidden: int = 128, classes: int = 10) -> onnx.ModelProto:
    """Vectors to classes through two hidden layers; the smallest model worth training."""
    c = _Chain(seed)
    c.dense("dense1", inputs, hidden)
    c.dense("dense2", hidden, hidden)
    c.dense("dense3", hidden, classes, last=True)
    return c.model("mlp", (inputs,), classes)
