"""The models that federated learning is compared on: FedAvg's CNN, LEAF's for FEMNIST and Shakespeare, and a GRU."""

from typing import Any

from tests.edge.nets.net import Net, images, tokens


def cnn(wide: int, hidden: int, classes: int) -> Any:
    """Two 5 x 5 convolutions with pooling, and two dense layers (arXiv:1602.05629, arXiv:1812.01097)."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, wide, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(wide, 2 * wide, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * wide * 49, hidden), nn.ReLU(), nn.Linear(hidden, classes),
    )  # fmt: skip


def recurrent(kind: str, embedding: tuple[int, int] | None, inputs: int, hidden: int, classes: int) -> Any:
    """Two recurrent layers, the second's last step to the classes; over tokens where there is an embedding."""
    import torch
    from torch import nn

    class Recurrent(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(*embedding) if embedding else nn.Identity()
            self.layers = getattr(torch.nn, kind)(inputs, hidden, 2, batch_first=True)
            self.last = nn.Linear(hidden, classes)

        def forward(self, x: Any) -> Any:
            return self.last(self.layers(self.embedding(x))[0][:, -1])

    return Recurrent()


NETS = [
    Net("FedAvg CNN", lambda: cnn(16, 128, 10), images(8, 1, 28, 28), rate=0.02),  # of 32 channels and 512 units
    Net("LEAF FEMNIST CNN", lambda: cnn(16, 256, 62), images(8, 1, 28, 28), rate=0.02),  # of 32 and 2048
    Net(
        "LEAF Shakespeare LSTM", lambda: recurrent("LSTM", (80, 8), 8, 64, 80), tokens(80, 8, 20), rate=0.5
    ),  # of 256, 80 steps
    Net("GRU classifier", lambda: recurrent("GRU", None, 12, 32, 6), images(8, 24, 12), rate=0.2),
]
