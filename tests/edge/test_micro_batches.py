"""A batch in pieces gives what the whole batch gives, whatever the loss; and steps take no new memory."""

import gc
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fleetgrad.edge.autodiff import compile_model, zoo
from fleetgrad.edge.data.dataset import fit
from fleetgrad.edge.training.pieces import cut
from fleetgrad.edge.training.plan_dir import ALIGN_BYTES, open_plan
from fleetgrad.edge.training.trainer import Trainer, TrainingError
from fleetgrad.wire.loss import LossName, LossOptions
from tests.edge import test_batch_norm as normed
from tests.edge import test_losses as losses
from tests.edge.test_autodiff_compile import make, node, ones
from tests.edge.test_autodiff_dropout import model as dropping
from tests.edge.test_edge_command import run_here

SINGLE = 2e-6  # relative to the largest gradient: sums of float32 in another order
LEAST = 0.02  # of which: a batch's parts are larger, where the sum is nearly 0


def in_pieces(trainer: Trainer, batch: tuple[np.ndarray, ...], sizes: tuple[int, ...]) -> Iterator[int]:
    """Holds each micro-batch size to the whole batch."""
    whole = trainer.step(*batch)
    expected = {name: g.copy() for name, g in trainer.gradients().items()}
    for size in sizes:
        assert trainer.step(*batch, micro_batch=size) == pytest.approx(whole, rel=1e-5)
        for name, gradient in trainer.gradients().items():
            most = max(float(np.abs(expected[name]).max()), LEAST)
            np.testing.assert_allclose(
                gradient, expected[name], rtol=1e-5, atol=SINGLE * most, err_msg=f"{name}, {size}"
            )
        yield size


@pytest.mark.parametrize("case", losses.CASES, ids=[f"{c[0]}-{c[1]}" for c in losses.CASES])
def test_pieces_add_up_to_the_whole_batch_under_each_loss(tmp_path: Path, case: Any) -> None:
    loss, options, z, label, _ = case
    told = LossOptions(**options)
    manifest = compile_model(
        losses.identity(z.shape[1:]), loss=loss, loss_options=told, gradients="fp32", output=tmp_path / "plan"
    )
    y = np.zeros(len(z), np.float32) if loss == "output" else label.astype(manifest.label.dtype)
    assert list(in_pieces(Trainer(open_plan(tmp_path / "plan")), (z, y), (1, 2, 4, 5, 6, 7))) == [1, 2, 4, 5, 6, 7]


def test_a_piece_of_labels_without_weight_counts_as_it_does_in_the_batch(tmp_path: Path) -> None:
    """With smoothing they have a loss, though its mean is over the others' weights."""
    told = LossOptions(label_smoothing=0.2, class_weights=losses.WEIGHTS, ignore_index=-1)
    y = np.array([1, 1, 2, -1, -1, 4])
    compile_model(
        losses.identity((5,)), loss="cross-entropy", loss_options=told, gradients="fp32", output=tmp_path / "plan"
    )
    trainer = Trainer(open_plan(tmp_path / "plan"))
    assert list(in_pieces(trainer, (losses.FLAT, y), (1, 2, 3))) == [1, 2, 3]
    assert trainer.step(losses.FLAT, np.full(6, -1), micro_batch=2) == 0
    assert not trainer.gradients()["b"].any()


