"""Builds the fuzz targets, keeps their corpora and runs them: libFuzzer with the address and undefined-behaviour sanitizers for the C decoders
(targets/), atheris, which is libFuzzer too, for the parsers in Python (parsers.py).

    python -m tests.fuzz.harness --minutes 10 [TARGET ...]     fuzz each target for that long; `make fuzz MINUTES=10`
    python -m tests.fuzz.harness --renew [TARGET ...]          write the corpora anew: seeds by real encoders (seeds.py), then what adds coverage

A corpus is a zip file of inputs in corpus/. An input that fails is written to build/fuzz, and the command that repeats it is printed.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.native import programs

HERE = Path(__file__).parent
CORPORA = HERE / "corpus"
WORK = programs.ROOT / "build" / "fuzz"
DECODERS = tuple(sorted(path.stem for path in (HERE / "targets").glob("*.c") if path.stem != "driver"))
PARSERS = ("frame", "message", "payload", "manifest", "gate")
TARGETS = (*DECODERS, *PARSERS)
LONGEST = 4096  # bytes of an input
CORPUS_BYTES = 40_000  # of a committed corpus; the smallest inputs come first
# Comparisons in the decoders' loops are not traced: that takes two thirds of the time, and seeds are past the few constants there are.
FLAGS = (
    "-O2",
    "-g",
    "-DFG_CODECS_ONLY",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)
COVERAGE = ("-fsanitize=fuzzer-no-link", "-fno-sanitize-coverage=trace-cmp")
ENVIRONMENT = {
    "ASAN_OPTIONS": "quarantine_size_mb=8:detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


class Crashed(AssertionError):
    """An input that a target failed on: the message has the input and the command that repeats it."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a run of the fuzzer did."""

    executions: int
    coverage: int  # edges of the control flow that were reached
    seconds: int


def command_of(target: str) -> list[str]:
    """The program of a target, built if need be, without options."""
    if target in PARSERS:
        return [sys.executable, str(HERE / "parsers.py"), target]
    return [str(build(HERE / "targets" / f"{target}.c"))]


def build(source: Path) -> Path:
    """A target's program, by libFuzzer."""
    codecs = [path for path in programs.core(ort=False) if path.parent.name in ("src", "isa", "codecs")]
    core = programs.compile_objects(programs.X86_CLANG, codecs, *FLAGS, *COVERAGE)
    include = ("-I", str(HERE / "targets"))
    own = programs.compile_objects(
        programs.X86_CLANG, [HERE / "targets" / "driver.c", source], *FLAGS, *COVERAGE, *include
    )
    return programs.link(programs.X86_CLANG, f"fuzz-{source.stem}", [*core, *own], *FLAGS, "-fsanitize=fuzzer")


def read_corpus(target: str) -> list[bytes]:
    """The committed inputs of a target."""
    with zipfile.ZipFile(CORPORA / f"{target}.zip") as archive:
        return [archive.read(name) for name in archive.namelist()]


def write_corpus(target: str, inputs: Iterable[bytes]) -> int:
    """Commits inputs, the smallest first, up to CORPUS_BYTES; returns how many. The same inputs give the same file."""
    chosen: list[bytes] = []
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        if sum(map(len, chosen)) + len(data) > CORPUS_BYTES:
            break
        chosen.append(data)
    CORPORA.mkdir(exist_ok=True)
    with zipfile.ZipFile(CORPORA / f"{target}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for data in chosen:
            archive.writestr(zipfile.ZipInfo(hashlib.sha256(data).hexdigest()[:16]), data, zipfile.ZIP_DEFLATED)
    return len(chosen)


def unpack(inputs: Iterable[bytes], folder: Path) -> Path:
    """A folder that holds these inputs and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for data in inputs:
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    return folder


def fuzz(target: str, folder: Path, *options: str) -> Run:
    """Fuzzes a target from the corpus in `folder`, which grows; raises Crashed."""
    return run(command_of(target), target, folder, *options)


def run(command: Sequence[str], target: str, folder: Path, *options: str) -> Run:
    """Runs a fuzzer's program on `folder`; raises Crashed."""
    found = WORK / "found"
    found.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [*command, *options, f"-max_len={LONGEST}", f"-artifact_prefix={found}/{target}-", str(folder)],
        env={**os.environ, **ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise Crashed(_report(command, done.stdout + done.stderr))
    executions = re.search(r"Done (\d+) runs in (\d+) second", done.stderr)
    coverage = re.findall(r"cov: (\d+)", done.stderr)
    assert executions and coverage, done.stderr[-2000:]
    return Run(int(executions[1]), int(coverage[-1]), int(executions[2]))


def _report(command: Sequence[str], output: str) -> str:
    """What went wrong, the input in base64, and how to repeat it."""
    written = re.search(r"Test unit written to (\S+)", output)
    base64 = re.search(r"^Base64: (\S*)", output, re.MULTILINE)
    lines = [line for line in output.splitlines() if not re.match(r"#\d+\s|INFO:|\s+NEW_FUNC", line)]
    repeat = f"repeat it: {' '.join(command)} {written[1]}\n" if written else ""
    return f"{repeat}the input, in base64: {base64[1] if base64 else 'none was written'}\n" + "\n".join(lines[-60:])


def renew(target: str, runs: int) -> None:
    """Writes a target's corpus anew: real encoders' output and what is committed, fuzzed, then merged down to what adds coverage."""
    from tests.fuzz import seeds

    old = read_corpus(target) if (CORPORA / f"{target}.zip").exists() else []
    folder = unpack([*seeds.of(target), *old], WORK / f"{target}.grown")
    fuzz(target, folder, f"-runs={runs}", "-seed=1")
    merged = unpack([], WORK / f"{target}.merged")
    subprocess.run(
        [*command_of(target), "-merge=1", f"-max_len={LONGEST}", str(merged), str(folder)],
        env={**os.environ, **ENVIRONMENT}, capture_output=True, check=True,
    )  # fmt: skip
    inputs = [path.read_bytes() for path in merged.iterdir()]
    if target in PARSERS:  # msgspec is C code without coverage: every seed stays
        inputs += seeds.of(target)
    print(f"{target}: {write_corpus(target, inputs)} of {len(inputs)} inputs", flush=True)


def main() -> int:
    """Fuzzes for some minutes, or renews the corpora; 1 where an input failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--minutes", type=float, help="for each target")
    what.add_argument("--renew", action="store_true")
    parser.add_argument("--runs", type=int, default=100_000, help="for --renew")
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []])
    options = parser.parse_args()
    failed = 0
    for target in options.targets or TARGETS:
        try:
            if options.renew:
                renew(target, options.runs)
                continue
            folder = unpack(read_corpus(target), WORK / f"{target}.long")
            done = fuzz(target, folder, f"-max_total_time={max(1, round(60 * options.minutes))}")
            print(f"{target}: {done.executions} executions in {done.seconds} s, {done.coverage} edges", flush=True)
        except Crashed as crash:
            print(f"{target}: {crash}", flush=True)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
