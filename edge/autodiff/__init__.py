"""ONNX forward graph -> training plan, by reverse-mode differentiation; runs once, on the operator's machine.

    loading    a whole, valid model, or words                 registry   VJP rules and the reverse pass
    front      brings it to one opset, knows its values
    measuring  runs it: shapes, what never changes            hidden     weights that are no initializers
    graph      emits nodes                                    rules/     the rules, a file per family of ops
    losses     what training makes small                      compiling  makes the plan of all this
    statistics batch normalisation in training                dropout    masks that are fed
    choosing   which weights train                            adapters   factors beside weights that don't
    assembling the plan's graphs                              prologue   what computes the user's weights in use
    survey     what can train                                 exporting  the plan's folder, the trained model
    zoo        models for demos and tests                     checker    rules against finite differences
    rehearsal  what a step takes and gives
    fidelity   int8 gradients against fp32                    quantized  integer weights, pairs of Q and DQ
    passes/    what makes an assembled graph smaller

It needs the package `onnx` (the extra [compile]).
"""

from fleetgrad.edge.autodiff import rules  # importing registers them
from fleetgrad.edge.autodiff.compiling import compile_model
from fleetgrad.edge.autodiff.errors import ModelError, UnsupportedModel
from fleetgrad.edge.autodiff.exporting import export_model
from fleetgrad.edge.autodiff.survey import Survey, survey

__all__ = [
    "ModelError",
    "Survey",
    "UnsupportedModel",
    "compile_model",
    "export_model",
    "rules",
    "survey",
]
