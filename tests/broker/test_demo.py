"""The demo's set-up: every sample goes to one device or is held out, the same each time, and what can't work is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console

from fleetgrad.broker import demo, settings
from fleetgrad.broker.demo_data import FEDERATION, DemoError, Options, set_up
from fleetgrad.edge.autodiff import zoo
from fleetgrad.edge.data.dataset import DataError
from fleetgrad.wire.address import Address, AddressRefused
from fleetgrad.wire.coding.spec import CodecSpec

WHERE = Address("127.0.0.1", 1883)
COUNT = 300


@pytest.fixture
def own(tmp_path: Path) -> dict[str, Any]:
    """Options for somebody's own model and arrays; sample i holds the number i, so that it can be found again."""
    onnx.save(zoo.mlp(inputs=8, hidden=16, classes=3), str(tmp_path / "mlp.onnx"))
    x = np.repeat(np.arange(COUNT, dtype=np.float32)[:, None], 8, axis=1)
    y = (np.arange(COUNT) % 3).astype(np.int64)
    np.savez(tmp_path / "mine.npz", x=x, y=y, a_train=x[:200], b_train=y[:200], a_test=x[200:], b_test=y[200:])
    return {"directory": tmp_path / "run", "model": tmp_path / "mlp.onnx", "data": tmp_path / "mine.npz", "devices": 4}


def made(options: Options) -> tuple[list[set[int]], set[int]]:
    """Sets the demo up; the sample numbers that each device has, and those held out."""
    options.directory.mkdir()
    set_up(options, WHERE, "demo")
    federation = options.directory / FEDERATION
    parts = []
    for path in sorted((federation / "devices").glob("*/data.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            numbers = arrays["x"][:, 0].astype(int)
            assert (arrays["y"] == numbers % 3).all()  # targets stay with their samples
            assert len(set(numbers)) == len(numbers)
            parts.append(set(numbers.tolist()))
    with np.load(federation / "aggregator" / "eval.npz", allow_pickle=False) as arrays:
        return parts, set(arrays["x"][:, 0].astype(int).tolist())


def test_every_sample_is_on_one_device_or_held_out(own: dict[str, Any]) -> None:
    parts, held = made(Options(**own))
    assert len(parts) == 4
    assert min(map(len, parts)) >= 10
    assert sorted([n for part in parts for n in part] + list(held)) == list(range(COUNT))
    assert len(held) == COUNT // 5
    assert np.bincount([n % 3 for n in held]).tolist() == [20, 20, 20]  # each class in its share


@pytest.mark.parametrize(("x", "y"), [("a_train", "b_train"), ("a", "b")])
def test_a_file_with_test_arrays_of_its_own_is_held_out_by_them(own: dict[str, Any], x: str, y: str) -> None:
    if x == "a":
        with np.load(own["data"], allow_pickle=False) as arrays:
            np.savez(own["data"], **{n.removesuffix("_train"): arrays[n] for n in arrays.files if n not in ("x", "y")})
    parts, held = made(Options(**own, x=x, y=y))
    assert held == set(range(200, COUNT))
    assert set().union(*parts) == set(range(200))


def test_the_same_seed_splits_alike_and_another_differently(own: dict[str, Any], tmp_path: Path) -> None:
    first = made(Options(**own))
    again = made(Options(**{**own, "directory": tmp_path / "again"}))
    other = made(Options(**{**own, "directory": tmp_path / "other"}, seed=1))
    assert first == again
    assert first != other


def test_a_small_alpha_skews_the_labels_and_infinity_does_not(own: dict[str, Any], tmp_path: Path) -> None:
    def largest_share(alpha: float, name: str) -> float:
        parts, _ = made(Options(**{**own, "directory": tmp_path / name}, alpha=alpha))
        return float(np.mean([max(np.bincount([n % 3 for n in p], minlength=3)) / len(p) for p in parts]))

    assert largest_share(math.inf, "even") < 0.4  # a third of each class, up to rounding
    assert largest_share(0.1, "skewed") > 0.6


def test_options_reach_the_federation(own: dict[str, Any]) -> None:
    made(Options(**own, rounds=3, codec=CodecSpec(name="raw32"), gradients="fp32"))
    found = settings.load(settings.home(own["directory"] / FEDERATION))
    assert (found.round.rounds, found.codec.name, found.gradients) == (3, "raw32", "fp32")
    assert found.broker.url == str(WHERE)
    assert found.data is not None


def test_the_digits_are_the_default(tmp_path: Path) -> None:
    options = Options(directory=tmp_path / "run", devices=2)
    options.directory.mkdir()
    manifest, x, y = set_up(options, WHERE, "demo")
    assert x.shape == (359, 8, 8)  # a fifth of 1,797, class by class
    assert set(y.tolist()) == set(range(10))
    assert manifest.inputs[0].shape == (1, 8, 8)
    with np.load(tmp_path / "run" / FEDERATION / "aggregator" / "eval.npz", allow_pickle=False) as arrays:
        assert (arrays["x"] == x).all()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"devices": 60}, DataError, "240 samples over 60 devices"),
        ({"alpha": 0.0}, DataError, "alpha 0.0"),
        ({"x": "images"}, DataError, "no array 'images'"),
        ({"shape": (2, 4)}, DataError, r"\(2, 4\).*\(8,\)"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_data_that_cannot_be_used_is_refused(
    own: dict[str, Any], change: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        made(Options(**{**own, **change}))


def test_a_run_is_never_written_over_another(own: dict[str, Any]) -> None:
    own["directory"].mkdir()
    (own["directory"] / "rounds.jsonl").write_text(json.dumps({}))
    with pytest.raises(DemoError, match="another --name"):
        demo.run(Options(**own, broker="embedded"), Console(quiet=True))
    assert [p.name for p in own["directory"].iterdir()] == ["rounds.jsonl"]


@pytest.mark.parametrize(
    ("broker", "error", "match"),
    [
        ("rabbit", DemoError, "expected embedded, mosquitto or mqtt://"),
        ("mqtt://192.0.2.1:1883", AddressRefused, "--insecure"),
        ("http://127.0.0.1", AddressRefused, "expected mqtt, mqtts"),
        ("mqtt://127.0.0.1:1", ConnectionError, "is .*running|nothing listens|refused"),
    ],
)
def test_a_broker_that_cannot_be_used_stops_the_demo_before_it_writes(
    own: dict[str, Any], broker: str, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        demo.run(Options(**own, broker=broker), Console(quiet=True))
    assert not own["directory"].exists()
