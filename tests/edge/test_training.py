"""Training on one flat vector: it learns, it repeats itself to the byte, and it refuses what can't work."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from fleetgrad.edge.autodiff import zoo
from fleetgrad.edge.autodiff.compiling import compile_model
from fleetgrad.edge.data.dataset import Dataset, fit
from fleetgrad.edge.training.plan_dir import ALIGN_BYTES, aligned, open_plan
from fleetgrad.edge.training.trainer import Trainer, TrainingError
from fleetgrad.wire import plan
from fleetgrad.wire.plan import Gradients, PlanError


@pytest.fixture(scope="module", params=["int8", "fp32"])
def digits_plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    gradients: Gradients = request.param
    folder = tmp_path_factory.mktemp("plan") / "plan"
    compile_model(zoo.digits_cnn(), loss="cross-entropy", gradients=gradients, output=folder)
    return folder


def digits(folder: Path) -> Dataset:
    datasets = pytest.importorskip("sklearn.datasets")
    found = datasets.load_digits()
    return fit("digits", found.images, found.target, open_plan(folder).manifest, scale=1 / 16, shape=(1, 8, 8))


SETTINGS = {"epochs": 2, "batch_size": 16, "learning_rate": 0.05, "momentum": 0.9, "seed": 11}


def test_the_digits_cnn_learns(digits_plan: Path) -> None:
    data = digits(digits_plan)
    order = np.random.default_rng(0).permutation(len(data))
    trainer = Trainer(open_plan(digits_plan))
    before = trainer.evaluate(data.subset(order[:360]))
    result = trainer.run_epochs(data.subset(order[360:]), **{**SETTINGS, "epochs": 6, "learning_rate": 0.01})  # type: ignore[arg-type]
    after = trainer.evaluate(data.subset(order[:360]))
    assert after.accuracy is not None
    assert before.accuracy is not None
    assert before.accuracy < 0.3
    assert after.accuracy >= 0.95
    assert result.loss < result.first_loss
    assert result.steps == 6 * 90  # 1,437 samples: 89 whole batches and one of 13
    assert result.samples == 1437


def test_the_same_work_gives_the_same_bytes_in_another_process(digits_plan: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path; import hashlib, runpy\n"
        "t = runpy.run_path(sys.argv[3])\n"
        "print(t['trained_hash'](Path(sys.argv[1])))"
    )
    here = trained_hash(digits_plan)
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program, str(digits_plan), root, __file__], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == here


def trained_hash(folder: Path) -> str:
    """Hash of the parameters after a short training on made-up samples."""
    rng = np.random.default_rng(5)
    opened = open_plan(folder)
    data = fit("d", rng.random((107, 1, 8, 8)), rng.integers(0, 10, 107), opened.manifest)
    trainer = Trainer(opened)
    base = trainer.parameters.copy()
    trainer.run_epochs(data, **SETTINGS)  # type: ignore[arg-type]
    return hashlib.sha256(trainer.delta(base).tobytes()).hexdigest()


def test_padding_stays_zero_and_the_vector_is_aligned(digits_plan: Path) -> None:
    opened = open_plan(digits_plan)
    trainer = Trainer(opened)
    rng = np.random.default_rng(5)
    data = fit("d", rng.random((50, 1, 8, 8)), rng.integers(0, 10, 50), opened.manifest)
    trainer.run_epochs(data, **SETTINGS)  # type: ignore[arg-type]
    flat = trainer.parameters
    assert flat.ctypes.data % ALIGN_BYTES == 0
    for tensor in opened.manifest.of_role("trainable"):
        assert not flat[tensor.offset + tensor.size : tensor.end].any()
    assert all(aligned(n).ctypes.data % ALIGN_BYTES == 0 for n in (1, 7, 1000))


def test_training_starts_from_the_loaded_model_each_time(digits_plan: Path) -> None:
    opened = open_plan(digits_plan)
    trainer = Trainer(opened)
    rng = np.random.default_rng(5)
    data = fit("d", rng.random((50, 1, 8, 8)), rng.integers(0, 10, 50), opened.manifest)
    base = trainer.parameters.copy()
    hashes = set()
    for _ in range(2):
        trainer.load(base)
        trainer.run_epochs(data, **SETTINGS)  # type: ignore[arg-type]
        hashes.add(trainer.parameters.tobytes())
    assert len(hashes) == 1


def test_training_that_diverges_names_the_step_and_the_rate(digits_plan: Path) -> None:
    opened = open_plan(digits_plan)
    rng = np.random.default_rng(5)
    data = fit("d", rng.random((200, 1, 8, 8)) * 1e4, rng.integers(0, 10, 200), opened.manifest)
    with pytest.raises(TrainingError, match=r"step \d+.*lower learning rate than 1e\+12"):
        Trainer(opened).run_epochs(data, **{**SETTINGS, "learning_rate": 1e12})  # type: ignore[arg-type]


def test_training_whose_loss_blew_up_has_failed_even_where_it_stays_finite(digits_plan: Path) -> None:
    opened = open_plan(digits_plan)
    rng = np.random.default_rng(5)
    data = fit("d", rng.random((200, 1, 8, 8)), rng.integers(0, 10, 200), opened.manifest)
    with pytest.raises(TrainingError, match=r"diverged: the mean loss of epoch 1 is .*lower learning rate than 100"):
        Trainer(opened).run_epochs(data, **{**SETTINGS, "learning_rate": 100.0})  # type: ignore[arg-type]


def test_an_update_that_no_sum_takes_is_refused_by_its_tensor(digits_plan: Path) -> None:
    trainer = Trainer(open_plan(digits_plan))
    base = trainer.parameters.copy()
    start = next(t.offset for t in trainer.manifest.tensors if t.name == "conv2.weight")
    trainer.parameters[start] = base[start] + 63
    assert trainer.delta(base)[start] == pytest.approx(63, abs=1e-5)
    trainer.parameters[start] = base[start] - 67
    with pytest.raises(
        TrainingError, match=r"changes tensor 'conv2\.weight' by -67, at most 64 can be summed: .*lower"
    ):
        trainer.delta(base)


def test_a_model_of_another_size_or_with_nan_is_not_loaded(digits_plan: Path) -> None:
    trainer = Trainer(open_plan(digits_plan))
    with pytest.raises(TrainingError, match=r"model has 3 floats, the plan has 38288"):
        trainer.load(np.zeros(3, np.float32))
    bad = trainer.parameters.copy()
    bad[200] = np.nan
    with pytest.raises(TrainingError, match=r"holds nan at 200 \(tensor conv2.weight\)"):
        trainer.load(bad)


@pytest.mark.parametrize("name", [plan.TRAIN, plan.PARAMS, plan.MANIFEST])
def test_a_plan_that_was_changed_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "plan"
    compile_model(zoo.mlp(), loss="cross-entropy", output=folder)
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)
    with pytest.raises(PlanError):
        open_plan(folder)
    (folder / name).unlink()
    with pytest.raises(PlanError, match=name):
        open_plan(folder)


def test_a_plan_under_a_name_that_onnxruntime_cannot_open_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "pl\udcff"
    compile_model(zoo.mlp(), loss="cross-entropy", output=folder)
    with pytest.raises(PlanError, match=r"udcff': onnxruntime opens no path that isn't UTF-8"):
        open_plan(folder)


@pytest.mark.parametrize("part", ["inputs", "label", "tensors"])
def test_a_manifest_of_other_graphs_is_refused(tmp_path: Path, part: str) -> None:
    import msgspec

    folder = tmp_path / "plan"
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> m (float[N,3] image, float[N,3] mask) => (float[N,2] y)'
        "<float[3,2] w = {1,2,3,4,5,6}> { s = Mul(image, mask) y = MatMul(s, w) }"
    )
    manifest = compile_model(model, loss="cross-entropy", output=folder)
    other = {
        "inputs": manifest.inputs[:1],
        "label": msgspec.structs.replace(manifest.label, name="other"),
        "tensors": tuple(msgspec.structs.replace(t, name=f"other.{t.name}") for t in manifest.tensors),
    }
    (folder / plan.MANIFEST).write_bytes(plan.encode(msgspec.structs.replace(manifest, **{part: other[part]})))
    with pytest.raises(PlanError, match=r"other|needs mask"):
        Trainer(open_plan(folder))


def test_a_plan_for_newer_ops_is_refused(tmp_path: Path) -> None:
    import msgspec

    folder = tmp_path / "plan"
    manifest = compile_model(zoo.mlp(), loss="cross-entropy", output=folder)
    (folder / plan.MANIFEST).write_bytes(plan.encode(msgspec.structs.replace(manifest, op_abi=99)))
    with pytest.raises(PlanError, match="version 99 of the custom ops"):
        Trainer(open_plan(folder))
