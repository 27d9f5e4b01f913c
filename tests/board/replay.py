"""One federation's work on recorded files, to be run on any machine: what it prints and writes must not depend on the architecture.

    python replay.py FOLDER [OUTPUT]

FOLDER has plan/ and one file an update, {codec}.{device}.payload (test_arm64.py makes them). Prints as JSON: for each update the SHA-256 of what it
decodes to, for each codec that of the merged model; and runs one training step, whose loss, change and update go to OUTPUT.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from fleetgrad.broker.merge import merge
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.edge.training.trainer import Trainer
from fleetgrad.native import binding
from fleetgrad.wire.codecs import decode_payload, encode_payload
from fleetgrad.wire.coding.layout import VectorLayout
from fleetgrad.wire.coding.spec import DEFAULTS, CodecSpec
from fleetgrad.wire.seeds import Keys, derive

BATCH = 16
LEARNING_RATE = 0.05
OWN = "ec-dither"  # the codec of the step's own update


def spec_of(name: str) -> CodecSpec:
    """The codec with its default parameters."""
    return CodecSpec(name=name, **DEFAULTS.get(name, {}))  # type: ignore[arg-type]


def keys_of(device: str) -> Keys:
    """Keys of a device in round 1."""
    return Keys(derive("fl1-codec", "replay", device, 1, 1), derive("fl1-ring", "replay", "", 1, 0))


def replay(folder: Path) -> dict[str, str]:
    """Hashes of what the recorded updates decode to, alone and merged."""
    opened = open_plan(folder / "plan")
    layout = VectorLayout.of(opened.manifest)
    base = opened.initial_parameters()[: layout.count].astype("<f4").tobytes()
    hashes: dict[str, str] = {}
    members: dict[str, list[tuple[str, bytes]]] = {}
    for path in sorted(folder.glob("*.payload")):
        codec, device, _ = path.name.split(".")
        members.setdefault(codec, []).append((device, path.read_bytes()))
        out = np.empty(layout.count, np.float32)
        decode_payload(path.read_bytes(), spec_of(codec), layout, keys_of(device), out)
        hashes[f"{codec}.{device}"] = hashlib.sha256(out.astype("<f4").tobytes()).hexdigest()
    for codec, payloads in members.items():
        merged = merge(base, payloads, spec_of(codec), layout, keys_of)
        hashes[f"{codec} merged"] = hashlib.sha256(merged).hexdigest()
    return hashes


def step(folder: Path, output: Path) -> None:
    """Trains on one batch; writes the change it makes, and the update of it as a payload and decoded again."""
    opened = open_plan(folder / "plan")
    layout = VectorLayout.of(opened.manifest)
    rng = np.random.default_rng(3)
    trainer = Trainer(opened)
    feed, label = opened.manifest.inputs[0], opened.manifest.label
    x = rng.random((BATCH, *feed.shape), np.float32).astype(feed.dtype)
    y = rng.integers(0, opened.manifest.output[-1], (BATCH, *label.shape)).astype(label.dtype)
    loss = trainer.step(x, y)
    _, gradients, _ = trainer.vectors()
    delta = np.zeros(layout.count, np.float32)
    delta[: gradients.size] = gradients * np.float32(-LEARNING_RATE)
    payload = encode_payload(spec_of(OWN), layout, delta, keys=keys_of("own"), weight=1, steps=1, loss=float(loss))
    decoded = np.empty(layout.count, np.float32)
    decode_payload(payload, spec_of(OWN), layout, keys_of("own"), decoded)
    output.mkdir(parents=True, exist_ok=True)
    (output / "own.bin").write_bytes(payload)
    np.savez(output / "step.npz", delta=delta, decoded=decoded, loss=np.float64(loss))


if __name__ == "__main__":
    found = replay(Path(sys.argv[1]))
    if len(sys.argv) > 2:
        step(Path(sys.argv[1]), Path(sys.argv[2]))
    print(json.dumps({"capability": binding.capability(), "hashes": found}))
