"""Held-out accuracy after the whole demo with int8 weight gradients against fp32: five seeds each, real processes."""

import json
import subprocess
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from fleetgrad.hardware.fleet import console_script

SEEDS = range(5)
MOST_POINTS = 0.5


def last_accuracy(gradients: str, seed: int, runs: str) -> float:
    """Accuracy of a demo's last round, in percent."""
    name = f"{gradients}-{seed}"
    subprocess.run(
        [
            console_script("fleetgrad"), "demo", "--gradients", gradients, "--seed", str(seed), "--runs", runs,
            "--name", name,
        ],
        check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    last = (Path(runs) / name / "rounds.jsonl").read_text().splitlines()[-1]
    return 100 * float(json.loads(last)["accuracy"])


def rows() -> list[dict[str, Any]]:
    """The two means and their difference in points, which is bounded."""
    with tempfile.TemporaryDirectory() as runs:
        found = {g: [last_accuracy(g, seed, runs) for seed in SEEDS] for g in ("int8", "fp32")}
    table: list[dict[str, Any]] = [
        {
            "figure": f"accuracy after 15 rounds, {g}, mean of {len(SEEDS)} seeds ({min(a):.2f} to {max(a):.2f})",
            "value": mean(a), "unit": "%", "bound": None, "holds": None, "peer": "",
        }
        for g, a in found.items()
    ]  # fmt: skip
    lost = mean(found["fp32"]) - mean(found["int8"])
    table.append(
        {
            "figure": "accuracy lost to int8 gradients", "value": lost, "unit": "points", "bound": MOST_POINTS,
            "holds": abs(lost) <= MOST_POINTS, "peer": "fp32 gradients",
        }
    )  # fmt: skip
    return table
