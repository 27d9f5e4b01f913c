"""The C core builds without a warning by gcc and clang, for x86-64, ARMv8 and ARMv7, alone and with the custom ops."""

from pathlib import Path

import pytest

from tests.native import programs
from tests.native.programs import Toolchain

GOLDEN = (programs.VECTORS / "golden.txt").read_text().splitlines()
EVERY = [
    pytest.param(toolchain, id=toolchain.name, marks=pytest.mark.needs(*toolchain.tools))
    for toolchain in programs.TOOLCHAINS
]


@pytest.mark.parametrize("toolchain", EVERY)
def test_the_core_builds_without_a_warning_alone_and_with_the_custom_ops(toolchain: Toolchain) -> None:
    alone, with_ops = programs.shared_objects(toolchain)
    assert b"RegisterCustomOps" not in Path(alone).read_bytes()
    assert b"RegisterCustomOps" in Path(with_ops).read_bytes()


@pytest.mark.parametrize("toolchain", EVERY)
def test_what_each_compiler_builds_gives_the_golden_bytes(toolchain: Toolchain) -> None:
    lines = programs.run_vectors(programs.vectors(toolchain), *filter(None, [toolchain.emulator]))
    assert "serial" in lines
    assert {name: text for name, text in lines.items() if text != GOLDEN} == {}
