"""Transformers and a U-Net: attention with masks, tied embeddings, patches, and an output the size of the input."""

from typing import Any

import numpy as np

from tests.edge.nets.net import Net, images, tokens

WORDS, WIDE, HEADS, LENGTH = 100, 32, 4, 16


def attention(causal: bool) -> Any:
    """Self-attention through torch's scaled_dot_product_attention."""
    from torch import nn
    from torch.nn import functional

    class Attention(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(WIDE, 3 * WIDE), nn.Linear(WIDE, WIDE)

        def forward(self, x: Any) -> Any:
            parts = self.qkv(x).chunk(3, -1)
            q, k, v = (p.unflatten(-1, (HEADS, WIDE // HEADS)).transpose(1, 2) for p in parts)
            return self.out(
                functional.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
            )

    return Attention()


def block(causal: bool, act: Any) -> Any:
    """Norm first, as in GPT-2 and ViT."""
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.attention = nn.LayerNorm(WIDE), attention(causal)
            self.norm2 = nn.LayerNorm(WIDE)
            self.mlp = nn.Sequential(nn.Linear(WIDE, 4 * WIDE), act, nn.Linear(4 * WIDE, WIDE))

        def forward(self, x: Any) -> Any:
            x = x + self.attention(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    return Block()


def bert() -> Any:
    """Four layers, norm last, attention by hand with a mask of padding, segments, a pooler on the first token."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Layer(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value, self.out = (nn.Linear(WIDE, WIDE) for _ in range(4))
            self.up, self.down = nn.Linear(WIDE, 4 * WIDE), nn.Linear(4 * WIDE, WIDE)
            self.norm1, self.norm2 = nn.LayerNorm(WIDE, 1e-12), nn.LayerNorm(WIDE, 1e-12)

        def forward(self, x: Any, bias: Any) -> Any:
            def heads(t: Any) -> Any:
                return t.view(t.shape[0], LENGTH, HEADS, WIDE // HEADS).permute(0, 2, 1, 3)

            q, k, v = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
            a = torch.softmax(q @ k.transpose(-1, -2) / (WIDE // HEADS) ** 0.5 + bias, -1)
            x = self.norm1(x + self.out((a @ v).permute(0, 2, 1, 3).reshape(x.shape[0], LENGTH, WIDE)))
            return self.norm2(x + self.down(functional.gelu(self.up(x))))

    class Bert(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.word, self.place, self.segment = (
                nn.Embedding(WORDS, WIDE),
                nn.Embedding(LENGTH, WIDE),
                nn.Embedding(2, WIDE),
            )
            self.norm = nn.LayerNorm(WIDE, 1e-12)
            self.layers = nn.ModuleList(Layer() for _ in range(4))
            self.pool, self.last = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, 3)
            self.register_buffer("places", torch.arange(LENGTH)[None])

        def forward(self, words: Any, segments: Any, mask: Any) -> Any:
            x = self.norm(self.word(words) + self.place(self.places) + self.segment(segments))
            bias = (1 - mask[:, None, None, :].to(x.dtype)) * -1e4
            for layer in self.layers:
                x = layer(x, bias)
            return self.last(torch.tanh(self.pool(x[:, 0])))

    return Bert()


def sentences(random: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Words, segments and the mask of padding."""
    length = random.integers(4, LENGTH + 1, (8, 1))
    mask = np.arange(LENGTH)[None] < length
    return (
        random.integers(0, WORDS, (8, LENGTH)),
        (np.arange(LENGTH)[None] >= length // 2).astype(np.int64),
        mask.astype(np.int64),
    )


def gpt() -> Any:
    """Two causal layers; the last layer is the embedding of the words again."""
    import torch
    from torch import nn

    class GPT(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.word, self.place = nn.Embedding(WORDS, WIDE), nn.Parameter(0.1 * torch.randn(LENGTH, WIDE))
            self.blocks = nn.Sequential(*(block(True, nn.GELU("tanh")) for _ in range(2)))
            self.norm, self.last = nn.LayerNorm(WIDE), nn.Linear(WIDE, WORDS, bias=False)
            nn.init.normal_(self.word.weight, std=0.1)
            self.last.weight = self.word.weight

        def forward(self, words: Any) -> Any:
            return self.last(self.norm(self.blocks(self.word(words) + self.place)))

    return GPT()


def vit() -> Any:
    """Patches of 8 x 8 by a convolution, a class token, three layers."""
    import torch
    from torch import nn

    class ViT(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, WIDE, 8, 8)
            self.token, self.place = nn.Parameter(torch.randn(1, 1, WIDE)), nn.Parameter(0.1 * torch.randn(1, 17, WIDE))
            self.blocks = nn.Sequential(*(block(False, nn.GELU()) for _ in range(3)))
            self.norm, self.last = nn.LayerNorm(WIDE), nn.Linear(WIDE, 10)

        def forward(self, x: Any) -> Any:
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
            return self.last(self.norm(self.blocks(x))[:, 0])

    return ViT()


def unet() -> Any:
    """Two levels down and up: up by a transposed convolution, then by a bilinear Resize; the levels joined by Concat."""
    import torch
    from torch import nn
    from torch.nn import functional

    def twice(inputs: int, outputs: int) -> Any:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
        )  # fmt: skip

    class UNet(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = twice(3, 8), twice(8, 16), twice(16, 32)
            self.up = nn.ConvTranspose2d(32, 16, 2, 2)
            self.four, self.five, self.last = twice(32, 16), twice(24, 8), nn.Conv2d(8, 4, 1)

        def forward(self, x: Any) -> Any:
            one = self.one(x)
            two = self.two(functional.max_pool2d(one, 2))
            x = self.four(torch.cat([two, self.up(self.three(functional.max_pool2d(two, 2)))], 1))
            x = functional.interpolate(x, scale_factor=2.0, mode="bilinear")
            return self.last(self.five(torch.cat([one, x], 1)))

    return UNet()


NETS = [
    Net("BERT, 4 layers", bert, sentences),
    Net("GPT, 2 layers", gpt, tokens(WORDS, 8, LENGTH), label="places", axis=-1, rate=0.2),
    Net("ViT, 3 layers", vit, images(8, 3, 32, 32), rate=0.02),
    Net("U-Net", unet, images(4, 3, 24, 24), label="places", normed=True),
]
