"""Opens a plan's directory: nothing of it is used before its hash matches the manifest."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleetgrad.wire import plan
from fleetgrad.wire.plan import Manifest, PlanError

ALIGN_BYTES = 64
FILES = (plan.TRAIN, plan.EVAL, plan.INFER, plan.PARAMS)


@dataclass(frozen=True, slots=True)
class Plan:
    """A verified plan."""

    directory: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        return self.directory / name

    def initial_parameters(self) -> NDArray[np.float32]:
        """The whole flat vector, float32[length], 64-byte aligned."""
        vector = aligned(self.manifest.length)
        vector[:] = np.fromfile(self.path(plan.PARAMS), "<f4", self.manifest.length)
        return vector


def aligned(count: int) -> NDArray[np.float32]:
    """A zeroed float32[count] whose first byte lies at a multiple of 64."""
    return aligned_bytes(4 * count).view(np.float32)


def aligned_bytes(count: int) -> NDArray[np.uint8]:
    """Zeroed bytes, the first at a multiple of 64."""
    raw = np.zeros(count + ALIGN_BYTES, np.uint8)
    start = -raw.ctypes.data % ALIGN_BYTES
    return raw[start : start + count]


def open_plan(directory: Path) -> Plan:
    """Reads the manifest and checks every file against it; raises PlanError that names the file."""
    try:
        str(directory).encode()
    except UnicodeEncodeError as e:
        raise PlanError(f"plan {str(directory)!r}: onnxruntime opens no path that isn't UTF-8: rename it") from e
    manifest_path = directory / plan.MANIFEST
    try:
        if manifest_path.stat().st_size > plan.MAX_MANIFEST_BYTES:
            raise PlanError(f"plan {directory}: its manifest is larger than {plan.MAX_MANIFEST_BYTES} bytes")
        manifest = plan.decode(manifest_path.read_bytes())
    except OSError as e:
        raise PlanError(
            f"plan {directory}: {e.strerror} ({plan.MANIFEST}); 'fleetgrad-edge compile' makes a plan"
        ) from e
    if set(manifest.files) != set(FILES):
        raise PlanError(f"plan {directory}: lists {sorted(manifest.files)}, a plan has {sorted(FILES)}")
    for name, expected in manifest.files.items():
        try:
            with (directory / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as e:
            raise PlanError(f"plan {directory}: {e.strerror} ({name})") from e
        if found != expected:
            raise PlanError(
                f"plan {directory}: {name} isn't what the manifest says (SHA-256 {found[:12]}..., {expected[:12]}...)"
            )
    size = (directory / plan.PARAMS).stat().st_size
    if size != 4 * manifest.length:
        raise PlanError(
            f"plan {directory}: {plan.PARAMS} has {size} bytes, {manifest.length} floats take {4 * manifest.length}"
        )
    return Plan(directory, manifest)
