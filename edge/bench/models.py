"""The models whose training steps are timed, in torch, and what its exporter makes of them.

    MLP 784-256-128-10      FedAvg CNN (arXiv 1602.05629)       transformer: 2 layers, width 128, 4 heads, 64 tokens
    DS-CNN, ResNet-8 (MLPerf Tiny, arXiv 2106.07597)            LSTM: one layer of LEAF's Shakespeare (arXiv 1812.01097)
    MobileNetV2-0.35 for 96x96 images (arXiv 1801.04381)

Models with batch normalisation are exported in training mode, since the exporter folds it into the convolutions otherwise.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

OPSET = 17


@dataclass(frozen=True, slots=True)
class Task:
    """A model and what it is fed with: one sample's shape, the vocabulary where it reads tokens, and the classes."""

    build: Callable[[], Any]
    shape: tuple[int, ...]
    classes: int
    tokens: int = 0

    def batch(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Random inputs and labels, the same each time."""
        rng = np.random.default_rng(0)
        shape = (size, *self.shape)
        x = rng.integers(0, self.tokens, shape) if self.tokens else rng.standard_normal(shape, np.float32)
        return x, rng.integers(0, self.classes, size)

    def module(self, seed: int = 0) -> Any:
        """The module in training mode, with the same weights each time."""
        import torch

        torch.manual_seed(seed)
        return self.build().train()

    def exported(self, seed: int = 0) -> bytes:
        """The module as an ONNX file with a dynamic batch."""
        import torch

        module, file = self.module(seed), io.BytesIO()
        normed = any(isinstance(m, torch.nn.BatchNorm2d) for m in module.modules())
        mode = torch.onnx.TrainingMode.TRAINING if normed else torch.onnx.TrainingMode.EVAL
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter that needs no further package
            torch.onnx.export(
                module, (torch.from_numpy(self.batch(2)[0]),), file, input_names=["x"], output_names=["y"], dynamo=False,
                dynamic_axes={"x": {0: "N"}, "y": {0: "N"}}, opset_version=OPSET, training=mode,
                do_constant_folding=not normed,
            )  # fmt: skip
        return file.getvalue()


def mlp() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )  # fmt: skip


def fedavg_cnn() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10),
    )  # fmt: skip


def _conv(
    inputs: int, outputs: int, kernel: Any, stride: Any = 1, groups: int = 1, activation: Any = None
) -> list[Any]:
    """Convolution, batch normalisation and maybe an activation."""
    from torch import nn

    sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
    conv = nn.Conv2d(inputs, outputs, sizes, stride, tuple(k // 2 for k in sizes), groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), *([activation] if activation else [])]


def _end(channels: int, classes: int) -> list[Any]:
    from torch import nn

    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def ds_cnn(classes: int = 12) -> Any:
    from torch import nn

    layers = _conv(1, 64, (10, 4), 2, activation=nn.ReLU())
    for _ in range(4):
        layers += [
            *_conv(64, 64, 3, groups=64, activation=nn.ReLU()),
            *_conv(64, 64, 1, activation=nn.ReLU()),
        ]  # fmt: skip
    return nn.Sequential(*layers, *_end(64, classes))


def _residual(inner: list[Any], skip: list[Any], last: list[Any]) -> Any:
    from torch import nn

    class Residual(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.skip, self.last = (nn.Sequential(*part) for part in (inner, skip, last))

        def forward(self, x: Any) -> Any:
            return self.last(self.inner(x) + self.skip(x))

    return Residual()


def resnet8() -> Any:
    from torch import nn

    layers, inputs = _conv(3, 16, 3, activation=nn.ReLU()), 16
    for outputs in (16, 32, 64):
        stride = outputs // inputs
        inner = [*_conv(inputs, outputs, 3, stride, activation=nn.ReLU()), *_conv(outputs, outputs, 3)]
        skip = [nn.Conv2d(inputs, outputs, 1, stride)] if stride > 1 else []
        layers.append(_residual(inner, skip, [nn.ReLU()]))
        inputs = outputs
    return nn.Sequential(*layers, *_end(64, 10))


def mobilenet_v2() -> Any:
    from torch import nn

    def width(channels: int) -> int:
        """0.35 of the channels, a multiple of 8 that is no more than a tenth less."""
        found = max(8, int(channels * 0.35 + 4) // 8 * 8)
        return found + 8 if found < 0.9 * channels * 0.35 else found

    inputs = width(32)
    layers = _conv(3, inputs, 3, 2, activation=nn.ReLU6())
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expand, channels, repeats, first in stages:
        for i in range(repeats):
            stride, outputs, hidden = first if i == 0 else 1, width(channels), inputs * expand
            inner = _conv(inputs, hidden, 1, activation=nn.ReLU6()) if expand > 1 else []
            inner += [*_conv(hidden, hidden, 3, stride, hidden, nn.ReLU6()), *_conv(hidden, outputs, 1)]
            layers += [_residual(inner, [], [])] if stride == 1 and inputs == outputs else inner
            inputs = outputs
    return nn.Sequential(*layers, *_conv(inputs, 1280, 1, activation=nn.ReLU6()), *_end(1280, 10))


def transformer() -> Any:
    import torch
    from torch import nn

    d, heads, length, vocabulary = 128, 4, 64, 1000

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
            self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
            self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

        def forward(self, x: Any) -> Any:
            joint = self.qkv(self.norm1(x)).reshape(-1, length, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
            q, k, v = joint[0], joint[1], joint[2]
            weights = torch.softmax(q @ k.transpose(-1, -2) / (d // heads) ** 0.5, -1)
            x = x + self.out((weights @ v).transpose(1, 2).reshape(-1, length, d))
            return x + self.mlp(self.norm2(x))

    class Transformer(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.token, self.place = nn.Embedding(vocabulary, d), nn.Parameter(torch.randn(length, d) / 50)
            self.blocks = nn.Sequential(Block(), Block(), nn.LayerNorm(d))
            self.last = nn.Linear(d, 10)

        def forward(self, x: Any) -> Any:
            return self.last(self.blocks(self.token(x) + self.place).mean(1))

    return Transformer()


def lstm() -> Any:
    from torch import nn

    class Reader(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.lstm, self.last = nn.Embedding(80, 8), nn.LSTM(8, 256), nn.Linear(256, 80)

        def forward(self, x: Any) -> Any:
            states, _ = self.lstm(self.embedding(x.transpose(0, 1)))
            return self.last(states[-1])

    return Reader()


TASKS = {
    "MLP": Task(mlp, (784,), 10),
    "FedAvg CNN": Task(fedavg_cnn, (1, 28, 28), 10),
    "DS-CNN": Task(ds_cnn, (1, 49, 10), 12),
    "ResNet-8": Task(resnet8, (3, 32, 32), 10),
    "MobileNetV2-0.35": Task(mobilenet_v2, (3, 96, 96), 10),
    "transformer": Task(transformer, (64,), 10, tokens=1000),
    "LSTM": Task(lstm, (80,), 80, tokens=80),
}
