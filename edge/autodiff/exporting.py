"""What leaves the compiler as files: the plan's folder, its inference graph, and the trained model as one ONNX file."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from fleetgrad.edge.autodiff import prologue
from fleetgrad.edge.autodiff.errors import ModelError, first_line
from fleetgrad.edge.training import gate
from fleetgrad.edge.training.plan_dir import open_plan
from fleetgrad.wire import plan
from fleetgrad.wire.files import aside

LITTLE = np.dtype("<f4")


def inference(source: onnx.ModelProto, tensors: Iterable[plan.Tensor]) -> onnx.ModelProto:
    """The user's model with the flat vector's tensors as external data of params.bin."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    own = {t.name: t for t in model.graph.initializer}
    for tensor in tensors:
        proto = onnx.TensorProto(
            name=tensor.name, dims=tensor.shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
        )
        for key, value in (("location", plan.PARAMS), ("offset", 4 * tensor.offset), ("length", 4 * tensor.size)):
            proto.external_data.add(key=key, value=str(value))
        own[tensor.name].CopyFrom(proto)
    return model


def check_target(path: Path) -> None:
    """Raises ModelError where a file can't be put: no such folder, or a folder, device or pipe is there."""
    if not path.parent.is_dir():
        raise ModelError(f"can't write {path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():  # the rename below would replace /dev/null itself
        raise ModelError(f"can't write {path}: it is no ordinary file")


def export_model(plan_dir: Path, params: NDArray[np.float32], path: Path) -> None:
    """Writes the user's model with `params` (the flat vector, float32 [length]) as one self-contained ONNX file, which has his
    own initializers: adapters are merged into their weights.

    Raises ModelError when the vector's length or type isn't the plan's or `path` is no place for a file, PlanError when the
    folder's files aren't those of a plan.
    """
    check_target(path)
    opened = open_plan(plan_dir)
    manifest, raw = opened.manifest, opened.path(plan.INFER).read_bytes()
    gate.check(plan.INFER, raw, manifest)
    if params.dtype != np.float32 or params.shape != (manifest.length,):
        raise ModelError(
            f"can't export: the vector is {params.dtype} {list(params.shape)}, the plan has float32 [{manifest.length}]"
        )
    try:
        model = onnx.ModelProto.FromString(raw)
        own = {t.name: t for t in model.graph.initializer}
        for tensor in manifest.tensors:
            values = params[tensor.offset : tensor.offset + tensor.size].reshape(tensor.shape)
            own[tensor.name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, LITTLE), tensor.name))
        prologue.fold(model)
    except Exception as e:  # protobuf's and onnxruntime's errors share no base
        raise ModelError(
            f"can't export: {opened.path(plan.INFER)} isn't a model with the plan's weights: {first_line(e)}"
        ) from e
    temporary = aside(path)
    try:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_folder(output: Path) -> None:
    """Raises ModelError where a plan can't be put: something else is there, or one of the folders above it is a file."""
    for above in output.parents:
        if above.exists() and not above.is_dir():
            raise ModelError(f"can't write the plan {output}: {above} is no folder")
    if (
        output.exists()
        and not (output / plan.MANIFEST).is_file()
        and not (output.is_dir() and not any(output.iterdir()))
    ):
        raise ModelError(
            f"won't overwrite {output}: it isn't a plan (it has no {plan.MANIFEST}); choose another output"
        )


def write(files: dict[str, bytes], output: Path) -> None:
    """Writes a plan directory beside its place and moves it there; replaces nothing but a plan. Raises as check_folder, or OSError."""
    check_folder(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        for file, raw in files.items():
            (temporary / file).write_bytes(raw)
        temporary.chmod(0o755)
        if output.exists():
            shutil.rmtree(output)
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
