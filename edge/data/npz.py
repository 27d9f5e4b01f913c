"""Reads samples from an .npz file; nothing in it is unpickled."""

import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleetgrad.edge.data.dataset import DataError, Dataset, fit
from fleetgrad.wire.plan import Manifest

# What zipfile and NumPy raise on damaged archives: a flipped bit may ask for a password, a zip version or a terabyte.
DAMAGED = (
    ValueError, EOFError, zipfile.BadZipFile, KeyError, zlib.error, NotImplementedError, RuntimeError, TypeError,
    OverflowError, MemoryError, tokenize.TokenError,
)  # fmt: skip


def read_arrays(path: Path, *names: str) -> tuple[NDArray[np.generic], ...]:
    """The named arrays; raises DataError that lists the names there are."""
    try:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise DataError(f"data {path}: holds one array, an .npz with {' and '.join(map(repr, names))} is needed")
        with opened as archive:
            if missing := [name for name in names if name not in archive.files]:
                raise DataError(
                    f"data {path}: no array {' and '.join(map(repr, missing))}; "
                    f"there are {', '.join(archive.files) or 'none'} (see --x and --y)"
                )
            found = tuple(archive[name] for name in names)
    except OSError as e:
        raise DataError(f"data {path}: {e.strerror or e}") from e
    except DAMAGED as e:
        if isinstance(e, DataError):
            raise
        why = "what it holds is or needs unpickling, which is never done" if "pickle" in str(e) else str(e)
        raise DataError(f"data {path}: not an .npz file of plain arrays: {why}") from e
    for name, array in zip(names, found, strict=True):
        if array.ndim == 0:
            raise DataError(f"data {path}: array {name!r} is a single number")
    return found


def load(
    path: Path,
    manifest: Manifest,
    *,
    x: str = "x",
    y: str = "y",
    scale: float = 1.0,
    shape: tuple[int, ...] | None = None,
) -> Dataset:
    """The data set in `path` as the plan feeds it; raises DataError.

    The plan's first input is the array `x`; other inputs are the arrays of their own names.
    """
    others = [feed.name for feed in manifest.inputs[1:]]
    samples, targets, *more = read_arrays(path, x, y, *others)
    named = dict(zip(others, more, strict=True))
    return fit(f"data {path.name}", samples, targets, manifest, scale=scale, shape=shape, more=named)


def count(path: Path, x: str, y: str) -> int:
    """Number of samples, without reading them: the length of the targets; raises DataError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if isinstance(archive, np.lib.npyio.NpzFile) and {x, y} <= set(archive.files):
                return len(archive[y])
    except (OSError, *DAMAGED):
        pass
    return len(read_arrays(path, x, y)[1])  # says what is wrong
