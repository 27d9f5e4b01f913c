"""`auto`: the rate that was asked for, small tensors to fp16's precision, and rot-1 where it is as good."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fleetgrad.native import rotation
from fleetgrad.wire.codecs import decode_payload, encode_payload, read_info, shortfall
from fleetgrad.wire.coding import auto
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.plan import Manifest, Optimizer, Tensor
from tests.wire.codings import KEYS, heavy

CNN = VectorLayout.stacked(
    [("conv1", (32, 1, 5, 5)), ("conv1.bias", (32,)), ("conv2", (64, 32, 5, 5)), ("conv2.bias", (64,)), ("norm", (2048,)),
     ("dense", (256, 1024)), ("dense.bias", (256,)), ("head", (10, 256))]
)  # fmt: skip
LARGE_ONLY = VectorLayout.stacked([("dense", (64, 4096)), ("dense.bias", (16,))])


def gaussian(layout: VectorLayout, seed: int) -> NDArray[np.float32]:
    values = (0.01 * np.random.default_rng(seed).standard_normal(layout.count)).astype(np.float32)
    layout.clear_padding(values)
    return values


def coded(
    spec: CodecSpec, layout: VectorLayout, values: NDArray[np.float32]
) -> tuple[bytes, float, NDArray[np.float32]]:
    """The coded vector, its rate, and what it decodes to."""
    payload = encode_payload(spec, layout, values, keys=KEYS, weight=1, steps=1, loss=0.0)
    out = np.empty(layout.count, np.float32)
    rate = decode_payload(payload, spec, layout, KEYS, out).rate
    return bytes(read_info(payload)[1]), rate, out


def nmse(found: NDArray[np.float32], values: NDArray[np.float32]) -> float:
    return float(np.square(found - values, dtype=np.float64).sum() / np.square(values, dtype=np.float64).sum())


@pytest.mark.parametrize("bits", [0.5, 1, 1.5, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("kind", ["heavy", "gaussian"])
def test_the_rate_is_within_a_hundredth_of_the_request_all_counted(bits: float, kind: str) -> None:
    values = heavy(CNN, 1) if kind == "heavy" else gaussian(CNN, 1)
    _, rate, _ = coded(CodecSpec(name="auto", bits=bits), CNN, values)
    assert rate == pytest.approx(bits, rel=0.01)


@pytest.mark.parametrize("size", [30_000, 80_000, 200_000])
def test_bytes_are_those_of_the_whole_payload(size: int) -> None:
    spec = CodecSpec(name="auto", bytes=size)
    payload = encode_payload(spec, CNN, heavy(CNN, 2), keys=KEYS, weight=100, steps=100, loss=0.1)
    assert len(payload) == pytest.approx(size, rel=0.01)


def test_a_budget_that_small_tensors_alone_take_is_told() -> None:
    assert shortfall(CodecSpec(name="auto", bytes=256), CNN).startswith(
        "codec auto: 256 bytes are too few for this model"
    )
    assert "(16 values)" in shortfall(CodecSpec(name="auto", bytes=1000), LARGE_ONLY)
    assert "0.06 bits are too few" in shortfall(CodecSpec(name="auto", bits=0.06), CNN)
    assert not shortfall(CodecSpec(name="auto", bits=2), CNN)
    assert not shortfall(CodecSpec(name="ec-dz", bits=0.1), CNN)


@pytest.mark.parametrize("bits", [0.05, 0.25])
def test_ec_dz_sends_all_or_nothing_of_equal_magnitudes(bits: float) -> None:
    layout = VectorLayout.stacked([("dense", (140, 1000))])
    signs = np.random.default_rng(5).choice([-1.0, 1.0], 140_000)
    for values in (signs, signs * (np.arange(140_000) % 3 > 0)):
        _, rate, out = coded(CodecSpec(name="ec-dz", bits=bits), layout, (0.01 * values).astype(np.float32))
        assert rate < 1.7
        assert not out.any() or nmse(out, (0.01 * values).astype(np.float32)) < 1e-3


def test_small_tensors_and_vectors_are_exact_to_fp16() -> None:
    assert [p.name for p in CNN.small] == ["conv1", "conv1.bias", "conv2.bias", "norm", "dense.bias"]
    assert [p.name for p in CNN.large] == ["conv2", "dense", "head"]
    values = heavy(CNN, 3)
    _, _, out = coded(CodecSpec(name="auto", bits=1), CNN, values)
    for part in CNN.small:
        assert np.array_equal(
            out[part.start : part.end], values[part.start : part.end].astype("<f2").astype(np.float32)
        )


def test_gaussian_deltas_at_one_bit_go_as_rot_1_and_real_ones_do_not() -> None:
    one = CodecSpec(name="auto", bits=1)
    raw, rate, out = coded(one, LARGE_ONLY, gaussian(LARGE_ONLY, 4))
    assert (raw[0], raw[1]) == (auto.ROTATED, 1)
    assert rate <= 1.01
    assert nmse(out, gaussian(LARGE_ONLY, 4)) == pytest.approx(0.5708, rel=0.03)
    raw, rate, out = coded(one, LARGE_ONLY, heavy(LARGE_ONLY, 4))
    assert raw[0] == auto.DITHERED
    rotated = np.empty(rotation.rot_size(LARGE_ONLY.count, 1), np.uint8)
    rotation.rot_encode(heavy(LARGE_ONLY, 4), rotated, k=1, key=KEYS.own)
    other = np.empty(LARGE_ONLY.count, np.float32)
    rotation.rot_decode(rotated, other, k=1, key=KEYS.own)
    assert nmse(out, heavy(LARGE_ONLY, 4)) < 0.7 * nmse(other, heavy(LARGE_ONLY, 4))


@pytest.mark.parametrize("bits", [0.9, 1.4, 1.6, 2])
def test_rot_k_is_not_taken_where_it_is_over_the_budget_or_leaves_much_of_it(bits: float) -> None:
    raw, rate, _ = coded(CodecSpec(name="auto", bits=bits), LARGE_ONLY, gaussian(LARGE_ONLY, 5))
    assert raw[0] == auto.DITHERED
    assert rate == pytest.approx(bits, rel=0.01)


def test_the_steps_error_is_the_one_that_the_choice_reckons_with() -> None:
    """step^2 / 12 a coordinate, blocks of zeros apart."""
    values = heavy(LARGE_ONLY, 6)
    values[: 64 * 1000] = 0
    raw, _, out = coded(CodecSpec(name="auto", bits=2), LARGE_ONLY, values)
    large = LARGE_ONLY.large[0]
    step = np.frombuffer(raw[2 + 32 + 3 :][:4], "<f4")[0]
    reckoned = float(step) ** 2 / 12 * auto.coded_coordinates(values[large.start : large.end])
    assert float(np.square(out - values, dtype=np.float64).sum()) == pytest.approx(reckoned, rel=0.02)
    assert not out[: 64 * 1000].any()


def test_a_model_of_small_tensors_alone_goes_as_fp16_and_says_so() -> None:
    layout = VectorLayout.stacked([("w", (10, 20)), ("b", (10,))])
    raw, rate, _ = coded(CodecSpec(name="auto", bits=2), layout, heavy(layout, 7))
    assert raw[:2] == bytes([auto.FP16, 0])
    assert rate == pytest.approx(8 * (2 + 2 * 210) / layout.count)


def test_the_partition_follows_from_the_plan_alone() -> None:
    tensors = (
        Tensor(name="w", shape=(40, 30), offset=0, role="trainable"),
        Tensor(name="b", shape=(30,), offset=1200, role="trainable"),
        Tensor(name="mean", shape=(5000,), offset=1232, role="statistic"),
        Tensor(name="frozen", shape=(64, 64), offset=6240, role="frozen"),
    )
    manifest = Manifest(
        schema=1, model="m", loss="mse", gradients="fp32", op_abi=1, inputs=(), label=None, output=(1,), tensors=tensors,  # type: ignore[arg-type]
        travels=6240, length=10336, optimizer=Optimizer(),
    )  # fmt: skip
    layout = VectorLayout.of(manifest)
    assert (layout.count, [p.name for p in layout.large], [p.name for p in layout.small]) == (
        6240,
        ["w"],
        ["b", "mean"],
    )
    assert [layout.where(i) for i in (1199, 1200, 1230, 1232)] == [
        "tensor 'w', value 1199 of 1200", "tensor 'b', value 0 of 30", "padding, value 1230 of 6240",
        "tensor 'mean', value 0 of 5000",
    ]  # fmt: skip
