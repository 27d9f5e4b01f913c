"""A plan directory as one object: a zip of exactly its five files, stored, in order, without times, so that equal plans
have equal bytes."""

import io
import shutil
import zipfile
from pathlib import Path

from fleetgrad.wire import plan
from fleetgrad.wire.files import aside
from fleetgrad.wire.messages import MAX_OBJECT_BYTES
from fleetgrad.wire.plan import Manifest, PlanError

NAMES = (plan.MANIFEST, plan.TRAIN, plan.EVAL, plan.INFER, plan.PARAMS)
EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's zero


def pack(directory: Path) -> bytes:
    """The plan in `directory` as bytes; raises PlanError."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in NAMES:
            try:
                archive.writestr(zipfile.ZipInfo(name, EPOCH), (directory / name).read_bytes())
            except OSError as e:
                raise PlanError(f"plan {directory}: {e.strerror} ({name})") from e
    return out.getvalue()


def read_manifest(path: Path) -> Manifest:
    """The manifest in a bundle's file; raises PlanError."""
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(plan.MANIFEST)
            if entry.file_size > plan.MAX_MANIFEST_BYTES or entry.compress_type:
                raise PlanError(f"manifest of {entry.file_size} bytes, at most {plan.MAX_MANIFEST_BYTES} and stored")
            return plan.decode(archive.read(entry))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, NotImplementedError) as e:
        raise PlanError(f"plan bundle {path}: {e}") from e


def unpack(raw: bytes, directory: Path) -> None:
    """Writes a bundle's files as the new folder `directory`, which appears whole or not at all; raises PlanError."""
    temporary = aside(directory)
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = archive.infolist()
            if tuple(e.filename for e in entries) != NAMES or any(e.compress_type for e in entries):
                raise PlanError(
                    f"plan bundle holds {[e.filename for e in entries][:8]}, expected {list(NAMES)}, stored"
                )
            if sum(e.file_size for e in entries) > MAX_OBJECT_BYTES:
                raise PlanError(f"plan bundle unpacks to more than {MAX_OBJECT_BYTES} bytes")
            temporary.mkdir(parents=True)
            for entry in entries:
                (temporary / entry.filename).write_bytes(archive.read(entry))
        temporary.replace(directory)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as e:
        raise PlanError(f"plan bundle: {e}") from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
