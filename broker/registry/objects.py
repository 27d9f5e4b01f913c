"""Content-addressed objects of a federation's directory: objects/{sha256}."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleetgrad.edge.training.plan_dir import Plan, open_plan
from fleetgrad.wire import bundle
from fleetgrad.wire.files import Files, put
from fleetgrad.wire.messages import ObjectRef

FOLDER = "objects"


class ObjectError(ValueError):
    """An object that isn't what its name says."""


def store(files: Files, raw: bytes) -> ObjectRef:
    """Stores bytes under their hash, durably; nothing is written if they are there."""
    ref = ObjectRef(sha256=hashlib.sha256(raw).hexdigest(), size=len(raw))
    name = f"{FOLDER}/{ref.sha256}"
    try:
        if files.read(name) == raw:
            return ref
    except FileNotFoundError:
        pass
    put(files, name, raw)
    return ref


def verified(files: Files, sha256: str) -> bytes:
    """The bytes of an object; raises ObjectError if they are missing or changed."""
    try:
        raw = files.read(f"{FOLDER}/{sha256}")
    except FileNotFoundError:
        raise ObjectError(f"object {sha256[:16]} is missing from {FOLDER}/") from None
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise ObjectError(f"object {sha256[:16]} in {FOLDER}/ has changed: its bytes aren't those of its name")
    return raw


def fitting(files: Files, sha256: str, plan: Plan) -> bytes:
    """A version's verified params; raises ObjectError too where they are no params of this plan."""
    raw, expected = verified(files, sha256), 4 * plan.manifest.travels
    if len(raw) != expected:
        raise ObjectError(
            f"the published model has {len(raw) // 4:,} floats, the plan {expected // 4:,}: was the plan replaced? "
            "Put the old one back, or make another federation with 'fleetgrad new'"
        )
    return raw


def initial(files: Files, directory: Path) -> tuple[Plan, ObjectRef, ObjectRef]:
    """The compiled plan in `directory`/plan, its bundle's object and its initial params' object."""
    plan = open_plan(directory / "plan")
    params = plan.initial_parameters()[: plan.manifest.travels]
    return plan, store(files, bundle.pack(plan.directory)), store(files, params.astype("<f4").tobytes())


def whole_vector(plan: Plan, params: bytes) -> NDArray[np.float32]:
    """A version's params and the plan's other tensors as the plan's whole flat vector."""
    vector = plan.initial_parameters()
    vector[: plan.manifest.travels] = np.frombuffer(params, "<f4")
    return vector
