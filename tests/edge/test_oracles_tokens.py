"""A transformer's encoder over tokens with a mask, exported with a dynamic length, against torch's autograd."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fleetgrad.edge.autodiff import compile_model, fidelity
from fleetgrad.wire import plan

pytestmark = pytest.mark.needs("torch")


def encoder() -> Any:
    import torch
    from torch import nn

    class Encoder(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.word, self.place = nn.Embedding(50, 16), nn.Embedding(32, 16)
            layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True, activation="gelu")
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.last = nn.Linear(16, 5)
            self.register_buffer("places", torch.arange(32)[None])

        def forward(self, tokens: Any, mask: Any) -> Any:
            x = self.word(tokens) + self.place(self.places[:, : tokens.shape[1]])
            x = self.layers(x, src_key_padding_mask=~mask)
            weight = mask.unsqueeze(-1).float()
            return self.last((x * weight).sum(1) / weight.sum(1).clamp(min=1))

    torch.manual_seed(3)
    return Encoder()


@pytest.mark.parametrize("profile", ["cpu-native", "cpu-std"])
def test_an_encoder_of_tokens_with_a_mask_has_torchs_gradient(tmp_path: Path, profile: plan.Profile) -> None:
    import torch

    module = encoder().eval()
    tokens, mask = torch.randint(0, 50, (3, 7)), torch.ones(3, 7, dtype=torch.bool)
    mask[1, 4:] = False
    file, free = io.BytesIO(), {"tokens": {0: "N", 1: "time"}, "mask": {0: "N", 1: "time"}, "y": {0: "N"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (tokens, mask), file, dynamo=False, do_constant_folding=False,
            input_names=["tokens", "mask"], output_names=["y"], dynamic_axes=free,
        )  # fmt: skip
    model = onnx.load_from_string(file.getvalue())
    manifest = compile_model(
        model, loss="cross-entropy", gradients="fp32", profile=profile, dims={"time": 7}, output=tmp_path / "plan"
    )
    flat = np.fromfile(tmp_path / "plan" / plan.PARAMS, "<f4")
    weights = {t.name: flat[t.offset : t.offset + t.size].reshape(t.shape) for t in manifest.of_role("trainable")}
    label = np.array([0, 4, 2])
    feeds = {"tokens": tokens.numpy(), "mask": mask.numpy(), plan.LABEL: label, **weights}
    fetches = [plan.LOSS, *(plan.GRADIENT + n for n in weights)]
    found = dict(zip(fetches, fidelity.session(tmp_path / "plan" / plan.TRAIN).run(fetches, feeds), strict=True))

    exact = module.double().train()  # in eval() torch takes a fused kernel that has no gradient
    loss = torch.nn.functional.cross_entropy(exact(tokens, mask), torch.tensor(label))
    loss.backward()
    assert found[plan.LOSS] == pytest.approx(float(loss.detach()), rel=1e-5)
    parameters = {n: p.grad.numpy() for n, p in exact.named_parameters()}
    assert weights.keys() == parameters.keys()
    for name, value in parameters.items():
        scale = max(1e-2, float(np.abs(value).max()))
        np.testing.assert_allclose(found[plan.GRADIENT + name], value, atol=2e-5 * scale, rtol=0, err_msg=name)
