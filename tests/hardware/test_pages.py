"""Pages name only files and commands that exist."""

import re
import subprocess
from pathlib import Path

import pytest

from fleetgrad.hardware.fleet import console_script

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "wire" / "SPEC.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
SOURCE = re.compile(r"`((?:native|wire|edge|broker|hardware|tests|docs)/[\w./-]+)`")
COMMAND = re.compile(r"(?:^|`)(fleetgrad(?:-edge)?(?: device| enroll| registrar)? [a-z-]+)", re.MULTILINE)


def commands(text: str) -> set[str]:
    return set(COMMAND.findall(text))


def check_command(words: list[str]) -> None:
    """Asks a console script for the help of a subcommand, which fails when there is none."""
    done = subprocess.run(
        [console_script(words[0]), *words[1:], "--help"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, f"{words}: {done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_page_links_and_names_only_files_that_exist(page: Path) -> None:
    text = page.read_text()
    missing = [t for t in LINK.findall(text) if "://" not in t and not (page.parent / t).exists()]
    missing += [t for t in SOURCE.findall(text) if not (ROOT / t).exists()]
    assert missing == []


def test_pages_name_only_subcommands_that_exist() -> None:
    found = set().union(*(commands(p.read_text()) for p in PAGES))
    assert {"fleetgrad demo", "fleetgrad serve", "fleetgrad device add", "fleetgrad-edge run"} <= found
    for command in sorted(found):
        check_command(command.split())