@pytest.mark.parametrize("shape", [(-1, 3), (-1,), None])
def test_masks_are_the_same_in_pieces(tmp_path: Path, shape: tuple[int, ...] | None) -> None:
    twice = dropping(shape or (-1, 3))
    if shape is None:  # the batch last, as recurrent layers have it in the middle
        for i, views in ((1, "m"), (3, "b")):
            view = node("Transpose", views, twice.graph.node[i].output[0])
            twice.graph.node[i].CopyFrom(view)
    twice.graph.node[-1].name = twice.graph.node[-1].output[0] = (
        "d"  # a second dropout, whose numbers must not mix with the first one's
    )
    twice.graph.node.extend([node("Dropout", "d ratio true", "e"), node("Identity", "e", "y")])
    manifest = compile_model(twice, loss="mse", gradients="fp32", output=tmp_path / "plan")
    assert len(manifest.noise) == 2
    random = np.random.Generator(np.random.PCG64(3))
    data = fit("d", random.standard_normal((14, 4), np.float32), random.standard_normal((14, 2), np.float32), manifest)
    trained = []
    for size in (None, 1, 3, 4):
        trainer = Trainer(open_plan(tmp_path / "plan"))
        trainer.run_epochs(data, epochs=2, batch_size=8, learning_rate=0.05, momentum=0.9, seed=5, micro_batch=size)
        trained.append(trainer.parameters.copy())
    for other in trained[1:]:
        np.testing.assert_allclose(other, trained[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("loss", "options"), [("cross-entropy", {"ignore_index": 9}), ("mse", {})])
def test_a_network_learns_the_same_in_pieces(tmp_path: Path, loss: LossName, options: dict[str, Any]) -> None:
    manifest = compile_model(
        zoo.mlp(inputs=6, hidden=8, classes=3) if loss == "mse" else zoo.digits_cnn(),
        loss=loss, loss_options=LossOptions(**options), gradients="fp32", output=tmp_path / "plan",
    )  # fmt: skip
    random = np.random.Generator(np.random.PCG64(3))
    x = random.standard_normal((37, *manifest.inputs[0].shape), np.float32)
    y = random.standard_normal((37, 3)) if loss == "mse" else random.integers(0, 10, 37)
    trained = []
    for size in (None, 5):
        trainer = Trainer(open_plan(tmp_path / "plan"))
        told = trainer.run_epochs(
            fit("d", x, y, manifest),
            epochs=2,
            batch_size=16,
            learning_rate=0.02,
            momentum=0.9,
            seed=5,
            micro_batch=size,
        )
        trained.append((trainer.parameters.copy(), told))
    np.testing.assert_allclose(trained[1][0], trained[0][0], rtol=1e-3, atol=1e-5)
    assert trained[1][1].loss == pytest.approx(trained[0][1].loss, rel=1e-4)
    assert trained[1][1].steps == trained[0][1].steps == 6


def test_pieces_are_of_nearly_one_size_and_none_is_a_single_sample_under_batch_normalisation(tmp_path: Path) -> None:
    assert cut(17, 8) == [0, 5, 11, 17]
    assert cut(16, None) == cut(16, 16) == [0, 16]
    for count in range(2, 60):
        for most in range(1, 60):
            sizes = [b - a for a, b in pairwise(cut(count, most))]
            assert sum(sizes) == count
            assert max(sizes) <= most
            assert max(sizes) - min(sizes) <= 1
            assert len(sizes) == -(-count // most)
            assert most < 3 or min(sizes) >= 2
    compile_model(normed.network(), loss="cross-entropy", output=tmp_path / "plan")
    trainer, data = Trainer(open_plan(tmp_path / "plan")), normed.samples(tmp_path / "plan", 17)
    trainer.run_epochs(data, epochs=1, micro_batch=3, **normed.TRAINING)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=r"micro-batch 2: the plan needs 3 or more.*batch normalisation"):
        trainer.run_epochs(data, epochs=1, micro_batch=2, **normed.TRAINING)  # type: ignore[arg-type]


def test_the_command_takes_a_micro_batch(tmp_path: Path) -> None:
    compile_model(zoo.mlp(inputs=4, classes=2), loss="cross-entropy", output=tmp_path / "plan")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.random((60, 4)), y=rng.integers(0, 2, 60))
    words = ("train", tmp_path / "plan", "--data", tmp_path / "d.npz", "--epochs", 1, "--micro-batch")
    done = run_here(*words, 4)
    assert done.returncode == 0, done.stderr
    assert run_here(*words, 0).returncode == 2


def test_a_batch_that_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    compile_model(make([node("MatMul", "x w", "y")], {"w": ones(4, 3)}), loss="cross-entropy", output=tmp_path / "plan")
    trainer = Trainer(open_plan(tmp_path / "plan"))
    x, y = ones(6, 4), np.zeros(6, np.int64)
    for batch, said in (
        ((x[:, :3], y), r"float32 \[6, 3\] for 'x', the plan takes float32 \[6, 4\]"),
        ((x.astype(np.float64), y), "float64"),
        ((x[:1], y), r"\[1, 4\]"),
        ((x, y, y), "3 arrays, the plan takes 2"),
    ):
        with pytest.raises(TrainingError, match=said):
            trainer.step(*batch)


def test_steps_take_no_new_memory(tmp_path: Path) -> None:
    manifest = compile_model(zoo.mlp(inputs=4096, classes=3), loss="cross-entropy", output=tmp_path / "plan")
    trainer = Trainer(open_plan(tmp_path / "plan"))
    random = np.random.Generator(np.random.PCG64(3))
    data = fit("d", random.random((88, 4096), np.float32), random.integers(0, 3, 88), manifest)
    batch_bytes = 16 * 4096 * 4
    how: dict[str, Any] = {"batch_size": 16, "learning_rate": 0.01, "momentum": 0.9, "seed": 5}
    for size in (None, 4):
        trainer.run_epochs(data, epochs=1, micro_batch=size, **how)
        rooms, bound = [a.ctypes.data for a in trainer._feeder.room(16)], dict(trainer._feeder._bindings)
        assert all(address % ALIGN_BYTES == 0 for address in rooms)
        peaks, grown = [], []
        for _ in range(3):  # what steps take they take each time; what else happens in this process doesn't come thrice
            gc.collect()
            resident = pages()
            tracemalloc.start()
            try:
                trainer.run_epochs(data, epochs=20, micro_batch=size, **how)
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
            grown.append(pages() - resident)
        assert min(peaks) < batch_bytes / 4, "less than one batch: none is allocated"
        assert min(grown) < 1 << 20, "of 120 steps"
        assert [a.ctypes.data for a in trainer._feeder.room(16)] == rooms
        assert trainer._feeder._bindings == bound


def pages() -> int:
    """Resident bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
