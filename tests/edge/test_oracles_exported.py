"""Models as torch's exporter writes them, gradients of all weights against torch's own in float64."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fleetgrad.wire.loss import LossName
from tests.edge.test_autodiff_compile import gradients


def gates() -> Any:
    """Activations, normalisation by hand, where, clamp, norm and std."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Gates(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 5)
            self.norm, self.slope, self.drop = nn.LayerNorm(16), nn.PReLU(), nn.Dropout(0.1)

        def forward(self, x: Any) -> Any:
            h = self.norm(functional.silu(self.one(x)))
            h = self.drop(functional.hardswish(self.two(h))) + functional.mish(h)
            h = self.slope(torch.where(h > 0.5, 2 * h, h - 1)).clamp(-3, 3)
            h = h / (h.norm(dim=-1, keepdim=True) + 1e-6)
            return self.last(functional.gelu(h) * h.std(1, keepdim=True) + functional.softplus(h) - h.exp().cumsum(1))

    return Gates()


def mixture() -> Any:
    """Experts that a softmax weighs, through einsum, logsumexp, max and prod."""
    import torch
    from torch import nn

    class Mixture(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(8, 4)
            self.experts = nn.Parameter(torch.randn(4, 8, 6) / 3)
            self.last = nn.Linear(6, 5)

        def forward(self, x: Any) -> Any:
            weights = torch.softmax(self.gate(x), -1)
            each = torch.einsum("bi,eio->beo", x, self.experts)
            mixed = torch.einsum("be,beo->bo", weights, each) + each.amax(1) - each.logsumexp(1)
            best = each.topk(2, dim=1).values.mean(1)
            return self.last(mixed * torch.sigmoid(best) + each.abs().pow(1.5).sum(1).sqrt() + each.tanh().prod(1))

    return Mixture()


def fused() -> Any:
    """Parts of one projection that are taken from a transposed tensor, and a convolution and a slice of others."""
    import torch
    from torch import nn

    class Fused(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.conv, self.last = nn.Linear(8, 48), nn.Conv2d(1, 3, 3, padding=1), nn.Linear(24, 5)

        def forward(self, x: Any) -> Any:
            q, k, v = (self.qkv(x).reshape(-1, 4, 3, 2, 2).permute(2, 0, 3, 1, 4)[i] for i in range(3))
            h = (torch.softmax(q @ k.transpose(-1, -2), -1) @ v).transpose(1, 2).reshape(-1, 4, 4)
            image = self.conv(h[:, None].permute(0, 1, 3, 2))
            return self.last(image.transpose(1, 3)[:, 1:3].flatten(1))

    return Fused()


def exported(module: Any, opset: int) -> onnx.ModelProto:
    import torch

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter that needs no further package
        torch.onnx.export(
            module.eval(), (torch.randn(2, 8),), file, input_names=["x"], output_names=["y"], dynamo=False,
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}}, opset_version=opset,
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


@pytest.mark.needs("torch")
@pytest.mark.parametrize("opset", [14, 17, 20])
@pytest.mark.parametrize("build", [gates, mixture, fused])
@pytest.mark.parametrize("loss", ["cross-entropy", "bce"])
def test_the_gradients_of_an_exported_model_equal_torch(tmp_path: Path, build: Any, opset: int, loss: LossName) -> None:
    import torch

    torch.manual_seed(opset)
    module = build()
    model = exported(module, opset)
    random = np.random.Generator(np.random.PCG64(opset))
    x = random.standard_normal((7, 8)).astype(np.float32)
    label = random.integers(0, 5, 7) if loss == "cross-entropy" else random.random((7, 5), np.float32)
    found = gradients(model, x, label, tmp_path / "plan", loss=loss)
    module.double()
    y = module(torch.tensor(x, dtype=torch.float64))
    target = torch.tensor(label) if loss == "cross-entropy" else torch.tensor(label, dtype=torch.float64)
    measure = torch.nn.functional.cross_entropy if loss == "cross-entropy" else torch.nn.functional.binary_cross_entropy_with_logits  # fmt: skip
    value = measure(y, target)
    value.backward()
    assert found.pop("loss") == pytest.approx(float(value.detach()), rel=1e-5)
    exact = {name: p.grad.numpy() for name, p in module.named_parameters()}
    assert sorted(e.shape for e in exact.values()) == sorted(f.shape for f in found.values())
    for name, gradient in found.items():
        if name in exact:  # the exporter renames weights that it transposes
            error = np.abs(gradient - exact[name]).max() / np.abs(exact[name]).max()
            assert error < 2e-5, name  # float32
