"""Reads a TOML file into a strict struct, and writes its tables: an unknown or ill-typed key is named with its path and its line."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")

MOST_SECONDS = 366 * 86400  # that anyone waits: a queue's wait overflows at 2**63 nanoseconds


class SettingsError(ValueError):
    """A settings file that can't be used; the message names the file, the line and the key."""


def load_toml(path: Path, type: type[T]) -> T:  # noqa: A002
    """The file as an instance of `type`, a msgspec struct with forbid_unknown_fields; raises SettingsError."""
    try:
        text = path.read_text("utf-8")
    except OSError as e:
        raise SettingsError(f"settings file {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise SettingsError(f"settings file {path}: not UTF-8: {e.reason} at byte {e.start}") from e
    try:
        found = tomllib.loads(text)
        if key := next(_null(found), None):
            line = _line_of(text, key.split("."))
            raise SettingsError(
                f"settings file {f'{path}:{line}' if line else path}: key '{key}': a character 0 stands in no path, address or name"
            )
        return msgspec.convert(found, type, strict=True)
    except tomllib.TOMLDecodeError as e:
        raise SettingsError(f"settings file {path}: {e}") from e
    except msgspec.ValidationError as e:
        raise SettingsError(_explain(path, text, str(e))) from e


def _null(value: object, key: str = "") -> Iterator[str]:
    """Keys of texts with a character 0, which no file's name can have."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _null(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for inner in value:
            yield from _null(inner, key)
    elif isinstance(value, str) and "\0" in value:
        yield key


def toml_lines(table: msgspec.Struct) -> list[str]:
    """The fields of a struct of plain values as lines of a TOML table; what is None is left out."""
    return [f"{key} = {toml_value(value)}" for key, value in msgspec.to_builtins(table).items() if value is not None]


def toml_value(value: object) -> str:
    """A plain value, or a list of such, as TOML."""
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    text = msgspec.json.encode(value).decode()  # strings, numbers and booleans are written alike, but for one letter
    return text.replace("\x7f", "\\u007f")


def _explain(path: Path, text: str, message: str) -> str:
    """msgspec says "Object contains unknown field `x` - at `$.a.b`"; people want the file, the line and a.b.x."""
    what, _, at = message.partition(" - at `$")
    keys = [k for k in at.rstrip("`").split(".") if k]
    if named := re.match(r"field `([^`]+)`: (.*)", what):  # a struct's own check names the field first
        keys.append(named.group(1))
        what = named.group(2)
    if unknown := re.search(r"(unknown|missing required) field `([^`]+)`", what):
        keys.append(unknown.group(2))
        what = "unknown key" if unknown.group(1) == "unknown" else "missing key"
    line = _line_of(text, keys) or (_line_of(text, keys[:-1]) if unknown else None)  # a missing key: its table's line
    place = f"{path}:{line}" if line else str(path)
    return (
        f"settings file {place}: key '{'.'.join(keys)}': {what[:1].lower()}{what[1:]}" if keys else f"{place}: {what}"
    )


def _line_of(text: str, keys: list[str]) -> int | None:
    """Line of the key `a.b.c` ([a.b] then c = ...), or None where it isn't written that plainly."""
    if not keys:
        return None
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            table = header.group(1)
            if table == ".".join(keys):
                return number
        elif (assignment := re.match(r"\s*([\w-]+)\s*=", line)) and (
            [*table.split("."), assignment.group(1)] if table else [assignment.group(1)]
        ) == [re.sub(r"\[.*", "", k) for k in keys]:
            return number
    return None
