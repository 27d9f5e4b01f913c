"""A user's ONNX file as a whole, valid model in memory; what isn't one is refused in words.

protobuf gives strings that aren't UTF-8 as bytes, where all that follows (onnx's own helpers too) expects str.
"""

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import Message
from onnx import external_data_helper, numpy_helper

from fleetgrad.edge.autodiff.errors import ModelError, first_line
from fleetgrad.edge.autodiff.registry import reads
from fleetgrad.wire import plan


def load(model: bytes | Path | onnx.ModelProto) -> onnx.ModelProto:
    """The model with all its weights in memory; raises ModelError for whatever isn't a whole ONNX file."""
    if isinstance(model, onnx.ModelProto):
        found = onnx.ModelProto()
        found.CopyFrom(model)
        where = "model"
    else:
        where = str(model) if isinstance(model, Path) else "model"
        try:
            raw = model.read_bytes() if isinstance(model, Path) else model
        except OSError as e:
            raise ModelError(f"can't read {where}: {e.strerror}") from e
        try:
            found = onnx.ModelProto.FromString(raw)
        except Exception as e:
            raise ModelError(f"{where} isn't an ONNX file, or is cut short ({len(raw):,} bytes)") from e
    if garbled := next(_garbled(found), None):
        raise ModelError(f"{where} isn't a valid ONNX model: its {garbled[0]} {garbled[1]!r} is no UTF-8 text")
    if not found.graph.node:
        raise ModelError(f"{where} isn't an ONNX model with a graph: it has no nodes")
    outside = [
        t.name for t in external_data_helper._get_all_tensors(found) if external_data_helper.uses_external_data(t)
    ]
    if outside:
        if not isinstance(model, Path):
            raise ModelError(f"weights {outside[0]!r} ... lie in another file: give the model's path, not its bytes")
        try:
            external_data_helper.load_external_data_for_model(found, str(model.parent))
        except Exception as e:
            raise ModelError(
                f"{where}: weights {outside[0]!r} ... lie in a file that can't be read: {first_line(e)}"
            ) from e
    _settle(found)
    try:
        onnx.checker.check_model(found)
    except Exception as e:
        raise ModelError(f"{where} isn't a valid ONNX model: {first_line(e)}") from e
    if odd := next(_odd(found), None):
        raise ModelError(f"{where} isn't a valid ONNX model: {odd}")
    values = [
        *(v.name for v in (*found.graph.input, *found.graph.initializer)),
        *(name for node in found.graph.node for name in node.output),
    ]
    if taken := next((name for name in values if name.startswith(plan.RESERVED)), None):
        raise ModelError(f"value {taken!r}: names that begin with {plan.RESERVED!r} are the plan's own: rename it")
    return found


def _settle(model: onnx.ModelProto) -> None:
    """Batch normalisation that was exported in training mode, as it is in use: the plan says how it is trained.

    Its second outputs, and the masks of Dropout, go where nothing reads them; a quantizer's nodes that nothing reads, too.
    """
    used = {o.name for o in model.graph.output}
    for node in reversed(list(model.graph.node)):
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"} and used.isdisjoint(node.output):
            model.graph.node.remove(node)
        else:
            used |= reads(node)
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            for attribute in node.attribute:
                if attribute.name == "training_mode":
                    attribute.i = 0
        if node.op_type in {"BatchNormalization", "Dropout"} and not used.intersection(node.output[1:]):
            del node.output[1:]


def _garbled(message: Message) -> Iterator[tuple[str, bytes]]:
    """Texts of the message, and of those in it, that aren't UTF-8, with the names of their fields."""
    for field, value in message.ListFields():
        if field.type not in {field.TYPE_STRING, field.TYPE_MESSAGE}:
            continue
        for item in [value] if isinstance(value, (str, bytes, Message)) else value:
            if isinstance(item, bytes):
                yield field.name, item
            elif isinstance(item, Message):
                yield from _garbled(item)


def _odd(model: onnx.ModelProto) -> Iterator[str]:
    """What onnx's checker lets pass: tensors whose numbers don't fill their shape, constants without a value."""
    for tensor in external_data_helper._get_all_tensors(model):
        try:
            numpy_helper.to_array(tensor)
        except Exception as e:  # noqa: BLE001 - onnx and NumPy raise whatever a wrong size or type leads to
            yield f"its tensor {tensor.name!r} of {list(tensor.dims)} values of type {tensor.data_type} can't be read: {first_line(e)}"
    for node in model.graph.node:
        if node.op_type == "Constant" and not node.attribute:
            yield f"its constant {node.output[0]!r} has no value"
