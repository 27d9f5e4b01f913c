"""The `fleetgrad` command: what it makes, what it prints for people and for programs, and how it refuses."""

import json
import os
import shlex
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from fleetgrad.broker import cli, settings
from fleetgrad.broker.announcing import GENESIS, version_record
from fleetgrad.broker.journal import Attempt, SqliteJournal
from fleetgrad.broker.registry import objects
from fleetgrad.broker.roster import Roster
from fleetgrad.broker.server import JOURNAL
from fleetgrad.edge import config
from fleetgrad.edge.autodiff import zoo
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.wire import kit
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.files import PosixFiles
from fleetgrad.wire.signing import Untrusted, load_private_key, load_public_key
from tests.edge.test_batch_norm import network
from tests.edge.test_repeating import deep

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process: (exit code, output, errors)."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fleetgrad", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "mlp.onnx"
    onnx.save(zoo.mlp(inputs=8, hidden=16, classes=3), str(path))
    return path


def test_new_makes_a_federation_that_serve_can_load(run: Run, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    code, out, _ = run("new", folder, "--model", model, "--rounds", 7, "--gradients", "fp32")
    assert code == 0
    assert "parameters train" in out
    folder = settings.home(folder)
    made = settings.load(folder)
    assert made.broker.url == "mqtts://localhost:8883"
    assert (made.name, made.round.rounds, made.gradients) == ("digits", 7, "fp32")
    assert open_plan(folder / "plan").manifest.gradients == "fp32"
    key = load_private_key(folder / "keys" / "aggregator.key")
    assert key.public.pem() == (folder / "keys" / "aggregator.pub").read_bytes()
    assert stat.S_IMODE((folder / "keys" / "aggregator.key").stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["digits", "mlp.onnx"]  # nothing temporary is left


def test_new_takes_sizes_and_a_choice_and_says_what_the_compiler_notes(run: Run, tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    w = [helper.make_tensor(n, TensorProto.FLOAT, [3, 3], [0.1] * 9) for n in ("w", "v", "spare")]
    nodes = [helper.make_node("MatMul", ["x", "v"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    x, y = (value(n, TensorProto.FLOAT, ["N", "time", 3]) for n in "xy")
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y], w)), str(tmp_path / "m.onnx"))
    words = ("new", tmp_path / "fed", "--model", tmp_path / "m.onnx", "--loss", "mse", "--last", 1)
    code, _, err = run(*words)
    assert (code, "--dim time=64" in err) == (2, True)
    code, _, err = run(*words, "--dim", "time=4")
    assert (code, err) == (0, "note: 'spare' stays as it is: doesn't reach the output\n")
    manifest = open_plan(tmp_path / "fed" / "aggregator" / "plan").manifest
    assert [t.name for t in manifest.of_role("trainable")] == ["w"]
    assert manifest.inputs[0].shape == (4, 3)


def test_new_shares_running_statistics_unless_told_otherwise(run: Run, tmp_path: Path) -> None:
    onnx.save(network(), str(tmp_path / "m.onnx"))
    for flags, role in (((), "statistic"), (("--batch-norm", "frozen"), "frozen")):
        code, _, err = run("new", tmp_path / role, "--model", tmp_path / "m.onnx", *flags)
        assert code == 0, err
        manifest = open_plan(tmp_path / role / "aggregator" / "plan").manifest
        assert {t.role for t in manifest.tensors if t.name in {"mean", "var"}} == {role}


def test_new_passes_on_what_a_plan_keeps_in_memory(run: Run, tmp_path: Path) -> None:
    onnx.save(deep(), str(tmp_path / "m.onnx"))
    for flags, kept, again in (((), "int8", False), (("--activations", "fp32", "--recompute", "cheap"), "fp32", True)):
        code, _, err = run("new", tmp_path / kept, "--model", tmp_path / "m.onnx", *flags)
        assert code == 0, err
        assert open_plan(tmp_path / kept / "aggregator" / "plan").manifest.activations == kept
        names = {n.name for n in onnx.load(str(tmp_path / kept / "aggregator" / "plan" / "train.onnx")).graph.node}
        assert any(name.endswith(".again") for name in names) == again


def test_new_warns_of_a_codecs_budget_that_the_model_cannot_keep(run: Run, model: Path, tmp_path: Path) -> None:
    words = (
        "new",
        tmp_path / "f",
        "--model",
        model,
        "--broker",
        "mqtt://127.0.0.1:1883",
        "--codec",
        "auto",
        "--bytes",
        256,
    )
    code, _, err = run(*words)
    assert code == 0
    assert "warning: codec auto: 256 bytes are too few for this model" in err


def test_a_device_gets_its_keys_and_settings_as_one_kit_and_a_place_in_the_roster(
    run: Run, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "digits"
    run("new", folder, "--model", model)
    flags = (
        "--data",
        "mine.npz",
        "--x",
        "images",
        "--scale",
        0.5,
        "--shape",
        "1,2,4",
        "--broker",
        "mqtts://10.0.0.2:1884",
    )
    code, out, _ = run("device", "add", "dev-01", "--dir", folder, *flags)
    assert code == 0
    assert "fleetgrad-edge join dev-01.kit" in out
    path = folder / "registrar" / "kits" / "dev-01.kit"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    kit.install(kit.read(path), tmp_path / "board")
    found, base = config.load(tmp_path / "board" / "edge.toml")
    assert (found.device.id, found.federation.name, found.broker.url) == ("dev-01", "digits", "mqtts://10.0.0.2:1884")
    assert (found.data.path, found.data.x, found.data.scale, found.data.shape) == ("mine.npz", "images", 0.5, (1, 2, 4))
    registrar = load_public_key(folder / "aggregator" / "keys" / "registrar.pub")
    member = Roster(folder / "aggregator", registrar, "digits").key("dev-01")
    assert member is not None
    assert load_private_key(base / found.device.key).public.kid == member.kid
    code, out, _ = run("device", "list", "--dir", folder, "--format", "json")
    (row,) = json.loads(out)
    assert (code, row["device"], row["key"], row["revoked"]) == (0, "dev-01", member.kid, False)
    code, out, _ = run("device", "revoke", "dev-01", "--dir", folder, "--reason", "stolen")
    assert code == 0
    with pytest.raises(Untrusted, match="was revoked: stolen"):
        Roster(folder / "aggregator", registrar, "digits").key("dev-01")
    assert run("device", "revoke", "dev-01", "--dir", folder)[0] == 2
    code, out, _ = run("device", "list", "--dir", folder)
    assert "revoked stolen" in out


def test_the_registrar_is_made_where_it_is_to_be_and_serve_refuses_to_run_beside_its_key(
    run: Run, model: Path, tmp_path: Path
) -> None:
    code, out, _ = run("new", tmp_path / "one", "--model", model)
    assert (code, "--registrar PATH" in out) == (0, True)
    code, _, err = run("serve", tmp_path / "one")
    assert code == 2
    assert "could read the fleet's CA key" in err
    apart = tmp_path / "away" / "reg"
    code, out, err = run(
        "new", tmp_path / "two", "--model", model, "--registrar", apart, "--broker", "mqtt://127.0.0.1:1"
    )
    assert (code, err, f"--dir {apart}" in out) == (0, "", True)
    assert not (tmp_path / "two" / "registrar").exists()
    assert [p.name for p in apart.parent.iterdir()] == ["reg"]
    assert run("device", "add", "dev-01", "--dir", apart)[0] == 0
    assert (tmp_path / "two" / "aggregator" / "roster" / "dev-01.jws").is_file()
    code, _, err = run("serve", tmp_path / "two", "--timeout", 0.2)
    assert (code, "gave_up" in err) == (3, True)
    code, _, err = run("new", tmp_path / "three", "--model", model, "--registrar", apart)
    assert (code, "exists" in err, (tmp_path / "three").exists()) == (2, True, False)
    (tmp_path / "two" / "aggregator" / "keys" / "registrar.pub").unlink()
    code, _, err = run("serve", tmp_path / "two")
    assert (code, "older version" in err) == (2, True)


def test_status_for_programs_is_json_even_without_a_broker(run: Run, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    run("new", folder, "--model", model, "--broker", "mqtt://127.0.0.1:1")
    code, out, _ = run("status", folder, "--format", "json", "--timeout", 0.5)
    found = json.loads(out)
    assert code == 0
    assert (found["federation"], found["rounds"], found["aggregator"]) == ("digits", [], None)
    assert found["problem"].startswith("mqtt://127.0.0.1:1: ")
    assert found["problem"].count("127.0.0.1:1") == 1


def unsupported() -> onnx.ModelProto:
    """x -> Erf -> MatMul w -> Erf: no operator but MatMul trains."""
    value = helper.make_tensor_value_info
    w = helper.make_tensor("w", TensorProto.FLOAT, [3, 3], [0.1] * 9)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="dense"),
        helper.make_node("Det", ["a"], ["b"], name="first"),
        helper.make_node("Mul", ["a", "a"], ["c"]),
        helper.make_node("Det", ["c"], ["d"], name="second"),
        helper.make_node("Add", ["b", "d"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["N", 3, 3])], [value("y", TensorProto.FLOAT, ["N"])], [w]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_model_that_cannot_train_names_every_node_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    onnx.save(unsupported(), str(path))
    code, _, err = run("new", tmp_path / "fed", "--model", path)
    assert code == 2
    assert "Det" in err
    assert "first" in err
    assert "second" in err
    assert [p.name for p in tmp_path.iterdir()] == ["odd.onnx"]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("new", "DIR/fed", "--model", "DIR/none.onnx"), "no such file"),
        (("new", "DIR/fed", "--model", "DIR/mlp.onnx", "--name", "Fed 1"), "a-z"),
        (("new", "DIR/fed", "--model", "DIR/mlp.onnx", "--broker", "mqtt://192.0.2.1"), "--insecure"),
        (("new", "DIR/fed", "--model", "DIR/mlp.onnx", "--broker", "ws://192.0.2.1"), "use wss://"),
        (("new", "DIR/fed", "--model", "DIR/mlp.onnx", "--loss", "hinge"), "hinge"),
        (("new", "DIR/fed", "--model", "DIR/mlp.onnx", "--loss-option", "delta=2"), "it belongs to huber"),
        (("new", "DIR/fed", "--model", "DIR/mlp.onnx", "--loss-option", "class-weights=1,2"), "2 class-weights for"),
        (
            ("new", "DIR/fed", "--model", "DIR/mlp.onnx", "--rounds", "5000000"),
            "round.rounds: expected `int` <= 1000000",
        ),
        (("new", "DIR/fed"), "--model"),
        (("serve", "DIR"), "fleetgrad new"),
        (("status", "DIR"), "fleetgrad new"),
        (("device", "list", "--dir", "DIR"), "fleetgrad new"),
        (("registrar", "serve", "DIR"), "fleetgrad new"),
        (("enroll", "list", "--dir", "DIR"), "fleetgrad new"),
        (("enroll", "new", "--dir", "DIR", "--expires", "soon"), "expected a time as 30m"),
        (("broker-files", "DIR", "--for", "mosquitto", "-o", "DIR/none"), "no such folder"),
        (("watch",), "--federation"),
        (("demo", "--devices", "0"), "--devices"),
        (("demo", "--shape", "1,x"), "--shape"),
        (("demo", "--data", "DIR/a.npz"), "--model"),
        (("nonsense",), "nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_command_line_is_one_clear_error(
    run: Run, model: Path, tmp_path: Path, words: tuple[str, ...], match: str
) -> None:
    code, out, err = run(*(w.replace("DIR", str(tmp_path)) for w in words))
    assert code == 2
    assert match in " ".join((out + err).replace("│", " ").split())
    assert "Traceback" not in out + err
    assert [p.name for p in tmp_path.iterdir()] == [model.name]


def test_a_model_file_that_is_no_model_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "noise.onnx"
    path.write_bytes(b"\xff" * 100)
    code, _, err = run("new", tmp_path / "fed", "--model", path)
    assert code == 2
    assert "noise.onnx" in err


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("new",),
        ("serve",),
        ("device", "add"),
        ("device", "revoke"),
        ("broker-files",),
        ("status",),
        ("watch",),
        ("demo",),
    ],
)
def test_every_help_page_explains_its_flags(run: Run, words: tuple[str, ...]) -> None:
    code, out, _ = run(*words, "--help")
    assert code == 0
    assert " ".join(words) in out
    if words in {("new",), ("device", "add"), ("device", "revoke"), ("broker-files",), ("watch",), ("demo",)}:
        assert f"fleetgrad {' '.join(words)} " in " ".join(out.replace("│", " ").split()).partition("Usage:")[2][20:]


