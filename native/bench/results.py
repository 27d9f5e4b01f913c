"""Rows of the native benches and the page they make: RESULTS.md, from one run on one machine.

A row is {figure, value, unit, bound, holds, peer}; `bound` is the least value that keeps a promise, or with "most": True the
greatest. A row that couldn't be measured has no value, and its peer says why: a missing row would look like a kept promise.
"""

import platform
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def at_most(figure: str, value: float, unit: str, peer: str, bound: float) -> dict[str, Any]:
    """A row whose promise is that the value is no greater than the bound."""
    return {
        "figure": figure, "value": value, "unit": unit, "bound": bound, "holds": value <= bound, "peer": peer, "most": True,
    }  # fmt: skip


def skipped(figure: str, reason: str, bound: float | None = None) -> dict[str, Any]:
    """A row that couldn't be measured here."""
    return {
        "figure": figure, "value": None, "unit": "", "bound": bound, "holds": None, "peer": f"skipped: {reason}",
    }  # fmt: skip


def bound_text(found: Row) -> str:
    """'>= 60', '<= 1.02' or nothing."""
    if found["bound"] is None:
        return ""
    return f"{'<=' if found.get('most') else '>='} {found['bound']:g}"


def value_text(found: Row) -> str:
    """The value to four digits, or a dash."""
    value = found["value"]
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def state_text(found: Row) -> str:
    """Whether a promise is kept; nothing where there is none."""
    if found["bound"] is None:
        return ""
    return "not measured" if found["holds"] is None else "yes" if found["holds"] else "**missed**"


def processor() -> str:
    """Name of the CPU, how many cores of it there are, and its vector units."""
    info: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            info[key.strip()] = value.strip()
    name = info.get("model name") or platform.processor() or platform.machine()
    family = f" (family {info['cpu family']}, model {info['model']})" if "cpu family" in info else ""
    return f"{name}{family}"


def compiler() -> str:
    """The compiler that this machine builds with, first line of its version."""
    for name in ("gcc", "cc", "clang"):
        if shutil.which(name):
            return subprocess.run([name, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[
                0
            ]
    return "none"


def versions(*packages: str) -> str:
    """'numpy 2.4.6, torch: not installed, ...'."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package}: not installed")
    return ", ".join(found)


def page(tables: Mapping[str, Sequence[Row]], cores: int, capability: str) -> str:
    """The text of RESULTS.md."""
    everything = [r for table in tables.values() for r in table]
    promised = [r for r in everything if r["bound"] is not None]
    held = sum(r["holds"] is True for r in promised)
    missed = sum(r["holds"] is False for r in promised)
    unmeasured = len(promised) - held - missed
    lines = [
        "# Figures of the C core",
        "",
        "Written by `make bench-native`; each ratio is of one run, best of several, peer and kernel in the same process.",
        "",
        f"* Machine: {processor()}, {cores} cores, kernels for {capability}",
        f"* Date: {time.strftime('%Y-%m-%d')}; {platform.system()} {platform.release()}; {compiler()}",
        f"* Python {platform.python_version()}, {versions('numpy', 'onnxruntime', 'torch')}",
        f"* Promises: {held} kept, {missed} missed, {unmeasured} not measured here",
    ]
    for name, table in tables.items():
        lines += [
            "",
            f"## {name}",
            "",
            "| figure | value | unit | promised | kept | beside |",
            "|---|---:|---|---|---|---|",
        ]
        for r in table:
            cells = (r["figure"], value_text(r), r["unit"], bound_text(r), state_text(r), r["peer"])
            lines.append("| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"
