"""The four models of MLPerf Tiny (arXiv:2106.07597): keyword spotting, visual wake words, images, anomalies."""

from itertools import pairwise
from typing import Any

from tests.edge.nets.net import Net, images


def conv(inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, groups: int = 1) -> list[Any]:
    """Convolution that pads to half its kernel, batch normalisation, ReLU."""
    from torch import nn

    sizes = (kernel, kernel) if isinstance(kernel, int) else kernel
    pad = (sizes[0] // 2, sizes[1] // 2)
    layer = nn.Conv2d(inputs, outputs, sizes, stride, pad, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outputs), nn.ReLU()]


def ds_cnn() -> Any:
    """Keyword spotting: 49 frames of 10 cepstral coefficients to 12 words; 32 channels of the 64."""
    from torch import nn

    wide = 32
    layers = conv(1, wide, (10, 4), 2)
    for _ in range(4):
        layers += [*conv(wide, wide, 3, groups=wide), *conv(wide, wide, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, 12))


def mobilenet_v1() -> Any:
    """Visual wake words: width 0.25, all 13 separable layers, at 48 x 48 of the 96 x 96."""
    from torch import nn

    layers, have = conv(3, 8, 3, 2), 8
    steps = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1)]
    for wide, stride in steps:
        layers += [*conv(have, have, 3, stride, groups=have), *conv(have, wide, 1)]
        have = wide
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 2))


def resnet_8() -> Any:
    """Images of 32 x 32 in 10 classes: three residual stacks of 16, 32 and 64 channels."""
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(*conv(inputs, outputs, 3, stride), *conv(outputs, outputs, 3)[:2])
            self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

        def forward(self, x: Any) -> Any:
            return (self.body(x) + self.skip(x)).relu()

    stacks = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)]
    return nn.Sequential(*conv(3, 16, 3), *stacks, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10))


def autoencoder() -> Any:
    """Anomalies in sound: 640 numbers through 4 layers to 8 and back through 4; 64 units of the 128."""
    from torch import nn

    sizes = [640, 64, 64, 64, 64, 8, 64, 64, 64, 64]
    layers: list[Any] = []
    for have, wide in pairwise(sizes):
        layers += [nn.Linear(have, wide), nn.BatchNorm1d(wide), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 640))


NETS = [
    Net("DS-CNN", ds_cnn, images(8, 1, 49, 10), rate=0.02, normed=True),
    Net("MobileNetV1 0.25", mobilenet_v1, images(8, 3, 48, 48), rate=0.00001, normed=True),
    Net("ResNet-8", resnet_8, images(8, 3, 32, 32), rate=0.02, normed=True),
    Net("FC autoencoder", autoencoder, images(64, 640), label="itself", rate=0.02),
]
