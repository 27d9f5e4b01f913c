"""federation.toml: what is written is read back, and whatever is wrong is named with its key and its line."""

import re
from pathlib import Path

import pytest

from fleetgrad.broker import settings
from fleetgrad.broker.settings import Broker, Data, Round, Settings
from fleetgrad.wire.coding.spec import CodecSpec
from fleetgrad.wire.loss import LossOptions
from fleetgrad.wire.messages import Training
from fleetgrad.wire.settings import SettingsError

FULL = Settings(
    name="fed",
    loss="mse",
    loss_options=LossOptions(class_weights=(1.0, 0.25), ignore_index=-100, class_axis=-1),
    gradients="fp32",
    broker=Broker(url="mqtt://192.0.2.7:1884", insecure=True),
    training=Training(local_epochs=2, batch_size=7, learning_rate=0.125, momentum=0.5, weight_decay=0.001),
    codec=CodecSpec(name="blk4", rounding="nearest"),
    round=Round(rounds=3, goal=5, minimum=0.5, over_selection=1.5, deadline=60.0),
    data=Data(path="a b/eval.npz", x='x"1', y="y", scale=0.00392, shape=(1, 28, 28)),
)


@pytest.mark.parametrize("written", [Settings(name="fed"), FULL], ids=["defaults", "everything"])
def test_settings_are_read_back_as_they_were_written(tmp_path: Path, written: Settings) -> None:
    settings.write(written, tmp_path)
    assert settings.load(tmp_path) == written


def test_the_example_of_data_in_a_new_file_is_right_once_uncommented(tmp_path: Path) -> None:
    settings.write(Settings(name="fed"), tmp_path)
    path = tmp_path / settings.FILE
    path.write_text(path.read_text().replace("# [data]", "[data]").replace("\n# ", "\n"))
    assert settings.load(tmp_path).data == Data(path="eval.npz", shape=(1, 28, 28))


def test_every_setting_reaches_the_rounds() -> None:
    found = FULL.round_settings()
    assert (found.federation, found.rounds, found.goal, found.minimum) == ("fed", 3, 5, 0.5)
    assert (found.over_selection, found.deadline) == (1.5, 60.0)
    policy, training = found.policy, FULL.training
    for name in ("local_epochs", "batch_size", "learning_rate", "momentum", "weight_decay"):
        assert getattr(policy, name) == getattr(training, name), name
    assert policy.codec == CodecSpec(name="blk4", rounding="nearest")


@pytest.mark.parametrize(
    ("table", "spec"),
    [
        ('name = "auto"\nbits = 2', CodecSpec(name="auto", bits=2.0)),
        ('name = "auto"\nbytes = 400_000', CodecSpec(name="auto", bytes=400_000)),
        ('name = "rot-2"', CodecSpec(name="rot-2")),
        ('name = "topk"\nfraction = 0.02', CodecSpec(name="topk", fraction=0.02)),
        ('name = "ring"\nbits = 20\nstep = 0.001', CodecSpec(name="ring", bits=20.0, step=0.001)),
    ],
)
def test_a_codec_is_a_table_with_what_it_takes(tmp_path: Path, table: str, spec: CodecSpec) -> None:
    (tmp_path / settings.FILE).write_text(f'name = "fed"\n\n[codec]\n{table}\n')
    found = settings.load(tmp_path)
    assert found.round_settings().policy.codec == spec
    settings.write(found, tmp_path)
    assert settings.load(tmp_path) == found


@pytest.mark.parametrize(
    ("old", "new", "key", "what"),
    [
        ("local-epochs = 2", "local_epochs = 2", "training.local_epochs", "unknown key"),
        ("local-epochs = 2", 'local-epochs = "2"', "training.local-epochs", "expected `int`, got `str`"),
        ("batch-size = 7", "batch-size = 0", "training.batch-size", ">= 1"),
        ("momentum = 0.5", "momentum = 1.0", "training.momentum", "< 1"),
        ('name = "blk4"', 'name = "zip"', "codec.name", "zip"),
        ('rounding = "nearest"', 'rounding = "up"', "codec.rounding", "up"),
        ('rounding = "nearest"', "bits = 4", "codec.bits", "codec blk4 takes only rounding"),
        ('rounding = "nearest"', "bit = 4", "codec.bit", "unknown key"),
        ("minimum = 0.5", "minimum = 0", "round.minimum", "> 0"),
        ("goal = 5", "goal = -1", "round.goal", ">= 0"),
        ("insecure = true", "insecure = 1", "broker.insecure", "expected `bool`"),
        ('loss = "mse"', 'loss = "hinge"', "loss", "hinge"),
        ('name = "fed"', 'name = "Fed/1"', "name", "matching regex"),
        ("scale = 0.00392", "scale = 0.0", "data.scale", "> 0"),
    ],
)
def test_a_wrong_key_is_named_with_its_line(tmp_path: Path, old: str, new: str, key: str, what: str) -> None:
    settings.write(FULL, tmp_path)
    path = tmp_path / settings.FILE
    text = path.read_text()
    assert text.count(old) == 1, text
    line = text[: text.index(old)].count("\n") + 1
    path.write_text(text.replace(old, new))
    with pytest.raises(SettingsError) as caught:
        settings.load(tmp_path)
    message = str(caught.value)
    assert f"{path}:{line}: key '{key}'" in message
    assert what in message


def test_a_file_without_a_name_says_which_key_is_missing(tmp_path: Path) -> None:
    (tmp_path / settings.FILE).write_text('loss = "mse"\n')
    with pytest.raises(SettingsError, match=r"key 'name': missing key"):
        settings.load(tmp_path)


def test_a_folder_that_is_no_federation_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"fleetgrad new {tmp_path}")):
        settings.home(tmp_path)
