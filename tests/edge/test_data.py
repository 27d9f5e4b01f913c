"""Data that doesn't fit is refused by name, with both shapes; splits give everyone enough."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetgrad.edge.data import npz, split
from fleetgrad.edge.data.dataset import DataError, fit
from fleetgrad.wire import plan
from fleetgrad.wire.loss import LossName, LossOptions
from fleetgrad.wire.plan import Feed, Manifest, Tensor


def manifest(loss: LossName = "cross-entropy") -> Manifest:
    label = Feed(name=plan.LABEL, shape=(), dtype="int64") if loss == "cross-entropy" else None
    return Manifest(
        schema=1, model="m", loss=loss, gradients="fp32", op_abi=0,
        inputs=(Feed(name="image", shape=(1, 4, 4), dtype="float32"),),
        label=label or Feed(name=plan.LABEL, shape=(3,), dtype="float32"), output=(3,),
        tensors=(Tensor(name="w", shape=(3,), offset=0, role="trainable"),), travels=16, length=16,
    )  # fmt: skip


GOOD_X, GOOD_Y = np.ones((20, 1, 4, 4), np.uint8), np.arange(20) % 3


def test_bytes_stay_bytes_until_a_batch_is_drawn() -> None:
    data = fit("d", GOOD_X.reshape(20, 16), GOOD_Y, manifest(), scale=0.5, shape=(1, 4, 4))
    assert data.x.dtype == np.uint8
    x, y = data.batch(np.array([3, 1]))
    assert x.dtype == np.float32
    assert x.shape == (2, 1, 4, 4)
    assert (x == 0.5).all()
    assert y.tolist() == [0, 1]
    assert len(data.subset(np.array([0, 5]))) == 2


NAN = np.ones((20, 1, 4, 4), np.float32)
NAN[7, 0, 1, 1] = np.nan


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        (GOOD_X[:0], GOOD_Y[:0], "no samples"),
        (GOOD_X, GOOD_Y[:19], "20 samples and 19 targets"),
        (GOOD_X.reshape(20, 4, 4), GOOD_Y, r"samples have shape \(4, 4\), the plan's input 'image' has \(1, 4, 4\)"),
        (GOOD_X.astype("S1"), GOOD_Y, r"samples have type \|S1"),
        (GOOD_X, np.full(20, 3), "target 3 of sample 0 is no class: the plan has 0 to 2"),
        (GOOD_X, -GOOD_Y, "target -1 of sample 1"),
        (GOOD_X, np.where(GOOD_Y == 1, 1e19, GOOD_Y), r"target 1e\+19 of sample 1"),
        (GOOD_X, GOOD_Y + 0.5, "targets have type float64"),
        (GOOD_X, np.zeros((20, 3), np.int64), r"a target has shape \(3,\), the plan's label has \(\)"),
        (NAN, GOOD_Y, "sample 7 holds NaN"),
        (GOOD_X * 1e300, GOOD_Y, "sample 0 holds .* more than float32 can"),
        (GOOD_X, np.where(GOOD_Y == 2, np.nan, GOOD_Y), "target 2 holds NaN"),
    ],
)
def test_arrays_that_do_not_fit_the_plan_are_refused(x: np.ndarray, y: np.ndarray, match: str) -> None:
    with pytest.raises(DataError, match=match):
        fit("d", x, y, manifest())


def test_an_unsigned_target_does_not_wrap_around_to_the_ignored_one() -> None:
    plan_ = msgspec.structs.replace(manifest(), loss_options=LossOptions(ignore_index=-100))
    ignored = np.where(GOOD_Y == 1, -100, GOOD_Y)
    assert fit("d", GOOD_X, ignored, plan_).y[1] == -100
    with pytest.raises(DataError, match="target 18446744073709551516 of sample 1 is no class"):
        fit("d", GOOD_X, ignored.astype(np.uint64), plan_)


@pytest.mark.parametrize("x", [GOOD_X * 255, GOOD_X * 4.0])
def test_a_scale_that_makes_infinities_of_the_samples_is_refused(x: np.ndarray) -> None:
    assert np.isfinite(fit("d", x, GOOD_Y, manifest(), scale=1e35).batch(np.arange(20))[0]).all()
    with pytest.raises(DataError, match=r"sample 0 holds .* more than float32 can, times the scale 1e\+38"):
        fit("d", x, GOOD_Y, manifest(), scale=1e38)


def test_a_shape_that_holds_other_numbers_is_refused() -> None:
    with pytest.raises(DataError, match=r"has shape \(1, 4, 4\), which can't be seen as \(1, 4, 5\)"):
        fit("d", GOOD_X, GOOD_Y, manifest(), shape=(1, 4, 5))


def test_targets_of_a_regression_have_the_outputs_shape() -> None:
    data = fit("d", GOOD_X, np.zeros((20, 3)), manifest("mse"))
    assert data.batch(np.array([0]))[1].dtype == np.float32
    with pytest.raises(DataError, match=r"a target has shape \(2,\), the plan's output has \(3,\)"):
        fit("d", GOOD_X, np.zeros((20, 2)), manifest("mse"))


def test_files_that_are_no_archives_of_plain_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with pytest.raises(DataError, match="No such file"):
        npz.load(path, manifest())
    path.write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"not an \.npz"):
        npz.load(path, manifest())
    np.savez(path, x=GOOD_X, y=np.array([{}] * 20))
    with pytest.raises(DataError, match=r"not an \.npz file of plain arrays"):
        npz.load(path, manifest())
    np.savez(path, images=GOOD_X, y=GOOD_Y)
    with pytest.raises(DataError, match="no array 'x'; there are images, y"):
        npz.load(path, manifest())
    np.savez(path, x=GOOD_X, y=GOOD_Y)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError):
        npz.load(path, manifest())
    np.savez(path, x=GOOD_X, y=GOOD_Y)
    assert npz.count(path, "x", "y") == 20
    assert len(npz.load(path, manifest())) == 20


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flipped_bit_or_a_cut_never_escapes_as_another_error(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "d.npz"
    save(path, x=np.arange(60, dtype=np.float32).reshape(20, 3), y=np.arange(20) % 3)
    whole = path.read_bytes()
    damaged = [whole[:n] for n in range(0, len(whole), 7)]
    damaged += [
        whole[: i // 8] + bytes([whole[i // 8] ^ 1 << i % 8]) + whole[i // 8 + 1 :] for i in range(0, 8 * len(whole), 5)
    ]
    refused = 0
    for raw in damaged:
        path.write_bytes(raw)
        for read in (npz.read_arrays, npz.count):
            try:
                read(path, "x", "y")
            except DataError:
                refused += 1
    assert refused > len(damaged) / 2


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.sampled_from([0.05, 0.5, 10, float("inf")]))
def test_a_split_gives_each_sample_once_and_everyone_at_least_ten(seed: int, devices: int, alpha: float) -> None:
    labels = np.random.default_rng(seed).integers(0, 10, 400)
    parts = split.dirichlet(labels, devices, alpha, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(400))
    assert min(map(len, parts)) >= split.LEAST_SAMPLES
    assert [p.tolist() for p in split.dirichlet(labels, devices, alpha, seed)] == [p.tolist() for p in parts]


def test_too_few_samples_for_the_devices_are_refused() -> None:
    with pytest.raises(DataError, match="59 samples over 6 devices: each needs at least 10"):
        split.dirichlet(np.zeros(59), 6, 0.5, 0)


def test_a_lower_alpha_skews_more() -> None:
    labels = np.arange(4000) % 10

    def skew(alpha: float) -> float:
        parts = split.dirichlet(labels, 8, alpha, 0)
        return float(np.mean([np.bincount(labels[p], minlength=10).max() / len(p) for p in parts]))

    assert skew(0.1) > skew(1.0) > skew(float("inf"))


def test_the_held_out_part_has_the_same_share_of_each_class() -> None:
    labels = np.repeat(np.arange(5), [100, 50, 10, 200, 5])
    kept, held = split.held_out(labels, 0.2, 3)
    assert np.bincount(labels[held]).tolist() == [20, 10, 2, 40, 1]
    assert sorted([*kept, *held]) == list(range(len(labels)))
