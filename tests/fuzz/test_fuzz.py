"""Fuzzing with a fixed number of executions: no decoder and no parser crashes, reads beyond its input, or accepts what it shouldn't."""

import re
from pathlib import Path

import pytest

from tests.fuzz import harness
from tests.native import programs

EXECUTIONS = 100_000

CASES = [
    *(pytest.param(target, marks=pytest.mark.needs("clang")) for target in harness.DECODERS),
    *(pytest.param(target, marks=pytest.mark.needs("atheris")) for target in harness.PARSERS),
]

# A decoder that trusts its input in one place: it writes where the payload says.
PLANTED = """
#include "fuzz.h"
size_t target_size(const Input *input) { return input->n; }
size_t target_output(const Input *input) { return input->n; }
int target_floats(void) { return 0; }
int target_decode(const Input *input, void *output, size_t *where) {
  *where = 0;
  memset(output, 0, input->n);
  if (input->n > 4 && input->payload[0] > 'x') ((uint8_t *)output)[input->payload[1]] = 1;
  return FG_OK;
}
void target_accepted(const Input *input, const void *output) { (void)input, (void)output; }
"""


@pytest.mark.parametrize("target", CASES)
def test_no_input_of_a_hundred_thousand_breaks_it(target: str, tmp_path: Path, seed: int) -> None:
    number = seed % 2**31 or 1
    folder = harness.unpack(harness.read_corpus(target), tmp_path / "corpus")
    done = harness.fuzz(target, folder, f"-runs={EXECUTIONS}", f"-seed={number}")
    print(f"{target}: {done.executions} executions in {done.seconds} s, {done.coverage} edges, seed {number}")
    assert done.executions >= EXECUTIONS


@pytest.mark.needs("clang")
def test_a_planted_overflow_is_found_and_reported_with_its_input(tmp_path: Path) -> None:
    source = tmp_path / "planted.c"
    source.write_text(PLANTED)
    folder = harness.unpack([bytes([9]) + bytes(17)], tmp_path / "corpus")
    with pytest.raises(harness.Crashed, match="heap-buffer-overflow") as crash:
        harness.run([str(harness.build(source))], "planted", folder, f"-runs={EXECUTIONS}", "-seed=1")
    found = re.search(r"repeat it: \S+ (\S+)\nthe input, in base64: \S", str(crash.value))
    assert found
    assert Path(found[1]).read_bytes()[8] > ord("x")


@pytest.mark.parametrize("target", harness.TARGETS)
def test_a_corpus_is_committed(target: str) -> None:
    inputs = harness.read_corpus(target)
    assert len(inputs) >= (10 if target in harness.DECODERS else 1)
    assert sum(map(len, inputs)) <= harness.CORPUS_BYTES


def test_every_decoder_of_the_headers_has_a_target() -> None:
    headers = "\n".join(path.read_text() for path in (programs.NATIVE / "include" / "fleetgrad").glob("*.h"))
    sources = "\n".join(path.read_text() for path in (harness.HERE / "targets").glob("*.c"))
    decoders = re.findall(r"X\(\w+, (\w+_(?:decode|unpack)),", headers)
    assert len(decoders) >= 8
    assert [name for name in decoders if f"fg_{name}" not in sources] == []
