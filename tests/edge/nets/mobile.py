"""Convolutional nets for images as phones and boards run them, and ResNet-18; with fewer repeats and smaller images."""

from typing import Any

from tests.edge.nets.net import Net, images
from tests.edge.nets.tiny import conv


def round_to_8(channels: float) -> int:
    return max(8, int(channels + 4) // 8 * 8)


def inverted(inputs: int, middle: int, outputs: int, kernel: int, stride: int, act: Any, squeeze: bool = False) -> Any:
    """MobileNet's block: wider by 1 x 1, depthwise, maybe squeeze and excite, narrower by 1 x 1; the input added where it fits."""
    from torch import nn

    class Excite(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            small = round_to_8(middle / 4)
            self.gate = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(middle, small, 1), nn.ReLU(), nn.Conv2d(small, middle, 1), nn.Hardsigmoid()
            )  # fmt: skip

        def forward(self, x: Any) -> Any:
            return x * self.gate(x)

    class Inverted(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            layers = [*conv(inputs, middle, 1)[:2], act()] if middle != inputs else []
            layers += [
                *conv(middle, middle, kernel, stride, groups=middle)[:2],
                *([Excite()] if squeeze else []),
                act(),
            ]
            self.body = nn.Sequential(*layers, *conv(middle, outputs, 1)[:2])

        def forward(self, x: Any) -> Any:
            return x + self.body(x) if stride == 1 and inputs == outputs else self.body(x)

    return Inverted()


def mobilenet_v2() -> Any:
    """Width 0.35 (arXiv:1801.04381), at most two blocks a stage."""
    from torch import nn

    have, layers = 16, [*conv(3, 16, 3, 2)[:2], nn.ReLU6()]
    for t, c, n, s in [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2), (6, 64, 2, 2), (6, 96, 1, 1), (6, 160, 1, 1)]:
        wide = round_to_8(0.35 * c)
        for i in range(n):
            layers.append(inverted(have, t * have, wide, 3, 1 if i else s, nn.ReLU6))
            have = wide
    layers += [*conv(have, 128, 1)[:2], nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def mobilenet_v3() -> Any:
    """Small (arXiv:1905.02244), channels halved: hard-swish, squeeze and excite, 5 x 5 kernels."""
    from torch import nn

    have, layers = 8, [*conv(3, 8, 3, 2)[:2], nn.Hardswish()]
    rows = [
        (3, 8, 8, True, nn.ReLU, 2), (3, 36, 16, False, nn.ReLU, 2), (3, 44, 16, False, nn.ReLU, 1),
        (5, 48, 24, True, nn.Hardswish, 2), (5, 120, 24, True, nn.Hardswish, 1), (5, 72, 24, True, nn.Hardswish, 1),
        (5, 144, 48, True, nn.Hardswish, 1),
    ]  # fmt: skip
    for kernel, middle, wide, squeeze, act, stride in rows:
        layers.append(inverted(have, middle, wide, kernel, stride, act, squeeze))
        have = wide
    layers += [*conv(have, 96, 1)[:2], nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(96, 128), nn.Hardswish(), nn.Linear(128, 10))


def efficientnet_lite0() -> Any:
    """EfficientNet-B0 without squeeze and excite, with ReLU6; channels halved, one or two blocks a stage."""
    from torch import nn

    have, layers = 16, [*conv(3, 16, 3, 2)[:2], nn.ReLU6()]
    rows = [(1, 8, 1, 1, 3), (6, 16, 2, 2, 3), (6, 24, 2, 2, 5), (6, 40, 1, 2, 3), (6, 56, 2, 1, 5), (6, 96, 1, 1, 3)]
    for t, wide, n, s, kernel in rows:
        for i in range(n):
            layers.append(inverted(have, t * have, wide, kernel, 1 if i else s, nn.ReLU6))
            have = wide
    layers += [*conv(have, 160, 1)[:2], nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(160, 10))


def resnet_18() -> Any:
    """All 18 layers (arXiv:1512.03385) with a quarter of the channels: 7 x 7 stem, overlapping max-pool, projections."""
    from torch import nn

    class Basic(nn.Module):  # type: ignore[misc]
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(*conv(inputs, outputs, 3, stride), *conv(outputs, outputs, 3)[:2])
            plain = stride == 1 and inputs == outputs
            self.skip = nn.Identity() if plain else nn.Sequential(*conv(inputs, outputs, 1, stride)[:2])

        def forward(self, x: Any) -> Any:
            return (self.body(x) + self.skip(x)).relu()

    blocks, have = [], 16
    for wide, stride in [(16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)]:
        blocks.append(Basic(have, wide, stride))
        have = wide
    stem = [*conv(3, 16, 7, 2), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


NETS = [
    Net("MobileNetV2 0.35", mobilenet_v2, images(8, 3, 48, 48), rate=0.0005, normed=True),
    Net("MobileNetV3-small", mobilenet_v3, images(8, 3, 48, 48), rate=0.02, normed=True),
    Net("EfficientNet-lite0", efficientnet_lite0, images(8, 3, 48, 48), rate=0.0005, normed=True),
    Net("ResNet-18", resnet_18, images(8, 3, 64, 64), rate=0.0003, normed=True),
]
