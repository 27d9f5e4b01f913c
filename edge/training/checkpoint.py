"""A training's state in one file, to go on from: the model, the optimizer's moments, and what the caller wants to remember.

    "fgckpt1\\n" | u32 length of the header | header, JSON | model, moments: float32 each | SHA-256 of all before

Little-endian. The file appears whole or not at all, and is refused unless its hash is right and the plan has the same tensors.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from fleetgrad.edge.training.plan_dir import aligned
from fleetgrad.wire.files import PosixFiles, put
from fleetgrad.wire.plan import Manifest, Tensor
from fleetgrad.wire.strict import MALFORMED

MAGIC = b"fgckpt1\n"
DIGEST_BYTES = 32
MOST_MOMENTS = 2

Property = str | int | float | bool
Floats = NDArray[np.float32]


class CheckpointError(ValueError):
    """A checkpoint that can't be used; the message names the file and what is wrong."""


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    layout: str
    moments: tuple[int, ...]
    steps: int
    properties: dict[str, Property]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`model` float32[length of the plan's vector]; `moments` float32[n] as the optimizer has them; `steps` it has made."""

    model: Floats
    moments: Sequence[Floats] = ()
    steps: int = 0
    properties: dict[str, Property] = field(default_factory=dict)


def save(path: Path, manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint, durably; raises CheckpointError when it isn't the plan's or isn't finite, DiskError."""
    if checkpoint.model.shape != (manifest.length,):
        raise CheckpointError(
            f"can't save {path}: the model has {checkpoint.model.size} floats, the plan has {manifest.length}"
        )
    if len(checkpoint.moments) > MOST_MOMENTS or any(m.size > manifest.length for m in checkpoint.moments):
        raise CheckpointError(
            f"can't save {path}: at most {MOST_MOMENTS} moments of {manifest.length} floats are possible"
        )
    vectors = [np.ascontiguousarray(v, "<f4") for v in (checkpoint.model, *checkpoint.moments)]
    if not all(np.isfinite(v).all() for v in vectors):
        raise CheckpointError(f"can't save {path}: the model or a moment isn't finite")
    header = msgspec.json.encode(
        _Header(
            layout=_layout(manifest.tensors),
            moments=tuple(m.size for m in checkpoint.moments),
            steps=checkpoint.steps,
            properties=checkpoint.properties,
        )
    )
    raw = b"".join([MAGIC, struct.pack("<I", len(header)), header, *(v.tobytes() for v in vectors)])
    put(PosixFiles(path.resolve().parent), path.name, raw + hashlib.sha256(raw).digest())


def load(path: Path, manifest: Manifest) -> Checkpoint:
    """Reads a checkpoint of a plan with these tensors; raises CheckpointError, and OSError where there is no file."""
    raw = memoryview(path.read_bytes())
    body, digest = raw[:-DIGEST_BYTES], raw[-DIGEST_BYTES:]
    if bytes(raw[: len(MAGIC)]) != MAGIC:
        raise CheckpointError(f"{path} is no checkpoint: it doesn't begin with {MAGIC!r}")
    if len(body) < len(MAGIC) + 4 or hashlib.sha256(body).digest() != bytes(digest):
        raise CheckpointError(f"checkpoint {path} is damaged: its SHA-256 isn't what its end says")
    (size,) = struct.unpack_from("<I", body, len(MAGIC))
    start = len(MAGIC) + 4 + size
    try:
        header = msgspec.json.decode(body[len(MAGIC) + 4 : start], type=_Header)
    except MALFORMED as e:
        raise CheckpointError(f"checkpoint {path}: {e}") from e
    if header.layout != _layout(manifest.tensors):
        raise CheckpointError(f"checkpoint {path} is of a model with other tensors than the plan of {manifest.model!r}")
    counts = (manifest.length, *header.moments)
    if len(counts) > 1 + MOST_MOMENTS or min(counts) < 0 or 4 * sum(counts) != len(body) - start:
        raise CheckpointError(f"checkpoint {path} has {len(body) - start} bytes of floats, its header says {counts}")
    vectors = []
    for count in counts:
        vectors.append(aligned(count))
        vectors[-1][:] = np.frombuffer(body, "<f4", count, start)
        start += 4 * count
    return Checkpoint(vectors[0], tuple(vectors[1:]), header.steps, header.properties)


def _layout(tensors: Sequence[Tensor]) -> str:
    return hashlib.sha256(msgspec.json.encode(tensors)).hexdigest()