@pytest.mark.parametrize(
    ("flags", "spec"),
    [
        ([], CodecSpec(name="blk8")),
        (["--codec", "auto", "--bits", "2"], CodecSpec(name="auto", bits=2)),
        (["--codec", "auto", "--bytes", "400KB"], CodecSpec(name="auto", bytes=400_000)),
        (["--codec", "auto", "--bytes", "1.5MiB"], CodecSpec(name="auto", bytes=1_572_864)),
        (["--codec", "rot-2"], CodecSpec(name="rot-2")),
        (["--codec", "topk", "--fraction", "0.01"], CodecSpec(name="topk", fraction=0.01)),
        (["--codec", "ring", "--bits", "20", "--step", "0.001"], CodecSpec(name="ring", bits=20, step=0.001)),
        (["--codec", "blk4", "--rounding", "nearest"], CodecSpec(name="blk4", rounding="nearest")),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_a_codec_is_named_by_its_options(
    run: Run, model: Path, tmp_path: Path, flags: list[str], spec: CodecSpec
) -> None:
    code, _, err = run("new", tmp_path / "digits", "--model", model, *flags)
    assert code == 0, err
    assert settings.load(tmp_path / "digits" / "aggregator").codec == spec


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--codec", "zip"], "--codec 'zip': expected one of raw32, fp16"),
        (["--codec", "rot-9"], "--codec 'rot-9'"),
        (["--codec", "rot-2", "--bits", "2"], "--bits: codec rot-2 takes no parameters"),
        (["--bits", "2"], "--bits: codec blk8 takes only rounding"),
        (["--codec", "auto", "--bits", "40"], "--bits: 40, codec auto takes 0.05 to 16"),
        (["--codec", "auto", "--bits", "2", "--bytes", "4KB"], "--bytes: codec auto takes bits or bytes, not both"),
        (["--codec", "auto", "--bytes", "much"], "--bytes 'much': expected a size as 400KB"),
        (["--codec", "topk", "--fraction", "2"], "--fraction: 2, codec topk takes more than 0"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_a_codec_that_cannot_be_is_refused_by_its_option(
    run: Run, model: Path, tmp_path: Path, flags: list[str], says: str
) -> None:
    code, _, err = run("new", tmp_path / "digits", "--model", model, *flags)
    assert code == 2
    assert says in " ".join(err.replace("│", " ").split())
    assert not (tmp_path / "digits").exists()


def test_help_says_which_codec_is_for_what(run: Run) -> None:
    for command in ("new", "demo"):
        code, out, _ = run(command, "--help")
        assert code == 0
        told = " ".join(out.replace("│", " ").split())
        for name in ("auto", "ec-dither", "ec-dz", "topk", "rot-1", "blk8", "ring", "--bits", "--bytes", "--fraction"):
            assert name in told, name
        assert "where devices take part in every round" in told


@pytest.mark.parametrize(
    ("words", "database"),
    [(("serve", "fleet"), "fleet/aggregator/journal.sqlite"), (("registrar", "serve", "reg"), "reg/registrar.sqlite")],
    ids=("aggregator", "registrar"),
)
def test_a_disk_that_lets_nothing_begin_isnt_said_to_be_wrong_settings_which_nobody_tries_again(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], database: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run("new", "fleet", "--model", model, "--registrar", "reg")
    Path(database).mkdir()  # SQLite calls it a disk's fault, as it does a full one
    code, _, err = run(*words, "--timeout", 0.1)
    assert code == 1
    assert f"{database}: unable to open" in err


def test_release_names_other_keys_and_shows_them(run: Run, model: Path, tmp_path: Path) -> None:
    folder, key = tmp_path / "digits", tmp_path / "stick" / "root-1"
    run("new", folder, "--model", model)
    assert run("release", "key", "root-1", "-o", key.parent)[0] == 0
    assert "exists" in run("release", "key", "root-1", "-o", key.parent)[2]
    public = key.with_suffix(".pub")
    named = public.read_bytes()
    public.unlink()  # as if the command had been killed between the two files
    assert run("release", "key", "root-1", "-o", key.parent)[0] == 0
    assert public.read_bytes() == named
    other = key.with_name("other")
    assert run("release", "key", "other", "-o", key.parent)[0] == 0
    code, out, _ = run("release", "show", folder)
    assert (code, out.count("1 of 1 keys")) == (0, 2)
    code, out, _ = run("release", "rotate", folder, "--root", f"{key}.pub", "--sign-with", f"{key}.key")
    assert code == 0
    assert "1.json" in out
    code, _, err = run("release", "rotate", folder)
    assert code == 2
    assert "root 2 isn't signed by enough keys: none of the keys at hand is a root key" in err
    code, _, err = run("release", "rotate", folder, "--root", f"{key}.pub", "--root-threshold", 3)
    assert code == 2
    assert "threshold 3 of 1 different keys" in err
    for words, says in (
        (("--sign-with", f"{key}.key"), "would name the same keys as root 1"),
        (("--root-threshold", 2, "--sign-with", f"{key}.key"), "--root-threshold 2: of which keys?"),
        (("--release-threshold", 2), "--release-threshold 2: of which keys?"),
        (("--release", f"{key}.pub", "--sign-with", f"{key}.key", "--sign-with", f"{other}.key"), "signs no root"),
    ):
        code, _, err = run("release", "rotate", folder, *words)
        assert (code, says in err) == (2, True), err
    assert run("release", "show", folder)[1].startswith("root 1")


def test_new_says_how_the_broker_gets_its_files_on_another_machine(run: Run, model: Path, tmp_path: Path) -> None:
    folder, apart = tmp_path / "digits", tmp_path / "my registrar"
    code, out, _ = run("new", folder, "--model", model, "--broker", "mqtts://broker.lan", "--registrar", apart)
    assert code == 0
    steps = [shlex.split(line, comments=True) for line in out.splitlines() if line.startswith("  ")]
    (files,) = (words for words in steps if words[1] == "broker-files")
    assert run(*files[1:])[0] == 0
    assert "keyfile /etc/mosquitto/fleetgrad/server.key" in (folder / "broker" / "mosquitto.conf").read_text()
    assert ["scp", "-r", str(folder / "broker"), "root@broker.lan:/etc/mosquitto/fleetgrad"] in steps
    assert ["fleetgrad", "registrar", "serve", str(apart)] in steps
    assert not any(words[0] == "mv" for words in steps)


def test_release_withdraw_takes_the_last_version_back_while_no_aggregator_runs(
    run: Run, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "digits"
    run("new", folder, "--model", model)
    home = settings.home(folder)
    words = ("release", "withdraw", folder)
    assert run(*words)[::2] == (2, "fleetgrad: nothing to withdraw: no version was published yet\n")
    first, second = (objects.store(PosixFiles(home), raw) for raw in (b"first", b"second"))
    journal = SqliteJournal(home / JOURNAL)
    version = version_record(0, first, GENESIS, "0" * 64, [], 0)
    journal.commit([version, version_record(1, second, version.sha256, "0" * 64, [], 1)])
    journal.commit([Attempt(1, 1, "published", 0, ""), Attempt(2, 1, "collecting", 1, "")])
    code, _, err = run(*words)
    assert (code, "'fleetgrad serve' is running on this directory: stop it first" in err) == (2, True)
    journal.close()
    assert "there is none; the current one is 1" in run(*words, 7)[2]
    code, out, _ = run(*words)
    assert (code, out) == (0, "withdrawn: 1. Start the aggregator again: version 0 is current; round 2 begins again\n")
    assert "can't withdraw version 0: it is the first" in run(*words)[2]


def test_under_a_umask_that_lets_anyone_write_nothing_is_anyones(run: Run, model: Path, tmp_path: Path) -> None:
    folder, before = tmp_path / "digits", os.umask(0)
    try:
        assert run("new", folder, "--model", model)[0] == 0
        assert run("device", "add", "dev-01", "--dir", folder)[0] == 0
        assert run("enroll", "new", "--dir", folder, "--kit", folder / "fleet.kit")[0] == 0
        assert run("registrar", "login", "operator", "--dir", folder, "-o", folder / "me.pem")[0] == 0
        assert run("device", "revoke", "dev-01", "--dir", folder)[0] == 0
    finally:
        os.umask(before)
    modes = {p: stat.S_IMODE(p.stat().st_mode) for p in [folder, *folder.rglob("*")]}
    assert [p for p, mode in modes.items() if mode & 0o022] == []
    private = {p.name for p, mode in modes.items() if not mode & 0o077}
    keys = {"ca.key", "registrar.key", "aggregator.key", "seal.key", "server.key", "tls.pem", "me.pem"}
    assert {*keys, "registrar.sqlite", "dev-01.kit", "registrar", "kits", "keys", "roster"} <= private


def test_what_no_board_could_use_costs_no_name_and_no_code(run: Run, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    assert run("new", folder, "--model", model)[0] == 0
    refused = {
        ("--data", ""): "expected 1 to 4096",
        ("--data", "d" * 4097): "expected 1 to 4096",
        ("--data", "a\x1b[2J"): "without control characters",
        ("--x", "a\nb"): "expected 1 to 256, without control characters",
        ("--scale", "1e300"): "1e+30 at most",
        ("--shape", "3,0"): "expected positive numbers",
    }
    for flags, match in refused.items():
        for words in (("device", "add", "dev-01"), ("enroll", "new")):
            code, _, err = run(*words, "--dir", folder, *flags)
            assert (code, match in " ".join(err.replace("│", "").split())) == (2, True), (words, flags, err)
    others: dict[tuple[str, ...], str] = {
        ("device", "add", "d" * 300): "1 to 64 letters",
        ("device", "add", "dev-01", "--broker", "mqtt://other.lan"): "give --insecure",
        ("device", "add", "dev-01", "-o", str(tmp_path / "none" / "x.kit")): "no such folder",
        ("registrar", "login", "operator", "-o", str(tmp_path / "none" / "x.pem")): "x.pem can't be made: No such file",
    }
    for line, match in others.items():
        code, _, err = run(*line, "--dir", folder)
        assert (code, match in err) == (2, True), err
    for listing in (("device", "list"), ("enroll", "list")):
        assert json.loads(run(*listing, "--dir", folder, "--format", "json")[1]) == []
    assert run("device", "add", "dev-01", "--dir", folder, "--broker", "mqtt://other.lan", "--insecure")[0] == 0
    for reason in ("r" * 201, "gone\x1b[2J", "a\nb"):
        code, _, err = run("device", "revoke", "dev-01", "--dir", folder, "--reason", reason)
        assert (code, "200 at most, without control characters" in err) == (2, True), err
    assert not json.loads(run("device", "list", "--dir", folder, "--format", "json")[1])[0]["revoked"]


def test_a_key_that_has_no_place_is_refused_in_words(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    code, _, err = run("release", "key", "root-1", "-o", tmp_path / "file")
    assert (code, "for a key can't be made: File exists" in err) == (2, True), err


@pytest.mark.parametrize("seconds", ["inf", "nan", "-1", "1e12"])
def test_nobody_waits_for_longer_than_a_year(run: Run, tmp_path: Path, seconds: str) -> None:
    for words in (
        ("serve", tmp_path), ("status", tmp_path), ("watch", tmp_path, "--once"), ("registrar", "serve", tmp_path),
        ("release", "cosign", tmp_path),
    ):  # fmt: skip
        code, _, err = run(*words, "--timeout", seconds)
        assert (code, "--timeout" in err) == (2, True), words
