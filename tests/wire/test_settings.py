"""Settings files: what is wrong is named by file, line and key path."""

from pathlib import Path

import msgspec
import pytest

from fleetgrad.wire.settings import SettingsError, load_toml


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    batch_size: int = 16
    rate: float = 0.5


class Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    name: str
    training: Inner = Inner()


def write(folder: Path, text: str) -> Path:
    path = folder / "federation.toml"
    path.write_text(text)
    return path


def test_a_file_becomes_its_struct(tmp_path: Path) -> None:
    read = load_toml(write(tmp_path, 'name = "a"\n[training]\nbatch-size = 8\nrate = 1\n'), Outer)
    assert read == Outer(name="a", training=Inner(batch_size=8, rate=1.0))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "a"\n\n[training]\nbach-size = 8\n', ":4: key 'training.bach-size': unknown key"),
        ('name = "a"\n[training]\nrate = 1\nbatch-size = "8"\n', ":4: key 'training.batch-size': expected `int`, got `str`"),
        ('name = 5\n', ":1: key 'name': expected `str`, got `int`"),
        ("[training]\nrate = 1\n", "key 'name': missing key"),
        ('name = "a"\nother = 1\n', ":2: key 'other': unknown key"),
        ('name = "a"\nname = "b"\n', "Cannot overwrite"),
        ("name = \n", "Invalid value"),
        ('[[name]]\na = [["b\\u0000"]]\n', "key 'name.a': a character 0"),
        ('name = "a"\n[training]\nrate = "\\u0000"\n', ":3: key 'training.rate': a character 0 stands in no path"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_named_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load_toml(path, Outer)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: No such file"):
        load_toml(tmp_path / "none.toml", Outer)
    (tmp_path / "raw.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(SettingsError, match=r"raw\.toml: not UTF-8"):
        load_toml(tmp_path / "raw.toml", Outer)


def test_a_missing_key_has_the_line_of_its_table(tmp_path: Path) -> None:
    class Outside(msgspec.Struct, forbid_unknown_fields=True):
        inside: dict[str, int]
        table: "Inside"

    with pytest.raises(SettingsError, match=r":3: key 'table.path': missing key"):
        load_toml(write(tmp_path, "[inside]\n\n[table]\n"), Outside)


class Inside(msgspec.Struct, forbid_unknown_fields=True):
    path: str
