"""The board's command: eight packages are enough, what needs a ninth says so, and bad numbers are named."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from fleetgrad.edge.autodiff import zoo
from fleetgrad.edge.autodiff.compiling import compile_model
from fleetgrad.edge.commands import run_command
from fleetgrad.edge.training.plan_dir import open_plan
from tests.edge.test_autodiff_front import attention

EXTRAS = ("onnx", "sklearn", "matplotlib", "amqtt")


def run(module: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Runs a command's main with the packages of the extras hidden."""
    hidden = "".join(f"sys.modules[{name!r}] = None\n" for name in EXTRAS)
    program = f"import sys\n{hidden}sys.argv[0] = 'fleetgrad'\nfrom {module} import main\nmain()"
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("module", ["fleetgrad.edge.cli", "fleetgrad.broker.cli"])
@pytest.mark.parametrize("word", ["--version", "--help"])
def test_the_commands_start_without_any_extra(module: str, word: str) -> None:
    done = run(module, word)
    assert done.returncode == 0, done.stderr


def test_what_only_the_link_needs_is_not_loaded_to_train() -> None:
    """It would count as training's memory."""
    heavy = ("sqlite3", "cryptography", "paho", "ssl", "http.client")
    code = f"import sys\nimport fleetgrad.edge.commands\nprint([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plan_trains_without_onnx(tmp_path: Path) -> None:
    compile_model(zoo.mlp(inputs=4, classes=2), loss="cross-entropy", output=tmp_path / "plan")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.random((60, 4)), y=rng.integers(0, 2, 60))
    done = run("fleetgrad.edge.cli", "train", tmp_path / "plan", "--data", tmp_path / "d.npz", "--epochs", 1)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("fleetgrad.edge.cli", ("check", "m.onnx")),
        ("fleetgrad.edge.cli", ("compile", "m.onnx", "-o", "plan")),
        ("fleetgrad.broker.cli", ("new", "there", "--model", "m.onnx")),
    ],
)
def test_what_needs_onnx_names_the_extra(tmp_path: Path, module: str, words: tuple[str, ...]) -> None:
    done = run(module, *(str(tmp_path / w) if w in ("there", "plan") else w for w in words))
    assert done.returncode == 2
    assert "pip install 'fleetgrad[compile]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--learning-rate", "-1"), ("--learning-rate", "nan"), ("--momentum", "nan"), ("--momentum", "1")],
)
def test_numbers_that_cannot_train_are_refused_by_name(tmp_path: Path, flag: str, value: str) -> None:
    done = run("fleetgrad.edge.cli", "train", tmp_path, "--data", tmp_path, flag, value)
    assert done.returncode == 2
    assert flag in done.stderr


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small plan and data for it."""
    folder = tmp_path_factory.mktemp("work")
    compile_model(zoo.mlp(inputs=4, classes=2), loss="cross-entropy", output=folder / "plan")
    rng = np.random.default_rng(0)
    np.savez(folder / "d.npz", x=rng.random((60, 4)), y=rng.integers(0, 2, 60))
    np.save(folder / "one.npy", rng.random((60, 4)))
    return folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "one.npy"), "holds one array"),
        (("--data", "d.npz", "--scale", "nan"), "scale nan"),
        (("--data", "d.npz", "--scale", "0"), "scale 0"),
        (("--data", "d.npz", "--seed", "-1"), "--seed"),
        (("--data", "d.npz", "--threads", "1000000"), "--threads"),
        (("--data", "d.npz", "--output", "missing/m.onnx"), "there is no folder"),
        (("--data", "d.npz", "--output", "plan"), "no ordinary file"),
    ],
)
def test_what_cannot_train_or_be_written_is_one_line_before_training(
    work: Path, words: tuple[str, ...], said: str
) -> None:
    paths = [str(work / w) if w in ("one.npy", "d.npz", "missing/m.onnx", "plan") else w for w in words]
    before = sorted(work.iterdir())
    done = run_here("train", work / "plan", "--epochs", 1, *paths)
    assert done.returncode == 2, done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert sorted(work.iterdir()) == before


def test_an_export_never_replaces_what_is_no_ordinary_file(work: Path, tmp_path: Path) -> None:
    """As root, the rename would put a file in the place of /dev/null itself; a pipe stands for it here."""
    os.mkfifo(tmp_path / "pipe")
    done = run_here("train", work / "plan", "--data", work / "d.npz", "--epochs", 1, "--output", tmp_path / "pipe")
    assert done.returncode == 2, done.stderr
    assert (tmp_path / "pipe").is_fifo()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_bar_is_drawn_on_terminals_only(work: Path) -> None:
    done = run_here("train", work / "plan", "--data", work / "d.npz", "--epochs", 1, "--format", "json")
    assert done.returncode == 0
    assert done.stderr == ""
    assert json.loads(done.stdout)["samples"] == 48


@pytest.mark.parametrize(
    "words",
    [
        ("--", "run", "--config", "e"),
        ("run", "--config", "e", "--timeout", "nan"),
        ("run", "--config", "e", "--timeout", "1e12"),
        ("run", "--config", "e"),
    ],
)
def test_a_daemon_that_cannot_start_says_so_in_words(words: tuple[str, ...]) -> None:
    done = run_here(*words)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


def run_here(*words: object) -> subprocess.CompletedProcess[str]:
    """Runs fleetgrad-edge with everything installed."""
    program = "import sys; sys.argv[0] = 'fleetgrad-edge'; from fleetgrad.edge.cli import main; main()"
    command = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def test_check_shows_names_with_brackets_as_they_are(tmp_path: Path) -> None:
    model = zoo.mlp(inputs=8, hidden=16, classes=3)
    model.graph.node[0].name = "[/a][red]"
    onnx.save(model, str(tmp_path / "mlp.onnx"))
    done = run_here("check", tmp_path / "mlp.onnx")
    assert (done.returncode, "[/a][red]" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize("module", ["fleetgrad.edge", "fleetgrad.broker"])
def test_a_table_in_a_pipe_is_as_wide_as_its_content(module: str) -> None:
    name = "layers." * 40 + "weight"
    command = "commands" if module.endswith("edge") else "cli"
    program = (
        f"from rich.table import Table\nfrom {module}.{command} import err, out\n"
        f"t = Table('a', 'b', title='t', title_justify='left')\nt.add_row('{name}', 'sixty ' * 60)\n"
        "out.print(t)\nerr.print('word ' * 100)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    rows = [line for line in done.stdout.splitlines() if name in line]
    assert len(rows) == 1
    assert "sixty " * 59 in rows[0]
    assert len(done.stdout.splitlines()) == 6  # title, three lines of frame, head, row
    assert len(max(done.stdout.splitlines(), key=len)) < 1000
    assert len(done.stderr.splitlines()) == 1


def test_training_here_may_go_further_than_a_federation_could_and_says_so(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> m (float[N,1] x) => (float[N,1] y) <float[1,1] w = {1}> { y = MatMul(x, w) }'
    )
    compile_model(model, loss="l1", output=tmp_path / "plan")
    np.savez(tmp_path / "d.npz", x=np.ones((20, 1)), y=np.full((20, 1), 1e5))
    words = ("train", tmp_path / "plan", "--data", tmp_path / "d.npz", "--epochs", 1, "--learning-rate")
    near, far = run_here(*words, 1), run_here(*words, 100)
    assert (near.returncode, far.returncode) == (0, 0), far.stderr
    assert "federation" not in near.stderr
    assert "note: no federation could take this: the update changes tensor 'w' by 1" in far.stderr


def test_dim_gives_a_size_to_a_dynamic_dimension(tmp_path: Path) -> None:
    onnx.save(attention(), tmp_path / "m.onnx")
    for command, code, message in (
        (["check", "--dim", "time=5"], 0, "This model can train."),
        (["check", "--dim", "time"], 2, "NAME=SIZE"),
        (["check", "--dim", "width=5"], 2, "there are: time"),
    ):
        done = run_here(command[0], tmp_path / "m.onnx", *command[1:])
        assert done.returncode == code, done.stderr
        assert message in " ".join((done.stdout + done.stderr).split())


def test_tokens_with_a_mask_train_from_a_data_file(tmp_path: Path) -> None:
    compile_model(attention(), loss="mse", dims={"time": 5}, output=tmp_path / "plan")
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = {
        "ids": rng.integers(0, 7, (40, 5)),
        "mask": np.ones((40, 5), np.uint8),
        "extra": rng.random((40, 2)),
    }
    np.savez(tmp_path / "d.npz", y=rng.random((40, 2)), **inputs)
    done = run_here("train", tmp_path / "plan", "--data", tmp_path / "d.npz", "--x", "ids", "--epochs", 1)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("flags", "trained", "travels"),
    [
        ("", 467, 480),
        ("--last 1", 51, 64),
        ("--biases-only --loss cross-entropy --loss-option label-smoothing=0.1", 35, 48),
        ("--train dense3* --freeze *.bias", 48, 48),
    ],
)
def test_check_lists_what_would_train_and_what_would_travel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    flags: str, trained: int, travels: int,
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "200")
    onnx.save(zoo.mlp(inputs=8, hidden=16, classes=3), tmp_path / "m.onnx")
    words = ["fleetgrad-edge", "check", str(tmp_path / "m.onnx"), *flags.split()]
    monkeypatch.setattr(sys, "argv", [*words, "--format", "json"])
    assert run_command() == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(w["size"] for w in found["weights"] if w["trains"]) == trained
    assert found["totals"] == {"trained": trained, "numbers": 467, "travels": travels, "length": 480}
    monkeypatch.setattr(sys, "argv", words)
    assert run_command() == 0
    told = capsys.readouterr().out
    assert f"{trained} of 467 numbers train; {travels} of the plan's 480 floats travel, {4 * travels:,} bytes" in told
    assert told.count("not chosen") == sum(not w["trains"] for w in found["weights"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--last 9", "the model has 3 layers with weights"),
        ("--train fc*", "matches no float32 weight"),
        ("--loss-option delta=2", "--loss says of which loss"),
        ("--lora-rank 2", "--lora GLOB says beside which weights"),
        ("--lora-freeze-a", "--lora GLOB says beside which weights"),
        ("--lora *.bias", "a vector has no factors"),
        ("--lora *.weight --lora-alpha nan", "LoRA alpha nan: above 0"),
        ("--loss cross-entropy --loss-option class-weights=1,2", "2 class-weights for 3 classes"),
    ],
)
def test_check_refuses_what_compile_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: str, said: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    onnx.save(zoo.mlp(inputs=8, hidden=16, classes=3), tmp_path / "m.onnx")
    monkeypatch.setattr(sys, "argv", ["fleetgrad-edge", "check", str(tmp_path / "m.onnx"), *flags.split()])
    assert run_command() == 2
    assert said in capsys.readouterr().err


def test_the_example_of_partial_training_prints_what_its_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "partial-training.md").read_text()
    command, *shown = page.split("```\n$ ")[1].split("\n```")[0].splitlines()
    onnx.save(zoo.digits_cnn(), tmp_path / "digits-cnn.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", command.split())
    assert run_command() == 0
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert len(shown) == 10
    assert [" ".join(line.split()) for line in shown] == printed[-11:-3] + printed[-2:]


def test_compile_and_check_take_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    onnx.save(zoo.mlp(), tmp_path / "m.onnx")
    flags = ["--lora", "*.weight", "--lora-rank", "4", "--lora-alpha", "4", "--last", "1"]
    monkeypatch.setattr(sys, "argv", ["fleetgrad-edge", "check", str(tmp_path / "m.onnx"), *flags])
    assert run_command() == 0
    assert "3,082 of 27,914 numbers train; 3,088 of the plan's" in capsys.readouterr().out
    words = ["fleetgrad-edge", "compile", str(tmp_path / "m.onnx"), *flags, "-o", str(tmp_path / "p")]
    monkeypatch.setattr(sys, "argv", words)
    assert run_command() == 0
    assert "3,082 parameters in 6 tensors train" in capsys.readouterr().out
    assert open_plan(tmp_path / "p").manifest.optimizer.learning_rate == 0.02  # 0.05 without adapters
